"""TreeSHAP against its definition: Shapley values by enumerating every subset of features."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scorer.model import CompiledModel
from scorer.model.tree_table import Table

xgb = pytest.importorskip("xgboost")


def _expectation(table: Table, node: int, row: np.ndarray, known: frozenset[int]) -> float:
    """The tree's value where features outside `known` are averaged by training cover."""
    feature = int(table.feature[node])
    if feature < 0:
        return float(table.value[node])
    children = int(table.left[node]), int(table.right[node])
    if feature in known:
        x = row[feature]
        goes_left = bool(table.default_left[node]) if np.isnan(x) else x < table.threshold[node]
        return _expectation(table, children[0 if goes_left else 1], row, known)
    return sum(_expectation(table, child, row, known) * table.cover[child] / table.cover[node] for child in children)


def _shapley(table: Table, row: np.ndarray) -> np.ndarray:
    count = table.feature_count
    out = np.zeros(count + 1)
    out[-1] = float(table.base_margin)
    for root in table.root:
        value = {
            subset: _expectation(table, int(root), row, frozenset(subset))
            for size in range(count + 1)
            for subset in itertools.combinations(range(count), size)
        }
        out[-1] += value[()]
        for feature in range(count):
            for subset, without in value.items():
                if feature not in subset:
                    weight = (
                        math.factorial(len(subset)) * math.factorial(count - len(subset) - 1) / math.factorial(count)
                    )
                    out[feature] += weight * (value[tuple(sorted((*subset, feature)))] - without)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_contributions_are_shapley_values(seed: int) -> None:
    """Contributions equal the mean marginal effect over all subsets, with missing values and repeated features."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(400, 4)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    target = (np.nan_to_num(rows[:, 0]) * np.nan_to_num(rows[:, 1]) + np.nan_to_num(rows[:, 2]) > 0.3).astype(
        np.float32
    )
    parameters = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1, "seed": seed, "min_child_weight": 0}
    booster = xgb.train(parameters, xgb.DMatrix(rows, target, nthread=1), 4)
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    ours = model.contributions(rows[:12])
    for index in range(12):
        # Sums of hessians are float32 in the file, so a parent's cover is its children's to 1e-6 only.
        assert np.allclose(ours[index], _shapley(model.table, rows[index]), atol=2e-6)


def test_contributions_touch_nothing_else() -> None:
    """Rows are explained one by one: explaining them together changes no bit."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(200, 4)).astype(np.float32)
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1},
        xgb.DMatrix(rows, (rows[:, 0] > 0).astype(np.float32), nthread=1),
        5,
    )
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    together = model.contributions(rows)
    apart = np.concatenate([model.contributions(rows[i : i + 1]) for i in range(len(rows))])
    assert (together == apart).all()
