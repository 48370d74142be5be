"""Whether frauds become known so much later than genuine payments that the newest rows are genuine ones alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DAY_MS = 86_400_000
# Of so many frauds and genuine payments a 90th percentile says something; so much longer (a day) is a difference.
ROWS_MIN = 20
LONGER_MS = DAY_MS


@dataclass(frozen=True)
class LateReports:
    """90th percentiles of the time from payment to label; the first time whose frauds are not all reported, and how
    many genuine rows are counted from there on."""

    fraud_ms: int
    genuine_ms: int
    from_ms: int
    genuine_rows: int

    @property
    def day(self) -> str:
        """The day of `from_ms`, UTC."""
        return str(np.datetime64(self.from_ms, "ms").astype("datetime64[D]"))

    def sentence(self) -> str:
        """What is wrong with the newest rows."""
        fraud, genuine = (f"{value / DAY_MS:.1f}" for value in (self.fraud_ms, self.genuine_ms))
        return (
            f"labels of frauds take {fraud} days, those of genuine payments {genuine} (nine of ten): the "
            f"{self.genuine_rows:,} genuine payments from {self.day} on count, the frauds of those days are not all "
            "known yet, so frauds look rarer there than they are"
        )


def late_reports(label: np.ndarray, time_ms: np.ndarray, known_at_ms: np.ndarray, at_ms: int) -> LateReports | None:
    """Of rows whose labels (int8 [n], -1 unknown) were known by `at_ms`, epoch ms int64 [n]; None where frauds are
    known as soon, or no genuine row is so new."""
    known = (label >= 0) & (known_at_ms <= at_ms)
    delays = [(known_at_ms - time_ms)[known & (label == kind)] for kind in (1, 0)]
    if min(len(delay) for delay in delays) < ROWS_MIN:
        return None
    fraud_ms, genuine_ms = (int(np.quantile(delay, 0.9)) for delay in delays)
    newer = known & (label == 0) & (time_ms > at_ms - fraud_ms)
    if fraud_ms <= genuine_ms + LONGER_MS or not newer.any():
        return None
    return LateReports(fraud_ms, genuine_ms, at_ms - fraud_ms, int(newer.sum()))
