"""The compiled model: an xgboost, LightGBM or treelite file becomes packed tables and kernels whose margins are the
library's own, bit for bit.

The room may import `scorer.errors`, numpy, numba, llvmlite, treelite and pydantic, and nothing else of this project; it
reads no clock, and no file but the model file it is given and the kernel cache (`vector/jit_compiler.py`).
"""

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
