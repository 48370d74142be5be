"""Levers on the trees: leaves rounded to a coarse grid, last trees left out, sibling leaves merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from scorer.compress.rewritten_model import first_trees
from scorer.errors import UsageError
from scorer.model.tree_table import RawTree, Table, join, lower_tree

_PREFIXES = 24


def quantise_leaves(table: Table, bits: int) -> Table:
    """Every leaf rounded to a multiple of one power of two, so that it fits `bits` signed bits. Lossy.

    The step is a power of two: sums of such leaves are exact in float32 (2^24 steps), whatever the order of additions.
    """
    check_bits(bits)
    largest = float(np.abs(table.value).max()) if len(table.value) else 0.0
    if largest == 0.0:
        return table
    step = 2.0 ** np.ceil(np.log2(largest / (2 ** (bits - 1) - 1)))
    value = np.where(table.feature < 0, np.round(table.value.astype(np.float64) / step) * step, 0.0)
    return replace(table, value=value.astype(np.float32))


def check_bits(bits: int) -> None:
    """Raise UsageError for bits that no leaf is rounded to."""
    if not 2 <= bits <= 16:
        raise UsageError(f"--bits {bits}: wanted 2 to 16")


def truncate(table: Table, quality: Callable[[Table], float], least: float) -> Table:
    """The fewest first trees, of some 24 candidates, whose quality is at least `least`; all trees if none is."""
    for share in np.linspace(1 / _PREFIXES, 1, _PREFIXES):
        trees = max(1, round(share * table.tree_count))
        candidate = first_trees(table, trees)
        if trees == table.tree_count or quality(candidate) >= least:
            return candidate
    return table


def merge_leaves(table: Table, quality: Callable[[Table], float], least: float, steps: int = 8) -> Table:
    """Sibling leaves closer than a tolerance become their mean by cover; the largest tolerance that keeps `least`.

    The tolerance is searched by halving between none and the spread of all leaves.
    """
    leaves = table.value[table.feature < 0]
    low, high = 0.0, float(leaves.max() - leaves.min()) if len(leaves) else 0.0
    best = table
    for _ in range(steps):
        middle = (low + high) / 2
        candidate = merged(table, middle)
        if quality(candidate) >= least:
            best, low = candidate, middle
        else:
            high = middle
    return best


def merged(table: Table, tolerance: float) -> Table:
    """The table with sibling leaves of at most `tolerance` distance merged, repeatedly, from the bottom up."""
    value = table.value.astype(np.float64)
    leaf = table.feature < 0
    # Children come after their parents: walked from the end, a merged leaf can merge again with its sibling.
    for node in range(len(leaf) - 1, -1, -1):
        if leaf[node]:
            continue
        left = table.left[node]
        if leaf[left] and leaf[left + 1] and abs(value[left] - value[left + 1]) <= tolerance:
            a, b = table.cover[left], table.cover[left + 1]
            total = a + b
            value[node] = (
                (value[left] * a + value[left + 1] * b) / total if total > 0 else (value[left] + value[left + 1]) / 2
            )
            leaf[node] = True
    trees = []
    for index in range(table.tree_count):
        start = int(table.root[index])
        end = int(table.root[index + 1]) if index + 1 < table.tree_count else len(leaf)
        span = slice(start, end)
        inner = ~leaf[span]
        raw = RawTree(
            left=np.where(inner, table.left[span] - start, -1).astype(np.int64),
            right=np.where(inner, table.right[span] - start, -1).astype(np.int64),
            feature=table.feature[span],
            threshold=table.threshold[span],
            operator=np.full(end - start, 2, dtype=np.int8),
            default_left=table.default_left[span],
            value=value[span].astype(np.float32),
            cover=table.cover[span],
        )
        trees.append(lower_tree(raw, index, table.feature_count))
    return join(trees, table.feature_count, table.base_margin)
