"""From a feature matrix in time order to a bundle whose compiled model equals xgboost bit for bit.

    rows of known label ─▶ split by time ─▶ search ─▶ boost, stop early on AP ─▶ measure, calibrate, threshold
                                                            └─▶ boost again on all known rows ─▶ gate ─▶ bundle

The figures, the calibration and the threshold come from the model that never saw the validation part. Written is the
second model, with the same recipe and as many rounds: the newest weeks are the ones most like tomorrow. xgboost is
imported when training starts, never by serving.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Calibration, TrainingWindow, write_bundle
from scorer.model.calibration import calibration_error, fit_platt
from scorer.policy import Policy
from scorer.training.boosting import ROUNDS_MAX, Boosting, Data, Matrices, Progress, Recipe, boost, boost_rounds
from scorer.training.compiled_booster import CompiledBooster
from scorer.training.feature_selection import FeatureWorth, TrainingPartFigures, worth
from scorer.training.leakage_suspects import precision_alone, refuse_leakage
from scorer.training.ranking import summary, threshold_for_share
from scorer.training.recipe_search import Trial, TrialProgress, search
from scorer.training.time_split import Split, refuse_infinite, split_in_time
from scorer.training.training_errors import TrainError
from scorer.training.training_libraries import import_optuna, import_xgboost, versions
from scorer.training.training_settings import TrainingRows, TrainingSettings


@dataclass(frozen=True)
class TrainingReport:
    """What training did, for people and for --json."""

    bundle_id: str
    output: Path
    trees: int
    threshold_score: float
    threshold_margin: float
    training: TrainingWindow
    metrics: dict[str, float]
    """On validation: average_precision, auc, recall, precision, flagged_share, rows, frauds, flagged, true_flagged,
    calibration_error and, of the uncalibrated score, calibration_error_before."""
    rows_without_label: int
    """Rows whose label is not known, or became known after the day of training."""
    rows_in_gap: int
    """Known rows that the measured model did not see: they, or their labels, came too near the validation part."""
    empty_features: list[str]
    """Features that are NaN in every training row: the model cannot use them."""
    gain_by_feature: list[tuple[str, float]]
    """Share of the total gain, largest first; features never split on are left out."""
    recipe: Recipe
    trials: list[Trial] = field(default_factory=list)
    features: list[FeatureWorth] = field(default_factory=list)
    """The feature selection report, of the measured model."""


@dataclass(frozen=True)
class _Measured:
    """The model that never saw the validation part, and all that was measured and fitted with it there."""

    booster: CompiledBooster
    rounds: int
    gain: dict[str, float]
    calibration: Calibration
    threshold: float
    metrics: dict[str, float]


def train(
    rows: TrainingRows,
    feature_set_yaml: str,
    policy_yaml: str,
    output: Path,
    settings: TrainingSettings,
    *,
    progress: Progress | None = None,
    trial_progress: TrialProgress | None = None,
) -> TrainingReport:
    """Train on the rows and write the bundle to `output`, which must not exist.

    `progress` is called after each round of boosting, `trial_progress` after each trial of the search.
    Raises TrainError (data or settings that cannot be trained with), LeakageError, GateError, BundleError,
    FeatureSetError or PolicyError.
    """
    _check_types(rows=(rows, TrainingRows), settings=(settings, TrainingSettings))
    _check_types(feature_set_yaml=(feature_set_yaml, str), policy_yaml=(policy_yaml, str))
    xgboost = import_xgboost()
    feature_set = FeatureSet.from_yaml(feature_set_yaml)
    names = feature_set.names
    policy = Policy.from_yaml(policy_yaml)
    policy.check(names)
    if os.path.lexists(output):  # before the work, not after it
        raise TrainError(f"{output} exists already; bundles are never overwritten, choose another place")
    settings.check()
    optuna = import_optuna() if settings.trials else None
    rows.check(names)

    split = split_in_time(rows, settings)
    data = _parts(rows, split, names)
    alone = precision_alone(data.X, data.fraud, settings.seed)
    refuse_leakage(alone, names, settings.accepted)
    empty = np.isnan(data.X).all(axis=0)

    boosting = Boosting(xgboost, feature_set, settings.seed, settings.threads)
    trials: list[Trial] = []
    recipe = Recipe()
    if optuna is not None:
        trials = search(boosting, optuna, data, trials=settings.trials, progress=trial_progress)
        recipe = max(trials, key=lambda trial: trial.average_precision).recipe

    measured = _measured(boosting, data, recipe, policy, progress)
    known = TrainingPartFigures(measured.gain, alone, empty)
    features = worth(measured.booster.model, names, known, data.held_out, data.held_out_fraud, settings.seed)
    written = measured.booster
    if settings.refit:
        written = _refitted(boosting, rows, split, recipe, measured.rounds)
        written.proved_margins(data.held_out)
    window = _window(rows, split, settings)
    bundle = write_bundle(
        Path(output),
        name=settings.name,
        created_at=settings.created_at,
        model=written.raw,
        feature_set_yaml=feature_set_yaml,
        policy_yaml=policy_yaml,
        threshold_score=measured.threshold,
        calibration=measured.calibration,
        golden=written.golden(data.held_out),
        training=window,
        metrics=measured.metrics,
        versions=versions(),
    )
    return TrainingReport(
        bundle_id=bundle.id,
        output=Path(output),
        trees=written.model.tree_count,
        threshold_score=measured.threshold,
        threshold_margin=float(bundle.threshold_margin),
        training=window,
        metrics=measured.metrics,
        rows_without_label=split.rows_without_label,
        rows_in_gap=split.rows_in_gap,
        empty_features=[column for column, none in zip(names, empty, strict=True) if none],
        gain_by_feature=_gain_shares(measured.gain),
        recipe=recipe,
        trials=trials,
        features=features,
    )


def _check_types(**arguments: tuple[object, type]) -> None:
    """Raise TrainError for the first argument, given with the type wanted, that is of another."""
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise TrainError(f"{name} is of type {type(value).__name__}, wanted {kind.__name__}")


def _parts(rows: TrainingRows, split: Split, names: list[str]) -> Data:
    """Training and validation part. Raises TrainError for an infinite feature."""
    fraud = rows.fraud
    data = Data(rows.X[split.train], fraud[split.train], rows.X[split.validation], fraud[split.validation])
    refuse_infinite(data.X, names)
    refuse_infinite(data.held_out, names)
    return data


def _measured(boosting: Boosting, data: Data, recipe: Recipe, policy: Policy, progress: Progress | None) -> _Measured:
    """Boost on the training part; calibrate, choose the threshold and measure on the validation part."""
    matrices, parameters = Matrices(boosting, data, recipe), boosting.parameters(recipe, data.fraud)
    booster, _ = boost(boosting, matrices, parameters, rounds_max=ROUNDS_MAX, progress=progress)
    compiled = CompiledBooster.of(boosting.xgboost, booster, boosting.threads)
    margins, fraud, link = compiled.proved_margins(data.held_out), data.held_out_fraud, compiled.model.link
    # Two numbers, fitted on rows that the model has not seen: the score becomes a probability, the ranking stays.
    calibration = fit_platt(margins, fraud.astype(np.float64))
    scores = calibration.apply(margins, link)
    threshold = policy.flag.score
    if threshold is None:
        threshold = threshold_for_share(scores, float(policy.flag.share or 0))
    metrics = summary(fraud, scores, scores >= threshold) | {
        "calibration_error": calibration_error(scores, fraud),
        "calibration_error_before": calibration_error(Calibration().apply(margins, link), fraud),
    }
    gain: dict[str, float] = booster.get_score(importance_type="total_gain")
    return _Measured(compiled, booster.num_boosted_rounds(), gain, calibration, float(threshold), metrics)


def _refitted(boosting: Boosting, rows: TrainingRows, split: Split, recipe: Recipe, rounds: int) -> CompiledBooster:
    """The second fit: same recipe and rounds, on all known rows. Raises TrainError for an infinite feature."""
    data = Data(rows.X[split.known], rows.fraud[split.known], rows.X[:0], rows.fraud[:0])
    refuse_infinite(data.X, boosting.feature_set.names)
    booster = boost_rounds(boosting, data, recipe, rounds)
    return CompiledBooster.of(boosting.xgboost, booster, boosting.threads)


def _window(rows: TrainingRows, split: Split, settings: TrainingSettings) -> TrainingWindow:
    """The manifest's account of the rows used."""
    times, fraud = rows.event_time_ms, rows.fraud
    return TrainingWindow(
        train_from_ms=int(times[split.train].min()),
        train_until_ms=int(times[split.train].max()) + 1,
        train_rows=len(split.train),
        train_frauds=int(fraud[split.train].sum()),
        validation_from_ms=split.validation_from_ms,
        validation_until_ms=int(times[split.validation].max()) + 1,
        validation_rows=len(split.validation),
        validation_frauds=int(fraud[split.validation].sum()),
        label_gap_ms=settings.label_gap_ms,
        seed=settings.seed,
        refit_rows=len(split.known) if settings.refit else 0,
        refit_frauds=int(fraud[split.known].sum()) if settings.refit else 0,
    )


def _gain_shares(gain: dict[str, float]) -> list[tuple[str, float]]:
    """Each feature's share of the gain, largest first, then by name."""
    total = sum(gain.values())
    return sorted(((name, value / total) for name, value in gain.items()), key=lambda item: (-item[1], item[0]))
