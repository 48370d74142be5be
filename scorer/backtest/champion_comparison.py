"""Champion and challenger on payments whose labels have matured: win, loss, money, by segment, and what to do.

Both have decided the same payments; what differs lies in those that one of them flags alone. Labels are late and chosen
(the champion's flags are investigated, the rest is not), so each figure says how it is known, and the report names what
labels cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from scorer.backtest import paired_estimates as paired
from scorer.backtest.backtest_figures import DAYS_MIN, average_precisions_drawn
from scorer.backtest.comparison_findings import (
    Action,
    Cell,
    Finding,
    Seen,
    Segment,
    Situation,
    break_even,
    findings_of,
    flagged_a_day,
    in_days,
    recommended,
    to_inspect,
)
from scorer.backtest.decided_payments import BacktestError, Decided
from scorer.backtest.paired_estimates import Estimate
from scorer.backtest.shadow_trial import Shadow
from scorer.policy import FlagCost
from scorer.training.ranking import average_precision

CELLS: Final = ("both flag", "challenger alone flags", "champion alone flags", "neither flags")
ALONE: Final = 1, 2
DELAY_SHARE: Final = 0.95
SUSPECT_FRAUDS: Final = 20
"""So many known frauds that were flagged, and none that was approved: then labels are those of flagged payments
alone."""
SEGMENT_FRAUDS_MIN: Final = 10
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Comparison:
    """All of it. Money in major units of `currency`; figures are challenger - champion over the payments counted."""

    champion: str
    challenger: str
    currency: str
    from_ms: int
    until_ms: int
    """Payments of [from_ms, until_ms) are counted: those later have labels that have not matured."""
    as_of_ms: int
    delay_ms: int
    payments: int
    days: int
    left_out: int
    cells: list[Cell]
    flagged_a_day: dict[str, float]
    """By `champion` and `challenger`."""
    figures: dict[str, Estimate]
    naive: dict[str, Estimate]
    """The same from labelled payments alone: what a report that ignores who gets a label would show."""
    average_precision: dict[str, Any]
    segments: list[Segment]
    deciding: str
    break_even: dict[str, float] | None
    """Of the payments without a label that the challenger alone flags, the number and the share that must be fraud for
    the challenger to catch as many frauds as the champion; None where it is known."""
    inspect: int
    """How many of the payments that the challenger alone flags to inspect, drawn at random, before it can be
    decided."""
    findings: list[Finding]
    action: Action
    reason: str
    draw_from: list[str] = field(default_factory=list, repr=False)
    """Ids of the payments that the challenger alone flags."""

    def document(self) -> dict[str, Any]:
        """For --json: all but the ids."""
        found = asdict(self)
        del found["draw_from"]
        return found

    def sample(self, count: int, seed: int) -> list[str]:
        """`count` ids drawn at random of the payments that the challenger alone flags, labelled ones too: a sample of
        those without a label alone would not stand for the others. It stands for payments of [from_ms, until_ms).
        Raises BacktestError where there are none."""
        if not self.draw_from:
            raise BacktestError("the challenger alone flags no payment: there is nothing to inspect")
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.draw_from), min(count, len(self.draw_from)), replace=False)
        return [self.draw_from[place] for place in np.sort(chosen).tolist()]


def label_delay(decided: Decided, inspected: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """(median, 95 % quantile) of the time from a payment to its label, ms, and how many labels that is from: of the
    older half of the payments, of whose labels few are still to come. Raises BacktestError without labels."""
    half = decided.time_ms <= np.median(decided.time_ms) if len(decided) else np.zeros(0, bool)
    known = half & (decided.label >= 0) & ~inspected
    if not known.any():
        raise BacktestError(
            "no payment of the older half of the window has a label: replay the audit rows (--input audit), or name "
            "the label in the mapping"
        )
    delay = np.asarray(decided.numbers("label_known_at"), dtype=np.int64)[known] - decided.time_ms[known]
    middle, high = np.quantile(np.maximum(delay, 0), [0.5, DELAY_SHARE])
    return int(middle), math.ceil(high), int(known.sum())


@dataclass(frozen=True, eq=False)
class Counted:
    """Which of n payments are counted, bool [n]: those whose labels had time to come, `delay_ms`, before `as_of_ms`."""

    counted: npt.NDArray[np.bool_]
    as_of_ms: int
    delay_ms: int
    delay_source: str

    @classmethod
    def of(
        cls, decided: Decided, *, from_ms: int | None, as_of_ms: int | None, delay_ms: int | None,
        inspected: npt.NDArray[np.bool_], until_ms: int | None = None,
    ) -> Counted:  # fmt: skip
        """As of: by default the last time that the decisions know of, an event or a label. Delay: by default what most
        labels took. Raises BacktestError."""
        if not len(decided):
            raise BacktestError("there are no decided payments: check --decided")
        known_at = np.asarray(decided.numbers("label_known_at"), dtype=np.int64)
        as_of = max(int(decided.time_ms.max()), int(known_at.max())) if as_of_ms is None else as_of_ms
        source = "given"
        if delay_ms is None:
            middle, delay_ms, labels = label_delay(decided.known_by(as_of), inspected)
            source = (
                f"{DELAY_SHARE:.0%} of {labels:,} labels of the older half of the payments came within it, half of "
                f"them within {in_days(middle)}"
            )
        counted = (decided.time_ms >= (from_ms or 0)) & (decided.time_ms <= as_of - delay_ms)
        if until_ms is not None:
            counted &= decided.time_ms < until_ms
        if not counted.any():
            raise BacktestError(
                f"no payment of the window is older than the {in_days(delay_ms)} that labels take: give decisions of a "
                "longer time, a later --as-of, or a shorter --label-delay"
            )
        return cls(counted, as_of, delay_ms, source)


def compare(
    decided: Decided,
    shadow: Shadow,
    champion: str,
    *,
    window: Counted,
    genuine: bool,
    inspected: npt.NDArray[np.bool_],
    cost: FlagCost | None = None,
    seen: Seen | None = None,
    rounds: int = 1_000,
    seed: int = 1,
) -> Comparison:
    """Compare the decisions `decided` with those of the challenger on the payments of the window.

    `genuine`: a payment without a label is genuine. `inspected`, bool [n]: drawn at random and investigated, whatever
    was known of them. `cost`: money saved is counted by these costs, and decides. `seen`: what the models learned from,
    for the findings. Raises BacktestError where the models
    never differ.
    """
    first = decided.known_by(window.as_of_ms).take(window.counted)
    second = shadow.decided.take(window.counted)
    inspected, label = inspected[window.counted], first.label
    a, b = first.flagged, second.flagged
    cell = np.where(a & b, 0, np.where(b, 1, np.where(a, 2, 3)))
    if not np.isin(cell, ALONE).any():
        raise BacktestError(
            f"champion and challenger flag the same {int(a.sum())} payments: there is nothing to compare; give a "
            "longer time, or take whichever is cheaper"
        )
    known_flagged, known_passed = ((label == 1) & side for side in (a, ~a))
    # Frauds that are reported by themselves are found among approved payments too.
    others = ~a & ~inspected
    suspect = (
        int(known_flagged.sum()) >= SUSPECT_FRAUDS
        and not (known_passed & others).any()
        and int((label[others] >= 0).sum()) < paired.COMPLETE * int(others.sum())
    )
    amount = np.nan_to_num(first.money)
    truths = [paired.truth_of(cell == one, label, inspected, assumed=genuine and not suspect) for one in ALONE]
    sign = np.where(cell == 1, 1.0, np.where(cell == 2, -1.0, 0.0))
    y = truths[0].joined(truths[1], cell == 2)
    of = paired.coefficients(amount, cost)
    values = paired.sums(of, sign, y)
    days = np.unique(first.day)
    groups = [first.customer] + ([first.day] if len(days) >= DAYS_MIN else [])
    figures = paired.estimates(values, groups, rounds=rounds, seed=seed)
    labelled_alone = np.where(label >= 0, sign, 0.0), (np.maximum(label, 0).astype(np.float64),) * 3
    naive = paired.estimates(paired.sums(of, *labelled_alone), groups, rounds=rounds, seed=seed)
    deciding = "frauds_caught" if cost is None else "money_saved"
    cells = [
        Cell(
            name,
            int((at := cell == number).sum()),
            int((at & (label >= 0)).sum()),
            int((at & (label == 1)).sum()),
            int((at & inspected & (label >= 0)).sum()),
            float(amount[at].sum()),
            float(amount[at & (label == 1)].sum()),
            truths[number - 1].how if number in ALONE else None,
        )
        for number, name in enumerate(CELLS)
    ]
    segments = _segments(first, values, groups, sign, label, deciding, rounds=rounds, seed=seed)
    even = break_even(cells)
    situation = Situation(
        cells=cells,
        figures=figures,
        naive=naive,
        deciding=deciding,
        currency=first.currency,
        days=len(days),
        delay_ms=window.delay_ms,
        delay_source=window.delay_source,
        left_out=int((~window.counted).sum()),
        genuine=genuine,
        suspect=suspect,
        threshold_score=shadow.threshold_score,
        segment_scores=shadow.segment_scores,
        saving_min=shadow.saving_min,
        segments=segments,
        inspected=int(inspected.sum()),
        inspected_labelled=int((inspected & (label >= 0)).sum()),
        seen=seen or Seen(),
    )
    action, reason = recommended(situation)
    ids = first.take(cell == 1).texts("payment_id")
    return Comparison(
        champion=champion,
        challenger=shadow.name,
        currency=first.currency,
        from_ms=int(first.time_ms.min()),
        until_ms=int(first.time_ms.max()) + 1,
        as_of_ms=window.as_of_ms,
        delay_ms=window.delay_ms,
        payments=len(first),
        days=len(days),
        left_out=situation.left_out,
        cells=cells,
        flagged_a_day=flagged_a_day(cells, len(days)),
        figures=figures,
        naive=naive,
        average_precision=_precision(first, second, genuine and not suspect, rounds=rounds, seed=seed),
        segments=segments,
        deciding=deciding,
        break_even=even,
        inspect=to_inspect(cells, even),
        findings=findings_of(situation),
        action=action,
        reason=reason,
        draw_from=[str(one) for one in ids],
    )


def inspected_of(decided: Decided, ids: Collection[str]) -> npt.NDArray[np.bool_]:
    """bool [n]: the payments of these ids. Raises BacktestError where none of them was decided."""
    found = np.array([one in ids for one in decided.texts("payment_id")], dtype=np.bool_)
    if ids and not found.any():
        raise BacktestError(
            f"none of the {len(ids):,} inspected payments is among those decided: check --inspected and --decided"
        )
    return found


def _precision(first: Decided, second: Decided, assumed: bool, *, rounds: int, seed: int) -> dict[str, Any]:
    """Average precision of both on labelled payments, and the interval of the difference; `complete`: nearly all have a
    label, without which the figure is that of payments which the champion chose."""
    label = first.label
    rows = ~first.degraded & (assumed | (label >= 0))  # the student's margins are on another scale
    truth = label[rows] == 1
    if not truth.any():
        return {}
    scores = first.margin[rows], second.margin[rows]
    values = [average_precision(truth, side) for side in scores]
    drawn = [
        average_precisions_drawn(first.customer[rows], truth, side, rounds=min(rounds, 200), seed=seed)
        for side in scores
    ]
    low, high = np.nanpercentile(drawn[1] - drawn[0], [2.5, 97.5]) if rounds else (math.nan, math.nan)
    return {
        "champion": values[0],
        "challenger": values[1],
        "difference": values[1] - values[0],
        "interval": [float(low), float(high)] if rounds else None,
        "complete": bool(rows.sum() >= paired.COMPLETE * (~first.degraded).sum()),
    }


def _segments(
    first: Decided,
    values: dict[str, tuple[paired.Floats, paired.Floats, paired.Floats]],
    groups: list[paired.Ints],
    sign: paired.Floats,
    label: npt.NDArray[np.int8],
    deciding: str,
    *,
    rounds: int,
    seed: int,
) -> list[Segment]:
    """Segments in which the models differ, most differences first."""
    shown = {name: values[name] for name in ("frauds_caught", "good_payments_stopped", deciding)}
    rows = [
        (kind, names[int(code)], codes == code)
        for kind, (codes, names) in first.segments().items()
        for code in np.unique(codes[sign != 0])
    ]
    level = 1.0 - (1.0 - LEVEL) / max(1, len(rows))
    wider = NormalDist().inv_cdf((1.0 + level) / 2.0) / NormalDist().inv_cdf((1.0 + LEVEL) / 2.0)
    found = []
    for kind, name, at in rows:
        here = {figure: (mid[at], low[at], high[at]) for figure, (mid, low, high) in shown.items()}
        figures = paired.estimates(here, [group[at] for group in groups], rounds=rounds, seed=seed)
        differ = at & (sign != 0)
        enough = int((differ & (label == 1)).sum()) >= SEGMENT_FRAUDS_MIN
        found.append(
            Segment(
                kind, name, int(at.sum()), int(differ.sum()), figures,
                _verdict(figures[deciding], wider) if enough else "not shown",
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (-one.differ, one.kind, one.name))


def _verdict(estimate: Estimate, wider: float) -> Literal["better", "worse", "not shown"]:
    """By an interval widened by the factor `wider` around its sum."""
    if estimate.interval is None:
        return "not shown"
    low = estimate.lowest - wider * (estimate.lowest - estimate.interval[0])
    high = estimate.highest + wider * (estimate.interval[1] - estimate.highest)
    return "better" if low > 0 else "worse" if high < 0 else "not shown"
