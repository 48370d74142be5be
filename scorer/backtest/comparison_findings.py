"""What a comparison of champion and challenger rests on, what labels cannot say, and what to do: in words.

The rule of the recommendation, by the 95 % interval of the deciding figure (challenger - champion), in which payments
without a label count as bounds where nothing stands for them:

    above 0             activate, unless a segment is worse
    below 0             keep the champion
    around 0            wait; where labels are missing: inspect a random sample, whose size follows from the break-even
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from scorer.backtest import paired_estimates as paired
from scorer.backtest.backtest_figures import DAYS_MIN
from scorer.backtest.decided_payments import DAY_MS
from scorer.backtest.paired_estimates import Estimate, How

Action = Literal["activate", "keep", "wait", "inspect"]
LABELS_MIN: Final = 30
"""Labelled payments in the two cells that differ, at least, before anything is recommended."""


@dataclass(frozen=True)
class Cell:
    """Payments by what both models decide."""

    name: str
    payments: int
    labelled: int
    frauds: int
    inspected: int
    money: float
    fraud_money: float
    how: How | None
    """How its frauds are known; None for cells in which the models agree."""


@dataclass(frozen=True)
class Segment:
    """The difference challenger - champion in one segment."""

    kind: str
    name: str
    payments: int
    differ: int
    figures: dict[str, Estimate]
    verdict: Literal["better", "worse", "not shown"]
    """By the deciding figure, at a level that counts how many segments were looked at (Bonferroni)."""


@dataclass(frozen=True)
class Finding:
    """What the figures rest on, or what they cannot say."""

    name: str
    warning: bool
    text: str


@dataclass(frozen=True)
class Seen:
    """`until_ms`, epoch ms: payments before it had a part in the training of one of the models, as far as that is
    known; `unknown`: of which models it is not."""

    until_ms: int | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Situation:
    """What the words are made from; figures as in `Comparison`."""

    cells: list[Cell]
    figures: dict[str, Estimate]
    naive: dict[str, Estimate]
    deciding: str
    currency: str
    days: int
    delay_ms: int
    delay_source: str
    left_out: int
    genuine: bool
    """A payment without a label was to count as genuine."""
    suspect: bool
    """But labels look like those of flagged payments alone, so it does not."""
    threshold_score: float | None
    segment_scores: dict[str, float]
    """Scores from which the challenger flags, of payments in no segment and by segment of the policy."""
    saving_min: float | None
    """The challenger's own, where a policy by cost has a capacity."""
    segments: list[Segment]
    inspected: int
    inspected_labelled: int
    seen: Seen

    @property
    def unknown(self) -> bool:
        """Whether bounds alone are known of a cell in which the models differ."""
        return any(cell.how == "bounds" for cell in self.cells)

    @property
    def sampled(self) -> bool:
        """Whether a random sample stands for a cell."""
        return any(cell.how == "sample" for cell in self.cells)

    def plain(self, estimate: Estimate) -> str:
        """A sum with its unit."""
        unit = "frauds caught" if self.deciding == "frauds_caught" else f"{self.currency} saved"
        if estimate.value is None:
            return f"anything from {estimate.lowest:+,.0f} to {estimate.highest:+,.0f} {unit}"
        return f"{estimate.value:+,.0f} {unit}"


def flagged_a_day(cells: list[Cell], days: int) -> dict[str, float]:
    """Payments a day that each model flags, those of lists and rules included."""
    both, challenger, champion, _ = (cell.payments for cell in cells)
    return {"champion": (both + champion) / max(1, days), "challenger": (both + challenger) / max(1, days)}


def break_even(cells: list[Cell]) -> dict[str, float] | None:
    """See Comparison. The champion's own frauds are counted as far as they are known."""
    unknown = cells[1].payments - cells[1].labelled
    if cells[1].how != "bounds" or not unknown:
        return None
    wanted = max(0, cells[2].frauds - cells[1].frauds)
    return {"payments": float(unknown), "frauds": float(wanted), "share": wanted / unknown}


