"""What a challenger would have changed, from labels that not every payment has: pure functions of arrays.

Both models have decided the same payments. Where they agree they cause the same, whatever is true; so every difference
is a sum over two cells alone: payments that only the challenger flags (+) and payments that only the champion flags
(-). A figure counts s x (a x y + b): s the sign, y whether the payment is fraud, a and b known of every payment. y is
what labels say, and not every payment has one:

    labels    (nearly) all payments of the cell have a label: y is known
    sample    some were drawn at random and inspected: each stands for as many as were not (Horvitz and Thompson, A
              generalization of sampling without replacement from a finite universe, 1952)
    assumed   a payment without a label counts as genuine, because every fraud is reported sooner or later
    bounds    else: y may be 0 or 1 for each payment without a label, which gives a lowest and a highest sum (Manski,
              Partial identification of probability distributions, 2003)

Intervals are a bootstrap by groups with Poisson(1) weights, the same weights for both models (Hanley and MacGibbon,
Creating non-parametric bootstrap samples using Poisson frequencies, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from scorer.policy import FlagCost

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
How = Literal["labels", "sample", "assumed", "bounds"]

COMPLETE: Final = 0.98
"""With so large a share of a cell labelled, the labelled payments stand for the few others."""
INSPECTED_MIN: Final = 30
"""Inspected payments of a cell, at least, that stand for it."""
SAMPLE_FRAUDS_MIN: Final = 5
"""Of fewer frauds among the inspected a bootstrap knows too little: the rate's exact interval counts instead."""
_DRAWN_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A figure of a flagged payment: a x y + b, float64 [n] each, y being 1 for a fraud and 0 for a genuine payment."""

    a: Floats
    b: Floats


def coefficients(amount: Floats, cost: FlagCost | None) -> dict[str, Coefficients]:
    """The figures that are compared, of payments with amounts float64 [n] in major units; with costs the money saved,
    as `scorer.policy.money_saved` counts it."""
    one, none = np.ones(len(amount)), np.zeros(len(amount))
    found = {
        "frauds_caught": Coefficients(one, none),
        "fraud_money_caught": Coefficients(amount, none),
        "good_payments_stopped": Coefficients(-one, one),
        "good_money_blocked": Coefficients(-amount, amount),
    }
    if cost is not None:
        lost = cost.review + cost.good_customer
        found["money_saved"] = Coefficients(amount * cost.loss_share + cost.good_customer, np.full(len(amount), -lost))
    return found


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of y of n payments: how, and y float64 [n] as estimated (NaN where bounds alone are known), and the
    lowest and the highest that it may be."""

    how: How
    y: Floats
    low: Floats
    high: Floats

    def joined(self, other: Truth, of_other: Bools) -> tuple[Floats, Floats, Floats]:
        """y, low and high with those of `other` at the payments `of_other`, bool [n]."""
        return (
            np.where(of_other, other.y, self.y),
            np.where(of_other, other.low, self.low),
            np.where(of_other, other.high, self.high),
        )


def truth_of(cell: Bools, label: npt.NDArray[np.int8], inspected: Bools, *, assumed: bool) -> Truth:
    """What is known of the payments of a cell, bool [n]; label int8 [n]: 1 fraud, 0 genuine, -1 unknown; `inspected`
    bool [n]: drawn at random, whether they had a label or not. `assumed`: those without a label are genuine."""
    known, fraud = cell & (label >= 0), (label == 1).astype(np.float64)
    payments, labelled = int(cell.sum()), int(known.sum())
    if labelled >= COMPLETE * payments:
        y = np.where(known, fraud * (payments / max(1, labelled)), 0.0)
        return Truth("labels", y, y, y)
    drawn = cell & inspected
    checked = drawn & known
    # Of a sample those that are easy to judge have a label first: it counts once nearly all have one.
    if int(checked.sum()) >= INSPECTED_MIN and int(checked.sum()) >= COMPLETE * int(drawn.sum()):
        count, frauds = int(checked.sum()), int((checked & (label == 1)).sum())
        y = np.where(checked, fraud * (payments / count), 0.0)
        if frauds >= SAMPLE_FRAUDS_MIN:
            return Truth("sample", y, y, y)
        least, most = rate_interval(frauds, count)
        return Truth("sample", y, np.where(cell, least, 0.0), np.where(cell, most, 0.0))
    if assumed:
        return Truth("assumed", fraud, fraud, fraud)
    low, high = np.where(known, fraud, 0.0), np.where(known, fraud, 1.0)
    return Truth("bounds", np.where(cell, np.nan, 0.0), np.where(cell, low, 0.0), np.where(cell, high, 0.0))


