"""Import: a model trained elsewhere becomes a bundle, and gives there the margins that its own library gives it.

The room may touch bundle, policy, the model file and a file of rows; xgboost and LightGBM where they are installed. No
pickle is ever loaded.
"""

from __future__ import annotations

from scorer.model_import.import_errors import ModelImportError, SourceMarginsError
from scorer.model_import.missing_value import MissingValue
from scorer.model_import.model_import import Imported, ImportOptions, import_model

__all__ = [
    "ImportOptions",
    "Imported",
    "MissingValue",
    "ModelImportError",
    "SourceMarginsError",
    "import_model",
]
