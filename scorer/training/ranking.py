"""How good a ranking is: average precision, area under ROC, the threshold that keeps a share, card precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scorer.training.training_errors import TrainError


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under precision over recall by steps; rows of one score count together. NaN without a positive."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = hits[last_of_tie]
    if len(hits) == 0 or hits[-1] == 0:
        return float("nan")
    recall_step = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(recall_step * hits / (last_of_tie + 1)))


def resampled_precisions(truth: np.ndarray, rankings: Sequence[np.ndarray], rounds: int, seed: int) -> np.ndarray:
    """float64 [rounds, k]: average precision of the k rankings, float [n] each, with the rows of truth bool [n]
    weighted by Poisson(1), the same weights for all: differences are drawn as one. Rows of one score count in their
    order. (A paired bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16.)"""
    rng = np.random.default_rng(seed)
    orders = [np.argsort(-scores, kind="stable") for scores in rankings]
    hits_of = [truth[order] for order in orders]
    found = np.empty((rounds, len(orders)))
    for number in range(rounds):
        weight = rng.poisson(1.0, len(truth)).astype(np.float64)
        for place, (order, truth_there) in enumerate(zip(orders, hits_of, strict=True)):
            taken = weight[order]
            hits = taken * truth_there
            precision = (hits * np.cumsum(hits) / np.maximum(np.cumsum(taken), 1.0)).sum()
            found[number, place] = precision / max(1.0, hits.sum())
    return found


def area_under_roc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a fraud scores above a genuine payment, ties counting half. NaN with one class only."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2.0
    return float((mean_rank[group][truth].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def threshold_for_share(scores: np.ndarray, share: float) -> float:
    """The smallest score such that at most `share` of the rows score that or more.

    Raises TrainError where rows tie at the top: flagging them would exceed the share, any higher score would flag none.
    """
    values, counts = np.unique(scores, return_counts=True)
    flagged = np.cumsum(counts[::-1])[::-1] / len(scores)
    allowed = np.flatnonzero(flagged <= share)
    if not len(allowed):
        raise TrainError(
            f"flag.share {share} cannot be met: {flagged[-1]:.4%} of the validation rows share the highest score; "
            "raise the share, use flag.score, or give more validation rows"
        )
    return float(values[allowed[0]])


def card_precision(day: np.ndarray, customer: np.ndarray, scores: np.ndarray, truth: np.ndarray, k: int) -> list[float]:
    """Per day in order: of the k customers with the highest scores, the share that had a fraud that day.

    Customers found leave the days after. day and customer int64 [n], truth bool [n]. Equal scores: the smaller customer
    number first. (Fraud Detection Handbook, chapter 4, card precision top-k.)
    """
    found = np.empty(0, dtype=customer.dtype)
    precision = []
    for today in np.unique(day):
        rows = np.flatnonzero((day == today) & ~np.isin(customer, found))
        who, group = np.unique(customer[rows], return_inverse=True)
        highest = np.full(len(who), -np.inf)
        np.maximum.at(highest, group, scores[rows])
        fraud = np.zeros(len(who), dtype=np.bool_)
        np.logical_or.at(fraud, group, truth[rows])
        top = np.argsort(-highest, kind="stable")[:k]
        hits = who[top][fraud[top]]
        precision.append(len(hits) / k)
        found = np.concatenate([found, hits])
    return precision


def summary(truth: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """The figures a bundle states, over rows of known label: truth and flagged bool [n], scores float64 [n]."""
    hits = int((truth & flagged).sum())
    return {
        "average_precision": average_precision(truth, scores),
        "auc": area_under_roc(truth, scores),
        "recall": hits / int(truth.sum()),
        # Nothing flagged is no false alarm; 0 would read as "always wrong", NaN is no JSON.
        "precision": hits / int(flagged.sum()) if flagged.any() else 1.0,
        "flagged_share": float(flagged.mean()),
        "rows": float(len(truth)),
        "frauds": float(truth.sum()),
        "flagged": float(flagged.sum()),
        "true_flagged": float(hits),
    }
