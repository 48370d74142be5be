"""The answers to records that were refused but name their payment: a system that waits for it is not left waiting.

A refused record is no payment: it enters no window and no dedupe table. Its answer is the policy's default in mode
refused, with the refusal as its reason, beside its dead letter. It says nothing of the payment: once a record of the
same id is right, it is decided as any other, and that decision replaces the refusal. The other way round a refusal
never contradicts a decision: a refused record that names a payment decided before gets that decision again, as a
duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.hashing import HashKey, hash_strings
from schemas.audit_record import EVENT_TIME_MS_MAX, NULLABLE, AuditColumns
from schemas.decision import DUPLICATE, REFUSED
from scorer.pipeline.dedupe import Dedupe, Outcome
from scorer.pipeline.records import Records, Rejected
from scorer.policy import REFUSED_PREFIX

NO_CURRENCY: Final = "XXX"  # ISO 4217: no currency is involved
_NONE: Final = -1


@dataclass(frozen=True)
class Refusals:
    """r refused records that are answered, by partition and offset.

    known int64 [r]: entry in the dedupe table of the payment that each names, -1 where none was decided · rank float64
    [r]: the place among the batch's n payments behind which each stands
    """

    items: Sequence[Rejected]
    known: npt.NDArray[np.int64]
    rank: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def payment_ids(self) -> list[str]:
        return [item.payment_id or "" for item in self.items]

    def take(self, kept: npt.NDArray[np.bool_]) -> Refusals:
        """Those of them where bool [r] holds."""
        return Refusals(list(compress(self.items, kept.tolist())), self.known[kept], self.rank[kept])

    def among(self, own: npt.NDArray[np.int64]) -> Refusals:
        """The same among some of the payments: those at the places `own`, rising."""
        return replace(self, rank=np.searchsorted(own, self.rank).astype(np.float64) - 0.5)

    def index(self) -> npt.NDArray[np.int64]:
        """Place of each in the batch's records, int64 [r]."""
        return np.fromiter((item.index for item in self.items), np.int64, len(self.items))


NO_REFUSALS: Final = Refusals((), np.empty(0, np.int64), np.empty(0))


def known_before(items: Sequence[Rejected], dedupe: Dedupe, hash_key: HashKey, stream_ms: int) -> Refusals:
    """Of the refused records those that name a payment, with what was decided of it before this batch."""
    if not items:
        return NO_REFUSALS
    named = [item for item in items if item.payment_id is not None]
    known = np.full(len(named), _NONE, np.int64)
    if named:
        ids, _ = hash_strings(pa.array([item.payment_id for item in named], pa.string()), hash_key)
        known = dedupe.known(ids, stream_ms)
    return Refusals(named, known, np.zeros(len(named)))


def placed(
    refusals: Refusals,
    records: Records,
    rows: npt.NDArray[np.int64],
    payment_id: pa.StringArray,
    entry: npt.NDArray[np.int64],
) -> Refusals:
    """The refusals among the batch's n payments in journal order: `rows` int64 [n] their places in the records, `entry`
    int64 [n] in the dedupe table.

    A partition keeps its order: a refusal stands behind the last payment before it in its own partition.
    """
    index = refusals.index()
    partition, offset = records.partition[index], records.offset[index]
    rank = np.full(len(index), -0.5)
    for p in np.unique(partition):
        places = np.flatnonzero(records.partition[rows] == p)
        if not len(places):
            continue
        own = partition == p
        before = np.searchsorted(records.offset[rows[places]], offset[own])  # offsets rise along a partition's places
        rank[own] = np.where(before > 0, places[before - 1] + 0.5, -0.5)
    known = refusals.known.copy()
    ids = refusals.payment_ids
    first: dict[str, int] = {}
    wanted = set(ids)
    for place, text in enumerate(payment_id.to_pylist()):
        if text in wanted:
            first.setdefault(text, place)
    for i, text in enumerate(ids):
        if known[i] == _NONE and first.get(text, np.inf) < rank[i]:
            known[i] = entry[first[text]]
    return replace(refusals, known=known, rank=rank)


