"""What a micro-batch is made of: records as they were read, control records and what they come to, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from features.hashing import PUBLIC_KEY, hash_rows
from schemas import row_set
from schemas.byte_column import ByteColumn
from schemas.card_fields import UNDECLARED, CardFields
from schemas.contract_error import ContractError
from schemas.control_record import Control, parse_control, parse_label
from schemas.journal_record import ActivationVerdict, Change, ControlRange, InputRange, SnapshotDigest, Sources
from schemas.label_record import Label
from schemas.payment_batch import PaymentBatch
from schemas.payment_decoder import decode_payments, refuse_single_value

# The timestamp of records that no broker has stamped: no event time is later than it allows.
NO_CLOCK_MS = 1 << 62


@dataclass(frozen=True)
class Records:
    """n records as they were read, of any partitions of the payments topic, each partition in offset order.

    partition int32 [n] · offset int64 [n] · timestamp_ms int64 [n] (the broker's) · keys and values: bytes or None
    """

    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    timestamp_ms: npt.NDArray[np.int64]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(int(c.offsets[-1] - c.offsets[0]) for c in map(ByteColumn.of, (self.keys, self.values)))

    def decode(self, cards: CardFields = UNDECLARED) -> PaymentBatch:
        """The payments among them, and the refusals; `cards` declares what may hold a card number."""
        return decode_payments(self.values, self.keys, cards=cards)

    def payload(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """A hash of the bytes of each of `rows`, uint64, which tells a payment sent again from another of its id."""
        values = ByteColumn.of(self.values)
        found = np.empty(len(rows), dtype=np.uint64)
        hash_rows(values.data, values.offsets, rows, PUBLIC_KEY, found)
        return found


@dataclass(frozen=True)
class ControlRecord:
    """One record of topic control or labels."""

    offset: int
    key: bytes | None
    value: bytes | None


class KnownLabel(NamedTuple):
    """A label whose record need not be parsed."""

    payment_id: str
    fraud: bool
    known_at_ms: int


@dataclass(frozen=True)
class Batch:
    """What one micro-batch consumes: records, control records and labels that apply before them, and the positions they
    move. `labels_range` None: topic labels was not read, as before there was one.

    `degraded`: bool [n], which of the records are decided without the model, their deadline being near; None: none.
    A clock's choice, so it comes in as data. `created_ms_max`: what a timestamp of a producer counts as at most; None
    when all are the broker's.
    `pseudonym_key`: id of the key that token fields were replaced with before; None: the first one known.
    `answer_refused`: refused records that name their payment are answered; releases before 0.2 did not.
    `labels_by_arrival`: of several labels of a payment the one that comes last counts, not the one that became known
    last; so it was in releases before 0.2.
    `sources`: ids of the topics that were read. `change`: what an operator accepted; then there is nothing to decide.
    `snapshot`: one that was written meanwhile, for the journal to name.
    `salt`: 32 random bytes under which the personal columns are digested; `digest`: of a batch that is decided again,
    as the journal has it, since the salt is not known then. Neither: the digest has no salt.
    `order`: the offset on topic order up to which that log is settled with this batch; None without such a log.
    `known_labels`: of each control record the label that it is known to hold, so that it need not be parsed, or None;
    empty when nothing is known. `activations`: what became of the activations among `control`; whoever runs the batch
    has let the one that was taken decide.
    """

    records: Records
    inputs: Sequence[InputRange]
    control: Sequence[ControlRecord]
    control_range: ControlRange
    labels: Sequence[ControlRecord] = ()
    labels_range: ControlRange | None = None
    degraded: npt.NDArray[np.bool_] | None = None
    created_ms_max: int | None = None
    sources: Sources | None = None
    change: Change | None = None
    snapshot: SnapshotDigest | None = None
    salt: bytes | None = None
    digest: str | None = None
    known_labels: Sequence[KnownLabel | None] = ()
    pseudonym_key: str | None = None
    answer_refused: bool = True
    labels_by_arrival: bool = False
    activations: Sequence[ActivationVerdict] = ()
    order: int | None = None

    @property
    def labels_by(self) -> Literal["known_at"] | None:
        """Which of several labels of a payment counts, as journal and order log have it."""
        return None if self.labels_by_arrival or self.change is not None else "known_at"

    def degraded_fields(self) -> tuple[bool, str | None]:
        """`degraded` as a journal record has it: whether any is, and which ones unless it is all."""
        if self.degraded is None or not self.degraded.any():
            return False, None
        return True, None if self.degraded.all() else row_set.to_text(self.degraded)

    @classmethod
    def of_payments(cls, values: Sequence[bytes | None], *, first_offset: int = 0) -> Batch:
        """Payments as JSON, without a broker: one partition, offsets from `first_offset` on, no control records.

        Without a broker's clock no event time is too far in the future. Raises TypeError for a single payment.
        """
        refuse_single_value(values)
        n = len(values)
        records = Records(
            partition=np.zeros(n, np.int32),
            offset=np.arange(first_offset, first_offset + n, dtype=np.int64),
            timestamp_ms=np.full(n, NO_CLOCK_MS, np.int64),
            keys=[None] * n,
            values=values,
        )
        inputs = (InputRange(partition=0, start=first_offset, end=first_offset + n),)
        return cls(records, inputs, (), ControlRange(start=0, end=0))


def control_verdicts(batch: Batch, cards: CardFields = UNDECLARED) -> Iterator[Control | KnownLabel | ContractError]:
    """What each control record of the batch says, or why it is refused, in order."""
    known: Iterable[KnownLabel | None] = batch.known_labels or repeat(None, len(batch.control))
    for i, label in enumerate(known):
        if label is not None:
            yield label
            continue
        try:
            yield parse_control(batch.control[i].value, cards=cards)
        except ContractError as error:
            yield error


def label_verdicts(batch: Batch, cards: CardFields = UNDECLARED) -> Iterator[Label | ContractError]:
    """The same for the records of topic labels, which takes nothing else: whoever may send labels may not choose the
    bundle or change a list."""
    for record in batch.labels:
        try:
            yield parse_label(record.value, cards=cards)
        except ContractError as error:
            yield error


@dataclass(frozen=True)
class Rejected:
    """A record that could not become a payment or a control record: which, and why; of a payment the id, where it can
    be read."""

    index: int
    error: ContractError
    payment_id: str | None = None
