"""The first half of the pure core: bytes to payments in journal order with their features, the windows moved on.

The training export stops here; the pipeline goes on to score and decide. Both run this very code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.engine_image import Image
from features.feature_set import FeatureSet
from features.hashing import hash_places
from features.window_engine import WindowEngine
from schemas.card_fields import CardFields
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.field_table import POSITION_FIELDS
from schemas.flags import every, some
from schemas.payment_batch import PaymentBatch
from scorer.pipeline.dedupe import UNKNOWN, Dedupe
from scorer.pipeline.ordering import journal_order
from scorer.pipeline.records import Records, Rejected
from scorer.pipeline.refused_answers import Refusals, known_before, placed

_NO_STREAM_TIME = -(1 << 62)


@dataclass(frozen=True)
class Enriched:
    """n payments in journal order, m of them fresh (not repeated).

    rows int64 [n]: place of each in the batch's records · entry int64 [n], duplicate and conflict bool [n]: from the
    dedupe table · fresh int64 [m]: positions of the fresh ones · first: the fresh payments · features float32 [m, F]
    and late bool [m] belong to those · rejected: the refused records, refusals: those that name their payment ·
    stream_ms: stream time before the batch, -1 for none
    """

    payments: PaymentBatch
    rows: npt.NDArray[np.int64]
    entry: npt.NDArray[np.int64]
    duplicate: npt.NDArray[np.bool_]
    conflict: npt.NDArray[np.bool_]
    fresh: npt.NDArray[np.int64]
    first: PaymentBatch
    features: npt.NDArray[np.float32]
    late: npt.NDArray[np.bool_]
    rejected: list[Rejected]
    refusals: Refusals
    stream_ms: int


class RowSelector(Protocol):
    """Chooses the payments that this process computes, where several share one stream.

    Repeated payments and stream time are found among all payments; features and decisions are those of the chosen ones.
    """

    @property
    def stream_time_ms(self) -> int | None:
        """Largest event time of all payments so far, chosen or not; None before the first."""

    @property
    def reports_rejected(self) -> bool:
        """Whether this process reports the records that were refused: exactly one of them does."""

    def select(
        self,
        payments: PaymentBatch,
        ids: npt.NDArray[np.uint64],
        duplicate: npt.NDArray[np.bool_],
        stream_ms: int,
    ) -> npt.NDArray[np.int64]:
        """Positions of the chosen payments, int64 [m], of n in journal order: their id hashes uint64 [n, 2], which
        of them repeat one, and stream time before the batch."""


class Enricher:
    """The windows and the dedupe table of one shard."""

    def __init__(
        self,
        feature_set: FeatureSet,
        *,
        images: Mapping[str, Image] | None = None,
        folder: Path | None = None,
        selector: RowSelector | None = None,
    ) -> None:
        """`images`: of engine and dedupe table, to go on from. `folder`: of the event log; in memory without.
        `selector`: compute only the payments that it chooses.

        Raises StateMismatch when the images do not fit, SegmentError when the folder cannot be used.
        """
        self.feature_set = feature_set
        self.dedupe = Dedupe(horizon_ms=feature_set.dedupe_horizon, capacity=feature_set.dedupe_capacity)
        if images is None:
            self.engine = WindowEngine(feature_set, folder=folder)
        else:
            self.dedupe.restore(images["dedupe"])
            self.engine = WindowEngine.restore(feature_set, images["engine"], folder=folder)
        self._selector = selector

    def enrich(self, records: Records, cards: CardFields, *, labels_by_arrival: bool = False) -> Enriched:
        """Decode, order, find repeated payments, compute features. Every record ends in `payments` or in `rejected`.

        `cards`: the feature set's, with the key of this batch. `labels_by_arrival`: see WindowEngine.apply.
        """
        decoded = records.decode(cards)
        rejected = [Rejected(r.index, r.error, r.error.payment_id) for r in decoded.rejects]
        payments, amount = self._admissible(decoded, records, rejected)
        order = journal_order(records.partition[payments.index], records.offset[payments.index], payments.event_time_ms)
        if some(order[1:] < order[:-1]):
            payments, amount = payments.take(order), amount[order]
        rows = payments.index.astype(np.int64)

        ids = np.empty((len(payments), 2), dtype=np.uint64)
        hash_places(*payments.placed("payment_id"), self.engine.hash_key, ids, False)
        selector = self._selector
        stream_ms = self.engine.stream_time_ms if selector is None else selector.stream_time_ms
        stream_ms = _NO_STREAM_TIME if stream_ms is None else stream_ms
        if rejected:
            at = np.fromiter((r.index for r in rejected), np.int64, len(rejected))
            rejected = [rejected[i] for i in np.lexsort((records.offset[at], records.partition[at])).tolist()]
        refusals = known_before(rejected, self.dedupe, self.engine.hash_key, stream_ms)
        entry, duplicate, conflict = self.dedupe.scan(ids, records.payload(rows), payments.event_time_ms, stream_ms)
        if len(refusals):
            refusals = placed(refusals, records, rows, payments.text("payment_id"), entry)
        if selector is not None:
            own = selector.select(payments, ids, duplicate, stream_ms)
            refusals = self._own_refusals(refusals, entry, duplicate, own, reports=selector.reports_rejected)
            rejected = rejected if selector.reports_rejected else list(refusals.items)
            payments, amount, ids, rows = payments.take(own), amount[own], ids[own], rows[own]
            entry, duplicate, conflict = entry[own], duplicate[own], conflict[own]
        fresh = np.flatnonzero(~duplicate)
        all_fresh = len(fresh) == len(rows)
        first = payments if all_fresh else payments.take(fresh)
        features, late = self.engine.apply(
            first,
            amount if all_fresh else amount[fresh],
            ids if all_fresh else ids[fresh],
            labels_by_arrival=labels_by_arrival,
        )
        return Enriched(
            payments, rows, entry, duplicate, conflict, fresh, first, features, late, rejected, refusals,
            max(-1, stream_ms),
        )  # fmt: skip

    def _own_refusals(
        self,
        refusals: Refusals,
        entry: npt.NDArray[np.int64],
        duplicate: npt.NDArray[np.bool_],
        own: npt.NDArray[np.int64],
        *,
        reports: bool,
    ) -> Refusals:
        """Those that this process answers, where several share one stream: a refusal that names a decided payment is
        answered by the process that has decided it, all others by the one that reports what is refused."""
        fresh = entry[~duplicate]
        unknown = np.full(len(fresh), UNKNOWN, np.int32)
        # What other processes decide stays unknown here; the own ones are recorded behind this.
        self.dedupe.record(fresh, np.zeros(len(fresh), np.float32), np.zeros(len(fresh)), unknown)
        named = refusals.known >= 0
        decided = np.isin(refusals.known, entry[own])
        decided[named] |= self.dedupe.recall(refusals.known[named])[2] != UNKNOWN
        return refusals.take(np.where(named, decided, reports)).among(own)

    def _admissible(
        self, payments: PaymentBatch, records: Records, rejected: list[Rejected]
    ) -> tuple[PaymentBatch, npt.NDArray[np.int64]]:
        """Take out what the contract allows but the feature set or the clock rules do not;
        the reasons go to `rejected`. Gives the rest with their amounts in the set's currency."""
        feature_set = self.feature_set
        admissible = np.ones(len(payments), dtype=np.bool_)

        def refuse(which: npt.NDArray[np.bool_], reason: DeadLetterReason, name: str, message: str) -> None:
            which &= admissible
            if not some(which):
                return
            error = ContractError(reason, name, message)
            ids = payments.text("payment_id").filter(pa.array(which)).to_pylist()
            rejected.extend(map(Rejected, payments.index[which].tolist(), repeat(error), ids))
            admissible[which] = False

        skewed = payments.event_time_ms > records.timestamp_ms[payments.index] + feature_set.max_future_skew
        refuse(
            skewed,
            DeadLetterReason.EVENT_TIME_IN_FUTURE,
            "event_time",
            "later than the broker's timestamp by more than max_future_skew",
        )
        for name in feature_set.required:
            missing = np.isnan(payments.column(name)) if name in POSITION_FIELDS else payments.placed(name).places < 0
            refuse(missing, DeadLetterReason.MISSING_FIELD, name, "required by the feature set")
        amount, convertible = self.engine.convert(payments)
        refuse(
            ~convertible,
            DeadLetterReason.NO_EXCHANGE_RATE,
            "currency",
            "the feature set's rates do not convert this currency",
        )
        if every(admissible):
            return payments, amount
        kept = np.flatnonzero(admissible)
        return payments.take(kept), amount[kept]
