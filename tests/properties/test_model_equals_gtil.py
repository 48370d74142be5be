"""LightGBM and scikit-learn models against treelite's interpreter (GTIL): the float32 nearest to its margin, by the
bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import treelite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorer.model import CompiledModel, ModelUnsupportedError

lgb = pytest.importorskip("lightgbm")
ensemble = pytest.importorskip("sklearn.ensemble")

FEATURES = 4
ODD = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.0]


def _data(seed: int, rows: int = 400, missing: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    X[:, 1] = np.round(X[:, 1])
    X[:, 2] = np.exp(3 * X[:, 2])
    X[rng.random(X.shape) < missing] = np.nan
    target = (np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 1]) + rng.normal(size=rows)) > 0.7
    return X, target.astype(int)


def _awkward(model: CompiledModel, seed: int, count: int, *, missing: bool = True) -> np.ndarray:
    """Ordinary rows, odd values, and each cut (which is where double thresholds meet float32 values) with its
    neighbours.
    """
    rng = np.random.default_rng(seed)
    rows = _data(seed + 1, count, 0.15 if missing else 0.0)[0]
    for column in range(FEATURES):
        cuts = model.table.threshold[model.table.feature == column]
        near = np.concatenate([cuts, np.nextafter(cuts, np.float32(np.inf)), np.nextafter(cuts, np.float32(-np.inf))])
        pool = np.concatenate([near, np.array(ODD, dtype=np.float32)])
        chosen = rng.random(count) < 0.5
        rows[chosen, column] = rng.choice(pool[~np.isnan(pool)] if not missing else pool, size=int(chosen.sum()))
    return rows


def _assert_equal(model: treelite.Model, compiled: CompiledModel, rows: np.ndarray) -> None:
    theirs = treelite.gtil.predict(model, rows, nthread=1, pred_margin=True)
    wanted = theirs.reshape(len(rows), -1)[:, -1].astype(np.float32)
    for vector in (True, False):
        twin = CompiledModel(compiled.table, vector=vector)
        for count in (len(rows), 3):
            ours = twin.margins(rows[:count])
            different = np.flatnonzero(ours != wanted[:count])
            assert not len(different), (
                f"vector {vector}: row {different[0]}: {ours[different[0]]!r} {wanted[different[0]]!r}"
            )


LIGHTGBM = st.fixed_dictionaries(
    {
        "num_leaves": st.sampled_from([2, 7, 31, 200]),
        "max_bin": st.sampled_from([3, 255, 4095]),
        "learning_rate": st.sampled_from([0.1, 1.0]),
        "boosting": st.sampled_from(["gbdt", "dart", "rf"]),
        "min_data_in_leaf": st.sampled_from([1, 20]),
        "use_missing": st.sampled_from([True, True, False]),
        "max_depth": st.sampled_from([-1, 4]),
        "seed": st.integers(0, 1_000),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parameters=LIGHTGBM, rounds=st.integers(1, 9))
def test_lightgbm_margin_equals_gtil(parameters: dict[str, Any], rounds: int) -> None:
    """A LightGBM text has GTIL's margins whatever it was trained with: dart, random forest, NaN or zero for missing."""
    X, target = _data(parameters["seed"])
    drawn = parameters | {
        "objective": "binary",
        "verbose": -1,
        "num_threads": 1,
        "bagging_freq": 1,
        "bagging_fraction": 0.7,
    }
    text = lgb.train(drawn, lgb.Dataset(X.astype(np.float64), target), rounds).model_to_string()
    compiled = CompiledModel.from_bytes(text.encode())
    _assert_equal(_lightgbm(text), compiled, _awkward(compiled, parameters["seed"], 150))


def _lightgbm(text: str) -> treelite.Model:
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.txt"
        path.write_text(text)
        return treelite.frontend.load_lightgbm_model(path)


