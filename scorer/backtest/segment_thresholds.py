"""Whether a segment deserves a threshold of its own: found on some days, believed only where later days show it.

On the days before `from_ms` the threshold that saves most money is found, one for all payments and one for each
segment. On the days from there on, which had no part in it, the segment's own is compared with the common one: a
segment gets its own only where the interval of the money that it saves more, days drawn, is above 0. The intervals of k
segments are of 1 - 0.05 / k each, so that all of them together are wrong in one case of twenty (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from scorer.backtest import backtest_figures as figures
from scorer.backtest.decided_payments import FLAGGED_MIN, BacktestError, Decided
from scorer.policy import FlagCost, Policy, money_saved

FRAUDS_MIN = 30
"""Frauds of a segment on the first days, at least: with fewer a threshold follows single payments."""
LATER_FRAUDS_MIN = 10
"""Frauds of a segment on the later days, at least: without any, a higher threshold always saves the reviews."""
ROUNDS_MIN = 1_000
"""Draws, at least: the ends of narrow tails are the means of few draws."""
SUSPECT_FRAUDS = 20
"""So many known frauds that were flagged, and none that was approved: then labels are those of flagged payments
alone."""
SegmentField = Literal["channel", "country", "mcc", "currency"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SegmentFinding:
    """One value of the field. Money a day, over the later days; `low` and `high` of the interval, None where none was
    drawn. `own`: whether it gets its threshold; else `reason` says why the common one holds."""

    value: str
    payments: int
    frauds: int
    later_frauds: int
    score: float
    saved_more: float
    low: float | None
    high: float | None
    own: bool
    reason: str


@dataclass(frozen=True)
class SegmentThresholds:
    """`score`: the common threshold that saved most on the first days."""

    score: float
    findings: list[SegmentFinding]

    @property
    def own(self) -> list[SegmentFinding]:
        """Those that get a threshold of their own."""
        return [finding for finding in self.findings if finding.own]


def judged(
    decided: Decided, policy: Policy, from_ms: int, *, as_of_ms: int | None = None, genuine_ms: int | None = None
) -> Decided:
    """The payments that thresholds can be found on: those with matured labels that the score decided, not a list, a
    rule of `policy`, or a student. `genuine_ms`: payments without a label count as genuine so long after their event
    time. Raises BacktestError where labels depend on what was flagged: thresholds found on them flag far too much."""
    decided = decided.take(~(decided.degraded | decided.by_list_or_rule([item.name for item in policy.segments])))
    if not len(decided):
        raise BacktestError("lists, rules or a student decided all of the payments: give decisions of a longer time")
    known = decided.known_by(int(decided.time_ms.max()) if as_of_ms is None else as_of_ms)
    if genuine_ms is not None:
        others = ~known.flagged
        caught, missed = (int((known.fraud & side).sum()) for side in (known.flagged, others))
        if caught >= SUSPECT_FRAUDS and not missed and (known.label[others] < 0).any():
            raise BacktestError(
                f"all {caught} known frauds were flagged, and approved payments lack labels: where only flagged "
                "payments are investigated, those without a label are not known to be genuine; give labels of frauds "
                "that were reported later (chargebacks), or of payments inspected at random"
            )
        return decided.genuine_after(genuine_ms).matured(as_of_ms)
    earlier = known.time_ms < from_ms
    for part, days in ((earlier, " before --from"), (~earlier, " from --from on"), (earlier | ~earlier, "")):
        labelled = known.take(part).labelled_by_decision()
        if labelled is not None and not (days and (known.flagged & part).sum() < FLAGGED_MIN):
            flagged, approved = labelled
            raise BacktestError(
                f"{flagged:.1%} of the flagged payments{days} have a label, {approved:.1%} of the approved ones: what "
                "was flagged decides who has one, and thresholds found on that flag far too much; where every fraud is "
                "reported sooner or later, give --genuine-after 60d, else labels of all payments"
            )
    return decided.matured(as_of_ms)


def segment_thresholds(
    decided: Decided, field: SegmentField, cost: FlagCost, from_ms: int, *, rounds: int = ROUNDS_MIN, seed: int = 1
) -> SegmentThresholds:
    """Of payments that `judged` gave, without those decided without the model. Raises BacktestError where days or the
    field are missing."""
    decided, rounds = decided.take(~decided.degraded), max(rounds, ROUNDS_MIN)
    earlier = decided.time_ms < from_ms
    for part, name in ((earlier, "before --from"), (~earlier, "from --from on")):
        if (days := len(np.unique(decided.day[part]))) < figures.DAYS_MIN:
            raise BacktestError(
                f"{days} days with matured labels lie {name}, {figures.DAYS_MIN} are needed: choose another --from, or "
                "store decisions of a longer time"
            )
    if decided.table[field].null_count == len(decided):
        raise BacktestError(f"no payment has a {field}: name its column in the mapping, or give another field")
    scores, worth = decided.score, _worth(decided, cost)
    common = best_score(scores[earlier], worth[earlier])
    codes, names = decided.codes(field)
    frauds = np.bincount(codes[earlier & decided.fraud], minlength=len(names))
    judged = int((frauds >= FRAUDS_MIN).sum())
    level = 1 - 0.05 / max(1, judged)
    return SegmentThresholds(
        common,
        [
            _finding(decided, codes == code, earlier, worth, names[code], common, level, rounds=rounds, seed=seed)
            for code in np.unique(codes).tolist()
        ],
    )


def _worth(decided: Decided, cost: FlagCost) -> Floats:
    """float64 [n], major units: what flagging each payment saves, now that its label is known."""
    return money_saved(cost, decided.fraud, np.ones(len(decided), np.bool_), np.nan_to_num(decided.money))


def best_score(scores: Floats, worth: Floats) -> float:
    """The score from which on flagging saved most, of float64 [n] each; where nothing is worth a flag, one above them
    all, below 1. Of several that saved as much the highest."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    saved = np.cumsum(worth[order])[last_of_tie]
    if not len(saved) or saved.max() <= 0:
        highest = float(scores.max()) if len(scores) else 0.0
        return min((highest + 1) / 2, float(np.nextafter(1.0, 0.0)))
    # A policy's threshold is below 1, and above 0.
    best = float(scores[order][last_of_tie[int(np.argmax(saved))]])
    return min(max(best, float(np.finfo(np.float64).tiny)), float(np.nextafter(1.0, 0.0)))


