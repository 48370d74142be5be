"""`bundle compile`: change a model by one lever, measure before and after on held-out rows, write the new bundle."""

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
from scorer.model.calibration import fit_platt
from scorer.model.early_exit import EarlyExit
from scorer.model.tree_table import Table
from scorer.training import average_precision, import_xgboost, threshold_for_share, versions
from scorer.training.compiled_booster import CompiledBooster

ROWS_MIN, FRAUDS_MIN = 200, 5


@dataclass(frozen=True)
class _Changed:
    """What a lever made of a bundle's model: an xgboost model file and its calibration; `detail` is for the report."""

    lever: str
    data: bytes
    calibration: Calibration
    detail: dict[str, Any]


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
    changed = _Changed(
        f"quantise-leaves-{bits}", xgboost_bytes(source, table), bundle.manifest.calibration, {"bits": bits}
    )
    return _written(bundle, path, output, changed, X, truth, created_at=created_at)


def prune(
    path: Path, output: Path, X: np.ndarray, truth: np.ndarray, *, loss: float, created_at: str, accept: bool = False
) -> Compiled:
    """Trees left out at the end, then sibling leaves merged, as far as average precision on the rows falls by at most
    `loss`.

    Every other row chooses, the rest measure. Where the measuring rows lose more than `loss` nothing is written and
    PromiseBroken is raised, unless `accept`. Raises UsageError or BundleError too.
    """
    if not 0.0 <= loss < 1.0:
        raise UsageError(f"--loss {loss}: average precision may fall by 0 to 1; give a value such as 0.005")
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
    # Pruning moves all margins: the calibration is fitted again.
    curve = fit_platt(CompiledModel(table).margins(here), there.astype(np.float64))
    detail = {"loss_allowed": loss, "trees_after_truncation": short.tree_count, "nodes_after_merging": table.node_count}
    changed = _Changed("prune", xgboost_bytes(source, table), curve, detail)
    rest, loss_max = np.ascontiguousarray(X[~chosen]), None if accept else loss
    return _written(bundle, path, output, changed, rest, truth[~chosen], created_at=created_at, loss_max=loss_max)


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
    return _written(bundle, path, output, _Changed("distil", data, curve, detail), later, there, created_at=created_at)


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


def _refuse_loss(before: Measure, after: Measure, loss_max: float, truth: np.ndarray) -> None:
    lost = before.average_precision - after.average_precision
    if lost > loss_max:
        raise PromiseBroken(
            f"on the {len(truth):,} measuring rows ({int(truth.sum()):,} frauds) average precision fell by {lost:.4g}, "
            f"more than the {loss_max:g} of --loss that holds on the choosing rows; nothing was written: give a "
            "smaller --loss, more rows, or --accept-loss"
        )


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


def _written(
    bundle: Bundle,
    path: Path,
    output: Path,
    changed: _Changed,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    created_at: str,
    loss_max: float | None = None,
) -> Compiled:
    """Measure the changed model beside the bundle's own on rows float32 [n, k] with truth bool [n], and write it.

    Raises PromiseBroken, and writes nothing, where average precision falls by more than `loss_max`.
    """
    xgboost, curve = import_xgboost(), changed.calibration
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(changed.data))
    compiled = CompiledBooster.of(xgboost, booster, threads=1)
    data, model = compiled.raw, compiled.model
    scores = curve.apply(model.margins(X), model.link)
    score = bundle.policy.flag.score
    threshold = threshold_for_share(scores, float(bundle.policy.flag.share or 0)) if score is None else score
    manifest = bundle.manifest
    old = checked(path, manifest.model_file, manifest.files[manifest.model_file])
    before = measure(old, bundle.model, manifest.calibration, float(bundle.threshold_margin), X, truth)
    after = measure(data, model, curve, float(curve.margin_for(threshold, model.link)), X, truth)
    if loss_max is not None:
        _refuse_loss(before, after, loss_max, truth)
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
        golden=compiled.golden(X),
        training=manifest.training,
        metrics={
            "average_precision": after.average_precision,
            "auc": after.auc,
            "average_precision_before": before.average_precision,
            "auc_before": before.auc,
            "rows": float(len(X)),
            "frauds": float(truth.sum()),
        },
        versions=versions() | {"lever": changed.lever, "from": bundle.id},
    )
    flags = [m.margins(X) >= b for m, b in ((bundle.model, bundle.threshold_margin), (model, made.threshold_margin))]
    return Compiled(
        bundle_id=made.id,
        lever=changed.lever,
        before=before,
        after=after,
        rows=len(X),
        frauds=int(truth.sum()),
        decisions_changed=int((flags[0] != flags[1]).sum()),
        score_distance_max=float(np.abs(scores - bundle.scores(bundle.model.margins(X))).max()),
        detail=changed.detail,
    )
