"""Features suspected of leakage: alone they separate fraud from genuine, which nothing known in time does."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from scorer.training.training_errors import LeakageError

# The best honest feature measured so far (terminal fraud rate, handbook data) reaches .45 alone.
SUSPECT_PRECISION = 0.97
# Not refused, but a warning: no honest feature measured so far comes near.
DOUBTFUL_PRECISION = 0.7
_GENUINE_MAX = 50_000


def precision_alone(X: np.ndarray, fraud: np.ndarray, seed: int) -> np.ndarray:
    """float64 [k]: the average precision each feature reaches as a score, upward or downward, NaN below or above all.

    X float32 [n, k], fraud bool [n]. Of more than 50,000 genuine payments a sample counts, weighted as much as all of
    them: a feature that singles out as many genuine payments as frauds, of millions, would seem to leave them out.
    """
    rows, weight = np.arange(len(X)), 1.0
    genuine = np.flatnonzero(~fraud)
    if len(genuine) > _GENUINE_MAX:
        weight = len(genuine) / _GENUINE_MAX
        chosen = np.random.default_rng(seed).choice(genuine, _GENUINE_MAX, replace=False)
        rows = np.sort(np.concatenate([np.flatnonzero(fraud), chosen]))
    truth = fraud[rows]
    best = np.zeros(X.shape[1])
    for column in range(X.shape[1]):
        values = X[rows, column].astype(np.float64)
        for sign in (1.0, -1.0):
            signed = values * sign
            for missing in (-np.inf, np.inf):
                scores = np.where(np.isnan(signed), missing, signed)
                best[column] = max(best[column], _precision(truth, scores, weight))
                if not np.isnan(values).any():
                    break
    return best


def _precision(truth: np.ndarray, scores: np.ndarray, weight: float) -> float:
    """Average precision where a genuine row counts as `weight` rows; rows of one score count together."""
    # Ranks, because a difference of infinities is NaN.
    values, ranks = np.unique(scores, return_inverse=True)
    frauds = np.bincount(ranks[truth], minlength=len(values))[::-1]
    others = np.bincount(ranks[~truth], minlength=len(values))[::-1]
    hits = np.cumsum(frauds)
    return float((frauds / hits[-1] * hits / np.maximum(1.0, hits + weight * np.cumsum(others))).sum())


def refuse_leakage(alone: np.ndarray, names: list[str], accepted: Collection[str]) -> None:
    """Raise LeakageError for a feature that separates alone and is not among those `accepted`."""
    suspects = [
        (name, float(value))
        for name, value in zip(names, alone, strict=True)
        if value >= SUSPECT_PRECISION and name not in accepted
    ]
    if suspects:
        listed = ", ".join(f"{name} (average precision {value:.3f} alone)" for name, value in suspects)
        raise LeakageError(
            f"suspected leakage: {listed}. A feature that alone separates fraud from genuine usually comes from the "
            "label or from what was done about it. Remove it from the feature set; if it is known before the decision, "
            f"accept it with --accept {suspects[0][0]}"
        )
