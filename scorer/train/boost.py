"""Boosting: the recipe, the bins, early stopping in time, the second fit on everything known.

Bins. 256 bins of equal numbers of payments cannot isolate the tail of an amount: one payment in a hundred is fraud, and
the frauds share one or two bins. Instead of more bins the cuts are taken from a reference in which frauds weigh half:
half of all cuts then lie where frauds are. Measured on two folds of the handbook's data (97 features, 10 % of the
genuine payments): average precision .757 with 4,096 plain bins, .764 with 256 balanced ones, in a ninth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features.feature_set import FeatureSet

ROUNDS_MAX = 500
PATIENCE_ROUNDS = 40
# A sample this large places cuts well enough: a quantile of 100,000 rows errs by 0.3 % of the rows at most (2 sigma).
REFERENCE_GENUINE_MAX = 100_000

Progress = Callable[[int, int, float], None]
"""Called after each round with (round, rounds at most, average precision on validation so far)."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of the booster, in xgboost's words."""

    max_depth: int = 5
    eta: float = 0.1
    min_child_weight: float = 1.0
    subsample: float = 0.8
    colsample_bytree: float = 0.5
    reg_lambda: float = 1.0
    gamma: float = 0.0
    max_bin: int = 512
    fraud_weight: float = 1.0
    """How much more a fraud weighs than a genuine payment; the calibration puts the scores right again."""

    def parameters(self, feature_set: FeatureSet, *, seed: int, threads: int) -> dict[str, Any]:
        """What xgboost takes. base_score is left to it: then a score is near a probability from the first round on."""
        given = asdict(self)
        del given["fraud_weight"]
        return given | {
            "objective": "binary:logistic",
            "eval_metric": "aucpr",
            "tree_method": "hist",
            "monotone_constraints": monotone(feature_set),
            "seed": seed,
            "nthread": threads,
        }


def monotone(feature_set: FeatureSet) -> str:
    """xgboost's constraint of each column: 1 never falls, -1 never rises, 0 free."""
    signs = {"increasing": 1, "decreasing": -1, None: 0}
    return f"({','.join(str(signs[feature.monotone]) for feature in feature_set.features)})"


@dataclass(frozen=True)
class Data:
    """Rows to learn from and rows to stop on. X float32 [n, k], fraud bool [n]."""

    X: np.ndarray
    fraud: np.ndarray
    held_out: np.ndarray
    held_out_fraud: np.ndarray


class Matrices:
    """The data binned once, for any number of fits with the same bins."""

    def __init__(self, xgboost: Any, data: Data, names: list[str], *, max_bin: int, seed: int, threads: int) -> None:
        self._xgboost = xgboost
        self._common = {"feature_names": names, "nthread": threads, "max_bin": max_bin}
        reference = self._reference(data.X, data.fraud, seed)
        self.fraud = data.fraud
        self.train = self._matrix(data.X, data.fraud, ref=reference)
        self.held_out = self._matrix(data.held_out, data.held_out_fraud, ref=self.train)

    def _reference(self, X: np.ndarray, fraud: np.ndarray, seed: int) -> Any:
        """The matrix that gives the cuts: all frauds, weighing half, and a sample of the genuine payments."""
        frauds, genuine = np.flatnonzero(fraud), np.flatnonzero(~fraud)
        if len(genuine) > REFERENCE_GENUINE_MAX:
            rng = np.random.default_rng(seed)
            genuine = np.sort(rng.choice(genuine, REFERENCE_GENUINE_MAX, replace=False))
        rows = np.concatenate([frauds, genuine])
        weight = np.ones(len(rows), dtype=np.float32)
        weight[: len(frauds)] = max(1.0, len(genuine) / max(1, len(frauds)))
        return self._matrix(X[rows], fraud[rows], weight=weight)

    def _matrix(self, X: np.ndarray, fraud: np.ndarray, **more: Any) -> Any:
        return self._xgboost.QuantileDMatrix(X, fraud.astype(np.float32), **more, **self._common)

    def weigh(self, fraud_weight: float) -> None:
        """Let a fraud weigh this much in the next fit."""
        self.train.set_weight(np.where(self.fraud, np.float32(fraud_weight), np.float32(1.0)))


def boost(
    xgboost: Any, matrices: Matrices, parameters: dict[str, Any], *, rounds_max: int, progress: Progress | None
) -> tuple[Any, float]:
    """Boost until average precision on the held-out rows stops rising; the best part, and its average precision."""

    class Report(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
            if progress is not None:
                progress(epoch + 1, rounds_max, float(evals_log["validation"]["aucpr"][-1]))
            return False

    stop = xgboost.callback.EarlyStopping(
        rounds=PATIENCE_ROUNDS, metric_name="aucpr", data_name="validation", maximize=True
    )
    booster = xgboost.train(
        parameters,
        matrices.train,
        rounds_max,
        evals=[(matrices.held_out, "validation")],
        verbose_eval=False,
        callbacks=[Report(), stop],
    )
    # inplace_predict sums all trees, whatever best_iteration says: what is saved is the best part alone.
    return booster[: booster.best_iteration + 1], float(booster.best_score)


def boost_rounds(xgboost: Any, train: Any, parameters: dict[str, Any], rounds: int) -> Any:
    """Boost a fixed number of rounds, on rows that include those which chose the number."""
    return xgboost.train(parameters, train, rounds, verbose_eval=False)
