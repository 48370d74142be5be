"""The compiled model against xgboost: margins by the bit, contributions within 1e-5, over odd models and rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scorer.model import CompiledModel

xgb = pytest.importorskip("xgboost")

FEATURES = 4
ODD = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45, 1e-38, 3.4028235e38, -3.4028235e38, 1.0]

PARAMETERS = st.fixed_dictionaries(
    {
        "max_depth": st.sampled_from([1, 2, 3, 6, 9, 12]),
        "grow_policy": st.sampled_from(["depthwise", "lossguide"]),
        "max_leaves": st.sampled_from([0, 2, 5, 17]),
        "tree_method": st.sampled_from(["hist", "exact", "approx"]),
        "max_bin": st.sampled_from([2, 16, 256, 1024, 4096]),
        "booster": st.sampled_from(["gbtree", "gbtree", "dart"]),
        "eta": st.sampled_from([0.01, 0.3, 1.0]),
        "gamma": st.sampled_from([0.0, 0.0, 1.0, 1e9]),
        "min_child_weight": st.sampled_from([0.0, 1.0, 20.0]),
        "num_parallel_tree": st.sampled_from([1, 1, 3]),
        "seed": st.integers(0, 1_000),
    },
    optional={
        "base_score": st.floats(1e-9, 1 - 1e-7),
        "monotone_constraints": st.just("(1,-1,0,0)"),
        "rate_drop": st.sampled_from([0.3, 0.9]),
        "scale_pos_weight": st.sampled_from([0.1, 50.0]),
    },
)


def _clean(parameters: dict[str, Any]) -> dict[str, Any]:
    drawn = dict(parameters)
    if drawn["booster"] != "dart":
        drawn.pop("rate_drop", None)
    if drawn["tree_method"] == "exact":  # knows neither lossguide nor bins
        for name in ("max_leaves", "max_bin"):
            drawn.pop(name)
        drawn["grow_policy"] = "depthwise"
    return drawn | {"objective": "binary:logistic", "nthread": 1, "verbosity": 0}


def _rows(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, FEATURES)).astype(np.float32)
    rows[:, 1] = np.round(rows[:, 1])  # few values, many ties with cuts
    rows[:, 2] = np.exp(3 * rows[:, 2])  # a long tail, as amounts have
    rows[rng.random(rows.shape) < 0.15] = np.nan
    return rows


def _train(parameters: dict[str, Any], rounds: int) -> Any:
    rng = np.random.default_rng(parameters["seed"])
    rows = _rows(rng, 300)
    target = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 1]) * np.isnan(rows[:, 3]) + rng.normal(size=300)) > 1
    return xgb.train(_clean(parameters), xgb.DMatrix(rows, target.astype(np.float32), nthread=1), rounds)


def _awkward(model: CompiledModel, rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of ordinary values, odd values, and each feature's own cuts with their float neighbours."""
    rows = _rows(rng, count)
    table = model.table
    for column in range(FEATURES):
        cuts = table.threshold[table.feature == column]
        near = np.concatenate([cuts, np.nextafter(cuts, np.float32(np.inf)), np.nextafter(cuts, np.float32(-np.inf))])
        pool = np.concatenate([near, np.array(ODD, dtype=np.float32)])
        chosen = rng.random(count) < 0.5
        rows[chosen, column] = rng.choice(pool, size=int(chosen.sum()))
    return rows


def _assert_equal_bits(booster: Any, model: CompiledModel, rows: np.ndarray) -> None:
    theirs = booster.inplace_predict(rows, predict_type="margin").astype(np.float32)
    ours = model.margins(rows)
    different = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
    assert not len(different), (
        f"{len(different)} rows, first {different[0]}: {ours[different[0]]!r} {theirs[different[0]]!r}"
    )
    few = rows[:7]  # fewer rows go through the other kernel
    assert (model.margins(few).view(np.uint32) == theirs[:7].view(np.uint32)).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parameters=PARAMETERS, rounds=st.integers(1, 12), kind=st.sampled_from(["ubj", "json"]))
def test_margin_equals_inplace_predict(parameters: dict[str, Any], rounds: int, kind: str) -> None:
    """Whatever the training parameters, every margin is the float32 that xgboost computes, bit for bit."""
    booster = _train(parameters, rounds)
    model = CompiledModel.from_bytes(bytes(booster.save_raw(kind)))
    _assert_equal_bits(booster, model, _awkward(model, np.random.default_rng(rounds), 203))


