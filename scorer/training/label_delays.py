"""Whether labels of one kind come so much later than those of the other that the newest rows are of the other alone;
and how many old rows have none."""

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
    delays = _delays(label, known_at_ms - time_ms, known)
    if delays is None:
        return None
    fraud_ms, genuine_ms = delays
    newer = known & (label == 0) & (time_ms > at_ms - fraud_ms)
    if fraud_ms <= genuine_ms + LONGER_MS or not newer.any():
        return None
    return LateReports(fraud_ms, genuine_ms, at_ms - fraud_ms, int(newer.sum()))


@dataclass(frozen=True)
class LateConfirmations:
    """The other way round: 90th percentiles of the time from payment to label, the first time whose genuine payments
    are not all confirmed, and how many known rows, frauds among them, there are from there on."""

    fraud_ms: int
    genuine_ms: int
    from_ms: int
    rows: int
    frauds: int

    def sentence(self) -> str:
        """What is wrong with the newest rows, and the way out."""
        fraud, genuine = (f"{value / DAY_MS:.1f}" for value in (self.fraud_ms, self.genuine_ms))
        day = str(np.datetime64(self.from_ms, "ms").astype("datetime64[D]"))
        return (
            f"labels of genuine payments take {genuine} days, those of frauds {fraud} (nine of ten): {self.frauds:,} "
            f"of the {self.rows:,} known payments from {day} on are frauds, for the others are not known yet, so "
            f"frauds look more frequent there than they are and scores become too high; leave them out: --until {day}"
        )


def late_confirmations(
    label: np.ndarray, time_ms: np.ndarray, known_at_ms: np.ndarray, at_ms: int
) -> LateConfirmations | None:
    """Of rows as in `late_reports`; None where genuine payments are known as soon as frauds, or no fraud is so new."""
    known = (label >= 0) & (known_at_ms <= at_ms)
    delays = _delays(label, known_at_ms - time_ms, known)
    if delays is None:
        return None
    fraud_ms, genuine_ms = delays
    newer = known & (time_ms > at_ms - genuine_ms)
    frauds = int((newer & (label == 1)).sum())
    if genuine_ms <= fraud_ms + LONGER_MS or not frauds:
        return None
    return LateConfirmations(fraud_ms, genuine_ms, at_ms - genuine_ms, int(newer.sum()), frauds)


def _delays(label: np.ndarray, delay_ms: np.ndarray, known: np.ndarray) -> tuple[int, int] | None:
    """90th percentiles of the delays of frauds and of genuine payments among the rows `known`, bool [n]; None where
    those of a kind are too few."""
    delays = [delay_ms[known & (label == kind)] for kind in (1, 0)]
    if min(len(delay) for delay in delays) < ROWS_MIN:
        return None
    fraud_ms, genuine_ms = (int(np.quantile(delay, 0.9)) for delay in delays)
    return fraud_ms, genuine_ms


def unlabelled(known: np.ndarray, time_ms: np.ndarray, known_at_ms: np.ndarray, at_ms: int) -> tuple[int, int]:
    """Of rows, `known` bool [n] of which have a label by `at_ms`: how many have none though labels take less (nine of
    ten), and how many are so old; times epoch ms int64 [n]."""
    if not known.any():
        return 0, 0
    old = time_ms <= at_ms - int(np.quantile((known_at_ms - time_ms)[known], 0.9))
    return int((old & ~known).sum()), int(old.sum())
