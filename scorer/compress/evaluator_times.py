"""How long the same model takes by size of the batch, and by another evaluator: ratios measured in one run."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scorer.bundle import Bundle
from scorer.compress.model_figures import BATCH, ratio, seconds
from scorer.compress.rewritten_model import is_xgboost
from scorer.compress.source_export import to_c, to_python
from scorer.errors import UsageError
from scorer.training import import_xgboost

SIZES: Final = (1, 4, 16, 64, 256, 1_024, 4_096)
PYTHON_ROWS: Final = 16
"""The exported Python walks a tree a statement at a time: more rows take long and show no more."""
COMPILE_S_MAX: Final = 300.0
_LOOP = """
void fraud_margins(const float *x, int rows, float *out) {
    for (int row = 0; row < rows; row++) out[row] = fraud_margin(x + (long)row * FRAUD_FEATURES);
}
"""


@dataclass(frozen=True)
class BatchTime:
    """A payment's share of a call with so many of them, by its share in a call with the most of SIZES."""

    rows: int
    time_ratio: float


@dataclass(frozen=True)
class ExportFigures:
    """Another way to the same margins. Ratios: to the bundle's own evaluator, over as many rows."""

    name: str
    unavailable: str | None = None
    rows: int = 0
    time_ratio: float | None = None
    bytes: int | None = None
    """Of what is shipped: source, or compiled library."""
    margin_distance_max: float | None = None
    """0: bit for bit."""


def batch_times(bundle: Bundle, X: np.ndarray) -> list[BatchTime]:
    """Of the bundle's own evaluator, rows float32 [n, k]."""
    each = {}
    for size in SIZES:
        batch = np.ascontiguousarray(np.resize(X, (size, X.shape[1])))
        # As many rows in each turn, in calls of this size.
        calls = max(1, 256 // size)
        each[size] = seconds(lambda batch=batch, calls=calls: _repeated(bundle, batch, calls)) / (size * calls)
    return [BatchTime(size, each[size] / each[SIZES[-1]]) for size in SIZES]


def _repeated(bundle: Bundle, batch: np.ndarray, calls: int) -> None:
    for _ in range(calls):
        bundle.model.margins(batch)


def exports(bundle: Bundle, source: bytes, X: np.ndarray) -> list[ExportFigures]:
    """The evaluators and exports that this machine has, on rows float32 [n, k]; `source`: the model file."""
    batch = np.ascontiguousarray(np.resize(X, (BATCH, X.shape[1])))
    return [
        ExportFigures("own evaluator", None, BATCH, 1.0, bundle.model.plan.byte_count, 0.0),
        _xgboost(bundle, source, batch),
        _treelite(bundle, source, batch),
        _c(bundle, batch),
        _python(bundle, batch[:PYTHON_ROWS].copy()),
    ]


def _measured(
    name: str, bundle: Bundle, batch: np.ndarray, size: int, margins: Callable[[], np.ndarray], turns: int = 7
) -> ExportFigures:
    own = bundle.model.margins(batch)
    distance = float(np.abs(np.asarray(margins(), dtype=np.float32).astype(np.float64) - own).max())
    time_ratio = ratio(lambda: bundle.model.margins(batch), margins, turns)
    return ExportFigures(name, None, len(batch), time_ratio, size, distance)


def _xgboost(bundle: Bundle, source: bytes, batch: np.ndarray) -> ExportFigures:
    name = "xgboost, one thread"
    if not is_xgboost(source):
        return ExportFigures(name, "the bundle holds no xgboost model")
    booster = import_xgboost().Booster({"nthread": 1})
    booster.load_model(bytearray(source))
    return _measured(name, bundle, batch, len(source), lambda: booster.inplace_predict(batch, predict_type="margin"))


def _treelite(bundle: Bundle, source: bytes, batch: np.ndarray) -> ExportFigures:
    name = "treelite's interpreter, one thread"
    try:
        import treelite  # noqa: PLC0415 - of the extra `train`
    except ModuleNotFoundError:
        return ExportFigures(name, "treelite is not installed: pip install 'fraud-scorer[train]'")
    if not is_xgboost(source):
        return ExportFigures(name, "measured for xgboost models alone")
    load: Any = treelite.frontend.from_xgboost_json if source[:1] == b"{" and b'"' in source[:2] else None
    try:
        model = load(source) if load is not None else treelite.frontend.from_xgboost_ubjson(source)
    except treelite.TreeliteError as error:
        return ExportFigures(name, f"treelite reads no such model: {str(error).splitlines()[0]}")
    return _measured(
        name, bundle, batch, len(model.serialize_bytes()),
        lambda: treelite.gtil.predict(model, batch, nthread=1, pred_margin=True).reshape(len(batch)),
    )  # fmt: skip


def _c(bundle: Bundle, batch: np.ndarray) -> ExportFigures:
    name = "exported C99, cc -O2"
    compiler = shutil.which("cc")
    if compiler is None:
        return ExportFigures(name, "there is no C compiler (cc) on this machine")
    try:
        text = to_c(bundle)
    except UsageError as error:
        return ExportFigures(name, str(error))
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fraud.c", Path(folder) / "fraud.so"
        source.write_text(text + _LOOP, encoding="utf-8")
        flags = ["-std=c99", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
        command = [compiler, *flags, "-o", str(library), str(source), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False)
        except subprocess.TimeoutExpired:
            return ExportFigures(name, f"cc took more than {COMPILE_S_MAX:g} s")
        if done.returncode != 0:
            return ExportFigures(name, f"cc fails: {done.stderr.strip().splitlines()[:1]}")
        loaded = ctypes.CDLL(str(library))
        out = np.empty(len(batch), dtype=np.float32)

        def margins() -> np.ndarray:
            loaded.fraud_margins(batch.ctypes.data_as(ctypes.c_void_p), len(batch), out.ctypes.data_as(ctypes.c_void_p))
            return out

        return _measured(name, bundle, batch, library.stat().st_size, margins)


def _python(bundle: Bundle, batch: np.ndarray) -> ExportFigures:
    name = "exported Python"
    try:
        text = to_python(bundle)
    except UsageError as error:
        return ExportFigures(name, str(error))
    module: dict[str, Any] = {}
    exec(compile(text, "exported model", "exec"), module)  # noqa: S102 - our own export, of a bundle that was checked
    rows = batch.astype(np.float64).tolist()
    return _measured(
        name, bundle, batch, len(text), lambda: np.array([module["margin"](row) for row in rows], np.float32), turns=3
    )
