"""An isolation forest as a table of trees: what few random cuts set apart is unlike the rest. No label is needed.

The same evaluator computes it, so it serves as a challenger as any model does. A payment's margin is minus the mean
length of its path, in units of the length that a search in a random tree of as many rows takes: near -1 for what is
usual, nearer to 0 the fewer cuts set it apart. 2 to the power of it is the anomaly score of Liu, Ting and Zhou,
"Isolation Forest", 2008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from scorer.model.tree_table import LESS, RawTree, Table, join, lower_tree

SAMPLE_ROWS = 256
"""Rows of a tree: more of them hide what is unlike the rest among what is usual (section 4 of the paper)."""
_EULER = 0.5772156649015329


def isolation_forest(X: np.ndarray, *, trees: int, seed: int) -> Table:
    """The forest of `trees` trees, from rows float32 [n, k], n >= 1; the same rows and seed give the same forest.

    A missing value is never cut by: such a row goes to a side drawn by how many rows there are, in training as later.
    """
    random = np.random.default_rng(seed)
    rows = min(SAMPLE_ROWS, len(X))
    unit = trees * (path_length(rows) or 1.0)
    made = [_Growing().grown(X[random.choice(len(X), rows, replace=False)], random) for _ in range(trees)]
    return join([lower_tree(tree.raw(unit), k, X.shape[1]) for k, tree in enumerate(made)], X.shape[1], np.float32(0))


def path_length(rows: int) -> float:
    """Mean length of an unsuccessful search in a binary tree of so many rows, c(n) of the paper: 2 H(n - 1) -
    2 (n - 1) / n, H(i) = ln i + Euler's constant; 0 for one row, 1 for two."""
    if rows <= 2:
        return float(rows - 1)
    return 2.0 * (math.log(rows - 1) + _EULER) - 2.0 * (rows - 1) / rows


@dataclass
class _Growing:
    """A tree while it grows: nodes in the order in which they are made, a leaf's children -1."""

    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    default_left: list[bool] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def grown(self, X: np.ndarray, random: np.random.Generator) -> _Growing:
        """Cut rows float32 [n, k] until they are alone, alike, or as deep as a balanced tree would be."""
        depth_max = math.ceil(math.log2(max(2, len(X))))
        open_nodes = [(self._leaf(0, len(X)), X)]
        while open_nodes:
            node, part = open_nodes.pop()
            depth = self.depth[node]
            cut = _cut(part, random) if depth < depth_max else None
            if cut is None:
                continue
            feature, threshold, goes_left, self.default_left[node] = cut
            self.feature[node], self.threshold[node] = feature, threshold
            for side, rows in ((self.left, part[goes_left]), (self.right, part[~goes_left])):
                side[node] = self._leaf(depth + 1, len(rows))
                open_nodes.append((side[node], rows))
        return self

    def _leaf(self, depth: int, rows: int) -> int:
        for column, value in ((self.left, -1), (self.right, -1), (self.feature, -1), (self.depth, depth)):
            column.append(value)
        self.threshold.append(math.nan)
        self.default_left.append(True)
        self.rows.append(rows)
        return len(self.left) - 1

    def raw(self, unit: float) -> RawTree:
        """What a leaf adds is minus the length of its path, with that of the rows still together, by `unit`."""
        lengths = [depth + path_length(rows) for depth, rows in zip(self.depth, self.rows, strict=True)]
        return RawTree(
            left=np.array(self.left, dtype=np.int32),
            right=np.array(self.right, dtype=np.int32),
            feature=np.array(self.feature, dtype=np.int32),
            threshold=np.array(self.threshold, dtype=np.float32),
            operator=np.full(len(self.left), LESS, dtype=np.int8),
            default_left=np.array(self.default_left, dtype=np.uint8),
            value=(-np.array(lengths) / unit).astype(np.float32),
            cover=np.array(self.rows, dtype=np.float64),
        )


def _cut(X: np.ndarray, random: np.random.Generator) -> tuple[int, float, np.ndarray, bool] | None:
    """A column and a threshold between its extremes, drawn evenly; which rows go left, bool [n], and whether a missing
    value does. None where all rows are alike."""
    if len(X) < 2:
        return None
    least, most = (extreme(X, axis=0) for extreme in (np.fmin.reduce, np.fmax.reduce))
    columns = np.flatnonzero(least < most)  # neither where all are missing
    if not len(columns):
        return None
    column = int(random.choice(columns))
    # x < threshold goes left: the least does, and the largest does not.
    low, high = np.float32(least[column]), np.float32(most[column])
    threshold = np.float32(random.uniform(float(low), float(high)))
    threshold = min(max(threshold, np.nextafter(low, np.float32(np.inf))), high)
    values = X[:, column]
    missing, below = np.isnan(values), values < threshold
    default_left = bool(random.random() * int((~missing).sum()) < int(below.sum()))
    return column, float(threshold), below | (missing & default_left), default_left
