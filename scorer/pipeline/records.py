"""What a micro-batch is made of: records as they were read, control records and what they come to, refusals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.hashing import hash_strings
from schemas.contract_error import ContractError
from schemas.control_record import Control, parse_control
from schemas.journal_record import Change, ControlRange, InputRange, Sources
from schemas.payment_decoder import PaymentBatch, decode_payments


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

    def decode(self) -> PaymentBatch:
        """The payments among them, and the refusals."""
        return decode_payments(self.values, self.keys)

    def payload(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """A hash of the bytes of each of `rows`, uint64, which tells a payment sent again from another of its id."""
        return hash_strings([self.values[i] for i in rows.tolist()])[0][:, 0].copy()


@dataclass(frozen=True)
class ControlRecord:
    """One record of the control topic."""

    offset: int
    key: bytes | None
    value: bytes | None


class KnownLabel(NamedTuple):
    """What a label record comes to."""

    payment_id: str
    fraud: bool
    known_at_ms: int


class LabelRecords(Sequence[ControlRecord]):
    """Control records that are labels of a file, most of them known without their JSON."""

    @abstractmethod
    def verdicts(self) -> Iterable[KnownLabel | ControlRecord]:
        """Each one, as it is or as the record that has to be parsed."""


def control_verdicts(control: Sequence[ControlRecord]) -> Iterator[Control | KnownLabel | ContractError]:
    """What each control record says, or why it is refused, in order."""
    source: Iterable[KnownLabel | ControlRecord] = control.verdicts() if isinstance(control, LabelRecords) else control
    for record in source:
        if isinstance(record, KnownLabel):
            yield record
            continue
        try:
            yield parse_control(record.value)
        except ContractError as error:
            yield error


@dataclass(frozen=True)
class Batch:
    """What one micro-batch consumes: records, control records that apply before them, and the positions they move.

    `degraded`: decide without the model, because a deadline is near. A clock's choice, so it comes in as data.
    `sources`: ids of the topics that were read. `change`: what an operator accepted; then there is nothing to decide.
    """

    records: Records
    inputs: Sequence[InputRange]
    control: Sequence[ControlRecord]
    control_range: ControlRange
    degraded: bool = False
    sources: Sources | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Rejected:
    """A record that could not become a payment or a control record: which, and why."""

    index: int
    error: ContractError
