"""Margins as a model's own library computes them, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from scorer.model.model_errors import library_reason
from scorer.model_import.checkpoint_source import import_treelite
from scorer.model_import.import_errors import ModelImportError
from scorer.model_import.source_model import SourceModel

_ROWS = 65_536


def library_margins(source: SourceModel, rows: np.ndarray, rounds: int) -> np.ndarray | None:
    """float32 [n]: margins of rows float32 [n, k], in the model's own columns, by `rounds` of its rounds; None where
    the library is not installed, or where the file does not tell which it was.

    Raises ModelImportError where the library refuses the file.
    """
    predict = {"xgboost": _xgboost, "LightGBM": _lightgbm, "treelite": _interpreter}[source.kind]
    refusals: tuple[type[Exception], ...] = (ValueError, RuntimeError)
    if source.kind == "treelite":
        refusals = (*refusals, import_treelite().TreeliteError)
    try:
        found = predict(source, rounds)
        if found is None:
            return None
        parts = [found(rows[at : at + _ROWS]) for at in range(0, len(rows), _ROWS)]
    except refusals as error:
        raise ModelImportError(f"{source.kind} itself refuses the model: {library_reason(error)}") from error
    return np.concatenate(parts).astype(np.float32)


def library_version(source: SourceModel) -> tuple[str, str]:
    """Name and version of the library whose margins these are."""
    name = {"xgboost": "xgboost", "LightGBM": "lightgbm", "treelite": "treelite"}[source.kind]
    return name, str(getattr(importlib.import_module(name), "__version__", "unknown"))


def _xgboost(source: SourceModel, rounds: int) -> Any:
    try:
        import xgboost  # noqa: PLC0415 - serving must not need it
    except ImportError:
        return None
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(source.data))
    return lambda rows: booster.inplace_predict(rows, iteration_range=(0, rounds), predict_type="margin")


def _lightgbm(source: SourceModel, rounds: int) -> Any:
    try:
        import lightgbm  # noqa: PLC0415 - serving must not need it
    except ImportError:
        return None
    text = source.data.decode("utf-8")
    booster = lightgbm.Booster(model_str=text)
    # In random forest mode the raw score is the sum, what is given out is made of the mean.
    divisor = float(rounds) if "\naverage_output" in text.split("\nTree=", 1)[0] else 1.0
    return lambda rows: np.asarray(booster.predict(rows.astype(np.float64), raw_score=True, num_threads=1)) / divisor


def _interpreter(source: SourceModel, rounds: int) -> Any:  # noqa: ARG001 - as the others
    treelite = import_treelite()
    model = treelite.Model.deserialize_bytes(source.data)
    return lambda rows: treelite.gtil.predict(model, rows, nthread=1, pred_margin=True).reshape(len(rows), -1)[:, -1]
