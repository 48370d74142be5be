"""`train --continue`: a bundle's model learned on, with payments that it has not seen.

    payments that the present model has seen ──┬── newer ones: training part ──┤ gap ├── held back ──┤
                                               └ seen_until_ms

The earlier of the held-back rows stop and choose the new models, the later ones compare, where there are frauds enough
for both; else all of them do both, and the report has a note.

Three models meet on those rows, which none of them has learned from: the present one as it is; the present one with new
trees on top, learned from the newer rows; and a new fit on all rows of the training part. Another than the present one
takes its place only where it is better there by more than chance (`outranks`, the guard of the recipes). So no model is
taken that is worse than the present one beyond noise, and where newer payments teach nothing, it stays.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Bundle, Lineage
from scorer.bundle.bundle_folder import checked
from scorer.model.tree_table import Table
from scorer.training.boosting import ROUNDS_MAX, STOP_FRAUDS_MIN, Boosting, Data, Matrices, Progress, Recipe, boost
from scorer.training.compiled_booster import CompiledBooster
from scorer.training.ranking import average_precision
from scorer.training.recipe_search import Fitted, outranks
from scorer.training.time_split import FRAUDS_MIN, TRAIN_ROWS_MIN
from scorer.training.training_errors import GateError, TrainError

Made = Literal["kept", "continued", "anew"]
_MODELS = ("model.ubj", "model.json")


@dataclass(frozen=True)
class Present:
    """The bundle that is continued, its model as xgboost reads the file, the first time that it has not seen, and the
    first that its trees have not learned from: earlier where the model was kept."""

    bundle: Bundle
    booster: Any
    seen_until_ms: int
    learned_until_ms: int

    @classmethod
    def load(cls, folder: Path, feature_set: FeatureSet, xgboost: Any, threads: int) -> Present:
        """The bundle in `folder`. Raises TrainError where its features are not those of `feature_set`, where it does
        not say what it has seen, or where its model is none that xgboost adds trees to; BundleError for a damaged
        one."""
        bundle = Bundle.load(folder)
        manifest = bundle.manifest
        if manifest.feature_fingerprint != feature_set.fingerprint or manifest.feature_names != feature_set.names:
            raise TrainError(
                f"feature set {feature_set.name} has fingerprint {feature_set.fingerprint[:12]}, {bundle.id} has "
                f"{manifest.feature_fingerprint[:12]}: a model learns on with the same features only; leave "
                "--feature-set out to take the bundle's, or train anew without --continue"
            )
        if manifest.training is None:
            raise TrainError(
                f"{bundle.id} does not say which payments its model has seen (it was imported), so none can be held "
                "back for sure; train anew without --continue"
            )
        if manifest.model_file not in _MODELS:
            raise TrainError(
                f"{bundle.id} holds {manifest.model_file}: xgboost adds trees to its own models only; train anew "
                "without --continue"
            )
        booster = xgboost.Booster({"nthread": threads})
        booster.load_model(bytearray(checked(folder, manifest.model_file, manifest.files[manifest.model_file])))
        if booster.num_boosted_rounds() != bundle.model.tree_count:
            raise TrainError(
                f"{bundle.id} has {bundle.model.tree_count} trees in {booster.num_boosted_rounds()} rounds: trees are "
                "added to models of one tree a round only; train anew without --continue"
            )
        seen, learned = manifest.training.validation_until_ms, manifest.training.learned_until_ms
        return cls(bundle, booster, seen, seen if learned is None else learned)

    def lineage(self, made: Made, trees_kept: int, before: float, after: float) -> Lineage:
        """What a bundle learned on from this one states."""
        digest = hashlib.sha256(self.bundle.manifest_bytes).hexdigest()
        return Lineage(
            bundle=self.bundle.id,
            manifest_sha256=digest,
            made=made,
            trees_kept=trees_kept,
            average_precision_before=before,
            average_precision=after,
        )


@dataclass(frozen=True)
class Continued:
    """The model chosen: how it was made, its booster, its recipe (of the new trees), how many of its trees are the
    present model's, and average precision on the held-back rows of the present model and of each candidate."""

    made: Made
    booster: Any
    recipe: Recipe
    trees_kept: int
    before: float
    candidates: dict[Made, float]


