"""A treelite checkpoint (format 4), read here and not by treelite: its own reader trusts every length it finds.

The common form of scikit-learn's ensembles: `treelite.sklearn.import_model(...)`, then `serialize_bytes()`. Margins are
those of treelite's reference interpreter (GTIL): leaves are added from zero in the model's own precision, an averaging
forest is divided by its trees, and the base score comes last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError
from scorer.model.tree_table import (
    FEATURES_MAX,
    IDENTITY,
    LOGISTIC,
    NODES_MAX,
    TREES_MAX,
    RawTree,
    Table,
    join,
    lower_tree,
)

VERSION = 4
_TYPES: dict[int, np.dtype] = {2: np.dtype("<f4"), 3: np.dtype("<f8")}
_CLASSIFIER, _REGRESSOR, _MULTI_CLASS = 0, 1, 2
_CATEGORICAL = 2
_LINKS = {"sigmoid": LOGISTIC, "identity": IDENTITY, "identity_multiclass": IDENTITY}


class _Reader:
    """Little-endian scalars and counted arrays; every count is compared with the bytes that are left."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def scalar(self, kind: str) -> int | float:
        size = struct.calcsize("<" + kind)
        return struct.unpack("<" + kind, self._take(size))[0]  # type: ignore[no-any-return]

    def integer(self, kind: str) -> int:
        return int(self.scalar(kind))

    def array(self, dtype: np.dtype | str) -> np.ndarray:
        kind = np.dtype(dtype)
        return np.frombuffer(self._take(self.integer("Q") * kind.itemsize), dtype=kind)

    def text(self) -> str:
        try:
            return self.array("u1").tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"treelite checkpoint: text before byte {self._at} is not UTF-8") from error

    def end(self) -> None:
        if self._at != len(self._data):
            raise ModelFormatError(f"treelite checkpoint ends at byte {self._at} of {len(self._data)}: bytes follow it")

    def _take(self, size: int) -> bytes:
        left = len(self._data) - self._at
        if size > left:
            raise ModelFormatError(
                f"treelite checkpoint is truncated: {size} bytes wanted at byte {self._at}, {left} left"
            )
        chunk = self._data[self._at : self._at + size]
        self._at += size
        return chunk


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    trees: int
    features: int
    classes: int
    """2 where a leaf holds a value for each of two classes, else 1."""
    divisor: float
    offset: float
    link: str


def is_checkpoint(data: bytes) -> bool:
    """Whether the bytes begin as a treelite checkpoint of this format does."""
    return len(data) > 14 and data[:4] == struct.pack("<i", VERSION) and data[12] in _TYPES


def lower_checkpoint(data: bytes) -> Table:
    """The table of a checkpoint's bytes. Raises ModelFormatError (damaged) or ModelUnsupportedError (a kind not
    served).
    """
    reader = _Reader(data)
    header = _read_header(reader)
    trees, nodes = [], 0
    for index in range(header.trees):
        raw = _read_tree(reader, index, header)
        nodes += len(raw.left)
        if nodes > NODES_MAX:
            raise ModelUnsupportedError(f"the model has more than {NODES_MAX} nodes, the most that is served")
        trees.append(lower_tree(raw, index, header.features))
    reader.end()
    return join(trees, header.features, np.float32(0), divisor=header.divisor, offset=header.offset, link=header.link)


def _read_header(reader: _Reader) -> _Header:
    major, minor, patch = (reader.integer("i") for _ in range(3))
    if major != VERSION:
        raise ModelUnsupportedError(
            f"treelite checkpoint of version {major}.{minor}.{patch}; version {VERSION} is read"
        )
    threshold, leaf = reader.integer("B"), reader.integer("B")
    if threshold not in _TYPES or threshold != leaf:
        raise ModelFormatError(f"treelite checkpoint: thresholds of type {threshold}, leaves of type {leaf}")
    trees = reader.integer("Q")
    if not 1 <= trees <= TREES_MAX:
        raise ModelUnsupportedError(f"the model has {trees} trees; 1 to {TREES_MAX} are served")
    features, task, average = reader.integer("i"), reader.integer("B"), reader.integer("B")
    if not 1 <= features <= FEATURES_MAX:
        raise ModelUnsupportedError(f"the model has {features} features; 1 to {FEATURES_MAX} are served")
    targets = reader.integer("i")
    classes, shape = reader.array("<i4"), reader.array("<i4")
    target_id, class_id = reader.array("<i4"), reader.array("<i4")
    postprocessor = reader.text()
    alpha, _ratio = reader.scalar("f"), reader.scalar("f")
    base = reader.array("<f8")
    reader.text()  # attributes: nothing there changes a margin
    if options := reader.integer("i"):
        raise ModelUnsupportedError(f"treelite checkpoint with {options} extensions, of a later version")
    count = _checked_classes(trees, task, targets, classes, shape, target_id, class_id)
    if postprocessor not in _LINKS:
        raise ModelUnsupportedError(f"postprocessor {postprocessor[:40]!r} is not served; {', '.join(_LINKS)} are")
    if _LINKS[postprocessor] == LOGISTIC and alpha != 1.0:
        raise ModelUnsupportedError(f"sigmoid_alpha is {alpha}; train with sigmoid 1")
    if len(base) != count or not np.isfinite(base).all() or (np.abs(base) > np.finfo(np.float32).max).any():
        raise ModelFormatError(f"base_scores are {base[:4].tolist()}, wanted {count} finite numbers")
    return _Header(
        dtype=_TYPES[leaf],
        trees=trees,
        features=features,
        classes=count,
        divisor=float(trees) if average else 1.0,
        offset=float(base[-1]),
        link=_LINKS[postprocessor],
    )


