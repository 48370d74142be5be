"""Boosting: the recipe, the bins, early stopping on later days, the second fit on all known rows.

Bins. 256 bins of equal numbers of payments cannot isolate the tail of an amount: one payment in a hundred is fraud, and
the frauds share one or two bins. Instead of more bins the cuts are taken from a reference in which frauds weigh half:
half of all cuts then lie where frauds are. Measured on two folds of the handbook's data (97 features, 10 % of the
genuine payments, frauds a third of the reference): average precision .757 with 4,096 plain bins, .764 with 256
balanced ones, in a ninth of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.feature_set import FeatureSet

ROUNDS_MAX = 600
# A few trees may rank best by chance, but give so few different scores that no threshold separates them.
ROUNDS_MIN = 40
PATIENCE_ROUNDS = 40
# Fewer frauds held out stop nothing: average precision over 30 frauds errs by .08.
STOP_FRAUDS_MIN = 50
ROUNDS_FEW = 300
ETA_PLAIN = 0.1
# A sample this large places cuts well enough: a quantile of 100,000 rows errs by 0.3 % of the rows at most (2 sigma).
REFERENCE_GENUINE_MAX = 100_000
COLUMNS_MIN = 12
# This much information (sum of second derivatives) is enough for a leaf's value, however large the data.
LEAF_WEIGHT_MAX = 100.0
# Up to this many genuine payments are all used: they take seconds. Of more, at least so many are kept.
# On simulated card data (900 frauds among 268,000 payments, 26 features) all of them gave average precision .799 on
# later days, 100,000 gave .781, 20,000 gave .774; plain xgboost on all .788.
GENUINE_WHOLE = 400_000
GENUINE_WHOLE_OF_TRIALS = 100_000  # which compare recipes, and are many

Progress = Callable[[int, int, float], None]
"""Called after each round with (round, rounds at most, average precision on validation so far)."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of the booster, in units that do not depend on the number of rows or features.

    Measured on the handbook's four folds with 60 features: a rate of .05, a third of the columns a tree and leaves of
    at least .3 % of the information gave average precision .763; a rate of .1, half of the columns and no bound .760.
    """

    max_depth: int = 5
    eta: float = 0.05
    leaf_share_min: float = 0.003
    """Least share of all second derivatives that a leaf holds: no leaf is made of a few frauds by chance."""
    subsample: float = 0.8
    column_share: float = 0.3
    """Share of the columns that a tree may use, but at least COLUMNS_MIN of them."""
    reg_lambda: float = 1.0
    gamma: float = 0.0
    max_bin: int = 512
    balanced_bins: bool = True
    """Half of the bins' borders lie where frauds are. Of a few dozen frauds that would draw a border around each."""
    fraud_weight: float = 1.0
    """Weight of a fraud relative to a genuine payment; the calibration corrects the scores afterwards."""
    genuine_per_fraud: int | None = 20
    """Of more genuine payments than this per fraud, and than GENUINE_WHOLE, a sample is kept, weighted as all of
    them. None: all are kept; binned, a row takes a byte or two a feature."""

    def parameters(self, feature_set: FeatureSet, fraud: np.ndarray, *, seed: int, threads: int) -> dict[str, Any]:
        """The parameters of xgboost, for training rows with labels `fraud` bool [n].

        base_score is left to xgboost: then a score is near a probability from the first round on.
        """
        rate = float(fraud.mean())
        information = len(fraud) * rate * (1.0 - rate)
        return {
            "objective": "binary:logistic",
            "eval_metric": "aucpr",
            "tree_method": "hist",
            "max_depth": self.max_depth,
            "eta": self.eta,
            "min_child_weight": min(max(1.0, self.leaf_share_min * information), LEAF_WEIGHT_MAX),
            "subsample": self.subsample,
            "colsample_bytree": min(1.0, max(self.column_share, COLUMNS_MIN / len(feature_set.features))),
            "reg_lambda": self.reg_lambda,
            "gamma": self.gamma,
            "max_bin": self.max_bin,
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


@dataclass(frozen=True)
class Boosting:
    """What all fits of a training run share: the library, the columns, the seed and the number of threads."""

    xgboost: Any
    feature_set: FeatureSet
    seed: int
    threads: int

    def parameters(self, recipe: Recipe, fraud: np.ndarray) -> dict[str, Any]:
        """Parameters of `recipe` for training rows with labels bool [n]."""
        return recipe.parameters(self.feature_set, fraud, seed=self.seed, threads=self.threads)


class Matrices:
    """The data sampled and binned once, for any number of fits."""

    def __init__(self, boosting: Boosting, data: Data, recipe: Recipe, *, genuine_per_fraud: int | None = None) -> None:
        """`genuine_per_fraud`: sample size of a trial; None: that of a fit, by the recipe."""
        self._xgboost = boosting.xgboost
        self._common = {
            "feature_names": boosting.feature_set.names,
            "nthread": boosting.threads,
            "max_bin": recipe.max_bin,
        }
        whole = None if genuine_per_fraud is None else GENUINE_WHOLE_OF_TRIALS
        per_fraud = genuine_per_fraud or recipe.genuine_per_fraud
        rows, self._genuine_weight = sampled(data.fraud, per_fraud, boosting.seed, whole=whole)
        all_kept = len(rows) == len(data.fraud)  # then without a copy
        X = data.X if all_kept else data.X[rows]
        self.fraud: np.ndarray = data.fraud if all_kept else data.fraud[rows]
        reference = self._reference(X, self.fraud, boosting.seed) if recipe.balanced_bins else None
        self.train = self._matrix(X, self.fraud, ref=reference)
        self.weigh(recipe.fraud_weight)
        self.held_out_frauds = int(data.held_out_fraud.sum())
        self.held_out = self._matrix(data.held_out, data.held_out_fraud, ref=self.train) if len(data.held_out) else None

    def _reference(self, X: np.ndarray, fraud: np.ndarray, seed: int) -> Any:
        """The matrix that defines the bins: all frauds with half of the weight, and a sample of genuine payments."""
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
        """Set the weight of a fraud for the next fit."""
        self.train.set_weight(np.where(self.fraud, fraud_weight, self._genuine_weight).astype(np.float32))


def sampled(
    fraud: np.ndarray, genuine_per_fraud: int | None, seed: int, *, whole: int | None = None
) -> tuple[np.ndarray, float]:
    """Rows to keep, int64, of `fraud` bool [n], and the weight of a genuine payment kept. All frauds, and at most so
    many genuine payments per fraud; of `whole` (None: GENUINE_WHOLE) or fewer all, and without `genuine_per_fraud` too.
    """
    genuine = np.flatnonzero(~fraud)
    frauds = np.flatnonzero(fraud)
    least = GENUINE_WHOLE if whole is None else whole
    keep = len(genuine) if genuine_per_fraud is None else max(len(frauds) * genuine_per_fraud, least)
    if len(genuine) <= keep:
        return np.arange(len(fraud)), 1.0
    chosen = np.random.default_rng(seed).choice(genuine, keep, replace=False)
    return np.sort(np.concatenate([frauds, chosen])), len(genuine) / keep


def boost(
    boosting: Boosting, matrices: Matrices, parameters: dict[str, Any], *, rounds_max: int, progress: Progress | None,
    onto: Any = None, patience: int = PATIENCE_ROUNDS, stops: bool = True,
) -> tuple[Any, float]:  # fmt: skip
    """Boost until average precision on the held-out rows stops rising; the best rounds, and their average precision.

    With fewer than STOP_FRAUDS_MIN frauds held out the number of rounds is that of `plain_rounds`: where average
    precision rises and falls by chance, stopping at its highest point is choosing by chance. `onto`: a booster whose
    trees come first; rounds are those that come to it. `patience`: rounds without a rise that end it. `stops`: False
    for that fixed number in any case.
    """
    xgboost: Any = boosting.xgboost

    class Report(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
            if progress is not None:
                progress(epoch + 1, rounds_max, float(evals_log["validation"]["aucpr"][-1]))
            return False

    stops = stops and matrices.held_out_frauds >= STOP_FRAUDS_MIN
    rounds_max = rounds_max if stops else plain_rounds(parameters["eta"])
    stop = xgboost.callback.EarlyStopping(rounds=patience, metric_name="aucpr", data_name="validation", maximize=True)
    evaluated: dict[str, Any] = {}
    booster = xgboost.train(
        parameters,
        matrices.train,
        rounds_max,
        evals=[(matrices.held_out, "validation")],
        evals_result=evaluated,
        verbose_eval=False,
        callbacks=[Report(), stop] if stops else [Report()],
        xgb_model=onto,
    )
    if not stops:
        return booster, float(evaluated["validation"]["aucpr"][-1])
    # inplace_predict sums all trees, whatever best_iteration says: only the best rounds are kept.
    rounds = min(max(booster.best_iteration + 1, ROUNDS_MIN), booster.num_boosted_rounds())  # those of `onto` included
    return booster[:rounds], float(booster.best_score)


def plain_rounds(eta: float) -> int:
    """As many rounds at a rate of `eta` as plain boosting takes at its own, ROUNDS_MAX at most."""
    return min(ROUNDS_MAX, math.ceil(ROUNDS_FEW * ETA_PLAIN / eta))


def boost_rounds(boosting: Boosting, data: Data, recipe: Recipe, rounds: int, onto: Any = None) -> Any:
    """Boost a fixed number of rounds on all rows of `data`, after the trees of the booster `onto`; nothing is held
    out."""
    matrices = Matrices(boosting, data, recipe)
    parameters = boosting.parameters(recipe, data.fraud)
    return boosting.xgboost.train(parameters, matrices.train, rounds, verbose_eval=False, xgb_model=onto)
