"""What a training run takes: labelled rows in time order, and the settings of the run."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from scorer.bundle.manifest import CREATED_AT_MAX, NAME_PATTERN
from scorer.training.training_errors import TrainError


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """n payments with their features and labels.

    X float32 [n, k] in the feature set's column order, NaN missing · label int8 [n]: 1 fraud, 0 genuine, -1 unknown
    (such rows are left out) · event_time_ms and label_known_at_ms int64 [n], epoch ms
    """

    X: np.ndarray
    label: np.ndarray
    event_time_ms: np.ndarray
    label_known_at_ms: np.ndarray
    amount: np.ndarray | None = None
    """float64 [n], major units of the feature set's currency: what a policy by cost takes; others do without."""

    @property
    def fraud(self) -> np.ndarray:
        """bool [n]: known to be a fraud."""
        return np.asarray(self.label == 1)

    def check(self, names: list[str]) -> None:
        """Raise TrainError where shapes, dtypes or label values are not what training takes."""
        for column, values in vars(self).items():
            if column == "amount" and values is None:
                continue
            if not isinstance(values, np.ndarray):
                raise TrainError(f"{column} is of type {type(values).__name__}, wanted a numpy array")
        if self.X.ndim != 2 or self.X.dtype != np.float32:
            raise TrainError(f"X is {self.X.dtype} with {self.X.ndim} dimensions, wanted float32 with 2")
        if self.X.shape[1] != len(names):
            raise TrainError(f"X has {self.X.shape[1]} columns, the feature set names {len(names)} features")
        for column, values, dtype in (
            ("label", self.label, np.int8),
            ("event_time_ms", self.event_time_ms, np.int64),
            ("label_known_at_ms", self.label_known_at_ms, np.int64),
        ):
            if values.shape != (len(self.X),) or values.dtype != dtype:
                raise TrainError(
                    f"{column} is {values.dtype} {values.shape}, wanted {np.dtype(dtype)} ({len(self.X)},)"
                )
        if self.amount is not None:
            if self.amount.shape != (len(self.X),) or self.amount.dtype != np.float64:
                raise TrainError(
                    f"amount is {self.amount.dtype} {self.amount.shape}, wanted float64 ({len(self.X)},), major units"
                )
            if not (np.isfinite(self.amount).all() and (self.amount >= 0).all()):
                raise TrainError("amount holds values below 0, infinite or missing; wanted major units of each payment")
        if len(self.label) and (self.label.min() < -1 or self.label.max() > 1):
            raise TrainError("label holds values other than 1 (fraud), 0 (genuine) and -1 (unknown)")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. The same rows, settings and libraries give the same bundle, byte by byte."""

    name: str
    """Name of the bundle."""
    created_at: str
    """Written to the manifest as it is: a time is data here, so that a run can be repeated."""
    seed: int = 1
    label_gap_ms: int = 0
    """Between training and validation part: as long as labels take to become known."""
    validation_share: float = 0.2
    """Share of the known rows, the last in time, that measure the model."""
    threads: int = 2
    """Threads of xgboost, at most."""
    trials: int = 0
    """Recipes that a search proposes and tries on later days; 0: the three known ones are compared."""
    search_s_max: float | None = None
    """No further recipe is begun after so many seconds, but the first, and none is looked at again for the second fit;
    None: all. Where time ends it, the same rows may give another recipe: the report's trials say which were tried."""
    refit: bool = True
    """The model that is written has seen all known rows, validation included."""
    as_of_ms: int | None = None
    """Day of training: labels that became known later are not used. None: all are used; with `genuine_after_ms` the
    time of the last payment or the one by which nearly all frauds were reported, whichever is later."""
    genuine_after_ms: int | None = None
    """The rows of unknown label were made genuine so long after their event time: rows so near to the validation part
    or to `as_of_ms` are not used, of which frauds alone would have a label."""
    accepted: Collection[str] = ()
    """Features that may separate fraud from genuine by themselves."""

    def check(self) -> None:
        """Raise TrainError for a value that no bundle can be trained or written with."""
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise TrainError(f"name does not match {NAME_PATTERN}; it becomes the first part of the bundle's id")
        if not 0 < len(self.created_at) <= CREATED_AT_MAX:
            raise TrainError(f"created_at has {len(self.created_at)} characters, wanted 1 to {CREATED_AT_MAX}")
        genuine_ms = self.genuine_after_ms
        for name, value, wanted, valid in (
            ("threads", self.threads, "at least 1", self.threads >= 1),
            ("validation_share", self.validation_share, "between 0 and 1", 0.0 < self.validation_share < 1.0),
            ("label_gap_ms", self.label_gap_ms, "at least 0", self.label_gap_ms >= 0),
            ("trials", self.trials, "at least 0", self.trials >= 0),
            ("genuine_after_ms", genuine_ms, "at least 0", genuine_ms is None or genuine_ms >= 0),
            ("search_s_max", self.search_s_max, "at least 0", self.search_s_max is None or self.search_s_max >= 0),
        ):
            if not valid:
                raise TrainError(f"{name} is {value}, out of range: wanted {wanted}")
