"""Training: from a feature matrix in time order to a bundle."""

from __future__ import annotations

from scorer.train.boost import Recipe
from scorer.train.libraries import import_optuna, import_xgboost, versions
from scorer.train.ranking import area_under_roc, average_precision, card_precision, threshold_for_share
from scorer.train.train_errors import GateError, LeakageError, TrainError
from scorer.train.training import TrainingReport, train

__all__ = [
    "GateError",
    "LeakageError",
    "Recipe",
    "TrainError",
    "TrainingReport",
    "area_under_roc",
    "average_precision",
    "card_precision",
    "import_optuna",
    "import_xgboost",
    "threshold_for_share",
    "train",
    "versions",
]
