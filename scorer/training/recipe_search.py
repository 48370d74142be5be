"""Which recipe: three known ones are compared on later days, or as many as asked are proposed and tried.

`compare` is what every training run does. `search` (--trials) lets Optuna's TPE sampler propose after those three.
Each recipe is boosted on the training part and judged by average precision on the validation part; the search's best
is compared with the default once more, on all rows, so neither ends below the default recipe there. The same seed, data
and number of trials give the same recipe, unless time ran out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from scorer.training.boosting import (
    ETA_PLAIN,
    ROUNDS_MAX,
    STOP_FRAUDS_MIN,
    Boosting,
    Data,
    Matrices,
    Progress,
    Recipe,
    boost,
)
from scorer.training.ranking import resampled_precisions

# Which is best depends on the data. The first bounds its leaves: risks of terminals and merchants that come and go are
# learned from a few frauds each, which mislead. The second finds narrow bands (amount by category by hour), the third
# is xgboost by its defaults.
RECIPES = (
    Recipe(),
    Recipe(max_depth=6, leaf_share_min=0.0003, column_share=0.5),
    Recipe(max_depth=6, eta=0.1, leaf_share_min=1e-5, subsample=1.0, column_share=1.0),
)
# Few frauds can't choose, and what was tried did not hold: stronger pull towards zero (reg_lambda 5) found more on two
# sets of 56 frauds (average precision .179 and .169 against plain xgboost's .149 and .120) and less on three other ones
# (.056, .010, .037 against .153, .012, .045). So this is plain xgboost, bins included, on all payments.
RECIPE_OF_FEW = Recipe(
    max_depth=6,
    eta=ETA_PLAIN,
    leaf_share_min=0.0,
    subsample=1.0,
    column_share=1.0,
    max_bin=256,
    balanced_bins=False,
    genuine_per_fraud=None,
)
# Genuine payments per fraud in a trial, at most: more of them cost time and hardly change which recipe is best.
TRIAL_GENUINE_PER_FRAUD = 12
TRIAL_ROUNDS_MAX = 300
# Another recipe takes the first one's place when it is better on so many of so many resamples.
RESAMPLES = 200
OUTRANKED = 0.9

TrialProgress = Callable[[int, int, float], None]
"""Called after each trial with (trial, trials, best average precision so far)."""


@dataclass(frozen=True)
class Trial:
    """One recipe tried: its average precision on validation, and the rounds that gave it."""

    recipe: Recipe
    average_precision: float
    rounds: int


def recipes_for(data: Data) -> Sequence[Recipe]:
    """What to compare on the held-out rows of `data`. Few frauds there can't choose, nor can few others teach more."""
    fewest = min(int(data.held_out_fraud.sum()), int(data.fraud.sum()))
    return RECIPES if fewest >= STOP_FRAUDS_MIN else (RECIPE_OF_FEW,)


@dataclass(frozen=True)
class Fitted:
    """The best of the recipes compared: its booster, and all trials in their order."""

    booster: Any
    recipe: Recipe
    trials: list[Trial]


def compare(
    boosting: Boosting, data: Data, recipes: Sequence[Recipe], *, seconds_max: float | None, progress: Progress | None,
    trial_progress: TrialProgress | None,
) -> Fitted:  # fmt: skip
    """Boost the recipes in their order; the one of the highest average precision on later days. Another than the first
    has to be better by more than chance (`outranks`): of three that are as good, the highest is the luckiest.

    The first is boosted in any case, another one only while `seconds_max` have not passed (None: all). Bins and sample
    are the first one's.
    """
    began = time.monotonic()
    matrices = Matrices(boosting, data, recipes[0])
    trials: list[Trial] = []
    boosters: list[Any] = []
    for recipe in recipes:
        if trials and seconds_max is not None and time.monotonic() - began >= seconds_max:
            break
        matrices.weigh(recipe.fraud_weight)
        booster, precision = boost(
            boosting,
            matrices,
            boosting.parameters(recipe, data.fraud),
            rounds_max=ROUNDS_MAX,
            progress=progress,
            stops=recipe != RECIPE_OF_FEW,
        )
        boosters.append(booster)
        trials.append(Trial(recipe, precision, booster.num_boosted_rounds()))
        if trial_progress is not None:
            trial_progress(len(trials), len(recipes), max(trial.average_precision for trial in trials))
    scores = [booster.predict(matrices.held_out) for booster in boosters]
    better = [n for n in range(1, len(trials)) if outranks(data.held_out_fraud, scores[n], scores[0], boosting.seed)]
    best = max([0, *better], key=lambda number: trials[number].average_precision)
    return Fitted(boosters[best], trials[best].recipe, trials)


def outranks(fraud: np.ndarray, scores: np.ndarray, others: np.ndarray, seed: int, share: float = OUTRANKED) -> bool:
    """Whether average precision is higher with `scores` than with `others`, float [n], on this `share` of the resamples
    of the rows."""
    drawn = resampled_precisions(fraud, (scores, others), RESAMPLES, seed)
    return int((drawn[:, 0] > drawn[:, 1]).sum()) >= share * RESAMPLES


def search(
    boosting: Boosting, optuna: Any, data: Data, *, trials: int, seconds_max: float | None = None,
    progress: TrialProgress | None = None,
) -> list[Trial]:  # fmt: skip
    """All trials in their order, the RECIPES first; none begins after `seconds_max`, but the first."""
    matrices = Matrices(boosting, data, Recipe(), genuine_per_fraud=TRIAL_GENUINE_PER_FRAUD)
    began = time.monotonic()
    imbalance = int((~data.fraud).sum()) / max(1, int(data.fraud.sum()))
    done: list[Trial] = []

    def judge(trial: Any) -> float:
        recipe = _propose(trial, imbalance)
        matrices.weigh(recipe.fraud_weight)
        parameters = boosting.parameters(recipe, data.fraud)
        booster, precision = boost(boosting, matrices, parameters, rounds_max=TRIAL_ROUNDS_MAX, progress=None)
        done.append(Trial(recipe, precision, booster.num_boosted_rounds()))
        if progress is not None:
            progress(len(done), trials, max(item.average_precision for item in done))
        return precision

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=boosting.seed))
    for recipe in RECIPES:
        proposed = asdict(recipe)
        del proposed["max_bin"], proposed["genuine_per_fraud"], proposed["balanced_bins"]
        study.enqueue_trial(proposed)

    def end(running: Any, _: Any) -> None:
        if seconds_max is not None and time.monotonic() - began >= seconds_max:
            running.stop()

    # Optuna's own timeout of 0 tries none.
    study.optimize(judge, n_trials=trials, callbacks=[end])
    return done


def _propose(trial: Any, imbalance: float) -> Recipe:
    return replace(
        Recipe(),
        max_depth=trial.suggest_int("max_depth", 3, 8),
        eta=trial.suggest_float("eta", 0.03, 0.2, log=True),
        leaf_share_min=trial.suggest_float("leaf_share_min", 1e-5, 1e-2, log=True),
        subsample=trial.suggest_float("subsample", 0.5, 1.0),
        column_share=trial.suggest_float("column_share", 0.2, 1.0),
        reg_lambda=trial.suggest_float("reg_lambda", 0.1, 30.0, log=True),
        gamma=trial.suggest_float("gamma", 0.0, 2.0),
        fraud_weight=trial.suggest_float("fraud_weight", 1.0, max(1.001, min(imbalance, 20.0)), log=True),
    )