CLASSIFIERS = {
    "random forest": lambda seed, depth: ensemble.RandomForestClassifier(7, max_depth=depth, random_state=seed),
    "extra trees": lambda seed, depth: ensemble.ExtraTreesClassifier(7, max_depth=depth, random_state=seed),
    "gradient boosting": lambda seed, depth: ensemble.GradientBoostingClassifier(
        n_estimators=7, max_depth=depth, random_state=seed
    ),
    "histogram boosting": lambda seed, depth: ensemble.HistGradientBoostingClassifier(
        max_iter=7, max_depth=depth, random_state=seed
    ),
    "forest of scores": lambda seed, depth: ensemble.RandomForestRegressor(7, max_depth=depth, random_state=seed),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("depth", [1, 3, 12])
def test_scikit_learn_margin_equals_gtil(kind: str, depth: int) -> None:
    """scikit-learn's ensembles, through treelite at training time, have GTIL's margins; deep ones and stumps too."""
    takes_missing = kind == "histogram boosting"
    X, target = _data(depth, 600, 0.15 if takes_missing else 0.0)
    fitted = CLASSIFIERS[kind](depth, depth)
    fitted.fit(X, target)
    model = treelite.sklearn.import_model(fitted)
    compiled = CompiledModel.from_treelite(model)
    rows = _awkward(compiled, depth, 200, missing=takes_missing)
    _assert_equal(model, compiled, rows)
    finite = rows[(np.abs(rows) < 1e6).all(axis=1)]  # scikit-learn sums a row to look for infinity
    if hasattr(fitted, "predict_proba"):
        assert np.allclose(compiled.scores(finite), fitted.predict_proba(finite)[:, 1], atol=1e-6)
    contributions = compiled.contributions(rows) if depth < 12 and not takes_missing else None
    if contributions is not None:
        assert np.allclose(contributions.sum(axis=1), compiled.margins(rows), atol=1e-5)


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("threshold", [0.1, 1.0, -0.0, 1e-50, -1e-50, 1e300, -1e300, float("inf"), 3.4028235e38])
@pytest.mark.parametrize("default_left", [True, False])
def test_every_comparison_with_a_double_is_exact(operator: str, threshold: float, default_left: bool) -> None:
    """Each operator against a double threshold decides as GTIL does, for the float32 around it and odd ones."""
    builder = treelite.model_builder.ModelBuilder(
        threshold_type="float64",
        leaf_output_type="float64",
        metadata=treelite.model_builder.Metadata(
            num_feature=1,
            task_type="kBinaryClf",
            average_tree_output=False,
            num_target=1,
            num_class=[1],
            leaf_vector_shape=(1, 1),
        ),
        tree_annotation=treelite.model_builder.TreeAnnotation(num_tree=1, target_id=[0], class_id=[0]),
        postprocessor=treelite.model_builder.PostProcessorFunc(name="sigmoid"),
        base_scores=[0.25],
    )
    builder.start_tree()
    builder.start_node(0)
    builder.numerical_test(
        feature_id=0,
        threshold=threshold,
        default_left=default_left,
        opname=operator,
        left_child_key=1,
        right_child_key=2,
    )
    builder.end_node()
    for node, leaf in ((1, -0.5), (2, 0.3)):
        builder.start_node(node)
        builder.leaf(leaf)
        builder.end_node()
    builder.end_tree()
    model = builder.commit()
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
        values = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)), *ODD]
    rows = np.array(values, dtype=np.float32).reshape(-1, 1)
    _assert_equal(model, CompiledModel.from_treelite(model), rows)


def test_what_is_not_served_is_named() -> None:
    """Several classes, categories and zero-as-missing are refused in words that name them."""
    X, target = _data(1)
    three = np.arange(len(target)) % 3
    quiet = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    multi = lgb.train({"objective": "multiclass", "num_class": 3} | quiet, lgb.Dataset(X, three), 1)
    with pytest.raises(ModelUnsupportedError, match="num_class is 3"):
        CompiledModel.from_bytes(multi.model_to_string().encode())
    rows = X.copy()
    rows[:, 3] = np.arange(len(rows)) % 5
    kind = np.isin(rows[:, 3], (1, 4)).astype(int)
    by_category = lgb.train({"objective": "binary"} | quiet, lgb.Dataset(rows, kind, categorical_feature=[3]), 1)
    with pytest.raises(ModelUnsupportedError, match="tree 0 splits on feature 3 by category"):
        CompiledModel.from_bytes(by_category.model_to_string().encode())
    zeros = lgb.train(
        {"objective": "binary", "zero_as_missing": True} | quiet, lgb.Dataset(np.nan_to_num(X), target), 1
    )
    with pytest.raises(ModelUnsupportedError, match="takes 0 as missing"):
        CompiledModel.from_bytes(zeros.model_to_string().encode())
    forest = ensemble.RandomForestClassifier(2, max_depth=2).fit(np.nan_to_num(X), three)
    with pytest.raises(ModelUnsupportedError, match="3 classes"):
        CompiledModel.from_treelite(treelite.sklearn.import_model(forest))
