"""What can be wrong with a model or with the rows given to it.

ModelError                      (FraudScorerError)
├── ModelFormatError            the file is damaged, truncated or hostile; names the tree and node or feature
├── ModelUnsupportedError       a sound model of a kind that is not served (multi-class, categorical splits …)
└── ModelInputError             rows of the wrong shape, dtype or width
"""

from __future__ import annotations

import re

from scorer.errors import FraudScorerError

# "[12:00:00] /build/src/file.cc:90: Check failed …": a library's clock and a place in its source.
_SOURCE_PLACE = re.compile(r"^\s*(\[[\d:]+\]\s*)?(\S+\.(cc|cpp|cu|h|hpp):\d+:\s*)?")


class ModelError(FraudScorerError):
    """A model cannot be loaded, or cannot score what it was given."""


class ModelFormatError(ModelError):
    """The model file does not hold together; train or copy it again."""


class ModelUnsupportedError(ModelError):
    """The model is of a kind that this evaluator does not serve; the message names the kind."""


class ModelInputError(ModelError):
    """The caller's array has the wrong shape or dtype; the message names both sides."""


def library_reason(error: BaseException) -> str:
    """The first line of a library's error, without the place in C++ that raised it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (_SOURCE_PLACE.sub("", lines[0])[:300] if lines else "") or "no reason given"
