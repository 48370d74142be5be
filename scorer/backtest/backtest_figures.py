"""The figures of a backtest: pure functions of arrays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from scorer.training.ranking import area_under_roc, average_precision, card_precision

FALSE_POSITIVE_RATES = (0.001, 0.005, 0.01)
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def recall_at(truth: Bools, scores: npt.NDArray[np.floating[Any]], rate: float) -> float:
    """The largest recall of any threshold that flags at most `rate` of the genuine payments. NaN without a fraud."""
    genuine = np.sort(scores[~truth])[::-1]
    if not truth.any():
        return float("nan")
    allowed = int(rate * len(genuine))
    if allowed >= len(genuine):
        return 1.0
    # Strictly above the first genuine payment that is one too many.
    return float((scores[truth] > genuine[allowed]).mean())


def precision_of_top(
    day: Ints, truth: Bools, scores: npt.NDArray[np.floating[Any]], alerts: int
) -> tuple[float, float]:
    """Of the `alerts` highest scores of each day: the share that was fraud, and the share of all frauds among them."""
    order = np.lexsort((-scores, day))
    starts = np.flatnonzero(np.append(True, np.diff(day[order]) != 0))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    top = truth[order[place < alerts]]
    return float(top.mean()) if len(top) else float("nan"), float(top.sum() / max(1, truth.sum()))


def money(truth: Bools, flagged: Bools, amount: Floats) -> dict[str, float]:
    """Money caught (fraud that was flagged), missed and blocked (genuine that was flagged)."""
    return {
        "fraud_money": float(np.nansum(amount[truth])),
        "money_caught": float(np.nansum(amount[truth & flagged])),
        "money_blocked": float(np.nansum(amount[~truth & flagged])),
    }


def overall(
    day: Ints, customer: Ints, truth: Bools, scores: npt.NDArray[np.floating[Any]], flagged: Bools, amount: Floats,
    *, alerts: int, cards: int,
) -> dict[str, float]:  # fmt: skip
    """Everything about one set of payments, NaN where it is not defined."""
    days = max(1, len(np.unique(day)))
    top, share = precision_of_top(day, truth, scores, alerts)
    hits = int((truth & flagged).sum())
    return {
        "payments": float(len(truth)),
        "frauds": float(truth.sum()),
        "average_precision": average_precision(truth, scores),
        "auc": area_under_roc(truth, scores),
        **{f"recall_at_fpr_{rate:g}": recall_at(truth, scores, rate) for rate in FALSE_POSITIVE_RATES},
        f"card_precision_{cards}": float(np.mean(card_precision(day, customer, scores, truth, cards))),
        "flagged": float(flagged.sum()),
        "flagged_a_day": float(flagged.sum() / days),
        "recall": hits / max(1, int(truth.sum())),
        "precision": hits / int(flagged.sum()) if flagged.any() else float("nan"),
        f"precision_of_{alerts}_alerts_a_day": top,
        f"recall_of_{alerts}_alerts_a_day": share,
        **money(truth, flagged, amount),
    }


def by_group(
    codes: Ints, names: list[str], truth: Bools, scores: npt.NDArray[np.floating[Any]], flagged: Bools, amount: Floats
) -> list[dict[str, Any]]:
    """One row for each group that has payments, in the order of `names`."""
    rows: list[dict[str, Any]] = []
    for code in np.unique(codes):
        at = codes == code
        hits = int((truth[at] & flagged[at]).sum())
        rows.append(
            {
                "name": names[int(code)],
                "payments": int(at.sum()),
                "frauds": int(truth[at].sum()),
                "average_precision": average_precision(truth[at], scores[at]),
                "auc": area_under_roc(truth[at], scores[at]),
                "flagged": int(flagged[at].sum()),
                "recall": hits / int(truth[at].sum()) if truth[at].any() else float("nan"),
                "precision": hits / int(flagged[at].sum()) if flagged[at].any() else float("nan"),
                **money(truth[at], flagged[at], amount[at]),
            }
        )
    return rows


def sweep(
    day: Ints, truth: Bools, scores: npt.NDArray[np.floating[Any]], amount: Floats, steps: int = 200
) -> list[dict[str, float]]:
    """What each threshold would do; thresholds in equal ratios of payments flagged, one a day to a tenth of all."""
    order = np.argsort(-scores, kind="stable")
    days = max(1, len(np.unique(day)))
    hits = np.cumsum(truth[order])
    value = np.nan_to_num(amount[order])
    caught, blocked = np.cumsum(value * truth[order]), np.cumsum(value * ~truth[order])
    counts = np.unique(np.geomspace(min(days, len(order)), max(days, len(order) // 10), steps).astype(np.int64))
    rows = []
    for count in counts[counts <= len(order)].tolist():
        # All payments of one score go together.
        end = int(np.searchsorted(-scores[order], -scores[order[count - 1]], side="right"))
        rows.append(
            {
                "threshold": float(scores[order[count - 1]]),
                "flagged_a_day": end / days,
                "recall": float(hits[end - 1] / max(1, hits[-1])),
                "precision": float(hits[end - 1] / end),
                "money_caught": float(caught[end - 1]),
                "money_blocked": float(blocked[end - 1]),
            }
        )
    return rows


def calibration(truth: Bools, scores: Floats, bins: int = 20) -> list[dict[str, float]]:
    """Mean score and share of frauds in bins: tenths of the payments, the highest tenth split up further: nearly
    all payments have scores near zero."""
    order = np.argsort(scores, kind="stable")
    shares = [*np.linspace(0, 0.9, 10), *(1 - np.geomspace(0.1, 1e-3, bins - 10)), 1]
    edges = np.unique((len(order) * np.array(shares)).astype(int))
    rows = []
    for start, end in pairwise(edges):
        part = order[start:end]
        rows.append(
            {"payments": float(len(part)), "score": float(scores[part].mean()), "fraud": float(truth[part].mean())}
        )
    return rows


def psi(reference: npt.NDArray[Any], current: npt.NDArray[Any], bins: int = 10) -> float:
    """Population stability index over the reference's deciles, missing values as a bin of their own.

    sum (p - q) ln(p / q); 0.1 is usually called a shift, 0.25 a large one. Shares are at least 1e-4. NaN when one is
    empty.
    """
    if not len(reference) or not len(current):
        return float("nan")
    there = reference[~np.isnan(reference)]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, bins + 1)[1:-1])) if len(there) else np.empty(0)

    def shares(values: npt.NDArray[Any]) -> Floats:
        missing = np.isnan(values)
        counts = np.bincount(np.searchsorted(edges, values[~missing], side="left"), minlength=len(edges) + 1)
        return np.asarray(np.maximum(np.append(counts, missing.sum()) / len(values), 1e-4))

    p, q = shares(reference), shares(current)
    return float(np.sum((q - p) * np.log(q / p)))


def intervals(
    customer: Ints,
    truth: Bools,
    scores: npt.NDArray[np.floating[Any]],
    flagged: Bools,
    amount: Floats,
    *,
    rounds: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % intervals by drawing customers with replacement: payments of one customer are not independent.

    average_precision, auc, recall, precision, money_caught, money_blocked; without those that no draw defines.
    """
    rng = np.random.default_rng(seed)
    who, group = np.unique(customer, return_inverse=True)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    value = np.nan_to_num(amount)
    drawn: list[tuple[float, ...]] = []
    for _ in range(rounds):
        weight = np.bincount(rng.integers(0, len(who), len(who)), minlength=len(who))[group].astype(np.float64)
        hits = weight * truth
        total, caught = hits.sum(), (hits * flagged).sum()
        if not total:
            continue
        up, both = np.cumsum(hits[order])[last_of_tie], np.cumsum(weight[order])[last_of_tie]
        step = np.diff(up, prepend=0.0)
        down, wide = both - up, np.diff(both - up, prepend=0.0)
        drawn.append(
            (
                float(np.sum(step / total * np.divide(up, both, out=np.zeros_like(up), where=both > 0))),
                float(np.sum((up - step / 2) * wide) / (total * down[-1])) if down[-1] else float("nan"),
                float(caught / total),
                float(caught / (weight * flagged).sum()) if (weight * flagged).any() else float("nan"),
                float((hits * flagged * value).sum()),
                float((weight * ~truth * flagged * value).sum()),
            )
        )
    names = ("average_precision", "auc", "recall", "precision", "money_caught", "money_blocked")
    if not drawn:
        return {}
    columns = {name: column[~np.isnan(column)] for name, column in zip(names, np.array(drawn).T, strict=True)}
    ends = {name: np.percentile(column, [2.5, 97.5]) for name, column in columns.items() if len(column)}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