@dataclass(frozen=True)
class Answered:
    """n payments and r refusals, in the order in which they are answered.

    rows int64 [n + r]: place of each in the records · payment int64 [n + r]: place among the payments, -1 for refusals
    """

    columns: AuditColumns
    bundles: list[str]
    rows: npt.NDArray[np.int64]
    payment: npt.NDArray[np.int64]


def answered(
    columns: AuditColumns,
    bundles: list[str],
    rows: npt.NDArray[np.int64],
    refusals: Refusals,
    *,
    dedupe: Dedupe,
    records: Records,
    stream_ms: int,
    decision: int,
    bundle: str,
) -> Answered:
    """The payments' columns with the refusals' answers among them. `decision`: the policy's default, and `bundle` the
    one that gives it; `stream_ms`: stream time before the batch, -1 for none."""
    n, r = len(columns), len(refusals)
    if r == 0:
        return Answered(columns, bundles, rows, np.arange(n))
    index = refusals.index()
    outcomes = [Outcome(decision, REFUSED, _reasons(item), (), bundle) for item in refusals.items]
    margin, score = np.zeros(r, np.float32), np.zeros(r)
    repeated = np.flatnonzero(refusals.known != _NONE)
    if len(repeated):
        margin[repeated], score[repeated], numbers = dedupe.recall(refusals.known[repeated])
        for i, number in zip(repeated.tolist(), numbers.tolist(), strict=True):
            outcomes[i] = dedupe.outcome(number)
    mode = np.where(refusals.known == _NONE, REFUSED, DUPLICATE).astype(np.uint8)
    nothing = [None] * r
    more: dict[str, Any] = {
        "payment_id": refusals.payment_ids,
        "partition": records.partition[index],
        "offset": records.offset[index],
        "event_time_ms": _times(records.timestamp_ms[index], stream_ms),
        "amount_minor": np.zeros(r, np.int64),
        "currency": [NO_CURRENCY] * r,
        **dict.fromkeys(NULLABLE, nothing),
        "decision": np.array([o.decision for o in outcomes], np.uint8),
        "mode": mode,
        "margin": margin,
        "score": score,
        "reasons": [o.reasons for o in outcomes],
        "fired": [o.fired for o in outcomes],
        "features": np.full((r, columns.features.shape[1]), np.nan, np.float32),
        "challenger_margins": np.full((r, columns.challenger_margins.shape[1]), np.nan, np.float32),
    }
    order = np.argsort(np.concatenate([np.arange(n, dtype=np.float64), refusals.rank]), kind="stable")
    merged = {name: _merged(getattr(columns, name), values, order) for name, values in more.items()}
    every = [*bundles, *(o.bundle for o in outcomes)]
    return Answered(
        AuditColumns(**merged),
        [every[i] for i in order.tolist()],
        np.concatenate([rows, index])[order],
        np.where(order < n, order, _NONE),
    )


def _reasons(item: Rejected) -> tuple[str, ...]:
    return (REFUSED_PREFIX + item.error.reason.value.upper(),)


def _times(timestamp_ms: npt.NDArray[np.int64], stream_ms: int) -> npt.NDArray[np.int64]:
    """The broker's timestamps, for what a refused record says of its time does not count; without a broker, stream
    time."""
    stamped = (timestamp_ms >= 0) & (timestamp_ms <= EVENT_TIME_MS_MAX)
    return np.where(stamped, timestamp_ms, max(0, stream_ms)).astype(np.int64)


def _merged(before: Any, after: Any, order: npt.NDArray[np.int64]) -> Any:
    if isinstance(before, np.ndarray):
        return np.concatenate([before, after])[order]
    if isinstance(before, pa.Array):
        return pa.concat_arrays([before, pa.array(after, before.type)]).take(pa.array(order))
    both = [*before, *after]
    return [both[i] for i in order.tolist()]
