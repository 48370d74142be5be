"""The training libraries, imported only when training starts: serving must not need them."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from scorer.training.training_errors import TrainError


def import_xgboost() -> Any:
    """The library. Raises TrainError naming what to install."""
    try:
        import xgboost  # noqa: PLC0415 - serving must not need it
    except ImportError as error:
        raise TrainError("training needs xgboost, which serving does not: pip install 'fraud-scorer[train]'") from error
    return xgboost


def import_optuna() -> Any:
    """The library. Raises TrainError naming what to install."""
    try:
        import optuna  # noqa: PLC0415 - serving must not need it
    except ImportError as error:
        raise TrainError("the search needs optuna: pip install 'fraud-scorer[train]', or leave --trials out") from error
    return optuna


def versions() -> dict[str, str]:
    """Versions of the libraries that a model depends on."""
    found: dict[str, str] = {}
    for library in ("fraud-scorer", "numba", "numpy", "optuna", "treelite", "xgboost", "xgboost-cpu"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two xgboost wheels is there; a checkout has no fraud-scorer
    return found
