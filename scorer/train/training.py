"""From a feature matrix in time order to a bundle whose compiled model equals xgboost bit for bit.

    rows of known label ─▶ split by time ─▶ search ─▶ boost, stop early on AP ─▶ measure, calibrate, threshold
                                                            └─▶ boost again on all that is known ─▶ gate ─▶ bundle

Measured, calibrated and thresholded is the model that never saw the validation part. Written is the second one, with
the same recipe and as many rounds: the newest weeks are the ones most like tomorrow. xgboost is imported when training
starts, never by serving.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Calibration, TrainingWindow, write_bundle
from scorer.model import CompiledModel
from scorer.model.calibration import calibration_error, fit_platt
from scorer.policy import Policy
from scorer.train.boost import ROUNDS_MAX, Data, Matrices, Progress, Recipe, boost, boost_rounds
from scorer.train.libraries import import_optuna, import_xgboost, versions
from scorer.train.ranking import summary, threshold_for_share
from scorer.train.search import Trial, TrialProgress, search
from scorer.train.selection import FeatureWorth, worth
from scorer.train.split import Split, check_columns, refuse_infinite, split_in_time
from scorer.train.suspects import precision_alone, refuse_leakage
from scorer.train.train_errors import GateError, TrainError

# Rows per call of the gate: 65,536 x 44 float32 are 11 MiB.
_GATE_ROWS = 65_536
_GOLDEN_ROWS = 256


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


def train(
    X: np.ndarray,
    label: np.ndarray,
    event_time_ms: np.ndarray,
    label_known_at_ms: np.ndarray,
    feature_set_yaml: str,
    policy_yaml: str,
    output: Path,
    *,
    seed: int,
    label_gap_ms: int,
    created_at: str,
    name: str,
    validation_share: float = 0.2,
    threads: int = 2,
    trials: int = 0,
    refit: bool = True,
    as_of_ms: int | None = None,
    accepted: Collection[str] = (),
    progress: Progress | None = None,
    trial_progress: TrialProgress | None = None,
) -> TrainingReport:
    """Train on n rows and write the bundle to `output` (which must not exist).

    X float32 [n, k] in the feature set's column order, NaN missing; label int8 [n]: 1 fraud, 0 genuine, -1 unknown
    (left out); event_time_ms and label_known_at_ms int64 [n], epoch ms. `as_of_ms`: the day of training; labels that
    became known later are not used. `trials`: recipes to try (0: the default recipe). `refit`: the model written has
    seen all known rows. `accepted`: features that may separate alone. `threads` bounds xgboost's. Deterministic for the
    same inputs, seed, threads and libraries.
    Raises TrainError (data that cannot be trained on), LeakageError, GateError, BundleError, FeatureSetError or
    PolicyError.
    """
    xgboost = import_xgboost()
    feature_set = FeatureSet.from_yaml(feature_set_yaml)
    names = feature_set.names
    policy = Policy.from_yaml(policy_yaml)
    policy.check(names)
    if os.path.lexists(output):  # said before the work, not after it
        raise TrainError(f"{output} exists already; bundles are never overwritten, choose another place")
    if threads < 1 or not 0.0 < validation_share < 1.0 or label_gap_ms < 0 or trials < 0:
        raise TrainError(
            f"out of range: threads {threads}, validation_share {validation_share}, label_gap_ms {label_gap_ms} or "
            f"trials {trials}"
        )
    optuna = import_optuna() if trials else None
    check_columns(X, label, event_time_ms, label_known_at_ms, names)
    split = split_in_time(
        label,
        event_time_ms,
        label_known_at_ms,
        validation_share=validation_share,
        label_gap_ms=label_gap_ms,
        as_of_ms=as_of_ms,
    )
    fraud = label == 1
    data = Data(X[split.train], fraud[split.train], X[split.validation], fraud[split.validation])
    refuse_infinite(data.X, names)
    refuse_infinite(data.held_out, names)
    alone = precision_alone(data.X, data.fraud, seed)
    refuse_leakage(alone, names, accepted)
    empty = np.isnan(data.X).all(axis=0)

    tried: list[Trial] = []
    recipe = Recipe()
    if optuna is not None:
        tried = search(
            xgboost, optuna, feature_set, data, trials=trials, seed=seed, threads=threads, progress=trial_progress
        )
        recipe = max(tried, key=lambda trial: trial.average_precision).recipe
    keep = recipe.genuine_per_fraud
    matrices = Matrices(xgboost, data, names, recipe, genuine_per_fraud=keep, seed=seed, threads=threads)
    parameters = recipe.parameters(feature_set, data.fraud, seed=seed, threads=threads)
    booster, _ = boost(xgboost, matrices, parameters, rounds_max=ROUNDS_MAX, progress=progress)
    rounds = booster.num_boosted_rounds()
    gain: dict[str, float] = booster.get_score(importance_type="total_gain")
    raw, measured, source = _compiled(xgboost, booster, threads)
    margins = _gate(measured, source, data.held_out)

    # Two numbers, fitted where the model was not: the score becomes a probability, and payments keep their order.
    calibration = fit_platt(margins, data.held_out_fraud.astype(np.float64))
    scores = calibration.apply(margins, measured.link)
    threshold = policy.flag.score
    if threshold is None:
        threshold = threshold_for_share(scores, float(policy.flag.share or 0))
    metrics = summary(data.held_out_fraud, scores, scores >= threshold) | {
        "calibration_error": calibration_error(scores, data.held_out_fraud),
        "calibration_error_before": calibration_error(Calibration().apply(margins, measured.link), data.held_out_fraud),
    }
    features = worth(measured, names, gain, alone, empty, data.held_out, data.held_out_fraud, seed)
    model = measured
    if refit:
        del matrices
        everything = Data(X[split.known], fraud[split.known], X[:0], fraud[:0])
        refuse_infinite(everything.X, names)
        again = Matrices(xgboost, everything, names, recipe, genuine_per_fraud=keep, seed=seed, threads=threads)
        parameters = recipe.parameters(feature_set, everything.fraud, seed=seed, threads=threads)
        raw, model, source = _compiled(xgboost, boost_rounds(xgboost, again.train, parameters, rounds), threads)
        _gate(model, source, data.held_out)
    bundle = write_bundle(
        Path(output),
        name=name,
        created_at=created_at,
        model=raw,
        feature_set_yaml=feature_set_yaml,
        policy_yaml=policy_yaml,
        threshold_score=float(threshold),
        calibration=calibration,
        golden=_golden(source, data.held_out),
        training=_window(split, label, event_time_ms, label_gap_ms, seed, refit=refit),
        metrics=metrics,
        versions=versions(),
    )
    assert bundle.manifest.training is not None
    total = sum(gain.values())
    return TrainingReport(
        bundle_id=bundle.id,
        output=Path(output),
        trees=model.tree_count,
        threshold_score=float(threshold),
        threshold_margin=float(bundle.threshold_margin),
        training=bundle.manifest.training,
        metrics=metrics,
        rows_without_label=split.rows_without_label,
        rows_in_gap=split.rows_in_gap,
        empty_features=[column for column, none in zip(names, empty, strict=True) if none],
        gain_by_feature=sorted(
            ((key, value / total) for key, value in gain.items()), key=lambda item: (-item[1], item[0])
        ),
        recipe=recipe,
        trials=tried,
        features=features,
    )


def _compiled(xgboost: Any, booster: Any, threads: int) -> tuple[bytes, CompiledModel, Any]:
    """The model's file, compiled, and as xgboost reads it back: the gate compares with what a reader of it gets."""
    raw = bytes(booster.save_raw("ubj"))
    source = xgboost.Booster({"nthread": threads})
    source.load_model(bytearray(raw))
    return raw, CompiledModel.from_bytes(raw), source


