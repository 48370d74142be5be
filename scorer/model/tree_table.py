"""The packed table, and how trees of any source become one: every index and number is checked on the way.

Nodes are renumbered breadth first, so that the two children of a node stand side by side (right = left + 1): a step of
the kernel is an addition and needs no second load. Leaves point at themselves: a walk of fixed length then needs no
test for "is this a leaf".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError

# Bounds of what one bundle may make a worker hold and walk. 2^26 nodes are 3 GiB of table.
TREES_MAX = 100_000
NODES_MAX = 1 << 26
# lossguide can grow chains; the explainer's scratch is quadratic in the depth (1,026^2 x 32 B = 33 MB).
TREE_DEPTH_MAX = 1_024
FEATURES_MAX = 65_536

LESS, LESS_EQUAL, GREATER, GREATER_EQUAL = 2, 3, 4, 5  # treelite's Operator
LOGISTIC, IDENTITY = "logistic", "identity"
_FLOAT32_MAX = np.finfo(np.float32).max
_EMPTY = {
    "feature": np.int32, "threshold": np.float32, "left": np.int32, "right": np.int32, "default_left": np.uint8,
    "value": np.float32, "cover": np.float64,
}  # fmt: skip


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
    """float32 [n] (float64 where the source adds in double): what a leaf adds (dart weights included); 0 for an inner
    node.
    """
    cover: np.ndarray
    """float64 [n]: sum of hessians, or number, of the training rows that came through; 0 where the source does not say.
    """
    divisor: float = 1.0
    """What the sum of leaves is divided by: the number of trees of a forest that averages."""
    offset: float = 0.0
    """Added after that; for a source that adds its base last (treelite's order), where base_margin is 0."""
    link: str = LOGISTIC
    """How a margin becomes a probability: `logistic`, or `identity` for a forest whose leaves are probabilities."""

    @property
    def tree_count(self) -> int:
        return len(self.root)

    @property
    def wide(self) -> bool:
        """Whether leaves are added in float64."""
        return self.value.dtype == np.float64

    @property
    def finished(self) -> bool:
        """Whether the sum of leaves is the margin as it stands."""
        return not self.wide and self.divisor == 1.0 and self.offset == 0.0

    @property
    def node_count(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class RawTree:
    """One tree as its source has it: arrays of equal length, node 0 the root, a leaf's children -1."""

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    """float32 or float64."""
    operator: np.ndarray
    """int8: `x operator threshold` goes left."""
    default_left: np.ndarray
    value: np.ndarray
    """float32 or float64."""
    cover: np.ndarray


@dataclass(frozen=True)
class Tree:
    """A checked tree, renumbered."""

    depth: int
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    default_left: np.ndarray
    value: np.ndarray
    cover: np.ndarray


def lower_tree(raw: RawTree, index: int, feature_count: int) -> Tree:
    """Check tree `index` and renumber it. Raises ModelFormatError or ModelUnsupportedError naming tree and node."""
    columns = {
        "right": raw.right,
        "feature": raw.feature,
        "threshold": raw.threshold,
        "operator": raw.operator,
        "default_left": raw.default_left,
        "leaf": raw.value,
        "cover": raw.cover,
    }
    for name, column in columns.items():
        if len(column) != len(raw.left):
            raise ModelFormatError(f"tree {index}: {len(column)} values of {name} for {len(raw.left)} nodes")
    order, depth = _breadth_first(raw.left, raw.right, index)
    inner = raw.left[order] >= 0
    _check_nodes(index, order, inner, raw, feature_count)
    if raw.threshold.dtype != np.float32 or (raw.operator[order][inner] != LESS).any():
        raw = _as_less_than(raw, order[inner])
        order, depth = _breadth_first(raw.left, raw.right, index)
        inner = raw.left[order] >= 0
    position = np.full(len(raw.left), -1, dtype=np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    own = np.arange(len(order), dtype=np.int32)
    # A leaf's children are any negative number: no place.
    left, right = np.maximum(raw.left[order], 0), np.maximum(raw.right[order], 0)
    zero = raw.value.dtype.type(0)
    return Tree(
        depth=depth,
        feature=np.where(inner, raw.feature[order], -1).astype(np.int32),
        threshold=np.where(inner, raw.threshold[order], np.float32(np.nan)).astype(np.float32),
        left=np.where(inner, position[left], own).astype(np.int32),
        right=np.where(inner, position[right], own).astype(np.int32),
        default_left=np.where(inner, raw.default_left[order] != 0, True).astype(np.uint8),
        value=np.where(inner, zero, raw.value[order]).astype(raw.value.dtype),
        cover=raw.cover[order],
    )


def _as_less_than(raw: RawTree, nodes: np.ndarray) -> RawTree:
    """The same decisions for every float32 x, each of them `x < float32`.

    x < t, for a double t, is x < (the least float32 >= t); x <= t is x < (the least float32 > t). x > t and x >= t are
    their opposites: children and the way of missing values change places. x <= infinity holds for every x: it is the
    opposite of x < -infinity.
    """
    threshold = raw.threshold.astype(np.float64)
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
        following = np.nextafter(near, np.float32(np.inf))
    # Rounding may land on either side of t.
    at_least = np.where(near.astype(np.float64) < threshold, following, near)
    above = np.where(near.astype(np.float64) <= threshold, following, near)
    inclusive = (raw.operator == LESS_EQUAL) | (raw.operator == GREATER)
    swapped = (raw.operator == GREATER) | (raw.operator == GREATER_EQUAL)
    always = inclusive & (threshold == np.inf)
    cut = np.where(always, np.float32(-np.inf), np.where(inclusive, above, at_least)).astype(np.float32)
    # For x >= inf: x < inf, turned round, is right; for x <= inf: turned round once more.
    turned = np.zeros(len(threshold), dtype=bool)
    turned[nodes] = (swapped ^ always)[nodes]
    default_left = raw.default_left != 0
    return RawTree(
        left=np.where(turned, raw.right, raw.left),
        right=np.where(turned, raw.left, raw.right),
        feature=raw.feature,
        threshold=cut,
        operator=np.full(len(threshold), LESS, dtype=np.int8),
        default_left=np.where(turned, ~default_left, default_left).astype(np.uint8),
        value=raw.value,
        cover=raw.cover,
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


def _check_nodes(index: int, order: np.ndarray, inner: np.ndarray, raw: RawTree, feature_count: int) -> None:
    nodes, leaves = order[inner], order[~inner]
    feature, threshold = raw.feature, raw.threshold
    wrong = nodes[(feature[nodes] < 0) | (feature[nodes] >= feature_count)]
    if wrong.size:
        raise ModelFormatError(
            f"tree {index}, node {wrong[0]} splits on feature {feature[wrong[0]]}, the model has {feature_count}"
        )
    wrong = nodes[np.isnan(threshold[nodes])]
    if wrong.size:
        raise ModelFormatError(f"tree {index}, node {wrong[0]}: the threshold of feature {feature[wrong[0]]} is NaN")
    wrong = nodes[(raw.operator[nodes] < LESS) | (raw.operator[nodes] > GREATER_EQUAL)]
    if wrong.size:
        raise ModelUnsupportedError(
            f"tree {index}, node {wrong[0]}: feature {feature[wrong[0]]} is not compared by <, <=, > or >="
        )
    wrong = leaves[~np.isfinite(raw.value[leaves])]
    if wrong.size:
        raise ModelFormatError(f"tree {index}: the value of leaf {wrong[0]} is not finite")


def join(
    trees: list[Tree],
    feature_count: int,
    base: np.float32,
    *,
    divisor: float = 1.0,
    offset: float = 0.0,
    link: str = LOGISTIC,
) -> Table:
    """The table of all trees. Raises ModelUnsupportedError or ModelFormatError for too many nodes, or sums that
    overflow.
    """
    sizes = np.array([len(tree.left) for tree in trees], dtype=np.int64)
    if int(sizes.sum()) > NODES_MAX:
        raise ModelUnsupportedError(f"the model has {int(sizes.sum())} nodes; at most {NODES_MAX} are served")
    # No order of additions may reach infinity, or a margin could be inf - inf = NaN.
    largest = abs(float(base)) + abs(offset) + sum(float(np.abs(tree.value).max()) for tree in trees)
    if not largest < float(_FLOAT32_MAX) / 2:
        raise ModelFormatError(f"the leaves can sum up to {largest:.3g}, beyond float32")
    root = (np.cumsum(sizes) - sizes).astype(np.int32)
    shift = np.repeat(root, sizes)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(tree, name) for tree in trees] or [np.zeros(0, dtype=_EMPTY[name])])

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
        divisor=divisor,
        offset=offset,
        link=link,
    )
    for column in vars(table).values():
        if isinstance(column, np.ndarray):
            column.setflags(write=False)
    return table
