"""From packed trees to the kernels' tables: exact ranks, planes, perfect trees, and the descriptor that names them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.model.tree_table import Table
from scorer.model.vector.kernel_layout import (
    CUTS_A_PLANE,
    DEEP_TOP,
    DEPTH_MIN,
    GROUP,
    LANES,
    ROW_PLANES_MAX,
    SCORING_WORDS,
)

PLANES_STACK_MAX = 2_048  # 128 KiB of stack in the kernel
# All perfect trees together, at 14 bytes a node: 224 MiB. The largest models that padding suits have a hundredth of
# that.
PADDED_NODES_MAX = 1 << 24
_LEVELS_MAX = 20
# Ranks of 512 rows in 88 planes are 44 KiB: they stay in the second-level cache, and a tree is fetched once for all.
ROWS_AT_ONCE = 512
_UNUSED: dict[str, int | np.ndarray] = dict.fromkeys(SCORING_WORDS, 0)

__all__ = [
    "PADDED_NODES_MAX",
    "PLANES_STACK_MAX",
    "Descriptor",
    "Ranks",
    "describe",
    "describe_deep",
    "packed_words",
    "rank_features",
    "with_stages",
]


@dataclass(frozen=True)
class Ranks:
    """Exact quantisation of a model's features: cuts, planes, and every node's (plane, threshold byte)."""

    feature_table: np.ndarray
    plane_table: np.ndarray
    plane_feature: np.ndarray
    cuts: np.ndarray
    node_plane: np.ndarray
    """int32 [n]: the plane that a node reads; 0 for a leaf."""
    node_threshold: np.ndarray
    """int8 [n]: the row goes right where its byte is greater; 127 (never) for a leaf."""

    @property
    def plane_count(self) -> int:
        return len(self.plane_table)


def rank_features(table: Table) -> Ranks | None:
    """Ranks of every feature that a tree splits on; None where planes or cuts exceed what the kernels take."""
    inner = np.flatnonzero(table.feature >= 0)
    columns = np.unique(table.feature[inner])
    cuts: list[np.ndarray] = []
    facts: list[tuple[int, int, int, int, int, int]] = []
    planes: list[tuple[int, int]] = []
    plane_feature: list[int] = []
    node_plane = np.zeros(len(table.feature), dtype=np.int32)
    node_threshold = np.full(len(table.feature), 127, dtype=np.int8)
    by_feature = inner[np.argsort(table.feature[inner], kind="stable")]
    borders = np.searchsorted(table.feature[by_feature], columns)
    at = 0
    for slot, (column, nodes) in enumerate(zip(columns, np.split(by_feature, borders)[1:], strict=True)):
        # -0.0 and 0.0 are one cut: comparisons cannot tell them apart, and np.unique compares.
        values, position = np.unique(table.threshold[nodes], return_inverse=True)
        levels = max(1, len(values).bit_length())
        if levels > _LEVELS_MAX:
            return None
        tree = _search_tree(values, levels)
        missing_right = table.default_left[nodes] == 0
        key = position // CUTS_A_PLANE * 2 + missing_right
        used, which = np.unique(key, return_inverse=True)
        facts.append((int(column), levels, at, len(planes), len(used), 0))
        node_plane[nodes] = len(planes) + which
        node_threshold[nodes] = position % CUTS_A_PLANE - 127
        planes.extend((int(k) // 2 * CUTS_A_PLANE, 127 if k % 2 else -128) for k in used)
        plane_feature.extend([slot] * len(used))
        cuts.append(tree)
        at += len(tree)
    if len(planes) > PLANES_STACK_MAX:
        return None
    return Ranks(
        np.array(facts, dtype=np.int32).reshape(-1, 6),
        np.array(planes, dtype=np.int32).reshape(-1, 2),
        np.array(plane_feature, dtype=np.int32),
        np.concatenate(cuts) if cuts else np.full(2 * GROUP, np.nan, np.float32),
        node_plane,
        node_threshold,
    )


def _search_tree(values: np.ndarray, levels: int) -> np.ndarray:
    """Sorted cuts in breadth-first order, from index 1; NaN, which no x reaches, where there is none."""
    size = 1 << levels
    padded = np.full(size, np.nan, dtype=np.float32)
    padded[: len(values)] = values
    tree = np.full(max(size, 2 * GROUP), np.nan, dtype=np.float32)
    for level in range(levels):
        step = size >> (level + 1)
        tree[1 << level : 2 << level] = padded[step - 1 :: 2 * step][: 1 << level]
    return tree


@dataclass(frozen=True)
class Descriptor:
    """What a kernel is called with: `words` int64, some of them addresses of `arrays`, which must live as long."""

    words: np.ndarray
    arrays: tuple[np.ndarray, ...]
    depth: int
    planes: int

    @property
    def address(self) -> int:
        return int(self.words.ctypes.data)

    @property
    def byte_count(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def describe(table: Table, ranks: Ranks, first: int, last: int) -> Descriptor:
    """The descriptor of trees first … last - 1, padded to perfect trees of their greatest depth."""
    depth = max(DEPTH_MIN, int(table.depth[first:last].max()))
    plane, threshold, last_level = _perfect_trees(table, ranks, first, last, depth)
    leaves = table.value[last_level]
    # -0.0 is what changes no sum: -0.0 + 0.0 would be 0.0.
    leaves[last - first :] = -0.0
    narrow = ranks.plane_count <= ROW_PLANES_MAX
    node_plane = plane.astype(np.uint8) if narrow else np.zeros((0, 1 << depth), np.uint8)
    values: dict[str, int | np.ndarray] = {
        **_ranking(table, ranks),
        "trees": last - first,
        "nodes": _lane_nodes(plane, threshold),
        # A register of 16 floats is read at the last tree's leaves, whatever its depth.
        "leaves": np.concatenate([leaves.reshape(-1), np.zeros(GROUP, leaves.dtype)]),
        "node_plane": node_plane,
        "node_threshold": threshold if narrow else np.zeros((0, 1 << depth), np.int8),
        "mask_vectors": node_plane.size // LANES,
        **_columns_of_groups(ranks),
    }
    words, arrays = packed_words(_UNUSED | values, SCORING_WORDS)
    return Descriptor(words, arrays, depth, ranks.plane_count)


def describe_deep(table: Table, ranks: Ranks, first: int, last: int) -> Descriptor:
    """The descriptor of trees first … last - 1 for the deep kernel: DEEP_TOP levels padded, all nodes for the walk."""
    plane, threshold, entries = _perfect_trees(table, ranks, first, last, DEEP_TOP)
    start = int(table.root[first])
    end = int(table.root[last]) if last < table.tree_count else len(table.left)
    span = slice(start, end)
    walk = (
        ((table.left[span] - start).astype(np.uint64) << np.uint64(32))
        | ((ranks.node_plane[span] * LANES).astype(np.uint64) << np.uint64(8))
        | ranks.node_threshold[span].view(np.uint8).astype(np.uint64)
    )
    planes = max(1, ranks.plane_count)
    values: dict[str, int | np.ndarray] = {
        **_ranking(table, ranks),
        "trees": last - first,
        "nodes": _lane_nodes(plane, threshold),
        "rows_at_once": LANES * max(1, min(ROWS_AT_ONCE // LANES, PLANES_STACK_MAX // planes)),
        "entries": np.maximum(entries - start, 0).astype(np.int32),
        "steps": np.maximum(table.depth[first:last] - DEEP_TOP, 0).astype(np.int32),
        "walk_nodes": walk,
        "walk_values": table.value[span],
    }
    words, arrays = packed_words(_UNUSED | values, SCORING_WORDS)
    return Descriptor(words, arrays, int(table.depth[first:last].max()), ranks.plane_count)


def _ranking(table: Table, ranks: Ranks) -> dict[str, int | np.ndarray]:
    """What ranking a block of rows reads."""
    return {
        "row_stride": table.feature_count,
        "features": len(ranks.feature_table),
        "feature_table": ranks.feature_table,
        "plane_table": ranks.plane_table,
        "cuts": ranks.cuts,
        "planes": max(1, ranks.plane_count),
    }


def _lane_nodes(plane: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    nodes = np.empty((*plane.shape, 2), dtype=np.int32)
    nodes[..., 0] = plane * LANES
    nodes[..., 1] = (threshold.view(np.uint8).astype(np.uint32) * np.uint32(0x01010101)).view(np.int32)
    return nodes


def packed_words(
    values: dict[str, int | np.ndarray], names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """A descriptor's int64 words in the order of `names`, and the aligned copies of the arrays that they point at."""
    words = np.zeros(len(names), dtype=np.int64)
    arrays = []
    for place, name in enumerate(names):
        value = values[name]
        if isinstance(value, np.ndarray):
            arrays.append(_aligned(value))
            words[place] = arrays[-1].ctypes.data
        else:
            words[place] = value
    return words, tuple(arrays)


