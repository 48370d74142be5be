"""The first half of the pure heart: bytes to payments in journal order with their features, the windows moved on.

The training export stops here; the pipeline goes on to score and decide. Both run this very code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from features.engine_image import Image
from features.feature_set import FeatureSet
from features.filters import POSITION_FIELDS
from features.hashing import hash_strings
from features.window_engine import WindowEngine
from schemas.dead_letter import DeadLetterReason
from schemas.decode import PaymentBatch
from schemas.errors import ContractError
from scorer.errors import UsageError
from scorer.pipeline.dedupe import Dedupe
from scorer.pipeline.ordering import journal_order
from scorer.pipeline.records import Records, Rejected

_NO_STREAM_TIME = -(1 << 62)


@dataclass(frozen=True)
class Enriched:
    """n payments in journal order, m of them fresh (not repeated).

    rows int64 [n]: place of each in the batch's records · entry int64 [n], duplicate and conflict bool [n]: from the
    dedupe table · fresh int64 [m]: positions of the fresh ones · first: the fresh payments · features float32 [m, F]
    and late bool [m] belong to those
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


@dataclass(frozen=True)
class Share:
    """One of `count` parts of a file's payments, by the keys that all entities of the feature set have in common.

    Every share reads all payments and finds the repeated ones; features are computed of its own alone. Their values are
    those of one process as long as stream time is each payment's own time, hence rows must be in order of time.
    """

    number: int
    count: int
    fields: tuple[str, ...]

    @classmethod
    def fields_of(cls, feature_set: FeatureSet) -> tuple[str, ...]:
        """The fields that all entities have in common. Raises UsageError, naming two entities, when there are none."""
        entities = list(feature_set.entities.items())
        common = set(entities[0][1]) if entities else set()
        for name, fields in entities:
            if not common & set(fields):
                raise UsageError(
                    f"entities {entities[0][0]} and {name} have no field in common, so no key can decide which "
                    f"process computes a payment; use one process"
                )
            common &= set(fields)
        return tuple(sorted(common)) or ("payment_id",)

    def of(self, payments: PaymentBatch) -> npt.NDArray[np.int64]:
        """The share of each payment, int64 [n]."""
        total = np.zeros(len(payments), dtype=np.uint64)
        for name in self.fields:
            total = total * np.uint64(31) + hash_strings(payments.text(name))[0][:, 0]
        return (total % np.uint64(self.count)).astype(np.int64)


