"""`bundle compile`: pull one lever, measure before and after on held-out rows, write the new bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorer.bundle import Bundle, Calibration, write_bundle
from scorer.bundle.bundle_folder import checked
from scorer.bundle.manifest import FEATURE_SET, POLICY
from scorer.compress import tree_levers
from scorer.compress.distillation import distil
from scorer.compress.model_figures import Measure, measure, seconds
from scorer.compress.rewritten_model import xgboost_bytes
from scorer.errors import PromiseBroken, UsageError
from scorer.model import CompiledModel
from scorer.model.calibrate import fit_platt
from scorer.model.early import EarlyExit
from scorer.model.table import Table
from scorer.training import average_precision, import_xgboost, threshold_for_share, versions

_GOLDEN_ROWS = 256
ROWS_MIN, FRAUDS_MIN = 200, 5


@dataclass(frozen=True)
class Compiled:
    """What a lever did."""

    bundle_id: str
    lever: str
    before: Measure
    after: Measure
    rows: int
    frauds: int
    decisions_changed: int
    score_distance_max: float
    detail: dict[str, Any]


def quantise(path: Path, output: Path, X: np.ndarray, truth: np.ndarray, *, bits: int, created_at: str) -> Compiled:
    """Leaves on a grid of `bits` bits. The calibration stays. Raises UsageError or BundleError."""
    bundle, source = _open(path, X, truth)
    table = tree_levers.quantise_leaves(bundle.model.table, bits)
    data = xgboost_bytes(source, table)
    return _finish(
        bundle,
        path,
        output,
        f"quantise-leaves-{bits}",
        data,
        bundle.manifest.calibration,
        X,
        truth,
        created_at,
        {"bits": bits},
    )


def prune(
    path: Path, output: Path, X: np.ndarray, truth: np.ndarray, *, loss: float, created_at: str, accept: bool = False
) -> Compiled:
    """Trees left out at the end, then sibling leaves merged, as far as average precision on the rows falls by at most
    `loss`.

    The rows are cut in two by turns: one half chooses, the other measures, and may lose more than the half that chose.
    Then nothing is written, unless `accept`. Raises UsageError, BundleError, or PromiseBroken for that.
    """
    if not 0.0 <= loss < 1.0:
        raise UsageError(f"--loss {loss}: average precision may fall by 0 to 1, .005 say")
    bundle, source = _open(path, X, truth)
    chosen = np.arange(len(X)) % 2 == 0
    if min(int(truth[chosen].sum()), int(truth[~chosen].sum())) < FRAUDS_MIN:
        raise UsageError(f"each half of the rows needs {FRAUDS_MIN} frauds: one chooses, the other measures")
    here, there = np.ascontiguousarray(X[chosen]), truth[chosen]

    def quality(table: Table) -> float:
        return average_precision(there, CompiledModel(table).margins(here).astype(np.float64))

    full = bundle.model.table
    least = quality(full) - loss
    short = tree_levers.truncate(full, quality, least)
    table = tree_levers.merge_leaves(short, quality, least)
    data = xgboost_bytes(source, table)
    # What was left out moved all margins: the line from margin to probability is drawn anew.
    curve = fit_platt(CompiledModel(table).margins(here), there.astype(np.float64))
    detail = {"loss_allowed": loss, "trees_after_truncation": short.tree_count, "nodes_after_merging": table.node_count}
    return _finish(
        bundle, path, output, "prune", data, curve, np.ascontiguousarray(X[~chosen]), truth[~chosen], created_at,
        detail, loss_max=None if accept else loss,
    )  # fmt: skip


def student(
    path: Path, output: Path, X: np.ndarray, truth: np.ndarray, *, trees: int, depth: int, seed: int, created_at: str
) -> Compiled:
    """A small student of the bundle's scores. The earlier half of the rows teaches, the later one measures."""
    if not (1 <= trees <= 1_000 and 1 <= depth <= 8):
        raise UsageError(f"--trees {trees} --depth {depth}: 1 to 1,000 trees of depth 1 to 8")
    bundle, _ = _open(path, X, truth)
    border = len(X) // 2
    data, curve = distil(bundle, X[:border], trees=trees, depth=depth, seed=seed, threads=2)
    later, there = np.ascontiguousarray(X[border:]), truth[border:]
    teacher = bundle.scores(bundle.model.margins(later))
    own = curve.apply(CompiledModel.from_bytes(data).margins(later), "logistic")
    detail = {
        "student_trees": trees,
        "student_depth": depth,
        "score_correlation": float(np.corrcoef(_ranks(teacher), _ranks(own))[0, 1]),
    }
    return _finish(bundle, path, output, "distil", data, curve, later, there, created_at, detail)


