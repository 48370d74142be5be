"""What the event times of a file's rows say, seen once in the order of reading: order, late rows, a far future.

Times come as Arrow columns, so that a file of any length takes no memory. Only where a wrong year is possible (the rows
span more than `future_gap_ms`) are they asked for a second time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.contract_error import ContractError, DeadLetterReason

# Up to so many rows a file is small: one row in the far future is more than 1 % of it, or nearly so.
_SMALL = 1000
_NEVER_MS = np.iinfo(np.int64).min

Times = Callable[[], Iterable[pa.Array]]
"""The event times of all rows, epoch ms (null where a row has none), in the order of reading."""

FAR_FUTURE = ContractError(
    DeadLetterReason.EVENT_TIME_IN_FUTURE,
    "event_time",
    "far later than all rows before it in time; FRAUD_SCORER_FILES__FUTURE_GAP says how far is too far",
)


@dataclass(frozen=True)
class Survey:
    """What one look at all rows found. Times are epoch ms; None where no row has a time.

    rows: all of them · late: earlier than a row before them by more than may be · future_from_ms: rows at or after this
    time are refused
    """

    rows: int
    first_ms: int | None
    last_ms: int | None
    in_order: bool
    late: int
    future_from_ms: int | None

    def too_late(self, share_max: float) -> str | None:
        """Why rows cannot be read in this order; None when no more than `share_max` of them would be late."""
        if self.late <= share_max * self.rows:
            return None
        return f"{self.late:,} of {self.rows:,} rows would be late: they come after rows of a later event time"


class TimeSurvey:
    """Takes the times as they are read; `found` gives what they say.

    future_gap_ms: a row so much later than all rows before it in time is refused when it is one of few · lateness_ms:
    how much earlier than a row before it one may be
    """

    def __init__(self, *, future_gap_ms: int, lateness_ms: int) -> None:
        self._future_gap_ms, self._lateness_ms = future_gap_ms, lateness_ms
        self._all = _Order(lateness_ms)

    def add(self, times: pa.Array) -> None:
        """The event times of the next rows; null where a row has none."""
        self._all.add(len(times), present(times))

    def found(self, again: Times) -> Survey:
        """Of all rows; `again` gives their times once more."""
        seen, rows, limit = self._all, self._all.rows, None
        if seen.timed and seen.last_ms - seen.first_ms > self._future_gap_ms:
            limit = self._future_from(again)
        if limit is not None:
            seen = _Order(self._lateness_ms)
            for times in again():
                kept = present(times)
                seen.add(len(times), kept[kept < limit])
        first, last = (seen.first_ms, seen.last_ms) if seen.timed else (None, None)
        return Survey(rows, first, last, seen.unordered == 0, seen.late, limit)

    def _future_from(self, again: Times) -> int | None:
        """The first of few times that come long after all others, epoch ms."""
        rows, first, gap_ms = self._all.rows, self._all.first_ms, self._future_gap_ms
        few = rows // 100 if rows > _SMALL else (rows - 1) // 2
        latest = _latest((present(times) for times in again()), few + 1).tolist()
        for i, (before, after) in enumerate(itertools.pairwise(latest), 1):
            beyond, gap = len(latest) - i, after - before
            # Of a small file one row is much; there the gap has to be long beside all that was before it.
            rare = beyond * 100 <= rows or gap > max(10 * (before - first), 12 * gap_ms)
            if gap > gap_ms and rare:
                return int(after)
        return None


class _Order:
    """Counts of times in the order in which they come."""

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self.rows = self.timed = self.unordered = self.late = 0
        self.first_ms, self.last_ms = 0, _NEVER_MS

    def add(self, rows: int, times: npt.NDArray[np.int64]) -> None:
        """The next rows, and the times of those that have one."""
        self.rows += rows
        if len(times) == 0:
            return
        first = int(times.min())
        self.first_ms = min(self.first_ms, first) if self.timed else first
        # The largest time before each row; of the very first row its own.
        before = np.maximum.accumulate(np.concatenate([[self.last_ms if self.timed else times[0]], times[:-1]]))
        self.unordered += int(np.count_nonzero(times < before))
        self.late += int(np.count_nonzero(times < before - self._lateness_ms))
        self.last_ms = max(int(before[-1]), int(times[-1]))
        self.timed += len(times)


def present(times: pa.Array) -> npt.NDArray[np.int64]:
    """The times that are there, int64."""
    return (times.drop_null() if times.null_count else times).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _latest(parts: Iterator[npt.NDArray[np.int64]], count: int) -> npt.NDArray[np.int64]:
    """The `count` latest of all times, rising."""
    kept = np.empty(0, np.int64)
    for part in parts:
        kept = np.concatenate([kept, part if len(kept) < count else part[part > kept.min()]])
        if len(kept) > count:
            kept = np.partition(kept, len(kept) - count)[-count:]
    return np.sort(kept)