def _finding(
    decided: Decided,
    here: npt.NDArray[np.bool_],
    earlier: npt.NDArray[np.bool_],
    worth: Floats,
    value: str,
    common: float,
    level: float,
    *,
    rounds: int,
    seed: int,
) -> SegmentFinding:
    first, later = here & earlier, here & ~earlier
    days = len(np.unique(decided.day[~earlier]))
    frauds, later_frauds = int(decided.fraud[first].sum()), int(decided.fraud[later].sum())
    score = best_score(decided.score[first], worth[first]) if frauds >= FRAUDS_MIN else common
    differs = (decided.score >= score).astype(np.float64) - (decided.score >= common)
    more = np.where(later, differs * worth, 0.0)[~earlier]
    low, high, own, reason = None, None, False, ""
    if value == "(none)":
        reason = "no value: the common threshold is for those"
    elif frauds < FRAUDS_MIN:
        reason = f"{frauds} frauds on the first days, {FRAUDS_MIN} are needed"
    elif later_frauds < LATER_FRAUDS_MIN:
        reason = f"{later_frauds} frauds on the later days, {LATER_FRAUDS_MIN} are needed"
    elif not more.any():
        reason = "on the later days its own flags the same"
    else:
        ranges = figures.day_intervals(decided.day[~earlier], {"more": more}, rounds=rounds, seed=seed, level=level)
        low, high = (bound / days for bound in ranges["more"])
        own = low > 0
        reason = "" if own else "the later days do not show that its own saves more"
    return SegmentFinding(
        value, int(here.sum()), frauds, later_frauds, score, float(more.sum()) / days, low, high, own, reason
    )


def policy_segments(field: SegmentField, found: SegmentThresholds) -> list[dict[str, object]]:
    """The `segments` of a policy, of those that get a threshold of their own."""
    return [
        {"name": f"{field}_{number}", "field": field, "values": [finding.value], "score": finding.score}
        for number, finding in enumerate(found.own, start=1)
    ]