def _window(
    split: Split, label: np.ndarray, event_time_ms: np.ndarray, label_gap_ms: int, seed: int, *, refit: bool
) -> TrainingWindow:
    return TrainingWindow(
        train_from_ms=int(event_time_ms[split.train].min()),
        train_until_ms=int(event_time_ms[split.train].max()) + 1,
        train_rows=len(split.train),
        train_frauds=int((label[split.train] == 1).sum()),
        validation_from_ms=split.validation_from_ms,
        validation_until_ms=int(event_time_ms[split.validation].max()) + 1,
        validation_rows=len(split.validation),
        validation_frauds=int((label[split.validation] == 1).sum()),
        label_gap_ms=label_gap_ms,
        seed=seed,
        refit_rows=len(split.known) if refit else 0,
        refit_frauds=int((label[split.known] == 1).sum()) if refit else 0,
    )


def _gate(model: CompiledModel, source: Any, rows: np.ndarray) -> np.ndarray:
    """The compiled margins of `rows`, after proving each bit equal to the source's. Raises GateError."""
    margins = model.margins(rows)
    for start in range(0, len(rows), _GATE_ROWS):
        part = slice(start, start + _GATE_ROWS)
        theirs = np.asarray(source.inplace_predict(rows[part], predict_type="margin"), dtype=np.float32)
        ours = margins[part]
        different = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
        if len(different):
            row = int(different[0])
            raise GateError(
                f"the compiled model differs from xgboost on {len(different)} of {len(ours)} rows, first on validation "
                f"row {start + row}: {ours[row]!r} against {theirs[row]!r}; no bundle was written"
            )
    return margins


def _golden(source: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows spread over the validation part, and what xgboost itself says of them: every loading checks these."""
    few = np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, min(_GOLDEN_ROWS, len(rows))).astype(np.int64)])
    return few, np.asarray(source.inplace_predict(few, predict_type="margin"), dtype=np.float32)
