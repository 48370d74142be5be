"""Which of the records that are buffered make the next batch: how many of each partition's first ones (pure).

Partitions advance together in event time: a batch takes nothing that is newer than the frontier, the smallest newest
buffered time among partitions that are not caught up; so nothing is late merely because it was read late. And no
partition starves another:

- A record without a readable event time, and one that is later than the allowed lateness whatever happens, is idle: it
  neither holds the frontier nor comes before a payment of another partition. What is refused costs as much as several
  payments, so it takes the place of several.
- A partition whose records are behind stream time holds the others no more than a little: waiting would not bring them
  into order. It still does as far as its records would become later than the allowed lateness.
- When not everything fits, each partition first gets its share of the batch, as far as that makes no other late; what
  is left goes in the order of event time.

Only which records are taken is decided here. Their order inside the batch is scorer.pipeline.ordering's.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

NO_TIME: Final = -(1 << 62)
_NEVER: Final = 1 << 62
# Refusing a record (the reference decoder, a dead letter of its own) costs about what deciding eight payments does.
REFUSED_WEIGHT: Final = 8

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """`batch_max`: payments in a batch. `lateness_ms`: as the feature set allows. `ahead_ms`: how far a payment may go
    ahead of stream time while another partition shows only what is behind it."""

    batch_max: int
    lateness_ms: int
    ahead_ms: int


@dataclass(frozen=True)
class Choice:
    """`counts`: how many records to take from each partition. `held`: whether something newer than the frontier stays
    behind, and then `holders`, the partitions that the others wait for. `frontier_ms`: None without one."""

    counts: dict[int, int]
    held: bool = False
    holders: Set[int] = field(default_factory=frozenset)
    frontier_ms: int | None = None


def choose(
    times: Mapping[int, Times], behind: Set[int], stream_ms: int, rules: Rules, passed: Set[int] = frozenset()
) -> Choice:
    """Choose from `times`: for each partition the event times of its first records in offset order, NO_TIME where there
    is none. No more than `rules.batch_max` of a partition need be given. `behind`: partitions that are not caught up.
    `stream_ms`: stream time, NO_TIME before the first payment. `passed`: partitions that the others wait for no more.
    """
    late = stream_ms - rules.lateness_ms
    columns = {p: _Column.of(part, late) for p, part in times.items()}
    bounds = {p: c.bound(c.last, stream_ms, rules) for p, c in columns.items() if p in behind - passed and c.claims}
    frontier = min(bounds.values(), default=_NEVER)
    eligible = {p: int(np.searchsorted(c.reached, frontier, side="right")) for p, c in columns.items()}
    held = any(eligible[p] < len(c.reached) for p, c in columns.items())
    holders = frozenset(p for p, bound in bounds.items() if bound == frontier) if held else frozenset()
    # The first record that is not idle must not be overtaken, within a share, by what would make it late.
    limits = {p: c.bound(c.first, stream_ms, rules) for p, c in columns.items() if c.claims and p not in passed}
    counts = _fitting(columns, eligible, limits, rules.batch_max)
    return Choice(counts, held, holders, frontier if bounds else None)


@dataclass(frozen=True)
class _Column:
    """One partition's records: reached int64 [n], the largest event time so far, idle records aside · key int64 [n],
    what that is at the next record that is not idle, so that idle ones come with it · weight int64 [n]."""

    reached: Times
    key: Times
    weight: Times
    claims: bool

    @classmethod
    def of(cls, times: Times, late: int) -> _Column:
        active = times >= max(late, NO_TIME + 1)
        if len(times) and active.all():  # as nearly always
            reached = np.maximum.accumulate(times)
            return cls(reached, reached, np.ones(len(times), dtype=np.int64), True)
        reached = np.maximum.accumulate(np.where(active, times, NO_TIME)) if len(times) else times
        places = np.flatnonzero(active)
        following = np.append(reached[places], _NEVER)
        key = following[np.searchsorted(places, np.arange(len(times)))]
        return cls(reached, key, np.where(times == NO_TIME, REFUSED_WEIGHT, 1), bool(len(places)))

    @property
    def first(self) -> int:
        return int(self.key[0])

    @property
    def last(self) -> int:
        return int(self.reached[-1])

    @staticmethod
    def bound(time_ms: int, stream_ms: int, rules: Rules) -> int:
        """How new a record of another partition may be that is taken before what follows `time_ms` here."""
        if time_ms >= stream_ms:
            return time_ms
        return min(time_ms + rules.lateness_ms, stream_ms + rules.ahead_ms)


def _fitting(
    columns: Mapping[int, _Column], eligible: Mapping[int, int], limits: Mapping[int, int], budget: int
) -> dict[int, int]:
    weights = {p: np.minimum(c.weight[: eligible[p]], budget) for p, c in columns.items()}
    if sum(int(weight.sum()) for weight in weights.values()) <= budget:
        return dict(eligible)
    lowest, second = (*sorted(limits.values()), _NEVER, _NEVER)[:2]
    counts = {}
    for p, column in columns.items():
        limit = second if limits.get(p) == lowest else lowest  # the lowest of the others
        share = int(np.searchsorted(np.cumsum(weights[p]), budget // len(columns), side="right"))
        counts[p] = min(share, int(np.searchsorted(column.reached[: eligible[p]], limit, side="right")))
    left = budget - sum(int(weights[p][:count].sum()) for p, count in counts.items())
    partition = np.concatenate([np.full(eligible[p] - counts[p], p) for p in columns])
    key = np.concatenate([c.key[counts[p] : eligible[p]] for p, c in columns.items()])
    weight = np.concatenate([weights[p][counts[p] :] for p in columns])
    order = np.argsort(key, kind="stable")  # equal keys: by partition, then offset, as they stand
    fitting = order[: int(np.searchsorted(np.cumsum(weight[order]), left, side="right"))]
    for p, count in zip(*np.unique(partition[fitting], return_counts=True), strict=True):
        counts[int(p)] += int(count)
    return counts
