"""Why no bundle was made of a model from elsewhere.

ModelImportError              (UsageError)     names, missing values or rows do not fit; the message says what to give
└── SourceMarginsError        (exit code 3)    the model gives other margins here than in its own library
"""

from __future__ import annotations

from scorer.errors import UsageError


class ModelImportError(UsageError):
    """The model, its feature set and its rows do not fit together."""


class SourceMarginsError(ModelImportError):
    """The compiled model's margin or score differs from its library's."""

    exit_code = 3
