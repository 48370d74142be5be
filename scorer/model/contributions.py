"""Why a margin is what it is: exact path-dependent TreeSHAP, by quadrature.

A leaf of value v is reached by a set S of known features with weight v x prod(o_j for j in S) x prod(z_j for j not in
S), where o_j is 1 if the row itself goes the leaf's way at every split on j, and z_j is the share of training cover
that does. The Shapley value averages over sets; drawing each feature with probability t and integrating over t gives
the same average (Owen 1972), so feature i receives from this leaf

    v (o_i - z_i)  x  integral over t in [0, 1] of  prod over j != i of  (t o_j + (1 - t) z_j)

a polynomial of degree m - 1 for m features on the path: Gauss-Legendre with ceil(m / 2) points is exact. The products
of all leaves are made in one pass down the tree and their sums in one pass up (as Linear TreeSHAP does, Yu et al.
2022), which costs O(nodes x m / 2) a tree where the classic algorithm (Lundberg et al. 2018;
scorer.model.path_contributions) costs O(leaves x m^2). Every factor is positive and at most 1, so nothing is lost to
cancellation.

Measured for 300 trees x depth 6 x 44 features on one core: see tests/benchmarks/model.py.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from scorer.model import path_contributions
from scorer.model.tree_table import Table
from scorer.model.vector import jit_compiler, kernel_modules
from scorer.model.vector.kernel_layout import CONTRIBUTION_FEATURES_MAX, CONTRIBUTION_WORDS
from scorer.model.vector.lane_tables import packed_words
from scorer.model.vector.native_call import call_kernel

_ROWS = types.Array(types.float32, 2, "C", readonly=True)
_OUT = types.Array(types.float64, 2, "C")
_I32 = types.Array(types.int32, 1, "C", readonly=True)
_F64 = types.Array(types.float64, 1, "C", readonly=True)
_I32_OUT, _F64_OUT = types.Array(types.int32, 1, "C"), types.Array(types.float64, 1, "C")
# 32 MiB of products for one tree: more (a tree of 30,000 nodes on paths of 32 features) goes through the classic
# algorithm.
_SCRATCH_DOUBLES_MAX = 4 << 20
# The factors of all trees, 5 doubles a point and node: 300 trees of depth 6 have 3 MiB.
_TABLE_DOUBLES_MAX = 32 << 20


@numba.njit(types.void(_ROWS, _OUT, types.int64, types.int64, types.int64), cache=True, nogil=True)
def _run(rows, out, kernel, descriptor, doubles):  # type: ignore[no-untyped-def]
    scratch = np.empty(doubles + 8, np.float64)
    skipped = (-scratch.ctypes.data & 63) >> 3
    call_kernel(kernel, (rows, rows.shape[0], descriptor, out, scratch[skipped:]))  # type: ignore[call-arg]


_ANCESTRY = types.UniTuple(_I32_OUT, 2)  # type: ignore[no-untyped-call]
_PATHS = types.Tuple((_I32_OUT, _F64_OUT, types.int64))  # type: ignore[no-untyped-call]


@numba.njit(_ANCESTRY(_I32, _I32, types.Array(types.int64, 1, "C", readonly=True)), cache=True)
def _ancestry(root, left, end):  # type: ignore[no-untyped-def]
    """Per node: its parent (-1 for a root)."""
    parent = np.full(left.shape[0], -1, np.int32)
    tree = np.zeros(left.shape[0], np.int32)
    for t in range(root.shape[0]):
        for node in range(root[t], end[t]):
            tree[node] = t
            if left[node] != node:
                parent[left[node]] = node
                parent[left[node] + 1] = node
    return parent, tree


@numba.njit(_PATHS(_I32, _I32, _F64), cache=True, error_model="numpy")
def _paths(parent, feature, cover):  # type: ignore[no-untyped-def]
    """Per node: the nearest node above that was reached by a split on the same feature as this one (-1 for none), and
    the share of cover that goes this way at all splits on that feature so far; and the most features on any path."""
    count = parent.shape[0]
    former = np.full(count, -1, np.int32)
    share = np.ones(count, np.float64)
    features = np.zeros(count, np.int32)
    most = 0
    for node in range(count):
        above = parent[node]
        if above < 0:
            continue
        share[node] = cover[node] / cover[above]
        features[node] = features[above] + 1
        at = above
        while parent[at] >= 0:
            if feature[parent[at]] == feature[above]:
                former[node] = at
                share[node] *= share[at]
                features[node] -= 1
                break
            at = parent[at]
        most = max(most, features[node])
    return former, share, most


@numba.njit(types.Array(types.float64, 1, "C")(_I32, _I32, _I32, _F64, _F64), cache=True, error_model="numpy")
def _means(root, left, feature, value, cover):  # type: ignore[no-untyped-def]
    mean = value.copy()
    # Children stand after their parent in every tree, so one pass from the end suffices.
    for node in range(left.shape[0] - 1, -1, -1):
        if feature[node] >= 0:
            child = left[node]
            weighted = mean[child] * cover[child] + mean[child + 1] * cover[child + 1]
            mean[node] = weighted / cover[node] if cover[node] > 0 else np.nan
    out = np.empty(root.shape[0], np.float64)
    for tree in range(root.shape[0]):
        out[tree] = mean[root[tree]]
    return out


def tree_means(table: Table) -> np.ndarray:
    """float64 [t]: each tree's mean leaf value by cover. NaN where a tree's covers are not positive."""
    return np.asarray(_means(table.root, table.left, table.feature, table.value.astype(np.float64), table.cover))


def first_bad_cover(table: Table) -> int | None:
    """The first tree with a split whose cover is missing, negative, not finite, or not its children's together; None
    where all can be explained."""
    inner = table.feature >= 0
    bad = ~np.isfinite(table.cover) | (table.cover < 0) | (inner & (table.cover <= 0))
    # Sums of hessians are float32 in xgboost's files: a parent may be a little less than its children together.
    most = np.maximum(table.cover[table.left], table.cover[table.right])
    bad |= inner & ~(most <= 1.01 * table.cover)
    # A child's sum is its parent's less its sibling's: what that rounds off is measured by the tree's whole sum.
    whole = np.repeat(table.cover[table.root], np.diff(np.append(table.root, len(table.left))))
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are bad already
        both = table.cover[table.left] + table.cover[table.right]
        bad |= inner & ~(np.abs(both - table.cover) <= 0.01 * table.cover + 1e-6 * whole)
    # A tree that is one leaf needs no cover.
    node = np.flatnonzero(bad)
    tree = np.searchsorted(table.root, node, side="right") - 1
    split = tree[table.depth[tree] > 0]
    return int(split[0]) if len(split) else None


class Explainer:
    """A table's contributions. Immutable; any number of threads may share it; the kernels hold no GIL."""

    def __init__(self, table: Table, *, vector: bool) -> None:
        """The table must pass `first_bad_cover`. `vector` false uses the classic algorithm."""
        self._table = table
        self._kernel = 0
        self._value = table.value.astype(np.float64)
        if vector and table.tree_count:
            self._prepare(table)

    def contributions_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Add every feature's contribution to out float64 [n, f + 1]; the last column is left as it is."""
        if self._kernel:
            _run(rows, out, self._kernel, self._descriptor, self._scratch_doubles)
            return
        table = self._table
        path_contributions.contributions_into(
            rows, table.root, table.depth, table.feature, table.threshold, table.left, table.default_left, self._value,
            table.cover, out,
        )  # fmt: skip

    def _prepare(self, table: Table) -> None:
        sizes = np.diff(np.append(table.root.astype(np.int64), len(table.left)))
        parent, tree = _ancestry(table.root, table.left, table.root.astype(np.int64) + sizes)
        former, share, most = _paths(parent, table.feature, table.cover)
        points = max(1, -(-most // 2))
        scratch = int(sizes.max()) * (8 * points + 1)
        columns = np.unique(table.feature[table.feature >= 0])
        too_large = scratch > _SCRATCH_DOUBLES_MAX or len(table.left) * points * 5 > _TABLE_DOUBLES_MAX
        if too_large or not 0 < len(columns) <= CONTRIBUTION_FEATURES_MAX:
            return
        try:
            text = kernel_modules.contributions()
            self._kernel = jit_compiler.addresses(text, ("contributions",), jit_compiler.host())["contributions"]
        except jit_compiler.JitUnavailableError:
            return  # the classic algorithm serves
        factors, shares = _factors(table, former, share, points)
        values: dict[str, int | np.ndarray] = {
            "row_stride": table.feature_count,
            "points": points,
            "trees": table.tree_count,
            "tree": np.stack([table.root, sizes.astype(np.int32)], axis=1).astype(np.int32),
            "nodes": _nodes(table, table.root[tree], former, columns),
            "threshold": table.threshold,
            "factors": factors,
            "shares": shares,
            "features": len(columns),
            "columns": columns.astype(np.int32),
            "out_stride": table.feature_count + 1,
        }
        self._words, self._arrays = packed_words(values, CONTRIBUTION_WORDS)
        self._descriptor = int(self._words.ctypes.data)
        self._scratch_doubles = scratch


def _nodes(table: Table, first: np.ndarray, former: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """int32 [n, 4] as CONTRIBUTION_WORDS describes them; `first` int32 [n] is the first node of each node's tree."""
    inner = table.feature >= 0
    # What a split needs to know of the former split on its feature is the same for both its children.
    of_child = former[table.left]
    nodes = np.zeros((len(table.left), 4), dtype=np.int32)
    nodes[:, 0] = np.where(inner, table.left - first, 0)
    nodes[:, 1] = np.where(inner, np.searchsorted(columns, np.maximum(table.feature, columns[0])), 0)
    nodes[:, 2] = np.where(inner & (of_child >= 0), of_child - first, -1)
    nodes[:, 3] = table.default_left
    return nodes


def _factors(table: Table, former: np.ndarray, share: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n, points, 3] and [n, points, 2], as CONTRIBUTION_WORDS describes them."""
    x, weight = np.polynomial.legendre.leggauss(points)
    t, w = (x + 1) / 2, weight / 2
    repeated = former >= 0
    z = share[:, None]
    before = np.where(repeated, share[former], 1.0)[:, None]
    hot = t + (1 - t) * z
    cold = (1 - t) * z
    # A repeated feature's former factor leaves the product: 1 for a feature met for the first time.
    hot_before = np.where(repeated[:, None], t + (1 - t) * before, 1.0)
    still = np.divide(share, before[:, 0], out=np.zeros_like(share), where=before[:, 0] > 0)[:, None]
    factors = np.stack([hot / hot_before, cold / hot_before, np.broadcast_to(still, hot.shape)], axis=2)
    leaf = table.feature < 0
    factors[leaf] *= table.value[leaf].astype(np.float64)[:, None, None]
    taken_back = np.where(repeated[:, None], w * (1 - before) / hot_before, 0.0)
    shares = np.stack([w * (1 - z) / hot - taken_back, np.broadcast_to(-w / (1 - t), hot.shape) - taken_back], axis=2)
    return factors, shares
