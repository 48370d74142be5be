"""Pending labels: those that become known at a stream time which has not come yet.

They are kept in runs, each sorted by that time (equal ones by arrival), the runs in order of arrival. A batch adds one
short run, and short runs are merged like the digits of a counter, so that a label is moved a few times in its life and
no batch moves more than MERGED_MAX. The labels that are due are the beginnings of some runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from features.hashing import hash_strings

Labels = npt.NDArray[np.int64]

# 32 bytes each, 2 GB: 7 days at 100 labels/s, or 18 hours at 1,000/s. When full, further ones are refused and counted.
LABELS_PENDING_MAX = 64_000_000
# A merge of two runs of half of this takes some 20 ms.
MERGED_MAX = 1 << 19


class PendingLabels:
    """int64 [m, 4] a run: known_at ms, id low, id high, 1 fraud or 2 genuine. Runs are never written to, so a snapshot
    holds their memory. `refused` counts labels that found no room."""

    def __init__(self, runs: Iterable[Labels] = (), *, refused: int = 0) -> None:
        self._runs = [np.asarray(run, dtype=np.int64).reshape(-1, 4) for run in runs if len(run)]
        self._incoming: list[tuple[int, str, int]] = []
        self._count = sum(len(run) for run in self._runs)
        self.refused = refused

    def __len__(self) -> int:
        return self._count + len(self._incoming)

    def add(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """One more, or one more refused."""
        if len(self) >= LABELS_PENDING_MAX:
            self.refused += 1
            return
        self._incoming.append((known_at_ms, payment_id, 1 if fraud else 2))

    def runs(self) -> list[Labels]:
        """All of them; they stay as they are."""
        self.gather()
        return list(self._runs)

    def gather(self) -> None:
        """Make a run of what has been added."""
        if not self._incoming:
            return
        ids, _ = hash_strings([payment_id for _, payment_id, _ in self._incoming])
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
        """Take out those with known_at <= `now_ms`, sorted by known_at, of equal ones by arrival."""
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


def _sorted(runs: list[Labels]) -> Labels:
    """Runs in order of arrival as one. Its sort finds runs and merges them."""
    merged = np.concatenate(runs) if len(runs) > 1 else runs[0]
    if len(merged) > 1 and (np.diff(merged[:, 0]) < 0).any():
        merged = merged[np.argsort(merged[:, 0], kind="stable")]
    return np.ascontiguousarray(merged)
