"""What the kernels and the tables that they read agree on: register widths, limits, and the words of a descriptor."""

from __future__ import annotations

LANES = 64  # rows of one block: one byte each fills a 512-bit register, or four 128-bit ones
GROUP = 16  # float32 lanes of a 512-bit register
DEPTH_MIN = 3  # eight nodes a tree: eight trees fill a register of 64 bytes
DEPTH_MAX = 8  # a perfect tree of depth 8 is 2 KiB of nodes; twice as deep would be 512 KiB
ROW_PLANES_MAX = 256  # the row kernel's index of a plane is a byte
DEEP_TOP = 6  # levels of a deeper tree that are decided in byte lanes; the rest is walked
DEEP_SIDE_BY_SIDE = 8  # walks in flight
CUTS_A_PLANE = 254  # ranks 0..254 in bytes -127..127; -128 stays free for "missing goes left"

# A descriptor is an array of int64 words, pointers among them, in this order; every kernel is called with one.
SCORING_WORDS = (
    "row_stride",  # float32 from one row to the next
    "features",  # features that some tree splits on
    "feature_table",  # int32 [features, 6]: column, levels, offset of its cuts, first plane, planes, unused
    "plane_table",  # int32 [planes, 2]: first cut of the block, byte of a missing value
    "cuts",  # float32: per feature its cuts in breadth-first order of the search tree, from index 1
    "planes",
    "trees",
    "nodes",  # int32 [trees, 2^depth, 2]: byte offset of the plane, threshold byte four times; index 0 unused
    "leaves",  # float32 or float64 [trees, 2^depth]
    "node_plane",  # uint8 [trees * 2^depth, padded to 64]
    "node_threshold",  # int8, as node_plane
    "mask_vectors",  # node_plane's length / 64
    "features_padded",  # features, padded to 16
    "column",  # int32 [features_padded]
    "size",  # int32 [features_padded]: 2^levels
    "offset",  # int32 [features_padded]
    "levels_max",
    "planes_padded",  # planes, padded to 16
    "plane_feature",  # int32 [planes_padded]
    "plane_base",  # int32 [planes_padded]
    "plane_missing",  # int32 [planes_padded]
    "rows_at_once",  # deep trees: rows that pass over one tree before the next, a multiple of 64
    "entries",  # int32 [trees, 2^DEEP_TOP]: the node that a walk begins at
    "steps",  # int32 [trees]: of a walk from there to the tree's last level
    # uint64 [n]: left child in the upper half (a leaf: itself), then the plane's byte offset (24 bits), threshold byte
    "walk_nodes",
    "walk_values",  # float32 or float64 [n]: read for leaves
    "stages",  # early exit: how often the sums are compared with the bounds
    "stage_end",  # int32 [stages]: trees added by then
    "stage_bounds",  # float32 [stages, 2]: a sum below the first is decided, and one at or above the second
)

CONTRIBUTION_WORDS = (
    "row_stride",
    "points",  # quadrature points
    "trees",
    "tree",  # int32 [trees, 2]: first node and nodes
    # int32 [n, 4]: left child (counted in its tree; 0 for a leaf), slot of the feature, the node that the former split
    # on it led to (-1 for none), 1 where missing goes left
    "nodes",
    "threshold",  # float32 [n]
    # float64 [n, points, 3]: row goes this way; it does not; it did not at the feature's former split already
    "factors",
    "shares",  # float64 [n, points, 2]: row goes this way; it does not
    "features",  # slots: features that some tree splits on
    "columns",  # int32 [slots]
    "out_stride",
)
CONTRIBUTION_FEATURES_MAX = 2_048  # 64 bytes of sums and 32 of values a slot, on the stack
