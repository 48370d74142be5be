"""The classic TreeSHAP over the packed table (Lundberg et al. 2018, algorithm 2): the reference that tests compare
scorer.model.contributions with, and the fallback for trees too large for it.

A path element is a feature met on the way from the root: `zero` is the share of training cover that goes the row's
way when the feature is unknown, `one` is 1 while the row itself goes this way and 0 once it does not. Each tree costs
O(leaves x depth^2) a row.

Two things differ from the paper's listing. Recursion is a stack, since numba's recursion allocates. And
at a leaf all elements with one = 0 share a single sum: unwinding such an element divides by its own `zero`, which the
factor (one - zero) then cancels.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_INT = types.Array(types.int32, 1, "C", readonly=True)
_F32 = types.Array(types.float32, 1, "C", readonly=True)
_F64 = types.Array(types.float64, 1, "C", readonly=True)
_U8 = types.Array(types.uint8, 1, "C", readonly=True)
_SIGNATURE = types.void(
    types.Array(types.float32, 2, "C", readonly=True),
    _INT,
    _INT,
    _INT,
    _F32,
    _INT,
    _U8,
    _F64,
    _F64,
    types.Array(types.float64, 2, "C"),
)


@numba.njit(inline="always")
def _extend(weight, zero, one, feature, length, inverse, pz, po, pi):  # type: ignore[no-untyped-def]
    """Append an element to a path of `length` elements, and spread the subset weights."""
    feature[length] = pi
    zero[length] = pz
    one[length] = po
    weight[length] = 1.0 if length == 0 else 0.0
    scale = inverse[length + 1]
    for i in range(length - 1, -1, -1):
        part = weight[i] * scale
        weight[i + 1] += po * part * (i + 1)
        weight[i] = pz * part * (length - i)


@numba.njit(inline="always")
def _unwind(weight, zero, one, feature, last, inverse, index):  # type: ignore[no-untyped-def]
    """Undo the extension of element `index`; the path then ends before `last`."""
    po, pz = one[index], zero[index]
    carried = weight[last]
    for i in range(last - 1, -1, -1):
        if po != 0.0:
            kept = weight[i]
            # `one` is 0 or 1, so po divides nothing here.
            part = carried * inverse[i + 1]
            weight[i] = part * (last + 1)
            carried = kept - part * pz * (last - i)
        elif pz != 0.0:
            weight[i] = weight[i] * (last + 1) * inverse[last - i] / pz
        else:
            weight[i] = 0.0
    for i in range(index, last):
        feature[i], zero[i], one[i] = feature[i + 1], zero[i + 1], one[i + 1]


@numba.njit(inline="always")
def _leaf(weight, zero, one, feature, last, inverse, leaf_value, phi):  # type: ignore[no-untyped-def]
    """Add a leaf's share to every feature on its path (elements 1 … last; element 0 is the root's)."""
    cold = 0.0
    for i in range(last):
        cold += weight[i] * inverse[last - i]
    cold *= -(last + 1.0) * leaf_value
    for element in range(1, last + 1):
        if one[element] == 0.0:
            if zero[element] != 0.0:
                phi[feature[element]] += cold
            continue
        pz = zero[element]
        carried = weight[last]
        total = 0.0
        for i in range(last - 1, -1, -1):
            part = carried * inverse[i + 1]
            total += part
            carried = weight[i] - part * pz * (last - i)
        phi[feature[element]] += total * (last + 1.0) * (1.0 - pz) * leaf_value


@numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")
def contributions_into(rows, root, depth, feature, threshold, left, default_left, value, cover, out):  # type: ignore[no-untyped-def]
    """Add every feature's contribution to out float64 [n, f + 1]; the last column is left as it is."""
    deepest = 0
    for tree in range(depth.shape[0]):
        deepest = max(deepest, depth[tree])
    size = deepest + 2
    # Divisions are what this costs: by counts they become products.
    inverse = np.empty(size + 1, np.float64)
    inverse[0] = 0.0
    for i in range(1, size + 1):
        inverse[i] = 1.0 / i
    # One path per level: a node's path is made from its parent's, which its sibling needs unchanged.
    weights = np.empty((size, size), np.float64)
    zeros = np.empty((size, size), np.float64)
    ones = np.empty((size, size), np.float64)
    features = np.empty((size, size), np.int32)
    # Depth first: at most one waiting sibling a level, and the node at hand.
    stack_node = np.empty(size + 1, np.int32)
    stack_level = np.empty(size + 1, np.int32)
    stack_length = np.empty(size + 1, np.int32)
    stack_zero = np.empty(size + 1, np.float64)
    stack_one = np.empty(size + 1, np.float64)
    stack_feature = np.empty(size + 1, np.int32)
    for row in range(rows.shape[0]):
        phi = out[row]
        for tree in range(root.shape[0]):
            if depth[tree] == 0:
                continue
            top = 0
            stack_node[0], stack_level[0], stack_length[0] = root[tree], 0, 0
            stack_zero[0], stack_one[0], stack_feature[0] = 1.0, 1.0, -1
            while top >= 0:
                node, level, last = stack_node[top], stack_level[top], stack_length[top]
                pz, po, pi = stack_zero[top], stack_one[top], stack_feature[top]
                top -= 1
                weight, zero, one, path = weights[level], zeros[level], ones[level], features[level]
                if level > 0:
                    for i in range(last):
                        weight[i] = weights[level - 1, i]
                        zero[i] = zeros[level - 1, i]
                        one[i] = ones[level - 1, i]
                        path[i] = features[level - 1, i]
                _extend(weight, zero, one, path, last, inverse, pz, po, pi)
                column = feature[node]
                if column < 0:
                    _leaf(weight, zero, one, path, last, inverse, np.float64(value[node]), phi)
                    continue
                x = rows[row, column]
                child = left[node]
                if x != x:  # noqa: PLR0124
                    hot = child if default_left[node] else child + 1
                else:
                    hot = child if x < threshold[node] else child + 1
                other = child + 1 if hot == child else child
                incoming_zero, incoming_one = 1.0, 1.0
                length = last + 1
                for i in range(1, last + 1):
                    if path[i] == column:
                        incoming_zero, incoming_one = zero[i], one[i]
                        _unwind(weight, zero, one, path, last, inverse, i)
                        length = last
                        break
                share = incoming_zero / cover[node]
                top += 1
                stack_node[top], stack_level[top], stack_length[top] = other, level + 1, length
                stack_zero[top], stack_one[top], stack_feature[top] = share * cover[other], 0.0, column
                top += 1
                stack_node[top], stack_level[top], stack_length[top] = hot, level + 1, length
                stack_zero[top], stack_one[top], stack_feature[top] = share * cover[hot], incoming_one, column