def early_exit(path: Path, X: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What early exit saves at the bundle's threshold, and that every decision is the same. Writes nothing."""
    bundle, _ = _open(path, X, truth)
    early = EarlyExit(bundle.model.table, float(bundle.threshold_margin))
    flags, trees = early.decide(X)
    wanted = bundle.model.margins(X) >= bundle.threshold_margin
    plain = seconds(lambda: bundle.model.margins(X))
    ours = seconds(lambda: early.decide(X))
    return {
        "bundle": bundle.id,
        "lever": "early-exit",
        "rows": len(X),
        "trees": early.tree_count,
        "mean_trees": float(trees.mean()),
        "decisions_changed": int((flags != wanted).sum()),
        "batch_us_before": plain / len(X) * 1e6,
        "batch_us_after": ours / len(X) * 1e6,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(size) - (size - 1) / 2.0)[group])


def _open(path: Path, X: np.ndarray, truth: np.ndarray) -> tuple[Bundle, bytes]:
    bundle = Bundle.load(path)
    if X.shape[1] != bundle.model.feature_count:
        raise UsageError(f"the rows have {X.shape[1]} features, the bundle {bundle.model.feature_count}")
    if len(X) < ROWS_MIN or int(truth.sum()) < FRAUDS_MIN:
        raise UsageError(
            f"{len(X)} rows with {int(truth.sum())} frauds are too few to measure on: "
            f"{ROWS_MIN} and {FRAUDS_MIN} at least"
        )
    name = bundle.manifest.model_file
    return bundle, checked(path, name, bundle.manifest.files[name])


def _finish(
    bundle: Bundle,
    path: Path,
    output: Path,
    lever: str,
    data: bytes,
    curve: Calibration,
    X: np.ndarray,
    truth: np.ndarray,
    created_at: str,
    detail: dict[str, Any],
    *,
    loss_max: float | None = None,
) -> Compiled:
    source = import_xgboost().Booster({"nthread": 1})
    source.load_model(bytearray(data))
    data = bytes(source.save_raw("ubj"))
    model = CompiledModel.from_bytes(data)
    few = np.ascontiguousarray(X[np.linspace(0, len(X) - 1, min(_GOLDEN_ROWS, len(X))).astype(np.int64)])
    golden = few, np.asarray(source.inplace_predict(few, predict_type="margin"), dtype=np.float32)
    scores = curve.apply(model.margins(X), model.link)
    score = bundle.policy.flag.score
    threshold = threshold_for_share(scores, float(bundle.policy.flag.share or 0)) if score is None else score
    manifest = bundle.manifest
    old = checked(path, manifest.model_file, manifest.files[manifest.model_file])
    before = measure(old, bundle.model, manifest.calibration, float(bundle.threshold_margin), X, truth)
    after = measure(data, model, curve, float(curve.margin_for(threshold, model.link)), X, truth)
    lost = before.average_precision - after.average_precision
    if loss_max is not None and lost > loss_max:
        raise PromiseBroken(
            f"on the {len(X):,} rows that measure ({int(truth.sum()):,} frauds) average precision fell by {lost:.4g}, "
            f"more than the {loss_max:g} of --loss that the choosing rows kept to; nothing was written: give a smaller "
            "--loss, more rows, or --accept-loss"
        )
    read = {name: checked(path, name, manifest.files[name]).decode() for name in (FEATURE_SET, POLICY)}
    made = write_bundle(
        output,
        name=manifest.name,
        created_at=created_at,
        model=data,
        feature_set_yaml=read[FEATURE_SET],
        policy_yaml=read[POLICY],
        threshold_score=float(threshold),
        calibration=curve,
        golden=golden,
        training=manifest.training,
        metrics={
            "average_precision": after.average_precision,
            "auc": after.auc,
            "average_precision_before": before.average_precision,
            "auc_before": before.auc,
            "rows": float(len(X)),
            "frauds": float(truth.sum()),
        },
        versions=versions() | {"lever": lever, "from": bundle.id},
    )
    flags = [m.margins(X) >= b for m, b in ((bundle.model, bundle.threshold_margin), (model, made.threshold_margin))]
    return Compiled(
        bundle_id=made.id,
        lever=lever,
        before=before,
        after=after,
        rows=len(X),
        frauds=int(truth.sum()),
        decisions_changed=int((flags[0] != flags[1]).sum()),
        score_distance_max=float(np.abs(scores - bundle.scores(bundle.model.margins(X))).max()),
        detail=detail,
    )
