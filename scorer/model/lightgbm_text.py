"""A LightGBM model in its text form (`booster.save_model("model.txt")`), with the margins that treelite's interpreter
gives it.

A node is `x <= threshold` in double precision. Leaves are added in double precision from zero. What LightGBM does with
a missing value depends on the node's missing type: NaN goes the node's default way; with `None` it counts as 0; `Zero`
(zero_as_missing), where every 0 is missing too, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError
from scorer.model.tree_table import (
    FEATURES_MAX,
    IDENTITY,
    LESS_EQUAL,
    LOGISTIC,
    NODES_MAX,
    TREES_MAX,
    RawTree,
    Table,
    join,
    lower_tree,
)  # fmt: skip

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
_BINARY = re.compile(r"^binary sigmoid:(\S+)$")


def is_lightgbm(data: bytes) -> bool:
    """Whether the bytes begin as a LightGBM text model does."""
    return data[:5] in (b"tree\n", b"tree\r")


def lower_lightgbm(data: bytes) -> Table:
    """The table of a LightGBM text. Raises ModelFormatError (damaged) or ModelUnsupportedError (a kind not served)."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError("the LightGBM model is not UTF-8") from error
    header, *parts = re.split(r"^Tree=", text, flags=re.MULTILINE)
    if len(parts) > TREES_MAX:
        raise ModelUnsupportedError(f"the model has {len(parts)} trees; at most {TREES_MAX} are served")
    if not parts:
        raise ModelFormatError("the LightGBM model has no tree")
    if "end of trees" not in parts[-1]:
        raise ModelFormatError("the LightGBM model is truncated: 'end of trees' is missing")
    parts[-1] = parts[-1].split("end of trees")[0]
    fields = _fields(header, "header")
    features = _count(fields, "max_feature_idx", "header") + 1
    if not 1 <= features <= FEATURES_MAX:
        raise ModelUnsupportedError(f"the model has {features} features; 1 to {FEATURES_MAX} are served")
    if len(sizes := fields.get("tree_sizes", "").split()) != len(parts):
        raise ModelFormatError(f"{len(sizes)} tree_sizes for {len(parts)} trees; the file is truncated")
    for name in ("num_class", "num_tree_per_iteration"):
        if (count := _count(fields, name, "header")) != 1:
            raise ModelUnsupportedError(f"{name} is {count}: multi-class models are not served")
    link = _link(fields.get("objective", ""))
    raws = []
    nodes = 0
    for index, part in enumerate(parts):
        raws.append(_read_tree(part, index))
        nodes += len(raws[-1].left)
        if nodes > NODES_MAX:
            raise ModelUnsupportedError(f"the model has more than {NODES_MAX} nodes, the most that is served")
    # A booster in random forest mode writes this line without a value.
    divisor = float(len(raws)) if "average_output" in fields else 1.0
    trees = [lower_tree(raw, index, features) for index, raw in enumerate(raws)]
    return join(trees, features, np.float32(0), divisor=divisor, link=link)


def _link(objective: str) -> str:
    if binary := _BINARY.match(objective.strip()):
        if binary[1] not in ("1", "1.0"):
            raise ModelUnsupportedError(f"objective {objective[:60]!r}: train with sigmoid 1")
        return LOGISTIC
    kind = objective.split(" ", maxsplit=1)[0]
    if kind == "cross_entropy":
        return LOGISTIC
    if objective.strip() in ("regression", "regression_l1", "huber", "fair"):
        return IDENTITY
    raise ModelUnsupportedError(f"objective {objective[:60]!r} is not served; train with binary")