def _perfect_trees(
    table: Table, ranks: Ranks, first: int, last: int, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32, int8 and int32 [trees padded to a multiple of 8, 2^depth]: plane and threshold byte of every node in
    breadth-first order from index 1, and the table's nodes at that depth from left to right.

    A leaf above the last level is repeated below: its "nodes" never send a row right, and all its places lead to it.
    """
    trees, size = last - first, 1 << depth
    padded = -(-trees // 8) * 8
    plane = np.zeros((padded, size), dtype=np.int32)
    threshold = np.full((padded, size), 127, dtype=np.int8)
    last_level = np.zeros((padded, size), dtype=np.int32)
    at = np.zeros((padded, size), dtype=np.int32)
    at[:trees, 1] = table.root[first:last]
    for level in range(depth):
        here = at[:trees, 1 << level : 2 << level]
        plane[:trees, 1 << level : 2 << level] = ranks.node_plane[here]
        threshold[:trees, 1 << level : 2 << level] = ranks.node_threshold[here]
        right = np.where(table.feature[here] < 0, here, table.right[here])
        below = np.stack([table.left[here], right], axis=2).reshape(trees, -1)
        if level + 1 < depth:
            at[:trees, 2 << level : 4 << level] = below
        else:
            last_level[:trees] = below
    return plane, threshold, last_level


def _columns_of_groups(ranks: Ranks) -> dict[str, int | np.ndarray]:
    """The feature and plane tables column by column, padded to whole registers: what the row kernels read."""
    facts = _padded(ranks.feature_table)
    planes = _padded(ranks.plane_table)
    size = np.ones(len(facts), dtype=np.int32)
    size[: len(ranks.feature_table)] = 1 << ranks.feature_table[:, 1]
    return {
        "features_padded": len(facts),
        "column": facts[:, 0],
        "size": size,
        "offset": facts[:, 2],
        "levels_max": int(facts[:, 1].max()),
        "planes_padded": len(planes),
        "plane_feature": _padded(ranks.plane_feature),
        "plane_base": planes[:, 0],
        "plane_missing": planes[:, 1],
    }


def _padded(values: np.ndarray) -> np.ndarray:
    """`values` with zeros after them, up to a multiple of GROUP and at least one group."""
    padded = np.zeros((max(GROUP, -(-len(values) // GROUP) * GROUP), *values.shape[1:]), dtype=np.int32)
    padded[: len(values)] = values
    return padded


def with_stages(descriptor: Descriptor, ends: np.ndarray, bounds: np.ndarray) -> Descriptor:
    """The same trees with the stages of an early exit: ends int32 [stages], bounds float32 [stages, 2]."""
    words = descriptor.words.copy()
    arrays = _aligned(ends), _aligned(bounds)
    words[SCORING_WORDS.index("stages")] = len(ends)
    words[SCORING_WORDS.index("stage_end")] = arrays[0].ctypes.data
    words[SCORING_WORDS.index("stage_bounds")] = arrays[1].ctypes.data
    return Descriptor(words, descriptor.arrays + arrays, descriptor.depth, descriptor.planes)


def _aligned(values: np.ndarray) -> np.ndarray:
    """A read-only copy that begins at a multiple of 64 bytes, as 512-bit loads want."""
    raw = np.zeros(values.nbytes + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    copy.setflags(write=False)
    return copy
