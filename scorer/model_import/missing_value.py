"""What stood for a missing value when a model was trained, which most model files do not tell.

nan            NaN, as the feature engine gives it: the library's own way of missing values
declared:V     the number V, declared to the library: xgboost's DMatrix(missing=V). Serves as nan, provided that V is
               no value of a feature
fill:V         the number V, put there before training (fillna(V)): a missing value is decided as V is
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scorer.model_import.import_errors import ModelImportError

HOW_TO_SAY = (
    "--missing nan (missing values were NaN), --missing declared:-999 (a number that was declared to the library, as "
    "in DMatrix(missing=-999)) or --missing fill:-999 (a number that replaced missing values before training, as "
    "fillna(-999) does)"
)


@dataclass(frozen=True)
class MissingValue:
    """One of the three ways; `value` is None for NaN."""

    kind: Literal["nan", "declared", "fill"]
    value: np.float32 | None = None

    @classmethod
    def parse(cls, text: str) -> MissingValue:
        """From the command's text. Raises ModelImportError."""
        if text.strip().lower() == "nan":
            return cls("nan")
        kind, colon, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not colon or kind not in ("declared", "fill") or not math.isfinite(value):
            raise ModelImportError(f"--missing {text[:40]!r} is not clear; give {HOW_TO_SAY}")
        if abs(value) > float(np.finfo(np.float32).max):
            raise ModelImportError(f"--missing {text[:40]!r} is no float32, which features are")
        return cls("fill" if kind == "fill" else "declared", np.float32(value))

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{float(self.value):g}"

    @property
    def filled(self) -> np.float32 | None:
        """The number that a missing value is decided as; None where the library has a way of its own."""
        return self.value if self.kind == "fill" else None

    def as_trained(self, rows: np.ndarray) -> np.ndarray:
        """Rows float32 [n, k] as the library has to see them: with the number in place of NaN, where it was filled."""
        return rows if self.filled is None else np.where(np.isnan(rows), self.filled, rows).astype(np.float32)

    def check(self, rows: np.ndarray | None, names: list[str]) -> None:
        """Raise ModelImportError where a declared number is also a feature's value, or nothing shows that it is not."""
        if self.kind != "declared":
            return
        if rows is None:
            raise ModelImportError(
                f"--missing {self}: give --golden ROWS too, real payments' features, which show that no feature has "
                f"{self.value:g} as a value of its own"
            )
        for column in np.flatnonzero((rows == self.value).any(axis=0)):
            count = int((rows[:, column] == self.value).sum())
            raise ModelImportError(
                f"--missing {self}: feature {names[column]} is {self.value:g} on {count} of {len(rows)} rows. "
                "The model takes that as missing, here it is a value: such a model is not served; train it with NaN "
                "for missing values"
            )
