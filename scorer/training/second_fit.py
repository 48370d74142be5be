"""With which recipe, and how many rounds, the second fit boosts.

    ── payments before the middle: learned ──┤ middle ├── later days of the validation part: compared on ──┤

The measured model has seen none of the validation part. A kind of fraud that began there is one that it can't rank: its
rounds end early, and the recipes are compared on what none of them could find. The second fit learns that kind. So the
chosen recipe is boosted once more by rows that reach into the validation part, up to the middle one of its frauds.
Where that ranks the days after them better than the measured model does, on LEARNED of the resamples, there was
something new to learn: then the rounds are those of this model, and the other recipes, plain boosting among them, are
compared with it by the same rows and the guard of all recipes (`outranks`). Else all stays as it was.

This chooses, and measures nothing: it learns from labels that were not known on the day of the middle, as the second
fit does that of its own days, so newer rows alone may make it the better one. That costs rounds, not truth: figures,
calibration and threshold come from a model of the training part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorer.training.boosting import (
    ROUNDS_MAX,
    STOP_FRAUDS_MIN,
    Boosting,
    Data,
    Matrices,
    Progress,
    Recipe,
    boost,
)
from scorer.training.recipe_search import RECIPE_OF_FEW, RECIPES, Trial, outranks
from scorer.training.time_split import Split, refuse_infinite
from scorer.training.training_settings import TrainingRows

# More rounds than needed cost a little, too few of them a new kind of fraud: so this asks for less than the guard of
# the recipes does.
LEARNED = 0.8
# What a new kind of few frauds adds comes late and in steps.
PATIENCE_ROUNDS = 100


@dataclass(frozen=True)
class SecondFit:
    """What was chosen, and the recipes that were looked at again; none where there was nothing to choose."""

    recipe: Recipe
    rounds: int
    trials: list[Trial]


def second_fit(
    boosting: Boosting, rows: TrainingRows, split: Split, recipe: Recipe, booster: Any, *, seconds_max: float | None,
    progress: Progress | None,
) -> SecondFit:  # fmt: skip
    """The recipe and rounds of the second fit, after `booster`, the measured model, was boosted by `recipe`; of that
    recipe never fewer rounds than it has.

    Few frauds choose nothing here either: with fewer than STOP_FRAUDS_MIN in the later days the recipe stays, and the
    rounds are those of plain boosting. No further recipe is begun after `seconds_max`. Raises TrainError for an
    infinite feature.
    """
    began, rounds = time.monotonic(), int(booster.num_boosted_rounds())
    as_it_was = SecondFit(recipe, rounds, [])
    times, fraud = rows.event_time_ms, rows.fraud
    frauds = np.sort(times[split.validation[fraud[split.validation]]])
    if recipe == RECIPE_OF_FEW or len(frauds) < STOP_FRAUDS_MIN:
        return as_it_was
    middle = int(frauds[len(frauds) // 2])
    later = split.validation[times[split.validation] >= middle]
    learned = split.known[times[split.known] < middle]
    if frauds[0] == middle or not fraud[learned].any():
        return as_it_was
    data = Data(rows.X[learned], fraud[learned], rows.X[later], fraud[later])
    refuse_infinite(data.X, boosting.feature_set.names)
    trials: list[Trial] = []

    def late(one: Recipe) -> tuple[int, np.ndarray]:
        """Rounds of a model that has seen late days, and its margins of the days after them."""
        fitted, precision = boost(
            boosting, Matrices(boosting, data, one), boosting.parameters(one, data.fraud), rounds_max=ROUNDS_MAX,
            progress=progress, patience=PATIENCE_ROUNDS,
        )  # fmt: skip
        trials.append(Trial(one, precision, int(fitted.num_boosted_rounds())))
        return trials[-1].rounds, _margins(fitted, data.held_out)

    found, margins = late(recipe)
    if not outranks(data.held_out_fraud, margins, _margins(booster, data.held_out), boosting.seed, LEARNED):
        return SecondFit(recipe, rounds, trials)
    best, best_margins = SecondFit(recipe, max(rounds, found), trials), margins
    for other in (*RECIPES, RECIPE_OF_FEW) if int(data.held_out_fraud.sum()) >= STOP_FRAUDS_MIN else ():
        if other == recipe or (seconds_max is not None and time.monotonic() - began >= seconds_max):
            continue
        found, margins = late(other)
        if outranks(data.held_out_fraud, margins, best_margins, boosting.seed):
            best, best_margins = SecondFit(other, found, trials), margins
    return best


def _margins(booster: Any, X: np.ndarray) -> np.ndarray:
    return np.asarray(booster.inplace_predict(X, predict_type="margin"))