class Enricher:
    """The windows and the dedupe table of one shard."""

    def __init__(
        self,
        feature_set: FeatureSet,
        *,
        images: Mapping[str, Image] | None = None,
        folder: Path | None = None,
        share: Share | None = None,
    ) -> None:
        """`images`: of engine and dedupe table, to go on from. `folder`: of the event log; in memory without. `share`:
        compute a part of the payments alone.

        Raises StateMismatch when the images do not fit, SegmentError when the folder cannot be used.
        """
        self.feature_set = feature_set
        self.dedupe = Dedupe(horizon_ms=feature_set.dedupe_horizon, capacity=feature_set.dedupe_capacity)
        if images is None:
            self.engine = WindowEngine(feature_set, folder=folder)
        else:
            self.dedupe.restore(images["dedupe"])
            self.engine = WindowEngine.restore(feature_set, images["engine"], folder=folder)
        self._share = share
        if share is not None:
            self._stream_ms = _NO_STREAM_TIME
            self._owners = Dedupe(horizon_ms=feature_set.dedupe_horizon, capacity=feature_set.dedupe_capacity)

    def enrich(self, records: Records) -> Enriched:
        """Decode, order, find repeated payments, compute features. Every record ends in `payments` or in `rejected`."""
        decoded = records.decode()
        rejected = [Rejected(r.index, r.error) for r in decoded.rejects]
        payments, amount = self._admissible(decoded, records, rejected)
        order = journal_order(records.partition[payments.index], records.offset[payments.index], payments.event_time_ms)
        if (order[1:] < order[:-1]).any():
            payments, amount = payments.take(order), amount[order]
        rows = payments.index.astype(np.int64)

        ids, _ = hash_strings(payments.text("payment_id"))
        stream_ms = self.engine.stream_time_ms if self._share is None else self._stream_ms
        stream_ms = _NO_STREAM_TIME if stream_ms is None else stream_ms
        entry, duplicate, conflict = self.dedupe.scan(ids, records.payload(rows), payments.event_time_ms, stream_ms)
        if self._share is not None:
            own = self._own(self._share, payments, ids, duplicate, stream_ms)
            payments, amount, ids, rows = payments.take(own), amount[own], ids[own], rows[own]
            entry, duplicate, conflict = entry[own], duplicate[own], conflict[own]
            rejected = [] if self._share.number else rejected
        fresh = np.flatnonzero(~duplicate)
        all_fresh = len(fresh) == len(rows)
        first = payments if all_fresh else payments.take(fresh)
        features, late = self.engine.apply(
            first, amount if all_fresh else amount[fresh], ids if all_fresh else ids[fresh]
        )
        if rejected:
            at = np.fromiter((r.index for r in rejected), np.int64, len(rejected))
            rejected = [rejected[i] for i in np.lexsort((records.offset[at], records.partition[at])).tolist()]
        return Enriched(payments, rows, entry, duplicate, conflict, fresh, first, features, late, rejected)

    def _own(
        self,
        share: Share,
        payments: PaymentBatch,
        ids: npt.NDArray[np.uint64],
        duplicate: npt.NDArray[np.bool_],
        stream_ms: int,
    ) -> npt.NDArray[np.int64]:
        """Positions of the share's own payments. Raises UsageError where shares would differ from one process."""
        times, owner = payments.event_time_ms, share.of(payments)
        fresh = times[~duplicate]
        before = np.concatenate([np.array([stream_ms]), fresh[:-1]]) if len(fresh) else fresh
        if (fresh < before).any():
            at = int(payments.index[np.flatnonzero(~duplicate)[np.argmax(fresh < before)]])
            raise UsageError(
                f"record {at} of a block is earlier than one before it: several processes need payments in order of "
                f"event time; sort the file, or use one process"
            )
        _, _, elsewhere = self._owners.scan(ids, owner.astype(np.uint64), times, stream_ms)
        if elsewhere.any():
            raise UsageError(
                f"a payment came again with another {' or '.join(share.fields)}, which is another process's; "
                f"use one process"
            )
        self._stream_ms = max(stream_ms, int(fresh[-1])) if len(fresh) else stream_ms
        return np.flatnonzero(owner == share.number)

    def _admissible(
        self, payments: PaymentBatch, records: Records, rejected: list[Rejected]
    ) -> tuple[PaymentBatch, npt.NDArray[np.int64]]:
        """Take out what the contract allows but the feature set or the clock rules do not;
        the reasons go to `rejected`. Gives the rest with their amounts in the set's currency."""
        feature_set = self.feature_set
        admissible = np.ones(len(payments.rows), dtype=np.bool_)

        def refuse(which: npt.NDArray[np.bool_], reason: DeadLetterReason, name: str, message: str) -> None:
            error = ContractError(reason, name, message)
            rejected.extend(Rejected(i, error) for i in payments.index[which & admissible].tolist())
            admissible[which] = False

        skewed = payments.event_time_ms > records.timestamp_ms[payments.index] + feature_set.max_future_skew
        refuse(
            skewed,
            DeadLetterReason.EVENT_TIME_IN_FUTURE,
            "event_time",
            "later than the broker's timestamp by more than max_future_skew",
        )
        for name in feature_set.required:
            if name in POSITION_FIELDS:
                missing = np.isnan(payments.column(name))
            else:
                missing = np.asarray(payments.text(name).is_null())
            refuse(missing, DeadLetterReason.MISSING_FIELD, name, "required by the feature set")
        amount, convertible = self._convert(payments)
        refuse(
            ~convertible,
            DeadLetterReason.NO_EXCHANGE_RATE,
            "currency",
            "the feature set's rates do not convert this currency",
        )
        if admissible.all():
            return payments, amount
        kept = np.flatnonzero(admissible)
        return payments.take(kept), amount[kept]

    def _convert(self, payments: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """As WindowEngine.convert, without a look at each row where all are in the set's currency."""
        if pc.all(pc.equal(payments.text("currency"), self.feature_set.currency)).as_py() is not False:
            return payments.amount_minor, np.ones(len(payments), dtype=np.bool_)
        return self.engine.convert(payments)
