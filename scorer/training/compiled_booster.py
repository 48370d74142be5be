"""A trained booster compiled, with the proof that both give the same margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scorer.model import CompiledModel
from scorer.training.training_errors import GateError

# Rows per call of xgboost: 65,536 x 44 float32 are 11 MiB.
_GATE_ROWS = 65_536
_GOLDEN_ROWS = 256


@dataclass(frozen=True)
class CompiledBooster:
    """A model as its file, as compiled, and as xgboost reads the file back: a bundle's reader gets that one."""

    raw: bytes
    model: CompiledModel
    source: Any

    @classmethod
    def of(cls, xgboost: Any, booster: Any, threads: int) -> CompiledBooster:
        """Save and compile a booster."""
        raw = bytes(booster.save_raw("ubj"))
        source = xgboost.Booster({"nthread": threads})
        source.load_model(bytearray(raw))
        return cls(raw, CompiledModel.from_bytes(raw), source)

    def proved_margins(self, rows: np.ndarray) -> np.ndarray:
        """The compiled margins float32 [n] of rows float32 [n, k], each bit equal to xgboost's. Raises GateError."""
        margins = self.model.margins(rows)
        for start in range(0, len(rows), _GATE_ROWS):
            part = slice(start, start + _GATE_ROWS)
            theirs, ours = self._source_margins(rows[part]), margins[part]
            different = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
            if len(different):
                row = int(different[0])
                raise GateError(
                    f"the compiled model differs from xgboost on {len(different)} of {len(ours)} rows, first on "
                    f"validation row {start + row}: {ours[row]!r} against {theirs[row]!r}; no bundle was written"
                )
        return margins

    def golden(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows spread over `rows` and xgboost's own margins of them: every load of the bundle checks these."""
        few = np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, min(_GOLDEN_ROWS, len(rows))).astype(np.int64)])
        return few, self._source_margins(few)

    def _source_margins(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.source.inplace_predict(rows, predict_type="margin"), dtype=np.float32)
