"""An xgboost model as the packed table: scorer.model.xgboost_document reads it, and here its base and weights apply."""

from __future__ import annotations

import math

import numba
import numpy as np

from scorer.model import xgboost_document
from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError
from scorer.model.tree_table import FEATURES_MAX, TREES_MAX, Table, Tree, join, lower_tree

_BASE_SCORE_MIN = np.float32(1e-6)  # xgboost keeps a probability this far from 0 and 1 before the logit


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
    document = xgboost_document.read_document(data)
    facts = xgboost_document.read_facts(document)
    if facts.tree_count > TREES_MAX:
        raise ModelUnsupportedError(f"the model has {facts.tree_count} trees; at most {TREES_MAX} are served")
    if not 1 <= facts.feature_count <= FEATURES_MAX:
        raise ModelUnsupportedError(f"the model has {facts.feature_count} features; 1 to {FEATURES_MAX} are served")
    base = base_margin(facts.base_score)
    if stored_base_margin is not None:
        base = checked_base(base, np.float32(stored_base_margin))
    if not facts.tree_count:  # no round of training: every margin is the base
        return join([], facts.feature_count, base)
    trees = [
        lower_tree(raw, index, facts.feature_count) for index, raw in enumerate(xgboost_document.read_trees(document))
    ]
    if facts.tree_weights is not None:
        trees = [_weigh(tree, base, weight) for tree, weight in zip(trees, facts.tree_weights, strict=True)]
    return join(trees, facts.feature_count, base)


def checked_base(computed: np.float32, stored: np.float32) -> np.float32:
    allowed = 4 * float(np.spacing(np.abs(computed)))
    if not abs(float(computed) - float(stored)) <= allowed:
        raise ModelFormatError(f"the stored base margin {stored} is not the model's own, {computed}")
    return stored


def _weigh(tree: Tree, base: np.float32, weight: np.float32) -> Tree:
    """A dart tree with its weight in its leaves, rounded the way inplace_predict rounds.

    xgboost predicts each dart tree apart, from the base margin, then takes that margin off again and adds weight x
    rest.
    """
    with np.errstate(over="ignore"):  # an overflow is refused with the sum of all leaves
        rest = (base + tree.value).astype(np.float32) - base
        value = np.where(tree.feature < 0, rest * weight, np.float32(0)).astype(np.float32)
    return Tree(tree.depth, tree.feature, tree.threshold, tree.left, tree.right, tree.default_left, value, tree.cover)
