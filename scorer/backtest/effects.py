"""What a day brings with a change and without: payments flagged, frauds found, money; and that in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scorer.backtest import backtest_figures as figures
from scorer.backtest.decided_payments import Decided
from scorer.policy import FlagCost, money_saved

Floats = npt.NDArray[np.float64]
NOTHING_FLAGGED = "nothing flagged"


@dataclass(frozen=True)
class Effect:
    """One figure, a day: means over the days with matured payments. `unit`: payments, or the currency. `low` and
    `high`: 95 % interval of `change`, from drawing days; None with too few of them."""

    figure: str
    unit: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 0: the change is more than the chance of these days."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def effects_of(
    before: Decided | None,
    after: Decided,
    cost: FlagCost | None,
    *,
    rounds: int,
    seed: int,
    whole: tuple[Decided | None, Decided] | None = None,
) -> list[Effect]:
    """What each day brings by `after` and by `before`, n matured payments each and the same ones; None: flagging
    nothing. By `cost` also the money that a decision saves, in its parts. `whole`: the same of all payments of those
    days, those without a matured label too, which count as flagged."""
    days = max(1, len(np.unique(after.day)))
    now = _values(after, after.flagged, cost)
    then = _values(after, _flags(before, after), cost)
    ranges = figures.day_intervals(
        after.day, {name: now[name][1] - then[name][1] for name in now}, rounds=rounds, seed=seed
    )
    if whole is not None:
        was, flags = (np.asarray(side, np.float64) for side in (_flags(*whole), whole[1].flagged))
        now["flagged"], then["flagged"] = ("payments", flags), ("payments", was)
        ranges |= figures.day_intervals(whole[1].day, {"flagged": flags - was}, rounds=rounds, seed=seed)
    found = []
    for name, (unit, values) in now.items():
        had, has = float(then[name][1].sum()) / days, float(values.sum()) / days
        low, high = (bound / days for bound in ranges[name]) if name in ranges else (None, None)
        found.append(Effect(name, unit, had, has, has - had, low, high))
    return found


def _flags(before: Decided | None, after: Decided) -> npt.NDArray[np.bool_]:
    return np.zeros(len(after), np.bool_) if before is None else before.flagged


def _values(decided: Decided, flagged: npt.NDArray[np.bool_], cost: FlagCost | None) -> dict[str, tuple[str, Floats]]:
    """By figure: its unit, and float64 [n] of each payment."""
    fraud, amount = decided.fraud, np.nan_to_num(decided.money)
    hit, stopped = fraud & flagged, ~fraud & flagged
    money: dict[str, npt.NDArray[np.floating[Any]]] = {}
    if cost is not None:
        money = {
            "money_saved": money_saved(cost, fraud, flagged, amount),
            "loss_prevented": amount * cost.loss_share * hit,
            "cost_of_reviews": cost.review * flagged,
            "cost_of_good_customers": cost.good_customer * stopped,
        }
    counts = {"flagged": flagged, "frauds_found": hit, "genuine_stopped": stopped}
    money_after = {"fraud_money_caught": amount * hit, "genuine_money_stopped": amount * stopped}
    return {
        name: (unit, np.asarray(values, np.float64))
        for unit, group in ((decided.currency, money), ("payments", counts), (decided.currency, money_after))
        for name, values in group.items()
    }


def sentences_of(
    effects: Sequence[Effect], names: Sequence[str], changed: tuple[int, int, int] | None, cost: FlagCost | None
) -> list[str]:
    """What changes when this goes live, the most important first. `names`: of the sides, one or two. `changed`: of so
    many payments so many are flagged now, and so many approved."""
    by_name = {effect.figure: effect for effect in effects}
    what = names[0] if changed is None else f"{names[1]} instead of {names[0]}"
    saved, counts = by_name.get("money_saved"), [by_name[name] for name in _COUNTS]
    found = [] if saved is None else [_of_money(what, saved, alone=changed is None)]
    if changed is None:
        flagged, hits, stopped = (_number(effect.after) for effect in counts)
        unknown = counts[0].after - counts[1].after - counts[2].after
        rest = f", and {_number(unknown)} without a matured label" if unknown > 1e-9 else ""
        found.append(f"{names[0]} flags {flagged} payments a day: {hits} frauds and {stopped} genuine payments{rest}.")
    else:
        parts = ", ".join(_more(effect, *_COUNTS[effect.figure]) for effect in counts)
        found.append(f"Each day {parts}." if saved is not None else f"{what}: each day {parts}.")
        payments, now, no_more = changed
        found.append(
            f"{now + no_more:,} of {payments:,} payments are decided otherwise: {now:,} are flagged instead of "
            f"approved, {no_more:,} approved instead of flagged."
        )
    return [*found, _counted_by(cost, what)]


_COUNTS = {
    "flagged": ("payments", "are flagged"),
    "frauds_found": ("frauds", "are found"),
    "genuine_stopped": ("genuine payments", "are stopped"),
}


def _more(effect: Effect, what: str, verb: str) -> str:
    if effect.change == 0:
        return f"as many {what} {verb} ({_number(effect.after)})"
    word = "more" if effect.change > 0 else "fewer"
    return f"{_number(abs(effect.change))} {word} {what} {verb} ({_number(effect.before)} → {_number(effect.after)})"


def _of_money(what: str, saved: Effect, *, alone: bool) -> str:
    verb = "saves" if saved.change >= 0 else "costs"
    amount = f"{what} {verb} {_number(abs(saved.change))} {saved.unit} a day"
    if alone:
        amount += " against flagging nothing"
    elif saved.change >= 0:
        amount += " more"
    if saved.low is None or saved.high is None:
        return f"{amount} (too few days for an interval)."
    low, high = (saved.low, saved.high) if saved.change >= 0 else (-saved.high, -saved.low)
    shown = "" if saved.is_shown else "; it includes 0, so no difference is shown"
    return f"{amount} (95 % interval {_number(low)} to {_number(high)}{shown})."


def _counted_by(cost: FlagCost | None, what: str) -> str:
    """By what money is counted; without costs, how to have it."""
    if cost is None:
        return (
            f"What {what} saves or costs is not counted: no policy here flags by cost, and no --cost was given (what a "
            "review and a good customer stopped cost)."
        )
    lost = "" if cost.loss_share == 1 else f", and {cost.loss_share:.0%} of a missed fraud's amount as lost"
    review, customer = (f"{value:g} {cost.currency}" for value in (cost.review, cost.good_customer))
    return f"Money is counted with {review} a review and {customer} a good customer stopped{lost}."


def _number(value: float) -> str:
    """Three digits that matter, whole from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
