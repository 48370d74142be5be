"""A bounded search for the recipe: the same seed, data and number of trials give the same recipe.

Optuna's TPE sampler proposes; each trial is boosted on the training part and judged by average precision on the
validation part, that is by later days. The first trial is the default recipe, so a search never ends below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from scorer.training.boosting import Boosting, Data, Matrices, Recipe, boost

# Genuine payments per fraud in a trial, at most: more of them cost time and hardly change which recipe is best.
TRIAL_GENUINE_PER_FRAUD = 12
TRIAL_ROUNDS_MAX = 300

TrialProgress = Callable[[int, int, float], None]
"""Called after each trial with (trial, trials, best average precision so far)."""


@dataclass(frozen=True)
class Trial:
    """One recipe tried: its average precision on validation, and the rounds that gave it."""

    recipe: Recipe
    average_precision: float
    rounds: int


def search(
    boosting: Boosting, optuna: Any, data: Data, *, trials: int, progress: TrialProgress | None = None
) -> list[Trial]:
    """All trials in their order, the default recipe first."""
    matrices = Matrices(boosting, data, Recipe(), genuine_per_fraud=TRIAL_GENUINE_PER_FRAUD)
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
    default = asdict(Recipe())
    del default["max_bin"], default["genuine_per_fraud"]
    study.enqueue_trial(default)
    study.optimize(judge, n_trials=trials)
    return done


def _propose(trial: Any, imbalance: float) -> Recipe:
    return replace(
        Recipe(),
        max_depth=trial.suggest_int("max_depth", 3, 8),
        eta=trial.suggest_float("eta", 0.03, 0.2, log=True),
        leaf_share_min=trial.suggest_float("leaf_share_min", 1e-4, 1e-2, log=True),
        subsample=trial.suggest_float("subsample", 0.5, 1.0),
        column_share=trial.suggest_float("column_share", 0.2, 1.0),
        reg_lambda=trial.suggest_float("reg_lambda", 0.1, 30.0, log=True),
        gamma=trial.suggest_float("gamma", 0.0, 2.0),
        fraud_weight=trial.suggest_float("fraud_weight", 1.0, max(1.001, min(imbalance, 20.0)), log=True),
    )