def _checked_classes(
    trees: int,
    task: int,
    targets: int,
    classes: np.ndarray,
    shape: np.ndarray,
    target_id: np.ndarray,
    class_id: np.ndarray,
) -> int:
    """1 or 2: the values that a leaf holds. Raises for anything but one probability."""
    if targets != 1 or len(classes) != 1:
        raise ModelUnsupportedError(f"num_target is {targets}: multi-target models are not served")
    count = int(classes[0])
    if task not in (_CLASSIFIER, _REGRESSOR, _MULTI_CLASS) or count not in (1, 2):
        raise ModelUnsupportedError(
            f"task {task} with {count} classes: one probability is served, train for two classes"
        )
    if len(target_id) != trees or len(class_id) != trees:
        raise ModelFormatError(f"{len(target_id)} target_id and {len(class_id)} class_id for {trees} trees")
    # Two classes: every leaf holds both, and the second is fraud. One: every tree gives class 0 of target 0.
    wanted = -1 if count == 2 else 0
    other = np.flatnonzero((class_id != wanted) | ((target_id != wanted) & (target_id != 0)))
    if len(other) or shape.tolist() != [1, count]:
        raise ModelUnsupportedError(
            f"leaves of shape {shape.tolist()[:4]} for {count} classes, tree {other[0] if len(other) else 0}: "
            "multi-class models are not served"
        )
    return count


def _read_tree(reader: _Reader, index: int, header: _Header) -> RawTree:
    count = reader.integer("i")
    reader.integer("B")  # whether some split is by category: the splits themselves are checked below
    node_type, left, right = reader.array("i1"), reader.array("<i4"), reader.array("<i4")
    feature, default_left = reader.array("<i4"), reader.array("u1")
    value, threshold, operator = reader.array(header.dtype), reader.array(header.dtype), reader.array("i1")
    reader.array("u1")  # category_list_right_child
    vector, begin, end = reader.array(header.dtype), reader.array("<u8"), reader.array("<u8")
    reader.array("<u4"), reader.array("<u8"), reader.array("<u8")  # categories
    rows, rows_known = reader.array("<u8"), reader.array("u1")
    hessian, hessian_known = reader.array("<f8"), reader.array("u1")
    reader.array("<f8"), reader.array("u1")  # gains
    if reader.integer("i") or reader.integer("i"):
        raise ModelUnsupportedError(f"tree {index} has extensions, of a later version of treelite")
    if count != len(left) or len(node_type) != count:
        raise ModelFormatError(f"tree {index}: {len(left)} left children and {len(node_type)} types for {count} nodes")
    if len(categorical := np.flatnonzero(node_type == _CATEGORICAL)):
        named = feature[categorical[0]] if categorical[0] < len(feature) else -1
        raise ModelUnsupportedError(
            f"tree {index} splits on feature {named} by category, which is not served; encode it as a number"
        )
    if header.classes == 2:
        value = _second_of_two(index, left, vector, begin, end)
    # The number of rows is what scikit-learn and LightGBM weigh a path by; xgboost's sum of hessians goes before it.
    if len(hessian) == count and hessian_known.all():
        cover = hessian
    elif len(rows) == count and rows_known.all():
        cover = rows.astype(np.float64)
    else:
        cover = np.zeros(count)
    return RawTree(
        left=left.astype(np.int64),
        right=right.astype(np.int64),
        feature=feature,
        threshold=threshold,
        operator=operator,
        default_left=default_left,
        value=value,
        cover=cover,
    )


def _second_of_two(index: int, left: np.ndarray, vector: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    if len(begin) != len(left) or len(end) != len(left):
        raise ModelFormatError(f"tree {index}: {len(begin)} leaf vectors for {len(left)} nodes")
    leaves = left < 0
    wrong = np.flatnonzero(leaves & ((end != begin + np.uint64(2)) | (end > len(vector))))
    if len(wrong):
        raise ModelFormatError(f"tree {index}, leaf {wrong[0]} does not hold the values of two classes")
    value = np.zeros(len(left), dtype=vector.dtype)
    value[leaves] = vector[begin[leaves].astype(np.int64) + 1]
    return value
