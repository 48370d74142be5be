"""Training: from a feature matrix in time order to a bundle whose compiled model equals xgboost bit for bit.

    rows of known label ──▶ split by time ──▶ boost, stop early on AP ──▶ gate ──▶ threshold ──▶ bundle

The split is what production sees. Validation is the latest part. The training part ends `label_gap_ms` before it
starts, and takes only labels that were known by then: a model trained on that morning could have known no more.
xgboost is imported when training starts, never by serving.

    TrainError                      (FraudScorerError)
    └── GateError                   the compiled model and xgboost disagree on a row; no bundle was written
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import TrainingWindow, write_bundle
from scorer.errors import FraudScorerError
from scorer.model import CompiledModel
from scorer.model.calibrate import Calibration, calibration_error, fit_platt
from scorer.policy import Policy

# Fewer rows or frauds than these cannot stop a model early, let alone measure it.
TRAIN_ROWS_MIN, VALIDATION_ROWS_MIN, FRAUDS_MIN = 100, 50, 5
ROUNDS_MAX = 500
PATIENCE_ROUNDS = 40
# Rows per call of the gate: 65,536 x 44 float32 are 11 MiB.
_GATE_ROWS = 65_536
_GOLDEN_ROWS = 256

# Measured on 1.26 million card payments (15 features; four folds of 35 days, a gap of 7, a week each of validation and
# test): average precision .733 with 256 bins, .753 with 1,024, .758 with 4,096, which takes 1.36 times as long as 256.
# Few bins cannot isolate the tail of an amount.
MAX_BIN = 4_096

Progress = Callable[[int, int, float], None]
"""Called after each round with (round, rounds at most, average precision on validation so far)."""


class TrainError(FraudScorerError):
    """No model can be trained from this; the message says what is missing."""


class GateError(TrainError):
    """The compiled model's margin differs from xgboost's."""

    exit_code = 3


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
    rows_in_gap: int
    """Known rows left out because they, or their labels, came too near the validation part."""
    empty_features: list[str]
    """Features that are NaN in every training row: the model cannot use them."""
    gain_by_feature: list[tuple[str, float]]
    """Share of the total gain, largest first; features never split on are left out."""


@dataclass(frozen=True)
class _Split:
    train: np.ndarray
    validation: np.ndarray
    validation_from_ms: int
    rows_without_label: int
    rows_in_gap: int


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
    progress: Progress | None = None,
) -> TrainingReport:
    """Train on n rows and write the bundle to `output` (which must not exist).

    X float32 [n, k] in the feature set's column order, NaN missing; label int8 [n]: 1 fraud, 0 genuine, -1 unknown
    (left out); event_time_ms and label_known_at_ms int64 [n], epoch ms. `threads` bounds xgboost's. Deterministic for
    the same inputs, seed, threads and libraries.
    Raises TrainError (data that cannot be trained on), GateError, BundleError, FeatureSetError or PolicyError.
    """
    xgboost = import_xgboost()
    feature_set = FeatureSet.from_yaml(feature_set_yaml)
    policy = Policy.from_yaml(policy_yaml)
    policy.check(feature_set.names)
    if os.path.lexists(output):  # said before the work, not after it
        raise TrainError(f"{output} exists already; bundles are never overwritten, choose another place")
    if threads < 1 or not 0.0 < validation_share < 1.0 or label_gap_ms < 0:
        raise TrainError(
            f"out of range: threads {threads}, validation_share {validation_share} or label_gap_ms {label_gap_ms}"
        )
    _check_columns(X, label, event_time_ms, label_known_at_ms, feature_set.names)
    split = _split(label, event_time_ms, label_known_at_ms, validation_share, label_gap_ms)
    _check_parts(label, split)

    train_rows, validation_rows = X[split.train], X[split.validation]
    _refuse_infinite(train_rows, feature_set.names)
    _refuse_infinite(validation_rows, feature_set.names)
    empty = np.isnan(train_rows).all(axis=0)
    truth = label[split.validation] == 1
    common = {"feature_names": feature_set.names, "nthread": threads, "max_bin": MAX_BIN}
    target = (label[split.train] == 1).astype(np.float32)
    data = xgboost.QuantileDMatrix(train_rows, target, **common)
    held_out = xgboost.QuantileDMatrix(validation_rows, truth.astype(np.float32), ref=data, **common)
    booster = _boost(xgboost, data, held_out, seed, threads, progress)

    raw = bytes(booster.save_raw("ubj"))
    model = CompiledModel.from_bytes(raw)
    # The gate compares with what a reader of the file gets, not with the booster still in memory.
    source = xgboost.Booster({"nthread": threads})
    source.load_model(bytearray(raw))
    margins = _gate(model, source, validation_rows)
    # Two numbers, fitted where the model was not: the score becomes a probability, and payments keep their order.
    calibration = fit_platt(margins, truth.astype(np.float64))
    scores = calibration.apply(margins, model.link)
    threshold = policy.flag.score
    if threshold is None:
        threshold = threshold_for_share(scores, float(policy.flag.share or 0))
    flagged = scores >= threshold
    metrics = _metrics(truth, scores, flagged) | {
        "calibration_error": calibration_error(scores, truth),
        "calibration_error_before": calibration_error(Calibration().apply(margins, model.link), truth),
    }
    window = TrainingWindow(
        train_from_ms=int(event_time_ms[split.train].min()),
        train_until_ms=int(event_time_ms[split.train].max()) + 1,
        train_rows=len(split.train),
        train_frauds=int((label[split.train] == 1).sum()),
        validation_from_ms=split.validation_from_ms,
        validation_until_ms=int(event_time_ms[split.validation].max()) + 1,
        validation_rows=len(split.validation),
        validation_frauds=int(truth.sum()),
        label_gap_ms=label_gap_ms,
        seed=seed,
    )
    bundle = write_bundle(
        Path(output),
        name=name,
        created_at=created_at,
        model=raw,
        feature_set_yaml=feature_set_yaml,
        policy_yaml=policy_yaml,
        threshold_score=float(threshold),
        calibration=calibration,
        golden=_golden(source, validation_rows),
        training=window,
        metrics=metrics,
        versions=versions(),
    )
    gain = booster.get_score(importance_type="total_gain")
    total = sum(gain.values())
    return TrainingReport(
        bundle_id=bundle.id,
        output=Path(output),
        trees=model.tree_count,
        threshold_score=float(threshold),
        threshold_margin=float(bundle.threshold_margin),
        training=window,
        metrics=metrics,
        rows_without_label=split.rows_without_label,
        rows_in_gap=split.rows_in_gap,
        empty_features=[column for column, none in zip(feature_set.names, empty, strict=True) if none],
        gain_by_feature=sorted(
            ((key, value / total) for key, value in gain.items()), key=lambda item: (-item[1], item[0])
        ),
    )


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under precision over recall by steps; rows of one score count together. NaN without a positive."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = hits[last_of_tie]
    if len(hits) == 0 or hits[-1] == 0:
        return float("nan")
    recall_step = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(recall_step * hits / (last_of_tie + 1)))


def area_under_roc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a fraud scores above a genuine payment, ties counting half. NaN with one class only."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2.0
    return float((mean_rank[group][truth].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def threshold_for_share(scores: np.ndarray, share: float) -> float:
    """The smallest score such that at most `share` of the rows score that or more.

    Raises TrainError where rows tie at the top: flagging them would exceed the share, any higher score would flag none.
    """
    values, counts = np.unique(scores, return_counts=True)
    flagged = np.cumsum(counts[::-1])[::-1] / len(scores)
    allowed = np.flatnonzero(flagged <= share)
    if not len(allowed):
        raise TrainError(
            f"flag.share {share} cannot be met: {flagged[-1]:.4%} of the validation rows share the highest score; "
            "raise the share, use flag.score, or give more validation rows"
        )
    return float(values[allowed[0]])


def _parameters(seed: int, threads: int) -> dict[str, Any]:
    # base_score is left to xgboost, which estimates it: then the score is near a probability from the first round on.
    # With 0.5 average precision was .004 better, but the mean score was 30 times the fraud rate after 5 rounds, and
    # right only after 60; stopping early may stop before that.
    return {
        "objective": "binary:logistic",
        "eval_metric": "aucpr",
        "tree_method": "hist",
        "max_bin": MAX_BIN,
        "max_depth": 6,
        "eta": 0.1,
        "subsample": 0.8,
        "colsample_bytree": 0.8,
        "min_child_weight": 1.0,
        "seed": seed,
        "nthread": threads,
    }


def _boost(xgboost: Any, data: Any, held_out: Any, seed: int, threads: int, progress: Progress | None) -> Any:
    class Report(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
            if progress is not None:
                progress(epoch + 1, ROUNDS_MAX, float(evals_log["validation"]["aucpr"][-1]))
            return False

    stop = xgboost.callback.EarlyStopping(
        rounds=PATIENCE_ROUNDS, metric_name="aucpr", data_name="validation", maximize=True
    )
    booster = xgboost.train(
        _parameters(seed, threads),
        data,
        ROUNDS_MAX,
        evals=[(held_out, "validation")],
        verbose_eval=False,
        callbacks=[Report(), stop],
    )
    # inplace_predict sums all trees, whatever best_iteration says: what is saved is the best part alone.
    return booster[: booster.best_iteration + 1]


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
    """Rows spread over the validation part, and what xgboost itself says of them: whoever loads the bundle checks these."""
    few = np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, min(_GOLDEN_ROWS, len(rows))).astype(np.int64)])
    return few, np.asarray(source.inplace_predict(few, predict_type="margin"), dtype=np.float32)


def _metrics(truth: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    hits = int((truth & flagged).sum())
    return {
        "average_precision": average_precision(truth, scores),
        "auc": area_under_roc(truth, scores),
        "recall": hits / int(truth.sum()),
        # Nothing flagged is no false alarm; 0 would read as "always wrong", NaN is no JSON.
        "precision": hits / int(flagged.sum()) if flagged.any() else 1.0,
        "flagged_share": float(flagged.mean()),
        "rows": float(len(truth)),
        "frauds": float(truth.sum()),
        "flagged": float(flagged.sum()),
        "true_flagged": float(hits),
    }


def _check_columns(
    X: np.ndarray, label: np.ndarray, event_time_ms: np.ndarray, label_known_at_ms: np.ndarray, names: list[str]
) -> None:
    if X.ndim != 2 or X.dtype != np.float32:
        raise TrainError(f"X is {X.dtype} with {X.ndim} dimensions, wanted float32 with 2")
    if X.shape[1] != len(names):
        raise TrainError(f"X has {X.shape[1]} columns, the feature set names {len(names)} features")
    for column, values, dtype in (
        ("label", label, np.int8),
        ("event_time_ms", event_time_ms, np.int64),
        ("label_known_at_ms", label_known_at_ms, np.int64),
    ):
        if values.shape != (len(X),) or values.dtype != dtype:
            raise TrainError(f"{column} is {values.dtype} {values.shape}, wanted {np.dtype(dtype)} ({len(X)},)")
    if len(label) and (label.min() < -1 or label.max() > 1):
        raise TrainError("label holds values other than 1 (fraud), 0 (genuine) and -1 (unknown)")


def _split(
    label: np.ndarray,
    event_time_ms: np.ndarray,
    label_known_at_ms: np.ndarray,
    validation_share: float,
    label_gap_ms: int,
) -> _Split:
    known = np.flatnonzero(label >= 0)
    if not len(known):
        raise TrainError("no row has a known label; give a file with labels, or wait until labels are known")
    times = event_time_ms[known]
    # Rows of one time stay on one side.
    border = int(np.sort(times)[min(int(len(known) * (1.0 - validation_share)), len(known) - 1)])
    in_train = (times < border - label_gap_ms) & (label_known_at_ms[known] <= border)
    in_validation = times >= border
    return _Split(
        train=known[in_train],
        validation=known[in_validation],
        validation_from_ms=border,
        rows_without_label=len(label) - len(known),
        rows_in_gap=int((~in_train & ~in_validation).sum()),
    )


def _check_parts(label: np.ndarray, split: _Split) -> None:
    for part, index, rows_min in (
        ("training", split.train, TRAIN_ROWS_MIN),
        ("validation", split.validation, VALIDATION_ROWS_MIN),
    ):
        rows = len(index)
        if rows < rows_min:
            raise TrainError(
                f"the {part} part has {rows} rows, at least {rows_min} are needed ({split.rows_in_gap} rows fell into "
                "the label gap); give a longer time range or a shorter gap"
            )
        frauds = int((label[index] == 1).sum())
        if frauds < FRAUDS_MIN:
            raise TrainError(
                f"the {part} part has {frauds} frauds in {rows} rows, at least {FRAUDS_MIN} are needed; "
                "give a longer time range"
            )
        if frauds == rows:
            raise TrainError(f"the {part} part has no genuine payment in {rows} rows; one class cannot be told apart")


def _refuse_infinite(rows: np.ndarray, names: list[str]) -> None:
    column = np.flatnonzero(np.isinf(rows).any(axis=0))
    if len(column):
        raise TrainError(f"the feature {names[column[0]]!r} is infinite in some row; features are finite or NaN")


def import_xgboost() -> Any:
    """The library. Raises TrainError naming what to install."""
    try:
        import xgboost  # noqa: PLC0415 - serving must not need it
    except ImportError as error:
        raise TrainError("training needs xgboost, which serving does not: pip install 'fraud-scorer[train]'") from error
    return xgboost


def versions() -> dict[str, str]:
    """Versions of the libraries that a model depends on."""
    found: dict[str, str] = {}
    for library in ("fraud-scorer", "numba", "numpy", "treelite", "xgboost", "xgboost-cpu"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two xgboost wheels is there; a checkout has no fraud-scorer
    return found
