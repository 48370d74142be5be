"""`CompiledModel`: a tree model file, loaded and ready to score, explain and give reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scorer.model import contributions, link_function
from scorer.model.lightgbm_text import is_lightgbm, lower_lightgbm
from scorer.model.model_errors import ModelFormatError, ModelInputError, ModelUnsupportedError
from scorer.model.model_plan import Plan
from scorer.model.tree_table import Table
from scorer.model.treelite_checkpoint import is_checkpoint, lower_checkpoint
from scorer.model.xgboost_document import MODEL_BYTES_MAX
from scorer.model.xgboost_model import lower

SUFFIXES = (".ubj", ".json", ".txt", ".tl")
_FLOAT32 = np.dtype(np.float32)
_REASONS = 4


class CompiledModel:
    """A tree model ready to score: `CompiledModel.from_file("model.ubj").margins(X)`.

    Immutable, so any number of threads may share it; the kernels release the GIL. X is a numpy array float32
    [n, feature_count]; n may be 0, NaN is a missing value, and a C-contiguous array is not copied. Every method that
    takes rows raises ModelInputError for another type, shape or dtype: a float64 array would have to be rounded, and
    that is the caller's decision (`X.astype(np.float32)`). All errors are ModelError.
    """

    def __init__(self, table: Table, *, vector: bool = True) -> None:
        """From packed trees; a file comes in by `from_file`, `from_bytes` or `from_treelite`.

        `vector` false keeps to the plain evaluator: for tests, and for machines whose LLVM misbehaves.
        """
        if not isinstance(table, Table):
            raise ModelInputError(
                f"table is of type {type(table).__name__}, wanted packed trees; CompiledModel.from_file(path) loads "
                "a file"
            )
        self.table = table
        self.plan = Plan(table, vector=vector)
        self._unexplained = contributions.first_bad_cover(table)
        self._explainer = contributions.Explainer(table, vector=vector and self._unexplained is None)
        means = float(np.sum(contributions.tree_means(table)))
        self._bias = float(table.base_margin) + means / table.divisor + table.offset

    @classmethod
    def from_file(cls, path: str | Path, *, base_margin: float | None = None, vector: bool = True) -> CompiledModel:
        """Load an xgboost model (.json or .ubj), a LightGBM text (.txt) or a treelite checkpoint (.tl).

        `base_margin` is the float32 that a bundle recorded; without it the model's own base_score decides. The first
        model of a depth compiles its kernels (about 0.5 s, then cached on disk).
        Raises ModelFormatError (damaged, truncated, another format or suffix), ModelUnsupportedError (a kind that is
        not served: several classes, splits by category, another objective or booster), OSError (cannot be read).
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ModelFormatError(
                f"{path.name} is none of {', '.join(SUFFIXES)}; write it with xgboost's "
                "booster.save_model('model.ubj'), LightGBM's booster.save_model('model.txt') or treelite's "
                "model.serialize('model.tl')"
            )
        size = path.stat().st_size
        if size > MODEL_BYTES_MAX:
            raise ModelFormatError(f"{path.name} has {size} bytes, more than the {MODEL_BYTES_MAX} allowed")
        return cls.from_bytes(path.read_bytes(), base_margin=base_margin, vector=vector)

    @classmethod
    def from_bytes(cls, data: bytes, *, base_margin: float | None = None, vector: bool = True) -> CompiledModel:
        """As `from_file`, for bytes in memory (whose hash was checked, for example); the content shows the format."""
        if not isinstance(data, bytes):
            raise ModelInputError(f"the model is of type {type(data).__name__}, wanted the bytes of a model file")
        stored = None if base_margin is None else np.float32(base_margin)
        if len(data) > MODEL_BYTES_MAX:
            raise ModelFormatError(f"the model has {len(data)} bytes, more than the {MODEL_BYTES_MAX} allowed")
        if is_lightgbm(data) or is_checkpoint(data):
            table = lower_lightgbm(data) if is_lightgbm(data) else lower_checkpoint(data)
            if stored is not None and stored != np.float32(table.offset):
                raise ModelFormatError(f"the stored base margin {stored} is not the model's own, {table.offset}")
        else:
            table = lower(data, stored_base_margin=stored)
        return cls(table, vector=vector)

    @classmethod
    def from_treelite(cls, model: Any, *, vector: bool = True) -> CompiledModel:
        """Compile a treelite.Model at training time, for example `treelite.sklearn.import_model(forest)`.

        `model.serialize_bytes()` are the bytes for a bundle. Margins are those of treelite's interpreter.
        Raises ModelInputError for another object, otherwise as `from_bytes`.
        """
        if not hasattr(model, "serialize_bytes"):
            raise ModelInputError(f"the model is a {type(model).__name__}, not a treelite.Model; see treelite.frontend")
        return cls.from_bytes(bytes(model.serialize_bytes()), vector=vector)

    @property
    def feature_count(self) -> int:
        """Columns that a row must have."""
        return self.table.feature_count

    @property
    def tree_count(self) -> int:
        """Trees in the ensemble."""
        return self.table.tree_count

    @property
    def base_margin(self) -> np.float32:
        """The margin that every row has before its trees' leaves."""
        return self.table.base_margin if self.table.finished else np.float32(self.table.offset)

    @property
    def link(self) -> str:
        """How a margin becomes a score: `logistic` or `identity`."""
        return self.table.link

    def margins(self, X: np.ndarray) -> np.ndarray:
        """float32 [n]: each row's margin (log-odds), bit for bit xgboost's inplace_predict(predict_type="margin").

        For LightGBM and treelite models: the float32 nearest to what treelite's interpreter (GTIL) computes.
        """
        rows = self._rows(X)
        out = np.empty(len(rows), dtype=_FLOAT32)
        self.plan.margins_into(rows, out)
        return out

    def margins_into(self, X: np.ndarray, out: np.ndarray) -> None:
        """As `margins`, into out float32 [n], contiguous and writable; xgboost models allocate nothing when X is
        C-contiguous.
        """
        rows = self._rows(X)
        if not isinstance(out, np.ndarray):
            raise ModelInputError(f"out is a {type(out).__name__}, wanted a numpy array of float32")
        if out.dtype != _FLOAT32 or out.shape != (len(rows),):
            raise ModelInputError(f"out is {out.dtype} {out.shape}, wanted float32 ({len(rows)},)")
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ModelInputError("out must be contiguous and writable")
        self.plan.margins_into(rows, out)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """float64 [n] in [0, 1]: the probability of fraud of each row, uncalibrated; the same bits on every machine."""
        return link_function.scores(self.margins(X), self.table.link)

    def contributions(self, X: np.ndarray) -> np.ndarray:
        """float64 [n, f + 1]: each feature's share of the margin, the last column the bias; a row sums to its margin.

        The sum holds to 1e-5 of the largest share (at least of 1): margins are added in float32, shares in float64.
        Raises ModelUnsupportedError where the file carries no usable cover (sum_hessian).
        """
        rows = self._rows(X)
        table = self.table
        if self._unexplained is not None:
            raise ModelUnsupportedError(
                f"tree {self._unexplained} has a split without cover (sum_hessian), or whose cover is not that of its "
                "children together; its margins cannot be explained"
            )
        out = np.zeros((len(rows), table.feature_count + 1), dtype=np.float64)
        self._explainer.contributions_into(rows, out)
        if table.divisor != 1.0:
            out /= table.divisor
        out[:, -1] = self._bias
        return out

    def reasons(self, X: np.ndarray, k: int | None = None) -> np.ndarray:
        """int32 [n, k]: the features that raise each row's margin most, strongest first; -1 where fewer than k raise
        it. By default four, or all features of a smaller model.

        Contributions are compared to nine decimals, so that what differs by rounding alone is a tie; ties keep the
        features' order. Raises ModelInputError unless 1 <= k <= feature_count, and as `contributions`.
        """
        if k is None:
            k = min(_REASONS, self.feature_count)
        if not 1 <= k <= self.feature_count:
            raise ModelInputError(f"{k} reasons are wanted, the model has {self.feature_count} features")
        shares = np.round(self.contributions(X)[:, :-1], 9)
        order = np.argsort(-shares, axis=1, kind="stable")[:, :k]
        raised = np.take_along_axis(shares, order, axis=1) > 0
        return np.where(raised, order, -1).astype(np.int32)

    def _rows(self, X: np.ndarray) -> np.ndarray:
        if not isinstance(X, np.ndarray):
            raise ModelInputError(f"rows are a {type(X).__name__}, the model wants a numpy array of float32")
        if X.ndim != 2 or X.shape[1] != self.table.feature_count:
            raise ModelInputError(f"rows have shape {X.shape}, the model wants (n, {self.table.feature_count})")
        if X.dtype != _FLOAT32:
            raise ModelInputError(f"rows are {X.dtype}, the model wants float32")
        return X if X.flags.c_contiguous else np.ascontiguousarray(X)
