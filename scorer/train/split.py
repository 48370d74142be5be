"""The split in time that production sees, and what cannot be trained on.

    ───── training, labels known by the border ─────┤ gap ├──── validation ────┤ as_of: labels known later are unknown

A model trained at the border could have known no more than the training part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.train.train_errors import TrainError

# Fewer rows or frauds than these cannot stop a model early, let alone measure it.
TRAIN_ROWS_MIN, VALIDATION_ROWS_MIN, FRAUDS_MIN = 100, 50, 5


@dataclass(frozen=True)
class Split:
    """Row numbers, int64: `train`, `validation`, and `known`, all whose label was known in time."""

    train: np.ndarray
    validation: np.ndarray
    known: np.ndarray
    validation_from_ms: int
    rows_without_label: int
    rows_in_gap: int


def split_in_time(
    label: np.ndarray,
    event_time_ms: np.ndarray,
    label_known_at_ms: np.ndarray,
    *,
    validation_share: float,
    label_gap_ms: int,
    as_of_ms: int | None,
) -> Split:
    """Split n rows. Labels that became known after `as_of_ms` count as unknown. Raises TrainError."""
    usable = label >= 0
    if as_of_ms is not None:
        usable &= label_known_at_ms <= as_of_ms
    known = np.flatnonzero(usable)
    if not len(known):
        later = int((label >= 0).sum())
        raise TrainError(
            f"no row has a label that was known in time: all {later} labels became known later than the day of "
            "training (--as-of)"
            if later
            else "no row has a known label; give a file with labels, or wait until labels are known"
        )
    times = event_time_ms[known]
    # Rows of one time stay on one side.
    border = int(np.sort(times)[min(int(len(known) * (1.0 - validation_share)), len(known) - 1)])
    in_train = (times < border - label_gap_ms) & (label_known_at_ms[known] <= border)
    in_validation = times >= border
    split = Split(
        train=known[in_train],
        validation=known[in_validation],
        known=known,
        validation_from_ms=border,
        rows_without_label=len(label) - len(known),
        rows_in_gap=int((~in_train & ~in_validation).sum()),
    )
    _check_parts(label, split)
    return split


def check_columns(
    X: np.ndarray, label: np.ndarray, event_time_ms: np.ndarray, label_known_at_ms: np.ndarray, names: list[str]
) -> None:
    """Raise TrainError where shapes, dtypes or label values are not what training takes."""
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


def refuse_infinite(rows: np.ndarray, names: list[str]) -> None:
    """Raise TrainError naming a feature that is infinite somewhere."""
    column = np.flatnonzero(np.isinf(rows).any(axis=0))
    if len(column):
        raise TrainError(f"the feature {names[column[0]]!r} is infinite in some row; features are finite or NaN")


def _check_parts(label: np.ndarray, split: Split) -> None:
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
