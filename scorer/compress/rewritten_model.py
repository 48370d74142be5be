"""A changed table written back as an xgboost model: a lever's result passes the same gate as any model file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from scorer.errors import UsageError
from scorer.model.tree_table import Table
from scorer.model.xgboost_document import is_ubj, read_document

_NO_PARENT = 2_147_483_647


def is_xgboost(data: bytes) -> bool:
    """Whether the bytes are an xgboost model (JSON or UBJ)."""
    return is_ubj(data) or data[:1] == b"{"


def require_xgboost(source: bytes, table: Table) -> None:
    """Raise UsageError for a model file, or a table of one, that no lever can rewrite."""
    if not is_xgboost(source) or table.wide:
        raise UsageError("this lever works on xgboost models; the bundle holds a LightGBM or treelite model")


def xgboost_bytes(source: bytes, table: Table) -> bytes:
    """The xgboost model `source` with the trees of `table`, as JSON. Dart weights are in the table's leaves already.

    Raises UsageError for a source of another kind: its margins are added in another order.
    """
    require_xgboost(source, table)
    document = read_document(source)
    learner = document["learner"]
    trees = [_tree(table, index) for index in range(table.tree_count)]
    model = {
        "gbtree_model_param": {"num_trees": str(len(trees)), "num_parallel_tree": "1"},
        "iteration_indptr": list(range(len(trees) + 1)),
        "tree_info": [0] * len(trees),
        "trees": trees,
        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
    }
    # Gains and attributes (such as the best iteration) belong to the former trees.
    kept = {key: value for key, value in learner.items() if key not in ("attributes", "gradient_booster")}
    changed = {**kept, "attributes": {}, "gradient_booster": {"model": model, "name": "gbtree"}}
    return json.dumps({**document, "learner": changed}, default=_plain, allow_nan=True).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a model document")


def _tree(table: Table, index: int) -> dict[str, Any]:
    start = int(table.root[index])
    end = int(table.root[index + 1]) if index + 1 < table.tree_count else len(table.left)
    span = slice(start, end)
    count = end - start
    inner = table.feature[span] >= 0
    left = np.where(inner, table.left[span] - start, -1)
    right = np.where(inner, table.right[span] - start, -1)
    parents = np.full(count, _NO_PARENT, dtype=np.int64)
    nodes = np.flatnonzero(inner)
    parents[left[nodes]] = nodes
    parents[right[nodes]] = nodes
    conditions = np.where(inner, table.threshold[span], table.value[span])
    return {
        "base_weights": [float(value) for value in table.value[span]],
        "categories": [], "categories_nodes": [], "categories_segments": [], "categories_sizes": [],
        "default_left": np.where(inner, table.default_left[span], 0).astype(int).tolist(),
        "id": index,
        "left_children": left.tolist(),
        "loss_changes": [0.0] * count,
        "parents": parents.tolist(),
        "right_children": right.tolist(),
        "split_conditions": [float(value) for value in conditions],
        "split_indices": np.maximum(table.feature[span], 0).tolist(),
        "split_type": [0] * count,
        "sum_hessian": [float(value) for value in table.cover[span]],
        "tree_param": {
            "num_deleted": "0", "num_feature": str(table.feature_count), "num_nodes": str(count),
            "size_leaf_vector": "1",
        },
    }  # fmt: skip


def first_trees(table: Table, trees: int) -> Table:
    """The table cut to its first trees."""
    end = int(table.root[trees]) if trees < table.tree_count else len(table.left)
    names = ("feature", "threshold", "left", "right", "default_left", "value", "cover")
    cut: dict[str, Any] = {name: getattr(table, name)[:end] for name in names}
    return replace(table, root=table.root[:trees], depth=table.depth[:trees], **cut)
