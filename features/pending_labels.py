"""Pending labels: those that become known at a stream time which has not come yet.

They are kept in runs, each sorted by that time (equal ones by arrival), the runs in order of arrival. A batch adds one
short run, and short runs are merged like the digits of a counter, so that a label is moved a few times in its life and
no batch moves more than MERGED_MAX. The labels that are due are the beginnings of some runs.

Nothing waits for ever. A label that becomes known later than AHEAD_MS_MAX after stream time is dropped by the next
payments, and when there is no room, those that would become known last go first: a source that dates its labels 2096
takes no room from those that are right. Both are counted, and both depend on records alone, so a replay does the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from features.hashing import HashKey, hash_strings

Labels = npt.NDArray[np.int64]

# 32 bytes each, 2 GB: 7 days at 100 labels/s, or 18 hours at 1,000/s.
LABELS_PENDING_MAX = 64_000_000
# Ten years, for files whose labels come long after their payments; what is later is a mistake or meant to stay.
AHEAD_MS_MAX = 3_653 * 86_400_000
# A merge of two runs of half of this takes some 20 ms.
MERGED_MAX = 1 << 19


class PendingLabels:
    """int64 [m, 4] a run: known_at ms, id low, id high, 1 fraud or 2 genuine. Runs are never written to, so a snapshot
    holds their memory. `refused` counts labels that were dropped: too far ahead, or the last ones of too many."""

    def __init__(self, hash_key: HashKey, runs: Iterable[Labels] = (), *, refused: int = 0) -> None:
        self._hash_key = hash_key
        self._runs = [np.asarray(run, dtype=np.int64).reshape(-1, 4) for run in runs if len(run)]
        self._incoming: list[tuple[int, str, int]] = []
        self._count = sum(len(run) for run in self._runs)
        self.refused = refused

    def __len__(self) -> int:
        return self._count + len(self._incoming)

    def add(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """One more; when that is one too many, those that would become known last are dropped."""
        self._incoming.append((known_at_ms, payment_id, 1 if fraud else 2))
        if len(self) > LABELS_PENDING_MAX:
            # An eighth at a time: dropping looks at every run.
            self._keep_first(LABELS_PENDING_MAX - LABELS_PENDING_MAX // 8)

    def runs(self) -> list[Labels]:
        """All of them; they stay as they are."""
        self.gather()
        return list(self._runs)

    def gather(self) -> None:
        """Make a run of what has been added."""
        if not self._incoming:
            return
        ids, _ = hash_strings([payment_id for _, payment_id, _ in self._incoming], self._hash_key)
        new = np.empty((len(self._incoming), 4), dtype=np.int64)
        new[:, 0] = [row[0] for row in self._incoming]
        new[:, 1:3] = ids.view(np.int64)
        new[:, 3] = [row[2] for row in self._incoming]
        self._count += len(new)
        self._incoming.clear()
        run = _sorted([new])
        while self._runs and len(self._runs[-1]) < 2 * len(run) and len(self._runs[-1]) + len(run) <= MERGED_MAX:
            run = _sorted([self._runs.pop(), run])
        self._runs.append(run)

    def due(self, now_ms: int) -> Labels:
        """Take out those with known_at <= `now_ms`, sorted by known_at, of equal ones by arrival; drop those too far
        ahead of it."""
        self._drop_after(now_ms + AHEAD_MS_MAX)
        taken: list[Labels] = []
        for k, run in enumerate(self._runs):
            if run[0, 0] > now_ms:
                continue
            end = int(np.searchsorted(run[:, 0], now_ms, side="right"))
            taken.append(run[:end])
            # A view keeps all of its run's memory: at most twice of what is left.
            rest = run[end:]
            kept = run.nbytes if run.base is None else getattr(run.base, "nbytes", 0)
            self._runs[k] = rest.copy() if 2 * rest.nbytes < kept else rest
            self._count -= end
        if not taken:
            return np.zeros((0, 4), dtype=np.int64)
        self._runs = [run for run in self._runs if len(run)]
        return _sorted(taken)

    def _drop_after(self, limit_ms: int) -> None:
        """Drop those with known_at > `limit_ms`: the ends of some runs."""
        for k, run in enumerate(self._runs):
            if run[-1, 0] > limit_ms:
                self._cut(k, int(np.searchsorted(run[:, 0], limit_ms, side="right")))
        self._runs = [run for run in self._runs if len(run)]

    def _keep_first(self, count: int) -> None:
        """Keep the `count` that become known first, of equal ones those that came first."""
        self.gather()
        low, high = min(int(run[0, 0]) for run in self._runs) - 1, max(int(run[-1, 0]) for run in self._runs)
        while low < high:  # the largest time up to which there are no more than `count`
            middle = -(-(low + high) // 2)
            fitting = sum(int(np.searchsorted(run[:, 0], middle, side="right")) for run in self._runs)
            low, high = (middle, high) if fitting <= count else (low, middle - 1)
        ends = [int(np.searchsorted(run[:, 0], low, side="right")) for run in self._runs]
        room = count - sum(ends)
        for k, run in enumerate(self._runs):
            same = int(np.searchsorted(run[:, 0], low + 1, side="right")) - ends[k]
            kept, room = min(same, room), room - min(same, room)
            self._cut(k, ends[k] + kept)
        self._runs = [run for run in self._runs if len(run)]

    def _cut(self, k: int, end: int) -> None:
        run = self._runs[k]
        self.refused += len(run) - end
        self._count -= len(run) - end
        if end < len(run):
            self._runs[k] = run[:end].copy()  # a view would keep what was dropped


def _sorted(runs: list[Labels]) -> Labels:
    """Runs in order of arrival as one. Its sort finds runs and merges them."""
    merged = np.concatenate(runs) if len(runs) > 1 else runs[0]
    if len(merged) > 1 and (np.diff(merged[:, 0]) < 0).any():
        merged = merged[np.argsort(merged[:, 0], kind="stable")]
    return np.ascontiguousarray(merged)
