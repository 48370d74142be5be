"""Lowering: an xgboost model becomes one packed table, every index and number checked on the way.

Nodes are renumbered breadth first, so that the two children of a node stand side by side (right = left + 1): a step of
the kernel is an addition and needs no second load. Leaves point at themselves: a walk of fixed length then needs no
test for "is this a leaf".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import treelite

from scorer.model import document as doc
from scorer.model.errors import ModelFormatError, ModelUnsupportedError

# Bounds of what one bundle may make a worker hold and walk. 2^26 nodes are 3 GiB of table.
TREES_MAX = 100_000
NODES_MAX = 1 << 26
# lossguide can grow chains; the explainer's scratch is quadratic in the depth (1,026^2 x 32 B = 33 MB).
TREE_DEPTH_MAX = 1_024
FEATURES_MAX = 65_536

_LESS_THAN = 2  # treelite's Operator::kLT
_FLOAT32 = 2  # treelite's TypeInfo::kFloat32
_BASE_SCORE_MIN = np.float32(1e-6)  # xgboost keeps a probability this far from 0 and 1 before the logit


@dataclass(frozen=True)
class Table:
    """The packed trees, concatenated. n = nodes of all trees, t = trees. All arrays are read-only."""

    feature_count: int
    base_margin: np.float32
    root: np.ndarray
    """int32 [t]: the root's index."""
    depth: np.ndarray
    """int32 [t]: edges from the root to the deepest leaf; 0 for a tree that is one leaf."""
    feature: np.ndarray
    """int32 [n]: column to compare; -1 for a leaf."""
    threshold: np.ndarray
    """float32 [n]: x < threshold goes left; NaN for a leaf."""
    left: np.ndarray
    """int32 [n]: index of the left child; itself for a leaf."""
    right: np.ndarray
    """int32 [n]: index of the right child, always left + 1; itself for a leaf."""
    default_left: np.ndarray
    """uint8 [n]: 1 where a missing value goes left; 1 for a leaf (so that NaN stays there)."""
    value: np.ndarray
    """float32 [n]: what a leaf adds to the margin (dart weights included); 0 for an inner node."""
    cover: np.ndarray
    """float64 [n]: sum of hessians of the training rows that came through."""

    @property
    def tree_count(self) -> int:
        return len(self.root)

    @property
    def node_count(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class _Tree:
    depth: int
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    default_left: np.ndarray
    value: np.ndarray
    cover: np.ndarray


# One float32 call of the platform's logf through numba: the function that xgboost itself calls. numpy's float32 log is
# a vectorised one whose last bit differs, and so does a logit taken in double precision.
@numba.njit("float32(float32)", cache=True)
def _logit(probability: np.float32) -> np.float32:
    return np.float32(-math.log(np.float32(1.0) / probability - np.float32(1.0)))


def base_margin(base_score: np.float32) -> np.float32:
    """The float32 margin that xgboost starts from for a stored base_score (a probability)."""
    upper = np.float32(1.0) - _BASE_SCORE_MIN
    return np.float32(_logit(np.minimum(np.maximum(base_score, _BASE_SCORE_MIN), upper)))


def lower(data: bytes, *, stored_base_margin: np.float32 | None = None) -> Table:
    """The table of an xgboost model file's bytes (JSON or UBJ).

    `stored_base_margin` replaces the one computed here: logf may differ in its last bit between platforms, and a bundle
    carries the float32 of the machine whose gate it passed. It may differ by 4 units in the last place at most.
    Raises ModelFormatError (damaged or hostile) or ModelUnsupportedError (a kind not served).
    """
    document = doc.read_document(data)
    facts = doc.read_facts(document)
    if facts.tree_count > TREES_MAX:
        raise ModelUnsupportedError(f"the model has {facts.tree_count} trees; at most {TREES_MAX} are served")
    if not 1 <= facts.feature_count <= FEATURES_MAX:
        raise ModelUnsupportedError(f"the model has {facts.feature_count} features; 1 to {FEATURES_MAX} are served")
    base = base_margin(facts.base_score)
    if stored_base_margin is not None:
        base = _checked_base(base, np.float32(stored_base_margin))
    # The model object must outlive the reading: its fields are views into memory that it owns.
    model = _read_treelite(data if facts.tree_weights is None else doc.without_tree_weights(document))
    _check_header(model, facts)
    trees = [_lower_tree(model, index, facts.feature_count) for index in range(facts.tree_count)]
    if facts.tree_weights is not None:
        trees = [_weigh(tree, base, weight) for tree, weight in zip(trees, facts.tree_weights, strict=True)]
    return _concatenate(trees, facts.feature_count, base)


def _checked_base(computed: np.float32, stored: np.float32) -> np.float32:
    allowed = 4 * float(np.spacing(np.abs(computed)))
    if not abs(float(computed) - float(stored)) <= allowed:
        raise ModelFormatError(f"the stored base margin {stored} is not the model's own, {computed}")
    return stored


def _read_treelite(data: bytes) -> Any:
    try:
        if doc.is_ubj(data):
            return treelite.frontend.from_xgboost_ubjson(data)
        return treelite.frontend.from_xgboost_json(data)
    except UnicodeDecodeError as error:  # treelite quotes the file in its message, and may cut a character in two
        raise ModelFormatError("treelite refuses the model, for a reason that is not readable as text") from error
    except treelite.TreeliteError as error:
        lines = str(error).strip().splitlines()
        raise ModelFormatError(
            f"treelite refuses the model: {lines[0][:300] if lines else 'no reason given'}"
        ) from error


def _check_header(model: Any, facts: doc.ModelFacts) -> None:
    header = model.get_header_accessor()

    def field(name: str) -> np.ndarray:
        return np.asarray(header.get_field(name)).copy()

    if model.num_tree != facts.tree_count:
        raise ModelFormatError(f"treelite read {model.num_tree} trees, the file declares {facts.tree_count}")
    if int(field("num_feature")[0]) != facts.feature_count:
        raise ModelFormatError(
            f"treelite read {field('num_feature')[0]} features, the file declares {facts.feature_count}"
        )
    if field("threshold_type")[0] != _FLOAT32 or field("leaf_output_type")[0] != _FLOAT32:
        raise ModelUnsupportedError("thresholds or leaves are not float32")
    if (field("leaf_vector_shape") > 1).any():
        raise ModelUnsupportedError("leaves are vectors: multi-class and multi-target models are not served")
    for name in ("target_id", "class_id"):
        other = np.flatnonzero(field(name) != 0)
        if len(other):
            raise ModelUnsupportedError(
                f"tree {other[0]} has {name} {field(name)[other[0]]}; multi-class models are not served"
            )


def _lower_tree(model: Any, index: int, feature_count: int) -> _Tree:
    accessor = model.get_tree_accessor(index)

    def field(name: str, dtype: type) -> np.ndarray:
        return np.array(accessor.get_field(name), dtype=dtype)

    if accessor.get_field("has_categorical_split")[0]:
        categorical = np.flatnonzero(field("node_type", np.int8) == 2)
        feature = field("split_index", np.int32)[categorical[0]] if len(categorical) else -1
        raise ModelUnsupportedError(
            f"tree {index} splits on feature {feature} by category, which is not served; encode it as a number"
        )
    left, right = field("cleft", np.int64), field("cright", np.int64)
    feature, threshold = field("split_index", np.int32), field("threshold", np.float32)
    default_left, value = field("default_left", np.uint8), field("leaf_value", np.float32)
    # An absent hessian sum (older writers) leaves zeros: margins work, explanations are refused by name.
    cover = field("sum_hess", np.float64) if len(accessor.get_field("sum_hess")) else np.zeros(len(left))
    columns = {
        "right": right,
        "feature": feature,
        "threshold": threshold,
        "default_left": default_left,
        "leaf": value,
        "cover": cover,
    }
    for name, column in columns.items():
        if len(column) != len(left):
            raise ModelFormatError(f"tree {index}: {len(column)} values of {name} for {len(left)} nodes")
    order, depth = _breadth_first(left, right, index)
    inner = left[order] >= 0
    _check_nodes(index, order, inner, feature, threshold, value, feature_count, operator=field("cmp", np.int8))

    position = np.full(len(left), -1, dtype=np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    own = np.arange(len(order), dtype=np.int32)
    return _Tree(
        depth=depth,
        feature=np.where(inner, feature[order], -1).astype(np.int32),
        threshold=np.where(inner, threshold[order], np.float32(np.nan)).astype(np.float32),
        left=np.where(inner, position[left[order]], own).astype(np.int32),
        right=np.where(inner, position[right[order]], own).astype(np.int32),
        default_left=np.where(inner, default_left[order] != 0, True).astype(np.uint8),
        value=np.where(inner, np.float32(0), value[order]).astype(np.float32),
        cover=cover[order],
    )


def _breadth_first(left: np.ndarray, right: np.ndarray, index: int) -> tuple[np.ndarray, int]:
    """The node ids reachable from the root, level by level, children side by side; and the depth.

    Pruning leaves unreachable nodes behind; they are dropped. A node reached twice is a cycle or a shared child.
    """
    count = len(left)
    if count == 0:
        raise ModelFormatError(f"tree {index} has no node")
    seen = np.zeros(count, dtype=bool)
    seen[0] = True
    level = np.zeros(1, dtype=np.int64)
    levels = [level]
    while True:
        inner = level[left[level] >= 0]
        if (halves := level[(left[level] >= 0) != (right[level] >= 0)]).size:
            raise ModelFormatError(f"tree {index}, node {halves[0]} has one child only")
        if not inner.size:
            return np.concatenate(levels), len(levels) - 1
        if len(levels) > TREE_DEPTH_MAX:
            raise ModelUnsupportedError(f"tree {index} is deeper than {TREE_DEPTH_MAX}; train with max_depth set")
        level = np.empty(2 * len(inner), dtype=np.int64)
        level[0::2], level[1::2] = left[inner], right[inner]
        outside = level[level >= count]
        if outside.size:
            raise ModelFormatError(f"tree {index} points at node {outside[0]}, it has {count} nodes")
        if seen[level].any() or len(np.unique(level)) != len(level):
            twice = level[seen[level]]
            raise ModelFormatError(
                f"tree {index} reaches node {twice[0] if twice.size else level[0]} twice: a cycle or a shared child"
            )
        seen[level] = True
        levels.append(level)


def _check_nodes(
    index: int,
    order: np.ndarray,
    inner: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    value: np.ndarray,
    feature_count: int,
    operator: np.ndarray,
) -> None:
    nodes, leaves = order[inner], order[~inner]
    wrong = nodes[(feature[nodes] < 0) | (feature[nodes] >= feature_count)]
    if wrong.size:
        raise ModelFormatError(
            f"tree {index}, node {wrong[0]} splits on feature {feature[wrong[0]]}, the model has {feature_count}"
        )
    wrong = nodes[np.isnan(threshold[nodes])]
    if wrong.size:
        raise ModelFormatError(f"tree {index}, node {wrong[0]}: the threshold of feature {feature[wrong[0]]} is NaN")
    wrong = nodes[operator[nodes] != _LESS_THAN]
    if wrong.size:
        raise ModelUnsupportedError(f"tree {index}, node {wrong[0]}: feature {feature[wrong[0]]} is not compared by <")
    wrong = leaves[~np.isfinite(value[leaves])]
    if wrong.size:
        raise ModelFormatError(f"tree {index}: the value of leaf {wrong[0]} is not finite")


def _weigh(tree: _Tree, base: np.float32, weight: np.float32) -> _Tree:
    """A dart tree with its weight in its leaves, rounded the way inplace_predict rounds.

    xgboost predicts each dart tree apart, from the base margin, then takes that margin off again and adds weight x
    rest.
    """
    with np.errstate(over="ignore"):  # an overflow is refused with the sum of all leaves
        rest = (base + tree.value).astype(np.float32) - base
        value = np.where(tree.feature < 0, rest * weight, np.float32(0)).astype(np.float32)
    return _Tree(tree.depth, tree.feature, tree.threshold, tree.left, tree.right, tree.default_left, value, tree.cover)


def _concatenate(trees: list[_Tree], feature_count: int, base: np.float32) -> Table:
    sizes = np.array([len(tree.left) for tree in trees], dtype=np.int64)
    if int(sizes.sum()) > NODES_MAX:
        raise ModelUnsupportedError(f"the model has {int(sizes.sum())} nodes; at most {NODES_MAX} are served")
    # No order of additions may reach infinity, or a margin could be inf - inf = NaN.
    largest = abs(float(base)) + sum(float(np.abs(tree.value).max()) for tree in trees)
    if not largest < float(np.finfo(np.float32).max) / 2:
        raise ModelFormatError(f"the leaves can sum up to {largest:.3g}, beyond float32")
    root = (np.cumsum(sizes) - sizes).astype(np.int32)
    shift = np.repeat(root, sizes)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(tree, name) for tree in trees])

    table = Table(
        feature_count=feature_count,
        base_margin=base,
        root=root,
        depth=np.array([tree.depth for tree in trees], dtype=np.int32),
        feature=joined("feature"),
        threshold=joined("threshold"),
        left=joined("left") + shift,
        right=joined("right") + shift,
        default_left=joined("default_left"),
        value=joined("value"),
        cover=joined("cover"),
    )
    for column in vars(table).values():
        if isinstance(column, np.ndarray):
            column.setflags(write=False)
    return table
