"""Distillation: a small student learns the teacher's scores; a curve that never falls maps its margins onto them.

For degraded mode and small devices. The student's label is the teacher's calibrated probability, which carries more
information than 0 or 1; the isotonic curve gives its score the meaning of the teacher's.
"""

from __future__ import annotations

import numpy as np

from scorer.bundle import Bundle, Calibration
from scorer.model import CompiledModel
from scorer.model.calibration import fit_isotonic
from scorer.training import import_xgboost

_MAX_BIN = 1_024


def distil(
    teacher: Bundle, X: np.ndarray, *, trees: int, depth: int, seed: int, threads: int
) -> tuple[bytes, Calibration]:
    """The student's xgboost model (UBJ) and its calibration, from rows float32 [n, k]; no label is needed.

    The first four fifths of the rows teach the student, the rest fit the curve. Raises TrainError without xgboost.
    """
    xgboost = import_xgboost()
    scores = teacher.scores(teacher.model.margins(X))
    border = max(1, len(X) * 4 // 5)
    data = xgboost.QuantileDMatrix(
        X[:border],
        scores[:border].astype(np.float32),
        feature_names=teacher.feature_set.names,
        nthread=threads,
        max_bin=_MAX_BIN,
    )
    parameters = {
        "objective": "binary:logistic",
        "max_depth": depth,
        "eta": min(0.3, 6.0 / trees),
        "tree_method": "hist",
        "max_bin": _MAX_BIN,
        "seed": seed,
        "nthread": threads,
    }
    booster = xgboost.train(parameters, data, trees)
    raw = bytes(booster.save_raw("ubj"))
    rest = slice(border, None) if border < len(X) else slice(None)
    margins = CompiledModel.from_bytes(raw).margins(X[rest])
    return raw, fit_isotonic(margins, scores[rest])
