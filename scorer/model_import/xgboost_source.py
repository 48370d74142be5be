"""An xgboost file: its names and best iteration, and the same trees with columns and rounds of choice."""

from __future__ import annotations

import copy
import json
import re
import struct
from itertools import pairwise
from typing import Any

import numpy as np

from scorer.model import CompiledModel, ModelFormatError, ModelUnsupportedError
from scorer.model.xgboost_document import is_ubj, read_document
from scorer.model_import.source_model import Placement, SourceModel

_DTYPES = {"i1": b"i", "u1": b"U", "i2": b"I", "i4": b"l", "i8": b"L", "f4": b"d", "f8": b"D"}


def read_xgboost(data: bytes) -> SourceModel:
    """Read and check. Raises ModelFormatError or ModelUnsupportedError."""
    document = read_document(data)
    learner = document.get("learner")
    if isinstance(learner, dict) and "c" in _texts(learner, "feature_types"):
        column = _texts(learner, "feature_types").index("c")
        names = _texts(learner, "feature_names")
        name = names[column] if column < len(names) else str(column)
        raise ModelUnsupportedError(f"feature {name} is categorical, which is not served; encode it as a number")
    model = CompiledModel.from_bytes(data, vector=False)
    assert isinstance(learner, dict)
    names = _texts(learner, "feature_names")
    if names and len(names) != model.feature_count:
        raise ModelFormatError(f"the model has {model.feature_count} features and {len(names)} feature_names")
    starts = _round_starts(_trees(learner), model.tree_count)
    return SourceModel(
        kind="xgboost",
        data=data,
        feature_count=model.feature_count,
        names=names or None,
        rounds=len(starts) - 1,
        best_rounds=_best_rounds(learner, len(starts) - 1),
        tells_missing=False,
        bundle_file="model.ubj" if is_ubj(data) else "model.json",
        placed=lambda placement, rounds: _placed(document, is_ubj(data), placement, starts[rounds]),
    )


def _texts(learner: dict[str, Any], name: str) -> list[str]:
    found = learner.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ModelFormatError(f"{name} is not a list of texts")
    return found


def _trees(learner: dict[str, Any]) -> dict[str, Any]:
    booster = learner["gradient_booster"]
    found: dict[str, Any] = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    return found


def _round_starts(model: dict[str, Any], trees: int) -> list[int]:
    """First tree of each round, and the number of trees at the end."""
    pointer = model.get("iteration_indptr")
    if pointer is not None:
        starts = [int(at) for at in pointer]
        if not starts or starts[0] != 0 or starts[-1] != trees or any(b < a for a, b in pairwise(starts)):
            raise ModelFormatError(f"iteration_indptr does not lead from 0 to the {trees} trees")
        return starts
    parallel = int(model["gbtree_model_param"].get("num_parallel_tree", 1) or 1)
    if parallel < 1 or trees % parallel:
        raise ModelFormatError(f"{trees} trees are no multiple of num_parallel_tree, {parallel}")
    return list(range(0, trees + 1, parallel))


def _best_rounds(learner: dict[str, Any], rounds: int) -> int | None:
    attributes = learner.get("attributes", {})
    text = attributes.get("best_iteration") if isinstance(attributes, dict) else None
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", str(text)) or not int(text) < rounds:
        raise ModelFormatError(f"best_iteration is {str(text)[:20]!r}, the model has {rounds} rounds")
    return int(text) + 1


def _placed(document: dict[str, Any], ubj: bool, placement: Placement, kept: int) -> bytes:
    learner = {**document["learner"], "attributes": {}, "feature_names": placement.names}
    types = _texts(learner, "feature_types")
    if types:
        if len(types) != len(placement.names):
            raise ModelFormatError(f"{len(types)} feature_types for {len(placement.names)} features")
        learner["feature_types"] = [types[i] for i in np.argsort(placement.position)]
    booster = copy.copy(learner["gradient_booster"])
    model = dict(_trees(learner))
    model["trees"] = [_tree(tree, placement) for tree in model["trees"][:kept]]
    model["tree_info"] = model["tree_info"][:kept]
    model["gbtree_model_param"] = {**model["gbtree_model_param"], "num_trees": str(kept)}
    if "iteration_indptr" in model:
        starts = model["iteration_indptr"]
        model["iteration_indptr"] = starts[: int(np.searchsorted(np.asarray(starts), kept)) + 1]
    model.pop("cats", None)  # no feature is categorical, and its lists are in the old order
    if booster["name"] == "dart":
        booster["gbtree"] = {**booster["gbtree"], "model": model}
        booster["weight_drop"] = booster["weight_drop"][:kept]
    else:
        booster["model"] = model
    placed = {**document, "learner": {**learner, "gradient_booster": booster}}
    return ubj_bytes(placed) if ubj else json.dumps(placed, default=_plain).encode()


def _tree(tree: dict[str, Any], placement: Placement) -> dict[str, Any]:
    left = np.asarray(tree["left_children"])
    feature, inner = np.asarray(tree["split_indices"], dtype=np.int64), left >= 0
    moved = feature.copy()
    moved[inner] = placement.position[feature[inner]]
    changed = {**tree, "split_indices": _alike(moved, tree["split_indices"])}
    if placement.filled is not None:
        cut = np.asarray(tree["split_conditions"], dtype=np.float32)
        changed["default_left"] = _alike((inner & (placement.filled < cut)).astype(np.uint8), tree["default_left"])
    return changed


def _alike(values: np.ndarray, before: Any) -> Any:
    """In the form that the file had: xgboost reads some arrays of a UBJ only typed, others only as a list."""
    return values.astype(before.dtype) if isinstance(before, np.ndarray) else values.tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a model document")


def ubj_bytes(document: Any) -> bytes:
    """A document as UBJ, in the form that xgboost writes: arrays of numbers are typed, lengths are int64."""
    parts: list[bytes] = []
    _write(document, parts)
    return b"".join(parts)


def _write(value: Any, parts: list[bytes]) -> None:
    if isinstance(value, dict):
        parts.append(b"{")
        for name, item in value.items():
            parts.append(_text(name))
            _write(item, parts)
        parts.append(b"}")
    elif isinstance(value, np.ndarray):
        kind = f"{value.dtype.kind}{value.dtype.itemsize}"
        parts.append(b"[$" + _DTYPES[kind] + b"#L" + struct.pack(">q", len(value)))
        parts.append(value.astype(f">{kind}").tobytes())
    elif isinstance(value, list):
        parts.append(b"[#L" + struct.pack(">q", len(value)))
        for item in value:
            _write(item, parts)
    elif isinstance(value, str):
        parts.append(b"S" + _text(value))
    elif value is None or isinstance(value, bool):
        parts.append({None: b"Z", True: b"T", False: b"F"}[value])
    elif isinstance(value, int):
        parts.append(b"L" + struct.pack(">q", value))
    elif isinstance(value, float):
        parts.append(b"D" + struct.pack(">d", value))
    else:
        raise TypeError(f"{type(value).__name__} in a model document")


def _text(value: str) -> bytes:
    data = value.encode()
    return b"L" + struct.pack(">q", len(data)) + data
