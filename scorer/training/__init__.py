"""Training: from labelled feature rows in time order to a measured, proved bundle.

It may touch model, policy, bundle and feature sets, and files; xgboost and optuna are imported when a run starts, and
nothing that serves payments imports this room.
"""

from __future__ import annotations

from scorer.training.boosting import Recipe
from scorer.training.ranking import area_under_roc, average_precision, card_precision, threshold_for_share
from scorer.training.training_errors import GateError, LeakageError, TrainError
from scorer.training.training_libraries import import_optuna, import_xgboost, versions
from scorer.training.training_run import TrainingReport, prepare, train
from scorer.training.training_settings import TrainingRows, TrainingSettings

__all__ = [
    "GateError",
    "LeakageError",
    "Recipe",
    "TrainError",
    "TrainingReport",
    "TrainingRows",
    "TrainingSettings",
    "area_under_roc",
    "average_precision",
    "card_precision",
    "import_optuna",
    "import_xgboost",
    "prepare",
    "threshold_for_share",
    "train",
    "versions",
]