def to_inspect(cells: list[Cell], even: dict[str, float] | None) -> int:
    """A sample that separates a rate p from p / 2 and 3 p / 2 at 95 %: n = z² p (1 - p) / (p / 2)²; at least
    INSPECTED_MIN, all of them at most. p: the break-even's, between 1 % and a half."""
    if even is None:
        return 0
    rate = min(0.5, max(even["share"], 0.01))
    wanted = math.ceil(1.96**2 * (1.0 - rate) / rate * 4.0)
    return min(cells[1].payments, max(paired.INSPECTED_MIN, wanted))


def recommended(of: Situation) -> tuple[Action, str]:
    """What to do, and the reason."""
    estimate, unit = (
        of.figures[of.deciding],
        "frauds caught" if of.deciding == "frauds_caught" else f"{of.currency} saved",
    )
    labels = sum(cell.labelled for cell in of.cells if cell.how is not None)
    if estimate.interval is None:
        return "wait", "no interval was drawn (--rounds 0), and nothing is recommended without one"
    if of.days < DAYS_MIN or (labels < LABELS_MIN and not of.unknown):
        return "wait", (
            f"the models differ on {labels} labelled payments of {of.days} days; {LABELS_MIN} and {DAYS_MIN} are "
            "needed to separate a difference from chance: let the challenger go on in shadow"
        )
    low, high = estimate.interval
    between = f"between {low:+,.0f} and {high:+,.0f} {unit}, challenger less champion (95 %)"
    if low > 0:
        worse = [f"{one.kind} {one.name}" for one in of.segments if one.verdict == "worse"]
        reason = f"the challenger is better: {between}"
        reason += ", even if every payment without a label went against it" if of.unknown else ""
        return "activate", reason + (f"; but it is worse in {', '.join(worse)}: look there first" if worse else "")
    if high < 0:
        reason = f"the challenger is worse: {between}"
        return "keep", reason + (", even if every payment without a label went for it" if of.unknown else "")
    if of.unknown:
        return "inspect", _undecided(of, between)
    return "wait", (
        f"no difference is shown: {between}. Let the challenger go on in shadow, or take whichever is cheaper to run"
    )


def _undecided(of: Situation, between: str) -> str:
    even = break_even(of.cells)
    if even is None:
        return f"labels do not decide it: {between}. So first label what the champion flagged"
    return (
        f"labels do not decide it: {between}. Of the payments that the challenger alone flags {even['payments']:,.0f} "
        f"have no label; it catches as many frauds as the champion if {even['frauds']:,.0f} of them "
        f"({even['share']:.1%}) are fraud. So inspect {to_inspect(of.cells, even)}, drawn at random (--inspect), and "
        "compare again" + ("" if of.genuine else "; or, where each fraud is reported in the end, give --genuine-after")
    )


def findings_of(of: Situation) -> list[Finding]:
    """All that a reader has to know beside the figures."""
    found = [
        Finding(
            "label delay",
            False,
            f"Payments younger than {in_days(of.delay_ms)} are left out ({of.left_out:,} with those before --from): "
            "their labels have not matured, and what is known of them is what is known early. The delay: "
            f"{of.delay_source}.",
        ),
        _selection(of),
    ]
    found += _seen(of.seen)
    if of.inspected and of.inspected_labelled < paired.COMPLETE * of.inspected:
        found.append(
            Finding(
                "inspected sample",
                True,
                f"{of.inspected - of.inspected_labelled:,} of the {of.inspected:,} inspected payments have no label "
                "yet. Those that are easy to judge have one first, so the sample counts once nearly all have.",
            )
        )
    found += [
        _feedback(of),
        Finding(
            "stopped payments",
            False,
            "A payment that the champion stopped changes what came after it: a thief tries again, a customer stays "
            "away. The challenger scored the payments that came under the champion; under itself others would have "
            "come.",
        ),
    ]
    if of.saving_min is not None:
        champion, challenger = flagged_a_day(of.cells, of.days).values()
        found.append(
            Finding(
                "equal work",
                False,
                f"The team's capacity limits both models: the challenger flags above an expected saving of "
                f"{of.saving_min:,.2f} {of.currency}. The champion flags {champion:,.1f} payments a day, the "
                f"challenger {challenger:,.1f}, those of lists and rules included.",
            )
        )
    scores = [] if of.threshold_score is None else [f"{of.threshold_score:.6g}"]
    scores += [f"{score:.6g} in segment {name}" for name, score in of.segment_scores.items()]
    if scores:
        found.append(
            Finding(
                "equal work",
                False,
                f"The challenger flags from the score {', '.join(scores)} on: as many of these payments as the "
                f"champion's score{' in each segment' if of.segment_scores else ''}, so both are the same work for "
                "those who review.",
            )
        )
    if of.segments:
        found.append(
            Finding(
                "many segments",
                False,
                f"{len(of.segments)} segments are shown. Of so many without any difference about "
                f"{len(of.segments) / 20:.1f} would have an interval without 0 by chance; `better` and `worse` take "
                "that into account.",
            )
        )
    return found


