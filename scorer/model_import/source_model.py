"""What the three kinds of model files have in common: names, rounds, and a file for the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scorer.model.calibration import Calibration
from scorer.model_import.import_errors import ModelImportError

Kind = Literal["xgboost", "LightGBM", "treelite"]


@dataclass(frozen=True)
class Placement:
    """Where the model's columns stand in the feature set, and what a missing value is decided as."""

    names: list[str]
    """The feature set's, in its order."""
    position: np.ndarray
    """int64 [k]: the feature set's column of each of the model's columns."""
    filled: np.float32 | None


@dataclass(frozen=True)
class SourceModel:
    """A model file from elsewhere, checked."""

    kind: Kind
    data: bytes
    feature_count: int
    names: list[str] | None
    """Of its columns in its order; None where the file has none."""
    rounds: int
    """Rounds of boosting that the file holds."""
    best_rounds: int | None
    """Rounds up to the best iteration; None where the file names none."""
    tells_missing: bool
    """Whether the file says what it does with a missing value."""
    bundle_file: str
    """Its name in a bundle."""
    placed: Callable[[Placement, int], bytes]
    """The file with its columns in the feature set's order and only so many rounds."""
    calibration: Calibration = field(default_factory=Calibration)
    """The model's own link, where it is not the plain one."""


def position_of(model: list[str], wanted: list[str]) -> np.ndarray:
    """int64 [k]: where each name of the model stands among `wanted`. Raises ModelImportError that shows both lists."""
    twice = sorted({name for name in model if model.count(name) > 1})
    if twice:
        raise ModelImportError(f"the model has two columns called {twice[0]!r}; give their names with --columns")
    lacking = [name for name in wanted if name not in set(model)]
    extra = [name for name in model if name not in set(wanted)]
    if lacking or extra:
        parts = [
            f"{what} {', '.join(map(repr, names))}"
            for what, names in (("the model lacks", lacking), ("the feature set lacks", extra))
            if names
        ]
        raise ModelImportError(
            f"names differ: {'; '.join(parts)}. The model's columns: {', '.join(model)}. The feature set's: "
            f"{', '.join(wanted)}. Change the feature set, or name the model's columns, in their order, with --columns "
            "FILE (one name a line)"
        )
    place = {name: i for i, name in enumerate(wanted)}
    return np.array([place[name] for name in model], dtype=np.int64)
