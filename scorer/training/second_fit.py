"""With which recipe, and how many rounds, the second fit boosts.

    ── known before the middle: learned ──┤ middle ├── later days of the validation part: compared on ──┤

The measured model has seen none of the validation part. A kind of fraud that began there is one that it can't rank: its
rounds end early, and the recipes are compared on what none of them could find. The second fit learns that kind. So the
chosen recipe is boosted once more by rows that reach into the validation part, up to the middle one of its frauds.
Where that ranks the days after them better than the measured model does, on LEARNED of the resamples, there was
something new to learn: then the rounds are those of this model, and the other recipes, plain boosting among them, are
compared with it by the same rows and the guard of all recipes (`outranks`). Else all stays as it was.
"""

from __future__ import annotations

import time
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
    plain_rounds,
)
from scorer.training.continuation import Present
from scorer.training.recipe_search import RECIPE_OF_FEW, RECIPES, outranks
from scorer.training.time_split import Split
from scorer.training.training_settings import TrainingRows

# More rounds than needed cost a little, too few of them a new kind of fraud: so this asks for less than the guard of
# the recipes does.
LEARNED = 0.8


def second_fit(
    boosting: Boosting, rows: TrainingRows, split: Split, recipe: Recipe, booster: Any, *, onto: Present | None = None,
    seconds_max: float | None = None, progress: Progress | None = None,
) -> tuple[Recipe, int]:  # fmt: skip
    """The recipe of the second fit, and its rounds, those of the model `onto` included; of the recipe that `booster`,
    the measured model, was boosted by never fewer than it has.

    Few frauds choose nothing here either. Of a continued model the recipe always stays. No further recipe is begun
    after `seconds_max`.
    """
    began, rounds = time.monotonic(), int(booster.num_boosted_rounds())
    times, fraud = rows.event_time_ms, rows.fraud
    frauds = np.sort(times[split.validation[fraud[split.validation]]])
    middle = int(frauds[len(frauds) // 2])
    later = split.validation[times[split.validation] >= middle]
    learned = split.known[times[split.known] < middle]
    if onto is not None:
        learned = learned[times[learned] >= onto.learned_until_ms]
    if len(frauds) < STOP_FRAUDS_MIN or frauds[0] == middle or not fraud[learned].any():
        return recipe, rounds
    data = Data(rows.X[learned], fraud[learned], rows.X[later], fraud[later])

    def late(one: Recipe) -> tuple[int, np.ndarray]:
        """Rounds of a model that has seen late days, and its margins of the days after them."""
        fitted, _ = boost(
            boosting, Matrices(boosting, data, one), boosting.parameters(one, data.fraud), rounds_max=ROUNDS_MAX,
            progress=progress, onto=None if onto is None else onto.booster, patience=plain_rounds(one.eta),
        )  # fmt: skip
        return int(fitted.num_boosted_rounds()), _margins(fitted, data.held_out)

    found, margins = late(recipe)
    if not outranks(data.held_out_fraud, margins, _margins(booster, data.held_out), boosting.seed, LEARNED):
        return recipe, rounds
    best, best_margins = (recipe, max(rounds, found)), margins
    for other in (*RECIPES, RECIPE_OF_FEW):
        if onto is not None or other == recipe or (seconds_max is not None and time.monotonic() - began >= seconds_max):
            continue
        found, margins = late(other)
        if outranks(data.held_out_fraud, margins, best_margins, boosting.seed):
            best, best_margins = (other, found), margins
    return best


def _margins(booster: Any, X: np.ndarray) -> np.ndarray:
    return np.asarray(booster.inplace_predict(X, predict_type="margin"))
