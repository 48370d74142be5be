"""Labels: which payments are reported as fraud or genuine and when, and a queue that gives labels out when they become
known.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from scorer.simulate.fraud_kinds import CONFIRMED_SHARE, FALSE_REPORT_SHARE, REPORT_DAYS_MAX, REPORTS
from scorer.simulate.payment_rows import DAY_MS, HOUR_MS
from scorer.simulate.randomness import IntArray
from scorer.simulate.simulated_batch import SimulatedBatch

_MEDIAN_H = np.array([report.median_h for report in REPORTS.values()])
_SPREAD = np.array([report.spread for report in REPORTS.values()])
PENDING_MAX = 5_000_000  # about 1 GB; a million customers have a million reports pending


def reports(
    rng: np.random.Generator, kind: npt.NDArray[np.int8], time_ms: IntArray
) -> tuple[npt.NDArray[np.int8], IntArray]:
    """(label, known_at_ms) of each payment: 1/0/-1, and after the payment by at least a minute, or -1."""
    fraud = kind > 0
    draw = rng.random(len(kind))
    confirmed = ~fraud & (draw < CONFIRMED_SHARE)
    mistaken = ~fraud & (draw > 1 - FALSE_REPORT_SHARE)
    delay_h = _MEDIAN_H[kind] * np.exp(_SPREAD[kind] * rng.standard_normal(len(kind)))
    delay_ms = np.clip((delay_h * HOUR_MS).astype(np.int64), 60_000, REPORT_DAYS_MAX * DAY_MS)
    label = np.where(fraud | mistaken, 1, np.where(confirmed, 0, -1)).astype(np.int8)
    return label, np.where(label >= 0, time_ms + delay_ms, -1)


class DueLabels:
    """Label records waiting for simulated time to reach their `known_at`.

    Holds at most `capacity` records; when full, new ones are dropped and counted in `dropped`.
    """

    def __init__(self, capacity: int = PENDING_MAX) -> None:
        self._capacity = capacity
        self._waiting: list[tuple[int, int, bytes]] = []
        self._added = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, batch: SimulatedBatch) -> None:
        """Queue the reports about these payments."""
        known = batch.label_known_at_ms[batch.label_known_at_ms >= 0].tolist()
        for known_at_ms, record in zip(known, batch.labels_json(), strict=True):
            if len(self._waiting) >= self._capacity:
                self.dropped += 1
                continue
            heapq.heappush(self._waiting, (known_at_ms, self._added, record))
            self._added += 1

    def due(self, now_ms: int) -> list[bytes]:
        """Take out the records known by `now_ms` (event time), in the order in which they became known."""
        out = []
        while self._waiting and self._waiting[0][0] <= now_ms:
            out.append(heapq.heappop(self._waiting)[2])
        return out
