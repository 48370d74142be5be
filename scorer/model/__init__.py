"""The compiled model: an xgboost file becomes a packed table whose margins are xgboost's own, bit for bit."""

from __future__ import annotations

from scorer.model.compiled_model import CompiledModel
from scorer.model.link_function import margin_for_score, sigmoid
from scorer.model.model_errors import ModelError, ModelFormatError, ModelInputError, ModelUnsupportedError

__all__ = [
    "CompiledModel",
    "ModelError",
    "ModelFormatError",
    "ModelInputError",
    "ModelUnsupportedError",
    "margin_for_score",
    "sigmoid",
]
