"""The feature selection report: what each feature is worth, for people who decide which ones to keep.

gain        its share of all loss that splits took away in training
loss        how much average precision on validation falls when its values are shuffled among payments
impact      mean size of its contribution to the margin (SHAP), over frauds and as many genuine payments
direction   correlation of its value with its contribution: +1 more means riskier, -1 more means safer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scorer.model import CompiledModel
from scorer.training.ranking import average_precision

_SHUFFLED_GENUINE_MAX = 40_000
_EXPLAINED_MAX = 2_000
# A shuffle that changes less than this is noise: two seeds of one recipe differ by .002.
_NO_EFFECT = 1e-4

Verdict = Literal["empty", "constant", "unused", "no effect", "carries"]


@dataclass(frozen=True)
class FeatureWorth:
    """One row of the feature selection report."""

    name: str
    gain: float
    loss: float
    impact: float
    direction: float | None
    alone: float
    """Average precision of this feature as the only score, on the training part."""
    missing: float
    """Share of the validation rows without a value."""
    verdict: Verdict


@dataclass(frozen=True)
class TrainingPartFigures:
    """What is known of the k features from training: gain by name (those that split), the average precision that each
    reaches alone, float64 [k], and which are NaN in every row, bool [k]."""

    gain: dict[str, float]
    alone: np.ndarray
    empty: np.ndarray


def worth(
    model: CompiledModel, names: list[str], known: TrainingPartFigures, X: np.ndarray, fraud: np.ndarray, seed: int
) -> list[FeatureWorth]:
    """The report, by falling loss, then gain. X float32 [n, k] and fraud bool [n] are validation rows."""
    gain = known.gain
    rng = np.random.default_rng(seed)
    frauds, genuine = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    loss = _shuffle_losses(model, names, gain, X, fraud, rng)
    impact, direction = _contributions(model, X, frauds, genuine, rng)
    total = sum(gain.values()) or 1.0
    constant = np.array([_constant(X[:, column]) for column in range(len(names))])
    missing = np.isnan(X).mean(axis=0)
    rows_of_report = [
        FeatureWorth(
            name=name,
            gain=gain.get(name, 0.0) / total,
            loss=float(loss[i]),
            impact=float(impact[i]),
            direction=None if np.isnan(direction[i]) else float(direction[i]),
            alone=float(known.alone[i]),
            missing=float(missing[i]),
            verdict=_verdict(bool(known.empty[i]), bool(constant[i]), gain.get(name, 0.0), float(loss[i])),
        )
        for i, name in enumerate(names)
    ]
    return sorted(rows_of_report, key=lambda row: (-row.loss, -row.gain, row.name))


def _shuffle_losses(
    model: CompiledModel,
    names: list[str],
    gain: dict[str, float],
    X: np.ndarray,
    fraud: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Average precision lost when a feature's values are shuffled, float64 [k]; 0 where no split uses the feature."""
    genuine = np.flatnonzero(~fraud)
    few = rng.choice(genuine, min(len(genuine), _SHUFFLED_GENUINE_MAX), replace=False)
    rows = np.sort(np.concatenate([np.flatnonzero(fraud), few]))
    sample, truth = np.ascontiguousarray(X[rows]), fraud[rows]
    base = average_precision(truth, model.margins(sample))
    loss = np.zeros(len(names))
    for column, name in enumerate(names):
        if gain.get(name, 0.0) > 0.0:
            kept = sample[:, column].copy()
            sample[:, column] = rng.permutation(kept)
            loss[column] = base - average_precision(truth, model.margins(sample))
            sample[:, column] = kept
    return loss


def _constant(values: np.ndarray) -> bool:
    known = values[~np.isnan(values)]
    return bool(len(known) == len(values) and (known == known[0]).all()) if len(values) else True


def _verdict(empty: bool, constant: bool, gain: float, loss: float) -> Verdict:
    if empty:
        return "empty"
    if gain == 0.0:
        return "constant" if constant else "unused"
    return "no effect" if loss < _NO_EFFECT else "carries"


def _contributions(
    model: CompiledModel, X: np.ndarray, frauds: np.ndarray, genuine: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean size of each feature's contribution and its correlation with the value (NaN: none), both float64 [k]."""
    each = min(len(frauds), len(genuine), _EXPLAINED_MAX // 2)
    rows = np.sort(np.concatenate([rng.choice(part, each, replace=False) for part in (frauds, genuine)]))
    values = np.ascontiguousarray(X[rows])
    pushed = np.asarray(model.contributions(values), dtype=np.float64)[:, : X.shape[1]]
    direction = np.full(X.shape[1], np.nan)
    for column in range(X.shape[1]):
        there = ~np.isnan(values[:, column])
        x, y = values[there, column].astype(np.float64), pushed[there, column]
        if len(x) > 2 and x.std() > 0 and y.std() > 0:
            direction[column] = float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))
    return np.abs(pushed).mean(axis=0), direction
