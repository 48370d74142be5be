"""Reading an xgboost model: treelite reads the trees, scorer.model.xgboost_document the rest; the two are compared."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numba
import numpy as np
import treelite

from scorer.model import xgboost_document
from scorer.model.model_errors import ModelFormatError, ModelUnsupportedError, library_reason
from scorer.model.tree_table import FEATURES_MAX, TREES_MAX, RawTree, Table, Tree, join, lower_tree

_FLOAT32 = 2  # treelite's TypeInfo::kFloat32
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
    if not facts.tree_count:  # no round of training: every margin is the base; treelite reads no such file
        return join([], facts.feature_count, base)
    # The model object must outlive the reading: its fields are views into memory that it owns.
    model = _read_treelite(data if facts.tree_weights is None else xgboost_document.without_tree_weights(document))
    _check_header(model, facts)
    trees = [_lower_tree(model, index, facts.feature_count) for index in range(facts.tree_count)]
    if facts.tree_weights is not None:
        trees = [_weigh(tree, base, weight) for tree, weight in zip(trees, facts.tree_weights, strict=True)]
    return join(trees, facts.feature_count, base)


def checked_base(computed: np.float32, stored: np.float32) -> np.float32:
    allowed = 4 * float(np.spacing(np.abs(computed)))
    if not abs(float(computed) - float(stored)) <= allowed:
        raise ModelFormatError(f"the stored base margin {stored} is not the model's own, {computed}")
    return stored


def _read_treelite(data: bytes) -> Any:
    try:
        # treelite prints its reason as well, with the place in its source.
        with contextlib.redirect_stdout(io.StringIO()):
            if xgboost_document.is_ubj(data):
                return treelite.frontend.from_xgboost_ubjson(data)
            return treelite.frontend.from_xgboost_json(data)
    except UnicodeDecodeError as error:  # treelite quotes the file in its message, and may cut a character in two
        raise ModelFormatError("treelite refuses the model, for a reason that is not readable as text") from error
    except treelite.TreeliteError as error:
        raise ModelFormatError(f"treelite refuses the model: {library_reason(error)}") from error


def _check_header(model: Any, facts: xgboost_document.ModelFacts) -> None:
    header = model.get_header_accessor()

    def field(name: str) -> np.ndarray:
        return np.asarray(header.get_field(name)).copy()

    if model.num_tree != facts.tree_count:
        raise ModelFormatError(f"treelite read {model.num_tree} trees, the file declares {facts.tree_count}")
    if int(field("num_feature")[0]) != facts.feature_count:
        raise ModelFormatError(
            f"treelite read {field('num_feature')[0]} features, the file declares {facts.feature_count}"
        )
    if field("threshold_type")[0] != _FLOAT32 or field("leaf_output_type")[0] != _FLOAT32:
        raise ModelUnsupportedError("thresholds or leaves are not float32")
    if (field("leaf_vector_shape") > 1).any():
        raise ModelUnsupportedError("leaves are vectors: multi-class and multi-target models are not served")
    for name in ("target_id", "class_id"):
        other = np.flatnonzero(field(name) != 0)
        if len(other):
            raise ModelUnsupportedError(
                f"tree {other[0]} has {name} {field(name)[other[0]]}; multi-class models are not served"
            )


def _lower_tree(model: Any, index: int, feature_count: int) -> Tree:
    accessor = model.get_tree_accessor(index)

    def field(name: str, dtype: type) -> np.ndarray:
        return np.array(accessor.get_field(name), dtype=dtype)

    if accessor.get_field("has_categorical_split")[0]:
        categorical = np.flatnonzero(field("node_type", np.int8) == 2)
        feature = field("split_index", np.int32)[categorical[0]] if len(categorical) else -1
        raise ModelUnsupportedError(
            f"tree {index} splits on feature {feature} by category, which is not served; encode it as a number"
        )
    left = field("cleft", np.int64)
    raw = RawTree(
        left=left,
        right=field("cright", np.int64),
        feature=field("split_index", np.int32),
        threshold=field("threshold", np.float32),
        operator=field("cmp", np.int8),
        default_left=field("default_left", np.uint8),
        value=field("leaf_value", np.float32),
        # An absent hessian sum (older writers) leaves zeros: margins work, explanations are refused by name.
        cover=field("sum_hess", np.float64) if len(accessor.get_field("sum_hess")) else np.zeros(len(left)),
    )
    return lower_tree(raw, index, feature_count)


def _weigh(tree: Tree, base: np.float32, weight: np.float32) -> Tree:
    """A dart tree with its weight in its leaves, rounded the way inplace_predict rounds.

    xgboost predicts each dart tree apart, from the base margin, then takes that margin off again and adds weight x
    rest.
    """
    with np.errstate(over="ignore"):  # an overflow is refused with the sum of all leaves
        rest = (base + tree.value).astype(np.float32) - base
        value = np.where(tree.feature < 0, rest * weight, np.float32(0)).astype(np.float32)
    return Tree(tree.depth, tree.feature, tree.threshold, tree.left, tree.right, tree.default_left, value, tree.cover)
