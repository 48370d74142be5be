"""Why training wrote no bundle.

TrainError                      (FraudScorerError)
├── LeakageError                a feature alone separates fraud from genuine: it is probably made of the label
└── GateError                   the compiled model and xgboost disagree on a row; no bundle was written
"""

from __future__ import annotations

from scorer.errors import FraudScorerError


class TrainError(FraudScorerError):
    """No model can be trained from this; the message says what is missing."""


class LeakageError(TrainError):
    """A feature separates fraud from genuine by itself."""


class GateError(TrainError):
    """The compiled model's margin differs from xgboost's."""

    exit_code = 3