# One leaf of 2,792 beside one of 0: shares of 61 and 2,717 cancel to a margin of -13.8.
CANCELLING = {
    "max_depth": 1, "grow_policy": "depthwise", "max_leaves": 0, "tree_method": "hist", "max_bin": 256,
    "booster": "gbtree", "eta": 1.0, "gamma": 0.0, "min_child_weight": 0.0, "num_parallel_tree": 1, "seed": 0,
    "base_score": 1e-9, "scale_pos_weight": 50.0,
}  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parameters=PARAMETERS, rounds=st.integers(1, 8))
@example(parameters=CANCELLING, rounds=1)
def test_contributions_equal_xgboost(parameters: dict[str, Any], rounds: int) -> None:
    """Contributions are xgboost's pred_contribs, and sum to the margin, within 1e-5 of the largest of them."""
    booster = _train(parameters, rounds)
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    rows = _awkward(model, np.random.default_rng(rounds), 40)
    rows[np.isinf(rows)] = 7.0  # a DMatrix takes no infinity
    margins = model.margins(rows).astype(np.float64)
    ours = model.contributions(rows)
    # xgboost adds float32 values and stores covers as float32: what that rounds off is measured by the largest share,
    # which may be much larger than a margin in which shares cancel.
    scale = 1e-5 * np.maximum(np.maximum(1.0, np.abs(margins)), np.abs(ours).max(axis=1))
    theirs = booster.predict(xgb.DMatrix(rows, nthread=1), pred_contribs=True)
    assert (np.abs(ours - theirs) <= scale[:, None]).all()
    assert (np.abs(ours.sum(axis=1) - margins) <= scale).all()


@settings(max_examples=60, deadline=None)
@given(score=st.floats(2.0**-40, 1 - 2.0**-24, width=32))
def test_base_margin_equals_xgboost(score: float) -> None:
    """The margin before the first tree is xgboost's own for any base_score, its clip at 1e-6 included."""
    rows = np.zeros((20, 1), dtype=np.float32)
    parameters = {"objective": "binary:logistic", "base_score": score, "eta": 0, "nthread": 1, "verbosity": 0}
    booster = xgb.train(parameters, xgb.DMatrix(rows, np.arange(20) % 2, nthread=1), 1)
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    assert model.margins(rows[:1])[0] == booster.inplace_predict(rows[:1], predict_type="margin")[0]


@pytest.mark.parametrize(
    ("parameters", "rounds"),
    [
        ({"max_depth": 1}, 40),
        ({"max_depth": 6, "max_bin": 4096}, 40),
        (
            {"max_depth": 0, "grow_policy": "lossguide", "max_leaves": 120, "min_child_weight": 0.0, "reg_lambda": 0.0},
            9,
        ),
        ({"max_depth": 12, "min_child_weight": 0.0, "reg_lambda": 0.0, "eta": 0.1}, 20),
        ({"max_depth": 12, "min_child_weight": 0.0, "max_bin": 4096, "eta": 0.1}, 20),
        ({"max_depth": 0, "grow_policy": "lossguide", "max_leaves": 60, "min_child_weight": 0.0, "eta": 0.1}, 40),
        ({"booster": "dart", "rate_drop": 0.5, "normalize_type": "forest"}, 30),
        ({"gamma": 1e12}, 3),
        ({"base_score": 0.25, "max_delta_step": 0.7}, 20),
    ],
    ids=[
        "stumps",
        "many cuts",
        "deep and uneven",
        "deep",
        "deep with many cuts",
        "depths of all kinds",
        "dart",
        "one leaf each",
        "base score given",
    ],
)
def test_named_shapes(parameters: dict[str, Any], rounds: int) -> None:
    """The shapes that have broken evaluators before: stumps, chains, bare leaves, dart, thousands of cuts."""
    rng = np.random.default_rng(5)
    rows = _rows(rng, 3_000)
    target = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 1]) > 1.5).astype(np.float32)
    drawn = {"objective": "binary:logistic", "nthread": 1, "seed": 1} | parameters
    booster = xgb.train(drawn, xgb.DMatrix(rows, target, nthread=1), rounds)
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    _assert_equal_bits(booster, model, _awkward(model, rng, 1_003))