def check_newer(fraud: np.ndarray, held_out_fraud: np.ndarray, seen_until: str) -> None:
    """Raise TrainError where the rows that the present model has not seen are too few: `fraud` bool [n] to learn from,
    `held_out_fraud` bool [m] to compare on. `seen_until`: the day up to which it has seen, for the message."""
    rows, frauds = len(fraud), int(fraud.sum())
    if rows < TRAIN_ROWS_MIN or frauds < FRAUDS_MIN:
        raise TrainError(
            f"{rows} rows with {frauds} frauds from {seen_until} on can teach nothing new, {TRAIN_ROWS_MIN} and "
            f"{FRAUDS_MIN} at least are needed beside those held back; give a file that goes on longer"
        )
    held_back = int(held_out_fraud.sum())
    if held_back < STOP_FRAUDS_MIN:
        raise TrainError(
            f"{held_back} frauds in the held-back rows from {seen_until} on can not tell two models apart, "
            f"{STOP_FRAUDS_MIN} can; give a file that goes on longer"
        )


def choose(
    boosting: Boosting, data: Data, newer: Data, present: Present, anew: Fitted, progress: Progress | None
) -> Continued:
    """The present model, the present one continued by the rows `newer`, or the new fit `anew` on the rows of `data`.

    All are compared on the held-back rows of `data`; new trees are stopped on those of `newer`. Raises GateError where
    xgboost changed a tree of the present one.
    """
    recipe = Recipe()
    matrices = Matrices(boosting, newer, recipe)
    continued, _ = boost(
        boosting, matrices, boosting.parameters(recipe, newer.fraud), rounds_max=ROUNDS_MAX, progress=progress,
        onto=present.booster,
    )  # fmt: skip
    check_kept(boosting, continued, present)
    boosters: dict[Made, Any] = {"kept": present.booster, "continued": continued, "anew": anew.booster}
    scores = {
        made: np.asarray(booster.inplace_predict(data.held_out, predict_type="margin"))
        for made, booster in boosters.items()
    }
    precision = {made: average_precision(data.held_out_fraud, margins) for made, margins in scores.items()}
    better: list[Made] = [
        made
        for made in ("continued", "anew")
        if outranks(data.held_out_fraud, scores[made], scores["kept"], boosting.seed)
    ]
    made: Made = max(["kept", *better], key=lambda one: precision[one])  # of equal ones the one that changes less
    trees = present.bundle.model.tree_count
    return Continued(
        made,
        boosters[made],
        anew.recipe if made == "anew" else recipe,
        0 if made == "anew" else trees,
        precision["kept"],
        precision,
    )


def check_kept(boosting: Boosting, booster: Any, present: Present) -> None:
    """Raise GateError unless the trees of the present model come first in `booster`, bit for bit."""
    ours = CompiledBooster.of(boosting.xgboost, booster, boosting.threads).model.table
    theirs = present.bundle.model.table
    if not begins_with(ours, theirs):
        raise GateError(
            f"xgboost changed the trees of {present.bundle.id} while it added others; no bundle was written: train "
            "anew without --continue, and report the versions that `bundle show` names"
        )


def begins_with(table: Table, first: Table) -> bool:
    """Whether the nodes of `first`, and the margin before them, are the first ones of `table`, bit for bit."""
    nodes = len(first.left)
    return table.base_margin == first.base_margin and all(
        np.array_equal(getattr(table, name)[:nodes], getattr(first, name), equal_nan=True)
        for name in ("feature", "threshold", "left", "right", "default_left", "value")
    )
