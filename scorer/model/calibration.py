"""From margin to probability, as data: Platt's line or an isotonic curve, fitted once and stored with the model.

Every curve never falls when the margin rises, in floating point too, so a threshold on scores is one on margins. Only
+, -, x, / and comparisons are used after the sigmoid, one ufunc each: the same bits on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scorer.model import link_function
from scorer.model.model_errors import ModelInputError

Finite = Annotated[float, Field(allow_inf_nan=False)]
KNOTS_MAX = 512
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Platt's fit: Newton steps halve the error in digits each; 30 are far more than it takes.
_STEPS_MAX = 30


class Calibration(BaseModel):
    """How a margin becomes the score.

    identity: the model's own link. platt: sigmoid(slope x margin + intercept). isotonic: straight lines between knots
    (margin, score), level outside them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["identity", "platt", "isotonic"] = "identity"
    slope: Finite | None = Field(default=None, gt=0, le=1e6)
    intercept: Finite | None = Field(default=None, ge=-1e6, le=1e6)
    margins: tuple[Finite, ...] | None = Field(default=None, min_length=2, max_length=KNOTS_MAX)
    scores: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        default=None, min_length=2, max_length=KNOTS_MAX
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        platt = (self.slope, self.intercept)
        knots = (self.margins, self.scores)
        wanted = {"identity": (), "platt": platt, "isotonic": knots}[self.kind]
        others = [value for value in (*platt, *knots) if value is not None]
        if any(value is None for value in wanted) or len(others) != len(wanted):
            raise ValueError(
                f"{self.kind} takes "
                + {"platt": "slope and intercept", "isotonic": "margins and scores"}.get(self.kind, "nothing")
            )
        if self.margins is not None and self.scores is not None:
            if len(self.margins) != len(self.scores):
                raise ValueError(f"{len(self.margins)} margins for {len(self.scores)} scores")
            if any(b <= a for a, b in zip(self.margins, self.margins[1:], strict=False)):
                raise ValueError("the margins of an isotonic curve must rise")
            if any(b < a for a, b in zip(self.scores, self.scores[1:], strict=False)):
                raise ValueError("the scores of an isotonic curve must not fall")
        return self

    def apply(self, margins: np.ndarray, model_link: str) -> np.ndarray:
        """float64 [n]: the score of each margin (float32 [n]) of a model with this link; NaN stays NaN."""
        if self.kind == "identity":
            return link_function.scores(margins, model_link)
        if not isinstance(margins, np.ndarray):
            raise ModelInputError(f"margins are of type {type(margins).__name__}, wanted a numpy array of float32")
        if margins.dtype != np.float32 or margins.ndim != 1:
            raise ModelInputError(f"margins are {margins.dtype} with {margins.ndim} dimensions, wanted float32 with 1")
        wide = margins.astype(np.float64)
        if self.kind == "platt":
            line = wide * np.float64(self.slope or 0.0) + np.float64(self.intercept or 0.0)
            # Back to float32: the sigmoid is proved monotone on float32 steps. Its ends are 0 and 1 long before.
            return link_function.sigmoid(np.clip(line, -1e6, 1e6).astype(np.float32))
        x, y = _knots(self.margins or (), self.scores or ())
        at = np.minimum(np.maximum(np.searchsorted(x, wide, side="right") - 1, 0), len(x) - 2)
        left, right, low, high = x[at], x[at + 1], y[at], y[at + 1]
        share = (np.minimum(np.maximum(wide, x[0]), x[-1]) - left) / (right - left)
        return np.asarray(np.minimum(np.maximum(low + (high - low) * share, low), high))

    def margin_for(self, score: float, model_link: str) -> np.float32:
        """The smallest finite float32 margin whose score is at least `score`, so that a decision may compare margins.

        Raises ModelInputError for a score outside [0, 1], or one that no margin reaches.
        """
        if not 0.0 <= score <= 1.0:
            raise ModelInputError(f"the score {score} is not in [0, 1]")
        low, high = -link_function.ordered(np.float32(_FLOAT32_MAX)), link_function.ordered(np.float32(_FLOAT32_MAX))

        def reaches(rank: int) -> bool:
            return bool(self.apply(np.array([link_function.from_ordered(rank)]), model_link)[0] >= score)

        if not reaches(high):
            top = self.apply(np.array([_FLOAT32_MAX], dtype=np.float32), model_link)[0]
            raise ModelInputError(f"no margin has a score of {score}: the calibrated scores end at {top:.6g}")
        while low < high:
            middle = (low + high) // 2
            if reaches(middle):
                high = middle
            else:
                low = middle + 1
        return np.float32(link_function.from_ordered(low))


