"""A LightGBM text: its names, and the same trees with columns of choice."""

from __future__ import annotations

import re

import numpy as np

from scorer.model import CompiledModel, ModelFormatError, ModelUnsupportedError
from scorer.model.calibration import Calibration
from scorer.model_import.source_model import Placement, SourceModel

_UNNAMED = re.compile(r"^Column_\d+$")
_SIGMOID = re.compile(r"^objective=binary sigmoid:(\S+)[ \t]*\r?$", re.MULTILINE)
# Whose score is a probability; a bundle's own models may be others.
_OBJECTIVES = ("binary", "cross_entropy")
_DEFAULT_LEFT, _MISSING_SHIFT, _MISSING_NAN = 2, 2, 2
_TAIL = "end of trees\n\nfeature_importances:\n\nparameters:\n\nend of parameters\n\npandas_categorical:null\n"
_PERMUTED = ("feature_infos", "monotone_constraints")


def read_lightgbm(data: bytes) -> SourceModel:
    """Read and check. Raises ModelFormatError or ModelUnsupportedError.

    LightGBM's own file ends with the best iteration (`save_model`), so nothing is left to cut off.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError("the LightGBM model is not UTF-8") from error
    text, calibration = _unit_sigmoid(text.replace("\r\n", "\n"))
    model = CompiledModel.from_bytes(text.encode(), vector=False)
    names = (_header_value(text, "feature_names") or "").split()
    objective = (_header_value(text, "objective") or "").split(" ")[0]
    if objective not in _OBJECTIVES:
        raise ModelUnsupportedError(
            f"the LightGBM model: objective {objective[:60]!r} gives no probability of fraud; train with binary"
        )
    if names and len(names) != model.feature_count:
        raise ModelFormatError(f"the LightGBM model has {model.feature_count} features and {len(names)} feature_names")
    if all(_UNNAMED.match(name) for name in names):
        names = []
    decisions = [int(word) for line in re.findall(r"^decision_type=(.*)$", text, re.MULTILINE) for word in line.split()]
    return SourceModel(
        kind="LightGBM",
        data=data,
        feature_count=model.feature_count,
        names=names or None,
        rounds=model.tree_count,
        best_rounds=None,
        tells_missing=any(kind >> _MISSING_SHIFT == _MISSING_NAN for kind in decisions),
        bundle_file="model.txt",
        placed=lambda placement, _: _placed(text, placement),
        calibration=calibration,
    )


def _unit_sigmoid(text: str) -> tuple[str, Calibration]:
    """The text with sigmoid 1, and the curve that gives the scores of the sigmoid it had: the margins are the same."""
    found = _SIGMOID.search(text)
    if found is None:
        return text, Calibration()
    try:
        slope = float(found[1])
    except ValueError as error:
        raise ModelFormatError("the LightGBM model: sigmoid is not a number") from error
    if not 0 < slope <= 1e6:
        raise ModelUnsupportedError(f"the LightGBM model: sigmoid {slope:g} is not served; train with sigmoid 1")
    if slope == 1:
        return text, Calibration()
    changed = text[: found.start()] + "objective=binary sigmoid:1" + text[found.end() :]
    return changed, Calibration(kind="platt", slope=slope, intercept=0.0)


def _header_value(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}=(.*)$", text.split("\nTree=", 1)[0], re.MULTILINE)
    return None if found is None else found[1]


def _placed(text: str, placement: Placement) -> bytes:
    header, *parts = re.split(r"^(?=Tree=)", text, flags=re.MULTILINE)
    parts[-1] = parts[-1].split("end of trees")[0]
    trees = [_tree(part, placement) for part in parts]
    # The place that each of the feature set's columns had in the model.
    order = np.argsort(placement.position)
    header = _replaced(header, "feature_names", " ".join(placement.names))
    for name in _PERMUTED:
        words = (_header_value(text, name) or "").split()
        if len(words) == len(order):
            header = _replaced(header, name, " ".join(words[i] for i in order))
    header = _replaced(header, "tree_sizes", " ".join(str(len(tree.encode())) for tree in trees))
    return (header + "".join(trees) + _TAIL).encode()


def _tree(part: str, placement: Placement) -> str:
    features = _numbers(part, "split_feature")
    if not features:
        return part
    part = _replaced(part, "split_feature", " ".join(str(placement.position[int(word)]) for word in features))
    if placement.filled is None:
        return part
    filled = float(placement.filled)
    kinds = [
        _MISSING_NAN << _MISSING_SHIFT | (_DEFAULT_LEFT if filled <= float(cut) else 0)
        for cut in _numbers(part, "threshold")
    ]
    return _replaced(part, "decision_type", " ".join(map(str, kinds)))


def _numbers(part: str, name: str) -> list[str]:
    found = re.search(rf"^{name}=(.*)$", part, re.MULTILINE)
    return [] if found is None else found[1].split()


def _replaced(part: str, name: str, value: str) -> str:
    return re.sub(rf"^{name}=.*$", lambda _: f"{name}={value}", part, count=1, flags=re.MULTILINE)
