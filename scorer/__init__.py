"""fraud-scorer: from payments as bytes to decisions, their audit trail and the models behind them.

The names in `__all__` are the library; what is not named may change with any version. They are imported when first
used: reading a bundle needs no training library, and a program that only trains needs no Kafka client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import schemas  # noqa: F401 - finds a place for compiled kernels before numba is imported

if TYPE_CHECKING:
    from schemas.fast_decision import FastDecisions
    from scorer.bundle import Bundle
    from scorer.errors import FraudScorerError
    from scorer.model import CompiledModel
    from scorer.pipeline import Batch, Outcomes, Pipeline
    from scorer.training import TrainingReport, TrainingRows, TrainingSettings, train

__all__ = [
    "Batch",
    "Bundle",
    "CompiledModel",
    "FastDecisions",
    "FraudScorerError",
    "Outcomes",
    "Pipeline",
    "TrainingReport",
    "TrainingRows",
    "TrainingSettings",
    "train",
]

_HOMES = {
    "Batch": "scorer.pipeline",
    "Bundle": "scorer.bundle",
    "CompiledModel": "scorer.model",
    "FastDecisions": "schemas.fast_decision",
    "FraudScorerError": "scorer.errors",
    "Outcomes": "scorer.pipeline",
    "Pipeline": "scorer.pipeline",
    "TrainingReport": "scorer.training",
    "TrainingRows": "scorer.training",
    "TrainingSettings": "scorer.training",
    "train": "scorer.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scorer' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
