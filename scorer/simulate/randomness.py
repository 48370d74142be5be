"""Seeded randomness that needs no memory: every part of every simulated hour has a generator of its own.

A block of payments, a day's fraud campaigns or a week's journeys are a pure function of (seed, part, number of the
hour, day or week). So nothing has to be carried along: the stream may start at any time and runs for ever in constant
memory.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_MASK_48 = np.uint64(0xFFFF_FFFF_FFFF)
_ODD_1 = np.uint64(0x9E37_79B9_7F4B)
_ODD_2 = np.uint64(0xBF58_476D_1CE5)
_FOLD = np.uint64(24)


class Part(IntEnum):
    """What a generator is for. Values are part of the output: changing one changes every world."""

    POPULATION = 1
    JOURNEYS = 2
    PAYMENTS = 3
    LABELS = 4
    OVERCHARGES = 5
    CAMPAIGNS = 16  # plus the kind of fraud


def generator(seed: int, part: int, number: int = 0) -> np.random.Generator:
    """The PCG64 generator of one part; `number` is the block, day or week counted from 1970 (or 0)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, part, number])))


def scramble48(counter: IntArray, key: int) -> npt.NDArray[np.uint64]:
    """A bijection on [0, 2^48): distinct counters give distinct tokens that look random. Each step (odd
    multiplication, addition and xor-shift modulo 2^48) can be undone, so no two counters ever meet.
    """
    x = (counter.astype(np.uint64) + np.uint64(key & 0xFFFF_FFFF_FFFF)) & _MASK_48
    for odd in (_ODD_1, _ODD_2):
        x = (x * odd) & _MASK_48
        x ^= x >> _FOLD
    return x


def positions_within(sizes: IntArray) -> tuple[IntArray, IntArray]:
    """For groups of the given sizes laid end to end: (group of each row, place of each row inside its group)."""
    group = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    first = np.cumsum(sizes) - sizes
    return group, np.arange(len(group), dtype=np.int64) - first[group]


def running_sum_within(values: FloatArray, sizes: IntArray) -> FloatArray:
    """Cumulative sums that start anew in each group; shapes as in `positions_within`."""
    total = np.cumsum(values)
    first = np.cumsum(sizes) - sizes
    filled = sizes > 0
    before = np.zeros(len(sizes))
    before[filled] = total[first[filled]] - values[first[filled]]
    return np.asarray(total - np.repeat(before, sizes))


class Pool:
    """Weighted choice of a member inside a group, for many rows at once. Groups are numbered from 0.

    Memory: 12 bytes a member. `has(group)` tells whether a group has members; `pick` must not be called for an empty
    one.
    """

    def __init__(self, group: IntArray, weight: FloatArray, groups: int) -> None:
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=groups)
        self._member = order.astype(np.int32)
        self._upto = np.cumsum(weight[order])
        self._last = np.cumsum(sizes)
        self._first = self._last - sizes
        edge = np.concatenate([np.zeros(1), self._upto])
        self._low = edge[self._first]
        self._high = edge[self._last]

    def has(self, group: IntArray) -> npt.NDArray[np.bool_]:
        """True where the group has at least one member."""
        return np.asarray(self._last[group] > self._first[group])

    def pick(self, rng: np.random.Generator, group: IntArray) -> npt.NDArray[np.int32]:
        """One member for each entry of `group` (int [n])."""
        low = self._low[group]
        target = low + rng.random(len(group)) * (self._high[group] - low)
        place = np.searchsorted(self._upto, target, side="right")
        # Rounding may put a target on the border of its group.
        return np.asarray(self._member[np.clip(place, self._first[group], self._last[group] - 1)])
