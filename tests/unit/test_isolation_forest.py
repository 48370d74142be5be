"""An isolation forest sets apart what is unlike the rest, and its margins are the path lengths of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.compress.isolation_forest import isolation_forest, path_length
from scorer.model import CompiledModel
from scorer.model.tree_table import Table


def rows(seed: int, count: int, missing: float = 0.0) -> np.ndarray:
    """A cloud of payments, float32 [count, 4], whose first five are far from it."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(count, 4)).astype(np.float32)
    X[:5] += np.float32(9)
    X[random.random(X.shape) < missing] = np.nan
    X[:5] = np.nan_to_num(X[:5], nan=9)
    return X


def walked(table: Table, row: np.ndarray) -> float:
    """Mean number of cuts until a row is alone or its tree ends, with the paper's c(n) for what is still together."""
    lengths = []
    for root in table.root.tolist():
        node, depth = root, 0
        while table.feature[node] >= 0:
            value = row[table.feature[node]]
            left = table.default_left[node] if np.isnan(value) else value < table.threshold[node]
            node, depth = int(table.left[node] if left else table.right[node]), depth + 1
        lengths.append(depth + path_length(int(table.cover[node])))
    return float(np.mean(lengths))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_margin_is_minus_the_mean_path_length(missing: float) -> None:
    """In units of c(256), missing values on the side that each cut has drawn for them; no path is longer than that of a
    balanced tree, and every row of a sample is in one leaf."""
    X = rows(1, 600, missing)
    table = isolation_forest(X, trees=30, seed=2)
    margins = CompiledModel(table).margins(X)
    expected = [-walked(table, row) / path_length(256) for row in X]
    np.testing.assert_allclose(margins, expected, rtol=1e-5)
    assert table.depth.max() == 8
    assert table.cover[table.feature < 0].sum() == 30 * 256


def test_what_is_unlike_the_rest_comes_first() -> None:
    """The five far away have the largest margins, scores well above the paper's half, and most others are below it."""
    X = rows(3, 2_000)
    margins = CompiledModel(isolation_forest(X, trees=100, seed=1)).margins(X)
    assert set(np.argsort(-margins)[:5].tolist()) == set(range(5))
    assert margins[:5].min() > -0.5
    assert np.median(margins[5:]) < -1


def test_it_ranks_as_another_implementation_does() -> None:
    """scikit-learn's isolation forest orders the same rows nearly alike."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    X = rows(4, 2_000)
    ours = CompiledModel(isolation_forest(X, trees=300, seed=1)).margins(X)
    theirs = -ensemble.IsolationForest(n_estimators=300, max_samples=256, random_state=0).fit(X).score_samples(X)
    np.testing.assert_allclose(np.log2(theirs), ours, atol=0.15)
    assert np.corrcoef(np.argsort(np.argsort(ours)), np.argsort(np.argsort(theirs)))[0, 1] > 0.97


def test_the_same_rows_and_seed_give_the_same_forest() -> None:
    """Another seed gives another one."""
    X = rows(5, 400)
    first, again, other = (isolation_forest(X, trees=5, seed=seed) for seed in (1, 1, 2))
    assert (first.value == again.value).all()
    assert (first.threshold.tobytes(), first.left.tobytes()) == (again.threshold.tobytes(), again.left.tobytes())
    assert first.threshold.tobytes() != other.threshold.tobytes()


@pytest.mark.parametrize(
    "X",
    [
        np.full((50, 3), np.nan, np.float32),
        np.full((50, 3), 7, np.float32),
        np.zeros((1, 3), np.float32),
        np.array([[1, np.nan, 0], [np.nextafter(np.float32(1), np.float32(2)), np.nan, 0]], np.float32),
        np.array([[-3e38, 1, 1], [3e38, 1, 1], [0, 1, 1]], np.float32),
    ],
    ids=["all missing", "all alike", "one row", "neighbouring numbers", "the largest numbers"],
)
def test_rows_that_can_hardly_be_cut_make_a_sound_forest(X: np.ndarray) -> None:
    """Their margins are finite, and rows that differ are set apart."""
    model = CompiledModel(isolation_forest(X, trees=9, seed=1))
    assert np.isfinite(model.margins(X)).all()
    assert (model.table.depth.max() > 0) == (len(np.unique(X[~np.isnan(X).all(axis=1)], axis=0)) > 1)
