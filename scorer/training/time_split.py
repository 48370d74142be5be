"""The split in time that production sees, and what cannot be trained on.

    ───── training, labels known by the border ─────┤ gap ├──── validation ────┤ as_of: labels known later are unknown

A model trained on the border's day could not have known more than the training part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.training.training_errors import TrainError
from scorer.training.training_settings import TrainingRows, TrainingSettings

# With fewer rows or frauds early stopping and the figures mean nothing.
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


def split_in_time(rows: TrainingRows, settings: TrainingSettings) -> Split:
    """Split the rows of known label. Raises TrainError."""
    label, known_at = rows.label, rows.label_known_at_ms
    usable = label >= 0
    if settings.as_of_ms is not None:
        usable &= known_at <= settings.as_of_ms
    known = np.flatnonzero(usable)
    if not len(known):
        later = int((label >= 0).sum())
        raise TrainError(
            f"no row has a label that was known in time: all {later} labels became known later than the day of "
            "training (--as-of)"
            if later
            else "no row has a known label; give a file with labels, or wait until labels are known"
        )
    times = rows.event_time_ms[known]
    # Rows of one time stay on one side.
    border = int(np.sort(times)[min(int(len(known) * (1.0 - settings.validation_share)), len(known) - 1)])
    in_train = (times < border - settings.label_gap_ms) & (known_at[known] <= border)
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


def refuse_infinite(X: np.ndarray, names: list[str]) -> None:
    """Raise TrainError naming a feature that is infinite somewhere."""
    column = np.flatnonzero(np.isinf(X).any(axis=0))
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
            raise TrainError(f"the {part} part has no genuine payment in {rows} rows; a model needs both classes")