def _fields(part: str, where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in part.splitlines():
        if not line.strip():
            continue
        name, _, value = line.partition("=")
        if name in fields:
            raise ModelFormatError(f"{where} of the LightGBM model has {name[:40]!r} twice")
        fields[name] = value
    return fields


def _count(fields: dict[str, str], name: str, where: str) -> int:
    text = fields.get(name, "")
    # Ten digits: int() of a megabyte of digits is slow, and no count is that long.
    if not re.fullmatch(r"\d{1,10}", text):
        raise ModelFormatError(f"{where} of the LightGBM model: {name} is {text[:40]!r}, not a count")
    return int(text)


def _read_tree(part: str, index: int) -> RawTree:
    number, _, rest = part.partition("\n")
    where = f"tree {index}"
    if number.strip() != str(index):
        raise ModelFormatError(f"{where} of the LightGBM model calls itself {number[:20]!r}")
    fields = _fields(rest, where)
    leaves = _count(fields, "num_leaves", where)
    if fields.get("is_linear", "0").strip() != "0":
        raise ModelUnsupportedError(f"{where} has linear leaves (linear_tree), which are not served")

    if not 1 <= leaves <= NODES_MAX // 2:
        raise ModelFormatError(f"{where} of the LightGBM model has {leaves} leaves")
    inner = leaves - 1
    value = _column(fields, where, "leaf_value", leaves, float, np.float64)
    leaf_count = _column(fields, where, "leaf_count", leaves, _integer, np.float64, absent=0)
    if not inner:
        return _raw(np.array([-1]), np.array([-1]), np.zeros(1), np.zeros(1), np.zeros(1), value, leaf_count)
    kind = _column(fields, where, "decision_type", inner, _integer, np.int64)
    feature = _column(fields, where, "split_feature", inner, _integer, np.int64)
    if len(categorical := np.flatnonzero(kind & _CATEGORICAL)):
        raise ModelUnsupportedError(
            f"tree {index} splits on feature {feature[categorical[0]]} by category, which is not served; "
            "encode it as a number"
        )
    missing = kind >> 2
    if len(zero := np.flatnonzero(missing == _MISSING_ZERO)):
        raise ModelUnsupportedError(
            f"tree {index}, node {zero[0]}: feature {feature[zero[0]]} takes 0 as missing (zero_as_missing), not served"
        )
    threshold = _column(fields, where, "threshold", inner, float, np.float64)
    default_left = np.where(missing == _MISSING_NAN, kind & _DEFAULT_LEFT != 0, threshold >= 0.0)
    cover = np.concatenate(
        [_column(fields, where, "internal_count", inner, _integer, np.float64, absent=0), leaf_count]
    )
    children = [
        _children(_column(fields, where, name, inner, _integer, np.int64), inner, where)
        for name in ("left_child", "right_child")
    ]
    spare = np.zeros(leaves)
    return _raw(
        children[0],
        children[1],
        np.concatenate([feature, spare]),
        np.concatenate([threshold, spare]),
        np.concatenate([default_left, spare]),
        np.concatenate([np.zeros(inner), value]),
        cover,
    )


def _column(
    fields: dict[str, str],
    where: str,
    name: str,
    count: int,
    kind: Callable[[str], int | float],
    dtype: type,
    *,
    absent: float | None = None,
) -> np.ndarray:
    """The `count` numbers of a field; `absent` repeated where the tree has no such field, if one is given."""
    if name not in fields and absent is not None:
        return np.full(count, absent, dtype=dtype)
    words = fields.get(name, "").split()
    if len(words) != count:
        raise ModelFormatError(f"{where} of the LightGBM model has {len(words)} values of {name}, wanted {count}")
    try:
        return np.array([kind(word) for word in words], dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise ModelFormatError(f"{where} of the LightGBM model: {name} holds something that is no number") from error


def _integer(word: str) -> int:
    if len(word) > 20:
        raise ValueError(word)
    number = float(word) if not word.lstrip("-").isdigit() else int(word)
    if not math.isfinite(number) or number != int(number) or abs(number) >= 2**62:
        raise ValueError(word)
    return int(number)


def _children(values: np.ndarray, inner: int, where: str) -> np.ndarray:
    """LightGBM counts leaves as -1, -2, …; here they stand after the inner nodes."""
    moved = np.where(values < 0, inner + ~values, values)
    if (moved > 2 * inner).any() or ((values >= 0) & (values >= inner)).any():
        raise ModelFormatError(f"{where} of the LightGBM model points at a node that it does not have")
    return np.concatenate([moved, np.full(inner + 1, -1)])


def _raw(
    left: np.ndarray,
    right: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    default_left: np.ndarray,
    value: np.ndarray,
    cover: np.ndarray,
) -> RawTree:
    return RawTree(
        left=left.astype(np.int64),
        right=right.astype(np.int64),
        feature=np.clip(feature, -1, FEATURES_MAX).astype(np.int32),
        threshold=threshold.astype(np.float64),
        operator=np.full(len(left), LESS_EQUAL, dtype=np.int8),
        default_left=default_left.astype(np.uint8),
        value=value.astype(np.float64),
        cover=cover,
    )