@lru_cache(maxsize=64)
def _knots(margins: tuple[float, ...], scores: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(margins), np.array(scores)


def fit_platt(margins: np.ndarray, target: np.ndarray) -> Calibration:
    """The line that makes sigmoid(slope x margin + intercept) likeliest for target float64 [n] in [0, 1].

    Newton's method; Platt's targets ((frauds + 1) / (frauds + 2), 1 / (genuine + 2)) keep it finite where the classes
    separate. Returns identity where the slope would not be positive: such a margin carries no information.
    """
    x = margins.astype(np.float64)
    frauds, genuine = float(target.sum()), float(len(target) - target.sum())
    y = target * (frauds + 1) / (frauds + 2) + (1 - target) / (genuine + 2)
    a, b = 1.0, 0.0
    for _ in range(_STEPS_MAX):
        p = link_function.sigmoid(np.clip(a * x + b, -500, 500).astype(np.float32))
        w = np.maximum(p * (1 - p), 1e-12)
        gradient = np.array([np.sum((p - y) * x), np.sum(p - y)])
        curvature = np.array([[np.sum(w * x * x), np.sum(w * x)], [np.sum(w * x), np.sum(w)]])
        curvature[0, 0] += 1e-9 * (1 + curvature[0, 0])
        curvature[1, 1] += 1e-9 * (1 + curvature[1, 1])
        move = np.linalg.solve(curvature, gradient)
        # A step that would turn the line round is cut short.
        move *= min(1.0, 0.5 * a / abs(move[0])) if abs(move[0]) > 0.5 * a else 1.0
        a, b = a - float(move[0]), b - float(move[1])
        if float(np.abs(move).max()) < 1e-9:
            break
    if not (np.isfinite(a) and np.isfinite(b) and 1e-3 < a < 1e3 and abs(b) < 1e3):
        return Calibration()
    return Calibration(kind="platt", slope=a, intercept=b)


def fit_isotonic(margins: np.ndarray, target: np.ndarray) -> Calibration:
    """The curve that never falls and is nearest to target float64 [n] in [0, 1] (pool adjacent violators), at most 512
    knots.

    A pool becomes a knot at its mean margin, so that payments inside it keep their order. Raises ModelInputError for
    fewer than two different margins.
    """
    x, group = np.unique(margins.astype(np.float64), return_inverse=True)
    if len(x) < 2:
        raise ModelInputError("an isotonic curve needs two different margins")
    weight = np.bincount(group).astype(np.float64)
    pools: list[list[float]] = []  # weight, weighted margin, weighted target
    for w, wx, wy in zip(weight, weight * x, np.bincount(group, weights=target), strict=True):
        pools.append([float(w), float(wx), float(wy)])
        while len(pools) > 1 and pools[-2][2] * pools[-1][0] >= pools[-1][2] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [pools[-1][k] + last[k] for k in range(3)]
    if len(pools) > KNOTS_MAX:
        step = -(-len(pools) // KNOTS_MAX)
        pools = [[sum(p[k] for p in pools[i : i + step]) for k in range(3)] for i in range(0, len(pools), step)]
    knots_x = [wx / w for w, wx, _ in pools]
    knots_y = [min(1.0, max(0.0, wy / w)) for w, _, wy in pools]
    if len(knots_x) == 1:
        knots_x, knots_y = [float(x[0]), float(x[-1])], [knots_y[0], knots_y[0]]
    return Calibration(kind="isotonic", margins=tuple(knots_x), scores=tuple(knots_y))


def calibration_error(scores: np.ndarray, target: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error: over bins of equal numbers of rows, the mean distance of mean score and share of
    frauds.
    """
    order = np.argsort(scores, kind="stable")
    error = 0.0
    for part in np.array_split(order, bins):
        if len(part):
            error += len(part) / len(order) * abs(float(scores[part].mean()) - float(target[part].mean()))
    return error
