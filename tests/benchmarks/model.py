"""The compiled model against xgboost, treelite's interpreter, tl2cgen and lleaves: one thread, one run, one JSON
object.

    python -m tests.benchmarks.model [--trees 300] [--depth 6] [--features 44] [--missing 0.1] [--max-bin 256] [--turns
    41]
    python -m tests.benchmarks.model --deep     1,000 trees of depth 12, as imported models have: xgboost alone

Every figure is a median of turns that alternate between the two sides, so that noise meets both; rows are plain float32
arrays, ranks and call overhead are included, and margins are compared by the bit before anything is timed. Libraries
that are not installed are reported as absent. `met` says whether the project's own goals are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import treelite
import xgboost as xgb

from scorer.bundle import Bundle, write_bundle
from scorer.model import CompiledModel
from scorer.model.early_exit import EarlyExit

BATCHES = (1, 16, 64, 4_096)
GOALS = {1: 40.0, 16: 12.0, 64: 8.0, 4_096: 8.0}
SHAP_GOAL, LOAD_GOAL_S = 3.0, 1.0
DEEP_TREES, DEEP_DEPTH, DEEP_GOAL = 1_000, 12, 8.0
TRAIN_ROWS = 20_000


def medians(calls: dict[str, Callable[[], Any]], turns: int, inner: int) -> dict[str, float]:
    """Seconds of one call of each, alternating."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(turns):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - started) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def data(rng: np.random.Generator, rows: int, features: int, missing: float) -> tuple[np.ndarray, np.ndarray]:
    X = rng.normal(size=(rows, features)).astype(np.float32)
    X[:, features // 2 :] = np.exp(X[:, features // 2 :])  # half of them with a long tail, as amounts have
    signal = X[:, :8] @ rng.normal(size=8) + 2 * X[:, 0] * X[:, 1] + rng.normal(scale=3, size=rows)
    X[rng.random(X.shape) < missing] = np.nan
    return X, (signal > np.quantile(signal, 0.9)).astype(np.float32)


def forest(arguments: argparse.Namespace, rng: np.random.Generator) -> Any:
    X, target = data(rng, TRAIN_ROWS, arguments.features, arguments.missing)
    parameters = {
        "objective": "binary:logistic", "max_depth": arguments.depth, "max_bin": arguments.max_bin, "eta": 0.05,
        "nthread": 2, "min_child_weight": 0.05,
    }  # fmt: skip
    booster = xgb.train(parameters, xgb.QuantileDMatrix(X, target, max_bin=arguments.max_bin), arguments.trees)
    booster.set_param({"nthread": 1})
    return booster


def against_xgboost(
    booster: Any, model: CompiledModel, rows: np.ndarray, turns: int, goals: dict[int, float] = GOALS
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in BATCHES:
        part = rows[:count].copy()
        theirs = booster.inplace_predict(part, predict_type="margin").astype(np.float32)
        equal = bool((model.margins(part).view(np.uint32) == theirs.view(np.uint32)).all())
        pair = {
            "xgboost": lambda part=part: booster.inplace_predict(part, predict_type="margin"),
            "ours": lambda part=part: model.margins(part),
        }
        spent = medians(pair, turns, 20 if count < 64 else 1)
        found[str(count)] = {
            "xgboost_us_row": spent["xgboost"] / count * 1e6, "ours_us_row": spent["ours"] / count * 1e6,
            "ratio": spent["xgboost"] / spent["ours"], "goal": goals[count], "bits_equal": equal,
        }  # fmt: skip
    return found


def against_treelite(raw: bytes, model: CompiledModel, rows: np.ndarray, turns: int) -> dict[str, Any]:
    other = treelite.frontend.from_xgboost_ubjson(raw)
    found: dict[str, Any] = {}
    for count in BATCHES:
        part = rows[:count].copy()
        pair = {
            "gtil": lambda part=part: treelite.gtil.predict(other, part, nthread=1, pred_margin=True),
            "ours": lambda part=part: model.margins(part),
        }
        spent = medians(pair, max(5, turns // 4), 1)
        found[str(count)] = {"gtil_us_row": spent["gtil"] / count * 1e6, "ratio": spent["gtil"] / spent["ours"]}
    return found


def against_tl2cgen(raw: bytes, model: CompiledModel, rows: np.ndarray, turns: int) -> dict[str, Any] | str:
    if importlib.util.find_spec("tl2cgen") is None:
        return "absent"
    import tl2cgen  # type: ignore[import-not-found]  # noqa: PLC0415

    other = treelite.frontend.from_xgboost_ubjson(raw)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        started = time.perf_counter()
        tl2cgen.export_lib(other, toolchain="gcc", libpath=str(library), params={"parallel_comp": 8})
        found["compile_s"] = time.perf_counter() - started
        predictor = tl2cgen.Predictor(str(library), nthread=1)
        for count in BATCHES:
            part = rows[:count].copy()
            pair = {
                "tl2cgen": lambda part=part: predictor.predict(tl2cgen.DMatrix(part), pred_margin=True),
                "ours": lambda part=part: model.margins(part),
            }
            spent = medians(pair, max(5, turns // 4), 1)
            found[str(count)] = {
                "tl2cgen_us_row": spent["tl2cgen"] / count * 1e6,
                "ratio": spent["tl2cgen"] / spent["ours"],
            }
    return found


def against_lleaves(arguments: argparse.Namespace, rng: np.random.Generator, rows: np.ndarray) -> dict[str, Any] | str:
    """lleaves takes LightGBM models: the same shape trained with LightGBM, ours from its text."""
    if importlib.util.find_spec("lleaves") is None or importlib.util.find_spec("lightgbm") is None:
        return "absent"
    import lightgbm as lgb  # noqa: PLC0415
    import lleaves  # type: ignore[import-not-found]  # noqa: PLC0415

    X, target = data(rng, TRAIN_ROWS, arguments.features, arguments.missing)
    parameters = {
        "objective": "binary", "verbose": -1, "max_depth": arguments.depth, "num_leaves": 1 << arguments.depth,
        "num_threads": 2, "min_sum_hessian_in_leaf": 0.05, "min_data_in_leaf": 1,
    }  # fmt: skip
    booster = lgb.train(parameters, lgb.Dataset(X, target), arguments.trees)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.txt"
        booster.save_model(path)
        model = CompiledModel.from_file(path)
        other = lleaves.Model(model_file=str(path))
        started = time.perf_counter()
        try:
            other.compile()
        except Exception as error:  # noqa: BLE001 - somebody else's library: what it says is the result
            return f"does not run here: {type(error).__name__}: {error}"
        found["compile_s"] = time.perf_counter() - started
        for count in BATCHES:
            part = rows[:count].copy()
            wide = part.astype(np.float64)
            pair = {
                "lleaves": lambda wide=wide: other.predict(wide, n_jobs=1, raw_score=True),
                "ours": lambda part=part: model.margins(part),
            }
            spent = medians(pair, max(5, arguments.turns // 4), 1)
            found[str(count)] = {
                "lleaves_us_row": spent["lleaves"] / count * 1e6, "ours_us_row": spent["ours"] / count * 1e6,
                "ratio": spent["lleaves"] / spent["ours"],
            }  # fmt: skip
    return found


def explaining(booster: Any, model: CompiledModel, rows: np.ndarray) -> dict[str, Any]:
    few = np.where(np.isinf(rows[:200]), np.float32(7), rows[:200]).astype(np.float32)
    matrix = xgb.DMatrix(few, nthread=1)
    theirs = booster.predict(matrix, pred_contribs=True)
    distance = float(
        (np.abs(model.contributions(few) - theirs) / np.maximum(1, np.abs(model.margins(few)))[:, None]).max()
    )
    pair = {
        "xgboost": lambda: booster.predict(matrix, pred_contribs=True),
        "ours": lambda: model.contributions(few),
    }
    spent = medians(pair, 3, 1)
    one = few[:1].copy()
    return {
        "xgboost_us_row": spent["xgboost"] / len(few) * 1e6, "ours_us_row": spent["ours"] / len(few) * 1e6,
        "ours_us_single": medians({"ours": lambda: model.contributions(one)}, 15, 1)["ours"] * 1e6,
        "ratio": spent["xgboost"] / spent["ours"], "goal": SHAP_GOAL, "distance_of_margin": distance,
    }  # fmt: skip


def exiting(model: CompiledModel, rows: np.ndarray, turns: int) -> dict[str, Any]:
    """Decisions without the rest of the trees, at a threshold that flags one row in a hundred."""
    margins = model.margins(rows)
    threshold = float(np.quantile(margins, 0.99))
    early = EarlyExit(model.table, threshold)
    flags, trees = early.decide(rows)
    spent = medians({"all": lambda: model.margins(rows), "early": lambda: early.decide(rows)}, turns, 1)
    return {
        "ratio": spent["all"] / spent["early"], "mean_trees": float(trees.mean()),
        "decisions_changed": int((flags != (margins >= np.float32(threshold))).sum()),
    }  # fmt: skip


def loading(arguments: argparse.Namespace, raw: bytes, booster: Any, rows: np.ndarray) -> dict[str, float]:
    names = "".join(
        f"  - {{name: f{i}, entity: customer, aggregate: count, window: {i + 1}m}}\n" for i in range(arguments.features)
    )
    text = f"name: cards\ncurrency: EUR\nentities: {{customer: [customer_id]}}\nfeatures:\n{names}"
    golden = rows[:256].copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        write_bundle(
            path, name="cards", created_at="2025-01-01T00:00:00Z", model=raw, feature_set_yaml=text,
            policy_yaml="name: cards\nflag: {score: 0.5}\n", threshold_score=0.5,
            golden=(golden, booster.inplace_predict(golden, predict_type="margin").astype(np.float32)),
        )  # fmt: skip
        spent = medians({"load": lambda: Bundle.load(path)}, 9, 1)
    return {"bundle_s": spent["load"], "goal_s": LOAD_GOAL_S}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The compiled model's speed")
    for name, default in (("trees", 300), ("depth", 6), ("features", 44), ("max-bin", 256), ("turns", 41), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--missing", type=float, default=0.1)
    parser.add_argument("--deep", action="store_true")
    arguments = parser.parse_args()
    if arguments.deep:
        arguments.trees, arguments.depth = DEEP_TREES, DEEP_DEPTH
    rng = np.random.default_rng(arguments.seed)
    booster = forest(arguments, rng)
    raw = bytes(booster.save_raw("ubj"))
    started = time.perf_counter()
    model = CompiledModel.from_bytes(raw)
    first_load_s = time.perf_counter() - started
    rows = data(rng, 8_192, arguments.features, arguments.missing)[0]
    shape = {
        "trees": model.tree_count, "depth": int(model.table.depth.max()), "features": model.feature_count,
        "nodes": model.table.node_count, "vector_trees": model.plan.vector_trees,
        "table_bytes": model.plan.byte_count,
    }  # fmt: skip
    if arguments.deep:
        goals = dict.fromkeys(BATCHES, DEEP_GOAL)
        deep = against_xgboost(booster, model, rows, min(arguments.turns, 11), goals)
        met = all(item["ratio"] >= item["goal"] and item["bits_equal"] for item in deep.values())
        print(json.dumps({"model": shape, "xgboost": deep, "first_model_s": first_load_s, "met": met}))
        return
    report: dict[str, Any] = {
        "model": shape,
        "xgboost": against_xgboost(booster, model, rows, arguments.turns),
        "treelite_gtil": against_treelite(raw, model, rows, arguments.turns),
        "tl2cgen": against_tl2cgen(raw, model, rows, arguments.turns),
        "lleaves": against_lleaves(arguments, rng, rows),
        "shap": explaining(booster, model, rows),
        "early_exit": exiting(model, rows, arguments.turns),
        "load": loading(arguments, raw, booster, rows) | {"first_model_s": first_load_s},
    }  # fmt: skip
    report["met"] = (
        all(item["ratio"] >= item["goal"] and item["bits_equal"] for item in report["xgboost"].values())
        and report["shap"]["ratio"] >= SHAP_GOAL
        and report["load"]["bundle_s"] < LOAD_GOAL_S
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
