"""An xgboost model file (JSON or UBJ): the document, its facts and its trees, read without a library.

Serving needs neither xgboost nor treelite; tests and the gate compare with both where they are installed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError
from scorer.model.tree_table import LESS, RawTree

# 512 MiB: a model of 300 trees x depth 6 is 2 MiB. The reader holds the whole document, so its size bounds memory.
MODEL_BYTES_MAX = 512 * 1024 * 1024
# xgboost's own documents nest 8 deep; a hostile one must not exhaust the stack.
_DEPTH_MAX = 32
_OBJECTIVES = ("binary:logistic", "reg:logistic")

# UBJSON's numeric markers as big-endian numpy types.
_NUMERIC = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_INTEGER_FORMAT = {"i": ">b", "U": ">B", "I": ">h", "l": ">i", "L": ">q"}


@dataclass(frozen=True)
class ModelFacts:
    """The document's facts about the whole ensemble."""

    feature_count: int
    tree_count: int
    base_score: np.float32
    """Probability, as stored: before xgboost's clip and logit."""
    tree_weights: np.ndarray | None
    """float32 [trees] for dart, None for gbtree."""


class _UbjReader:
    """A bounded UBJSON reader: every count is checked against the bytes that are left before anything is allocated."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def document(self) -> Any:
        value = self._value(self._marker(), 0)
        if self._at != len(self._data):
            raise ModelFormatError(f"UBJ document ends at byte {self._at} of {len(self._data)}; bytes follow it")
        return value

    def _take(self, size: int) -> bytes:
        left = len(self._data) - self._at
        if size < 0 or size > left:
            raise ModelFormatError(f"UBJ file is truncated: {size} bytes wanted at byte {self._at}, {left} left")
        chunk = self._data[self._at : self._at + size]
        self._at += size
        return chunk

    def _marker(self) -> str:
        return chr(self._take(1)[0])

    def _integer(self, marker: str) -> int:
        kind = _INTEGER_FORMAT.get(marker)
        if kind is None:
            raise ModelFormatError(f"UBJ count or length of unknown type at byte {self._at}")
        return int(struct.unpack(kind, self._take(struct.calcsize(kind)))[0])

    def _text(self) -> str:
        raw = self._take(self._integer(self._marker()))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"UBJ text before byte {self._at} is not UTF-8") from error

    def _value(self, marker: str, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            raise ModelFormatError(f"UBJ document nests deeper than {_DEPTH_MAX} at byte {self._at}")
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._array(depth)
        if marker in ("S", "H"):
            return self._text()
        if marker in _INTEGER_FORMAT:
            return self._integer(marker)
        if marker in ("d", "D"):
            kind = ">f" if marker == "d" else ">d"
            return float(struct.unpack(kind, self._take(struct.calcsize(kind)))[0])
        if marker == "C":
            return self._marker()
        if marker in ("Z", "T", "F"):
            return {"Z": None, "T": True, "F": False}[marker]
        raise ModelFormatError(f"UBJ marker of unknown type at byte {self._at - 1}")

    def _array(self, depth: int) -> Any:
        marker = self._marker()
        if marker == "$":
            kind = _NUMERIC.get(self._marker())
            if kind is None or self._marker() != "#":
                raise ModelFormatError(f"UBJ typed array without numeric type or count at byte {self._at}")
            count = self._integer(self._marker())
            return np.frombuffer(self._take(count * np.dtype(kind).itemsize), dtype=kind)
        items: list[Any] = []
        if marker == "#":
            count = self._integer(self._marker())
            if not 0 <= count <= len(self._data) - self._at:  # each item takes one byte at least
                raise ModelFormatError(f"UBJ array declares {count} items, {len(self._data) - self._at} bytes are left")
            items.extend(self._value(self._marker(), depth + 1) for _ in range(count))
            return items
        while marker != "]":
            items.append(self._value(marker, depth + 1))
            marker = self._marker()
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        marker = self._marker()
        if marker in ("#", "$"):
            raise ModelFormatError(f"UBJ object with a declared count at byte {self._at}; xgboost writes none")
        while marker != "}":
            self._at -= 1  # the marker belongs to the key's length
            key = self._text()
            pairs.append((key, self._value(self._marker(), depth + 1)))
            marker = self._marker()
        return _without_repeats(pairs)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may choose different ones of two equal keys; a file that allows that is refused.
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ModelFormatError("the model document repeats a key inside one object")
    return document


def is_ubj(data: bytes) -> bool:
    """Whether the bytes look like UBJ (after the brace comes a length marker) rather than JSON."""
    return len(data) > 1 and data[:1] == b"{" and data[1:2] in (b"L", b"l", b"I", b"U", b"i")


def read_document(data: bytes) -> dict[str, Any]:
    """Parse the bytes of a model file. Raises ModelFormatError for anything that is not one JSON or UBJ object."""
    if len(data) > MODEL_BYTES_MAX:
        raise ModelFormatError(f"the model file has {len(data)} bytes, more than the {MODEL_BYTES_MAX} allowed")
    document: Any
    if is_ubj(data):
        document = _UbjReader(data).document()
    else:
        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise ModelFormatError(
                f"the model file is neither JSON nor UBJ ({type(error).__name__}), nor does it begin as LightGBM;"
                " is it complete, and written by the library's own save_model?"
            ) from error
    if not isinstance(document, dict):
        raise ModelFormatError(f"the model document is a {type(document).__name__}, not an object")
    return document


def _at(node: Any, *path: str) -> Any:
    for depth, key in enumerate(path):
        if not isinstance(node, dict) or key not in node:
            raise ModelFormatError(f"the model document lacks {'.'.join(path[: depth + 1])}; is it an xgboost model?")
        node = node[key]
    return node


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ModelFormatError(f"{name} is a {type(value).__name__}, not a count")
    try:
        count = int(value)
    except ValueError as error:
        raise ModelFormatError(f"{name} is not a count") from error
    if count < 0:
        raise ModelFormatError(f"{name} is {count}; a count cannot be negative")
    return count


def _base_score(stored: Any) -> np.float32:
    # "5E-1" up to xgboost 3.0, "[5E-1]" (a vector, one per target) since 3.1.
    text = str(stored).strip()
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    parts = [part for part in inner.split(",") if part.strip()]
    if len(parts) != 1:
        raise ModelUnsupportedError(f"base_score has {len(parts)} values; one output is served")
    try:
        score = float(parts[0])
    except ValueError as error:
        raise ModelFormatError("base_score is not a number") from error
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise ModelFormatError(f"base_score is {score}; for a logistic objective it is a probability")
    return np.float32(score)


def read_facts(document: dict[str, Any]) -> ModelFacts:
    """The ensemble's facts, checked. Raises ModelUnsupportedError for other objectives, boosters or several outputs,
    ModelFormatError where declared and present counts differ."""
    learner = _at(document, "learner")
    objective = _at(learner, "objective", "name")
    if objective not in _OBJECTIVES:
        raise ModelUnsupportedError(f"objective {objective!r} is not served; train with {_OBJECTIVES[0]}")
    params = _at(learner, "learner_model_param")
    if not isinstance(params, dict):
        raise ModelFormatError("learner_model_param is not an object")
    for name in ("num_class", "num_target"):
        count = _count(params.get(name, "1"), name)
        if count > 1:
            raise ModelUnsupportedError(f"{name} is {count}: multi-class and multi-target models are not served")
    booster = _at(learner, "gradient_booster")
    kind = _at(booster, "name")
    if kind not in ("gbtree", "dart"):
        raise ModelUnsupportedError(f"booster {kind!r} is not served; train with gbtree or dart")
    model = _at(booster, "gbtree", "model") if kind == "dart" else _at(booster, "model")
    trees, groups = _at(model, "trees"), _at(model, "tree_info")
    declared = _count(_at(model, "gbtree_model_param", "num_trees"), "num_trees")
    present = [len(part) if isinstance(part, list | np.ndarray) else 0 for part in (trees, groups)]
    if not isinstance(trees, list) or present != [declared, declared]:
        raise ModelFormatError(f"num_trees is {declared}, but {present[0]} trees and {present[1]} tree_info are there")
    if not declared and str(params.get("boost_from_average", "0")).strip() != "0":
        # xgboost then takes the unestimated .5 for a margin, without its logit; with any tree it does not.
        raise ModelUnsupportedError(
            "the model has no tree and no base_score of its own (boost_from_average); train a round, or give base_score"
        )
    weights = None
    if kind == "dart":
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                weights = np.asarray(_at(booster, "weight_drop"), dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelFormatError("dart weight_drop is not a list of numbers") from error
        if weights.shape != (declared,) or not np.isfinite(weights).all():
            raise ModelFormatError(f"dart weight_drop has shape {weights.shape} or is not finite, for {declared} trees")
    return ModelFacts(
        feature_count=_count(_at(params, "num_feature"), "num_feature"),
        tree_count=declared,
        base_score=_base_score(_at(params, "base_score")),
        tree_weights=weights,
    )


def read_trees(document: dict[str, Any]) -> Iterator[RawTree]:
    """The trees of a document that `read_facts` takes, in order and as they are stored: a leaf's value stands where an
    inner node has its threshold. `lower_tree` checks indices and numbers.

    Raises ModelFormatError for columns that are missing, of other lengths or no numbers, ModelUnsupportedError for
    splits by category, several classes or leaves that are vectors.
    """
    booster = document["learner"]["gradient_booster"]
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    groups = _column({"tree_info": model["tree_info"]}, "tree_info", np.int64, "the model")
    if len(other := np.flatnonzero(groups)):
        raise ModelUnsupportedError(f"tree {other[0]} has class {groups[other[0]]}; multi-class models are not served")
    for index, tree in enumerate(model["trees"]):
        yield _read_tree(tree, index)


def _read_tree(tree: Any, index: int) -> RawTree:
    where = f"tree {index}"
    params = _at(tree, "tree_param")
    declared = _count(_at(params, "num_nodes"), f"{where}: num_nodes")
    if (outputs := _count(params.get("size_leaf_vector", "0"), f"{where}: size_leaf_vector")) > 1:
        raise ModelUnsupportedError(f"{where}: leaves are vectors of {outputs}: multi-target models are not served")
    left = _column(tree, "left_children", np.int64, where)
    right = _column(tree, "right_children", np.int64, where)
    if len(left) != declared:
        raise ModelFormatError(f"{where}: num_nodes is {declared}, but {len(left)} nodes are there")
    if len(right) == len(left):  # otherwise refused with the other columns
        wrong = np.flatnonzero(((left == -1) != (right == -1)) | (np.minimum(left, right) < -1))
        if len(wrong):
            raise ModelFormatError(
                f"{where}, node {wrong[0]}: children {left[wrong[0]]} and {right[wrong[0]]}; a leaf has -1 twice"
            )
    feature = _column(tree, "split_indices", np.int64, where)
    if (feature != feature.astype(np.int32)).any():
        raise ModelFormatError(f"{where}: a split_indices beyond 32 bits")
    kinds = _column(tree, "split_type", np.int64, where) if "split_type" in tree else np.zeros(declared, np.int64)
    if kinds.any() or len(tree.get("categories_nodes", ())):
        named = feature[np.argmax(kinds != 0)] if len(kinds) == len(feature) and kinds.any() else -1
        raise ModelUnsupportedError(
            f"{where} splits on feature {named} by category, which is not served; encode it as a number"
        )
    value = _column(tree, "split_conditions", np.float32, where)
    # An absent hessian sum (older writers) leaves zeros: margins work, explanations are refused by name.
    hessians = tree.get("sum_hessian", ())
    absent = isinstance(hessians, list | tuple | np.ndarray) and not len(hessians)
    return RawTree(
        left=left,
        right=right,
        feature=feature.astype(np.int32),
        threshold=value,
        operator=np.full(len(left), LESS, dtype=np.int8),
        default_left=(_column(tree, "default_left", np.int64, where) != 0).astype(np.uint8),
        value=value,
        # float32 as xgboost holds it; JSON writes more digits than that.
        cover=np.zeros(len(left)) if absent else _column(tree, "sum_hessian", np.float32, where).astype(np.float64),
    )


def _column(tree: Any, name: str, dtype: Any, where: str) -> np.ndarray:
    """A list of numbers as an array of `dtype`. Numbers that it cannot hold become infinite (float32), or are
    refused."""
    stored = _at(tree, name)
    try:
        numbers = np.asarray(stored)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iufb"):
            raise ModelFormatError(f"{where}: {name} is not a list of numbers")
        if np.issubdtype(dtype, np.integer) and numbers.dtype.kind not in "iub" and numbers.size:
            raise ModelFormatError(f"{where}: {name} is not a list of whole numbers")
        with np.errstate(over="ignore"):
            return numbers.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFormatError(f"{where}: {name} is not a list of numbers") from error
