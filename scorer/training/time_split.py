"""The split in time that production sees, and what cannot be trained on.

    ───── training, labels known by the border ─────┤ gap ├──── validation ────┤ as_of: labels known later are unknown

A model trained on the border's day could not have known more than the training part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.training.boosting import STOP_FRAUDS_MIN
from scorer.training.training_errors import TrainError
from scorer.training.training_settings import TrainingRows, TrainingSettings

# With fewer rows or frauds early stopping and the figures mean nothing.
TRAIN_ROWS_MIN, VALIDATION_ROWS_MIN, FRAUDS_MIN = 100, 50, 5
# Where the last rows hold fewer frauds than this, validation begins earlier: with so many frauds or a third of all,
# whichever is less, but with half of the rows at most.
VALIDATION_FRAUDS = 20
REPORTED = 0.99


@dataclass(frozen=True)
class Split:
    """Row numbers, int64: `train`, `validation`, and `known`, all whose label was known in time."""

    train: np.ndarray
    validation: np.ndarray
    known: np.ndarray
    validation_from_ms: int
    rows_without_label: int
    rows_in_gap: int


def split_in_time(rows: TrainingRows, settings: TrainingSettings, unseen_from_ms: int | None = None) -> Split:
    """Split the rows of known label. Raises TrainError.

    `unseen_from_ms`, epoch ms: the validation part is the last share of the rows from there on, so that nothing in it
    is older; None: of all rows.
    """
    label, known_at = rows.label, rows.label_known_at_ms
    usable, day_ms = label >= 0, day_of_training(rows, settings)
    if settings.as_of_ms is not None:
        usable &= known_at <= settings.as_of_ms
    if settings.genuine_after_ms is not None and day_ms is not None:
        usable &= rows.event_time_ms <= day_ms - settings.genuine_after_ms
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
    newer = times >= (times.min() if unseen_from_ms is None else unseen_from_ms)
    if not newer.any():
        raise TrainError(
            "no row of known label is newer than what the present model has seen: give a file that goes on after it"
        )
    wanted = VALIDATION_FRAUDS if unseen_from_ms is None else STOP_FRAUDS_MIN  # enough to tell two models apart
    border = _border(times[newer], label[known][newer] == 1, settings.validation_share, wanted)
    in_train = (times < border - settings.label_gap_ms) & (known_at[known] <= border)
    if settings.genuine_after_ms is not None:
        in_train &= times <= border - settings.genuine_after_ms
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


def day_of_training(rows: TrainingRows, settings: TrainingSettings) -> int | None:
    """Epoch ms of the day before which rows have to be so old that their frauds are reported: that of training; where
    none is named, that of the last payment or, if later, by when nearly all frauds were reported (a single report of a
    wrong year names no day). None where every row has a report of its own."""
    if settings.as_of_ms is not None or settings.genuine_after_ms is None or not len(rows.label):
        return settings.as_of_ms
    return reported_by_ms(rows.event_time_ms, rows.label_known_at_ms[rows.fraud])


def reported_by_ms(event_time_ms: np.ndarray, fraud_known_at_ms: np.ndarray) -> int:
    """Epoch ms of the last of n payments or, if later, by when nearly all m frauds were reported; int64 [n], [m]."""
    reported = np.sort(fraud_known_at_ms)
    nearly_all = int(reported[int((len(reported) - 1) * REPORTED)]) if len(reported) else 0
    return max(int(event_time_ms.max()), nearly_all)


def _border(times: np.ndarray, fraud: np.ndarray, share: float, most: int) -> int:
    """The first time of the validation part, epoch ms, of n rows of known label: times int64 [n], fraud bool [n];
    `most`: up to so many frauds it begins earlier for."""
    ordered, frauds = np.sort(times), np.sort(times[fraud])
    border = int(ordered[min(int(len(ordered) * (1.0 - share)), len(ordered) - 1)])
    wanted = min(most, len(frauds) // 3)
    if wanted == 0 or int((frauds >= border).sum()) >= wanted:
        return border
    return min(border, max(int(frauds[-wanted]), int(ordered[len(ordered) // 2])))


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
