"""The plain evaluator: margins of a packed table in numba, the reference and the fallback of the vector kernels.

A node is two words: its threshold (float32), and `packed` (uint64: left child in the upper half, feature x 2 + "missing
goes right" in the lower). A step is `left + (x >= threshold or (x is NaN and missing goes right))`, without a branch. A
walk depends on its own last step only, so eight walks side by side hide each other's loads: eight rows of one tree in a
batch, eight trees of one row otherwise.

Measured for 300 trees x depth 6 x 44 features on one core: 2-3 µs a row in batches (xgboost 6.6), 3 µs for a single
row (xgboost 240). Additions are float32, in tree order, from what `out` holds: what inplace_predict does. No fastmath:
NaN must stay NaN.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from scorer.model.tree_table import Table

# 64 rows of 44 features are 11 KiB: they stay in the first-level cache while all trees pass over them.
_BLOCK = 64
_LANES = 8

_ROOT = types.Array(types.uint64, 1, "C", readonly=True)
_DEPTH = types.Array(types.int32, 1, "C", readonly=True)
_PACKED = types.Array(types.uint64, 1, "C", readonly=True)
_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
# Readonly in a signature takes writable arrays too: one compiled version for both, made at import and cached on disk.
_ROWS = types.Array(types.float32, 2, "C", readonly=True)
_SIGNATURE = types.void(_ROWS, _ROOT, _DEPTH, _PACKED, _FLOATS, _FLOATS, types.Array(types.float32, 1, "C"))


def pack(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The kernels' arrays: root uint64 [t], depth int32 [t], packed uint64 [n], threshold float32 [n], value as in the
    table.
    """
    feature = np.maximum(table.feature, 0).astype(np.uint64)
    missing_right = (table.default_left == 0).astype(np.uint64)
    packed = (table.left.astype(np.uint64) << np.uint64(32)) | (feature << np.uint64(1)) | missing_right
    return table.root.astype(np.uint64), table.depth, packed, table.threshold, table.value


# Indices are unsigned: for signed ones numba adds a test for negative indices to every load.
@numba.njit(inline="always")
def _step(rows, row, threshold, packed):  # type: ignore[no-untyped-def]
    x = rows[row, (packed >> np.uint64(1)) & np.uint64(0x7FFFFFFF)]
    # x != x is the NaN test; a leaf's threshold is NaN and its missing bit 0, so a leaf stays where it is.
    right = np.uint64(x >= threshold) | (np.uint64(x != x) & packed & np.uint64(1))  # noqa: PLR0124
    return (packed >> np.uint64(32)) + right


@numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def margins_batch(rows, root, depth, packed, threshold, value, out):  # type: ignore[no-untyped-def]
    """Margins of many rows: trees outside, rows inside, eight rows at a time. Added to out [n], typed as value."""
    count = rows.shape[0]
    for block in range(0, count, _BLOCK):
        end = np.uint64(min(block + _BLOCK, count))
        for tree in range(root.shape[0]):
            start = root[tree]
            steps = depth[tree]
            r = np.uint64(block)
            while r + np.uint64(_LANES) <= end:
                r1, r2, r3 = r + np.uint64(1), r + np.uint64(2), r + np.uint64(3)
                r4, r5, r6, r7 = r + np.uint64(4), r + np.uint64(5), r + np.uint64(6), r + np.uint64(7)
                n0 = n1 = n2 = n3 = n4 = n5 = n6 = n7 = start
                for _ in range(steps):
                    n0 = _step(rows, r, threshold[n0], packed[n0])
                    n1 = _step(rows, r1, threshold[n1], packed[n1])
                    n2 = _step(rows, r2, threshold[n2], packed[n2])
                    n3 = _step(rows, r3, threshold[n3], packed[n3])
                    n4 = _step(rows, r4, threshold[n4], packed[n4])
                    n5 = _step(rows, r5, threshold[n5], packed[n5])
                    n6 = _step(rows, r6, threshold[n6], packed[n6])
                    n7 = _step(rows, r7, threshold[n7], packed[n7])
                out[r] += value[n0]
                out[r1] += value[n1]
                out[r2] += value[n2]
                out[r3] += value[n3]
                out[r4] += value[n4]
                out[r5] += value[n5]
                out[r6] += value[n6]
                out[r7] += value[n7]
                r += np.uint64(_LANES)
            while r < end:
                node = start
                for _ in range(steps):
                    node = _step(rows, r, threshold[node], packed[node])
                out[r] += value[node]
                r += np.uint64(1)


@numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def margins_single(rows, root, depth, packed, threshold, value, out):  # type: ignore[no-untyped-def]
    """Margins of few rows: rows outside, eight trees at a time. Added to out [n], of the type of value."""
    trees = np.uint64(root.shape[0])
    for index in range(rows.shape[0]):
        r = np.uint64(index)
        total = out[index]
        t = np.uint64(0)
        while t + np.uint64(_LANES) <= trees:
            n0, n1, n2, n3 = root[t], root[t + np.uint64(1)], root[t + np.uint64(2)], root[t + np.uint64(3)]
            n4, n5 = root[t + np.uint64(4)], root[t + np.uint64(5)]
            n6, n7 = root[t + np.uint64(6)], root[t + np.uint64(7)]
            steps = depth[t]
            for lane in range(1, _LANES):
                steps = max(steps, depth[t + np.uint64(lane)])
            for _ in range(steps):
                n0 = _step(rows, r, threshold[n0], packed[n0])
                n1 = _step(rows, r, threshold[n1], packed[n1])
                n2 = _step(rows, r, threshold[n2], packed[n2])
                n3 = _step(rows, r, threshold[n3], packed[n3])
                n4 = _step(rows, r, threshold[n4], packed[n4])
                n5 = _step(rows, r, threshold[n5], packed[n5])
                n6 = _step(rows, r, threshold[n6], packed[n6])
                n7 = _step(rows, r, threshold[n7], packed[n7])
            total += value[n0]
            total += value[n1]
            total += value[n2]
            total += value[n3]
            total += value[n4]
            total += value[n5]
            total += value[n6]
            total += value[n7]
            t += np.uint64(_LANES)
        while t < trees:
            node = root[t]
            for _ in range(depth[t]):
                node = _step(rows, r, threshold[node], packed[node])
            total += value[node]
            t += np.uint64(1)
        out[index] = total


# The versions for leaves of float64, which few models have, are compiled when one is loaded.
for _kernel in (margins_batch, margins_single):
    _kernel.disable_compile(False)  # type: ignore[attr-defined]
