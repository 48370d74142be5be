"""The compiled model: an xgboost file becomes a packed table whose margins are xgboost's own, bit for bit."""

from __future__ import annotations

from scorer.model.compiled import CompiledModel
from scorer.model.errors import ModelError, ModelFormatError, ModelInputError, ModelUnsupportedError
from scorer.model.link import margin_for_score, sigmoid

__all__ = [
    "CompiledModel",
    "ModelError",
    "ModelFormatError",
    "ModelInputError",
    "ModelUnsupportedError",
    "margin_for_score",
    "sigmoid",
]
