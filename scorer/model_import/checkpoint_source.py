"""A treelite checkpoint, the form in which models of scikit-learn come: without a pickle.

    exported = treelite.sklearn.import_model(model)
    exported.get_header_accessor().set_field("attributes", json.dumps({"feature_names": list(model.feature_names_in_)}))
    exported.serialize("model.tl")

treelite's own reader trusts the lengths in the file, so it is given only bytes that scorer.model.treelite_checkpoint
has read to the last one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from scorer.model import CompiledModel, ModelFormatError
from scorer.model.tree_table import GREATER, GREATER_EQUAL, LESS, LESS_EQUAL
from scorer.model_import.import_errors import ModelImportError
from scorer.model_import.source_model import Placement, SourceModel

_COMPARE = {LESS: np.less, LESS_EQUAL: np.less_equal, GREATER: np.greater, GREATER_EQUAL: np.greater_equal}


def import_treelite() -> Any:
    """The library. Raises ModelImportError naming what to install."""
    try:
        import treelite  # noqa: PLC0415 - serving must not need it
    except ImportError as error:
        raise ModelImportError(
            "a treelite checkpoint is imported with treelite, which serving does not need: "
            "pip install 'fraud-scorer[train]'"
        ) from error
    return treelite


def read_checkpoint(data: bytes) -> SourceModel:
    """Read and check. Raises ModelFormatError or ModelUnsupportedError."""
    model = CompiledModel.from_bytes(data, vector=False)
    return SourceModel(
        kind="treelite",
        data=data,
        feature_count=model.feature_count,
        names=_names(data, model.feature_count),
        rounds=model.tree_count,
        best_rounds=None,
        tells_missing=False,
        bundle_file="model.tl",
        placed=lambda placement, _: _placed(data, placement),
    )


def _names(data: bytes, features: int) -> list[str] | None:
    text = str(import_treelite().Model.deserialize_bytes(data).get_header_accessor().get_field("attributes"))
    try:
        attributes = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ModelFormatError("the checkpoint's attributes are not JSON; write them with json.dumps") from error
    names = attributes.get("feature_names") if isinstance(attributes, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != features:
        raise ModelFormatError(f"the checkpoint's feature_names are not a list of {features} texts")
    return names


def _placed(data: bytes, placement: Placement) -> bytes:
    model = import_treelite().Model.deserialize_bytes(data)
    for index in range(model.num_tree):
        tree = model.get_tree_accessor(index)
        inner = np.array(tree.get_field("cleft")) >= 0
        feature = np.array(tree.get_field("split_index"))
        feature[inner] = placement.position[feature[inner]]
        tree.set_field("split_index", feature.astype(np.int32))
        if placement.filled is not None:
            tree.set_field("default_left", _default_left(tree, inner, placement.filled))
    model.get_header_accessor().set_field("attributes", json.dumps({"feature_names": placement.names}))
    return bytes(model.serialize_bytes())


def _default_left(tree: object, inner: np.ndarray, filled: np.float32) -> np.ndarray:
    cut, operator = (np.array(tree.get_field(name)) for name in ("threshold", "cmp"))  # type: ignore[attr-defined]
    left = np.zeros(len(inner), dtype=np.uint8)
    for node in np.flatnonzero(inner):
        left[node] = _COMPARE[int(operator[node])](np.float64(filled), np.float64(cut[node]))
    return left