DAYS_MIN = 10
"""Days to draw from, at least: fewer give intervals that are much too narrow."""


def day_intervals(
    day: Ints, values: dict[str, Floats], *, rounds: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Intervals, 95 % ones or of another `level`, of the sums of `values`, float64 [n] each, by drawing days int64 [n]
    with replacement: what one day brings hangs together. Empty for `rounds` of 0 and for fewer than DAYS_MIN days."""
    each, group = np.unique(day, return_inverse=True)
    if not rounds or len(each) < DAYS_MIN:
        return {}
    sums = {name: np.bincount(group, weights=value) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    days = int(group.max()) + 1
    drawn = rng.integers(0, days, (rounds, days))  # the same days for all: a difference is drawn as one
    return {
        name: (float(low), float(high))
        for name, value in sums.items()
        for low, high in [np.quantile(value[drawn].sum(axis=1), [(1 - level) / 2, (1 + level) / 2])]
    }


def average_precisions_drawn(
    customer: Ints, truth: Bools, scores: npt.NDArray[np.floating[Any]], *, rounds: int, seed: int
) -> Floats:
    """float64 [rounds]: average precision with customers drawn with replacement; NaN for a draw without a fraud. Equal
    seeds draw the same customers, so that two rankings of the same payments can be compared draw by draw."""
    rng = np.random.default_rng(seed)
    who, group = np.unique(customer, return_inverse=True)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    group, truth = group[order], truth[order]
    drawn = np.full(rounds, np.nan)
    for number in range(rounds):
        weight = np.bincount(rng.integers(0, len(who), len(who)), minlength=len(who))[group].astype(np.float64)
        up, both = np.cumsum(weight * truth)[last_of_tie], np.cumsum(weight)[last_of_tie]
        if up[-1] > 0:
            precision = np.divide(up, both, out=np.zeros_like(up), where=both > 0)
            drawn[number] = np.sum(np.diff(up, prepend=0.0) / up[-1] * precision)
    return drawn