def _seen(seen: Seen) -> list[Finding]:
    text = ""
    if seen.until_ms is not None:
        day = datetime.fromtimestamp(seen.until_ms / 1000, UTC).isoformat(timespec="seconds")
        text = f"Payments before {day} are left out: one of the models learned from them, or was chosen by them."
    if seen.unknown:
        text = (
            f"{text} It is not known which payments {' and '.join(seen.unknown)} learned from (imported, or a "
            "challenger that an older version added: then run `bundle challenge` anew). On payments that it learned "
            "from a model looks too good: give --from, a day after them."
        ).strip()
    return [Finding("training days", bool(seen.unknown), text)] if text else []


def _labelled(cells: list[Cell]) -> float:
    return sum(cell.labelled for cell in cells) / max(1, sum(cell.payments for cell in cells))


def _selection(of: Situation) -> Finding:
    """Who has a label, and what follows."""
    both, challenger, champion, neither = of.cells
    flagged, passed = _labelled([both, champion]), _labelled([challenger, neither])
    text = (
        f"{flagged:.1%} of the payments that the champion flags have a label, {passed:.1%} of those that it approves."
    )
    if of.suspect:
        text += (
            " Of the known frauds all were flagged (inspected ones aside): where only flagged payments are "
            "investigated and other frauds never reported, it looks the same as under a champion that misses none."
        )
        if of.genuine:
            text += " So payments without a label are not taken for genuine."
    deciding, naive = of.plain(of.figures[of.deciding]), of.plain(of.naive[of.deciding])
    if of.unknown:
        text += (
            " The champion chooses who gets a label, so labelled payments alone favour it: a fraud that the challenger "
            f"alone flags has none. They show {naive}, which is biased; without an assumption labels leave {deciding}."
        )
    elif of.sampled:
        text += f" Payments drawn at random and inspected stand for the others: {deciding}. Labels alone show {naive}."
    elif of.genuine and flagged - passed > 1.0 - paired.COMPLETE:
        text += (
            " Payments without a report count as genuine (--genuine-after): right where each fraud is reported "
            "sooner or later. A fraud that is never reported counts as a good payment stopped, for whichever model "
            "flags it."
        )
    return Finding("selection bias", of.unknown or of.suspect, text)


def _feedback(of: Situation) -> Finding:
    both, challenger, champion, neither = of.cells
    own, all_frauds = both.frauds + champion.frauds, sum(cell.frauds for cell in of.cells)
    share = own / max(1, all_frauds)
    return Finding(
        "feedback loop",
        share >= paired.COMPLETE or _labelled([both, champion]) > 2.0 * _labelled([challenger, neither]),
        f"The champion flagged {share:.1%} of the known frauds. A model that is trained on such labels learns what the "
        "champion sees already; what it misses counts as genuine in the next training, and is missed again. A small "
        "random share of approved payments, inspected always, breaks the loop.",
    )


def in_days(ms: int) -> str:
    """A time in days, for people."""
    return f"{ms / DAY_MS:.3g} days"