def rate_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate of which `hits` of `count` were seen. (Clopper and Pearson, The use of confidence or
    fiducial limits illustrated in the case of the binomial, 1934.)"""
    tail = (1.0 - level) / 2.0

    def solved(most: int, wanted: float) -> float:
        """The rate at which the chance of at most `most` hits is `wanted`: it falls as the rate rises."""
        k = np.arange(most + 1)
        ways = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k.tolist()])
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2.0
            chance = float(np.exp(ways + k * math.log(middle) + (count - k) * math.log1p(-middle)).sum())
            low, high = (middle, high) if chance > wanted else (low, middle)
        return (low + high) / 2.0

    lower = 0.0 if hits == 0 else solved(hits - 1, 1.0 - tail)
    return lower, 1.0 if hits == count else solved(hits, tail)


@dataclass(frozen=True)
class Estimate:
    """A sum: the value (None where bounds alone are known), the lowest and the highest that it may be on these
    payments, and the 95 % interval that also counts chance (None without draws)."""

    value: float | None
    lowest: float
    highest: float
    interval: tuple[float, float] | None


def sums(
    figures: Mapping[str, Coefficients], sign: Floats, y: tuple[Floats, Floats, Floats]
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """By figure s x (a x y + b) of each payment, float64 [n]: as estimated, lowest and highest. `y`: estimated, lowest,
    highest."""
    found = {}
    for name, of in figures.items():
        middle, one, other = (sign * (of.a * each + of.b) for each in y)
        found[name] = middle, np.minimum(one, other), np.maximum(one, other)
    return found


def estimates(
    values: Mapping[str, tuple[Floats, Floats, Floats]], groups: list[Ints], *, rounds: int, seed: int
) -> dict[str, Estimate]:
    """The sums of the values of n payments, float64 [n] each, as `sums` gives them, with intervals: those of each way
    to group the payments, int64 [n], and of them the widest."""
    names = list(values)
    ends = np.column_stack([values[name][side] for name in names for side in (1, 2)]) if names else np.empty((0, 0))
    found = [drawn_interval(group, ends, rounds=rounds, seed=seed) for group in groups] if rounds else []
    result = {}
    for place, name in enumerate(names):
        middle, low, high = (float(part.sum()) for part in values[name])
        interval = None
        if found:
            interval = (
                min(float(each[0][2 * place]) for each in found),
                max(float(each[1][2 * place + 1]) for each in found),
            )
        result[name] = Estimate(None if math.isnan(middle) else middle, low, high, interval)
    return result


def drawn_interval(group: Ints, values: Floats, *, rounds: int, seed: int) -> tuple[Floats, Floats]:
    """The 2.5 % and the 97.5 % quantile, float64 [k] each, of the column sums of values float64 [n, k] with groups
    int64 [n] drawn with Poisson(1) weights."""
    there = np.flatnonzero((values != 0.0).any(axis=1))
    if not len(there):
        return np.zeros(values.shape[1]), np.zeros(values.shape[1])
    each, place = np.unique(group[there], return_inverse=True)
    totals = np.zeros((len(each), values.shape[1]))
    np.add.at(totals, place, values[there])
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // len(each))
    drawn = np.concatenate(
        [
            rng.poisson(1.0, (min(step, rounds - start), len(each))).astype(np.float64) @ totals
            for start in range(0, rounds, step)
        ]
    )
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high
