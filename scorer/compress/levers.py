"""`bundle compile`: change a model by one lever, measure before and after on held-out rows, write the new bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scorer.bundle import Bundle, Calibration, TrainingWindow, write_bundle
from scorer.bundle.bundle_folder import checked
from scorer.bundle.manifest import FEATURE_SET, POLICY
from scorer.compress import tree_levers
from scorer.compress.distillation import distil
from scorer.compress.held_out import Decided, Payments, threshold_of
from scorer.compress.isolation_forest import SAMPLE_ROWS, isolation_forest
from scorer.compress.model_figures import Measure, measure, seconds
from scorer.compress.rewritten_model import first_trees, require_xgboost, xgboost_bytes
from scorer.errors import PromiseBroken, UsageError
from scorer.model import CompiledModel
from scorer.model.calibration import fit_platt
from scorer.model.early_exit import EarlyExit
from scorer.model.tree_table import Table
from scorer.training import average_precision, import_xgboost, versions
from scorer.training.compiled_booster import CompiledBooster

ROWS_MIN, FRAUDS_MIN = 200, 5
UNCALIBRATED = (
    "the scores are no probabilities: on the rows that calibrate they do not rise with the share of frauds, so nothing "
    "could be calibrated"
)
_NEW_TREES = ("distil", "isolation-forest")


@dataclass(frozen=True)
class Changed:
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
    payments_decided: int
    """Those without a known label too: what is flagged and what changes is of all of them."""
    decisions_changed: int
    score_distance_max: float
    detail: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def quantised(bundle: Bundle, source: bytes, bits: int) -> Changed:
    """Leaves on a grid of `bits` bits; the calibration stays. `source`: the bundle's model file. Raises UsageError."""
    table = tree_levers.quantise_leaves(bundle.model.table, bits)
    return Changed(f"quantise-leaves-{bits}", xgboost_bytes(source, table), bundle.manifest.calibration, {"bits": bits})


def pruned(
    bundle: Bundle, source: bytes, quality: Callable[[Table], float], loss: float,
    calibrated: Callable[[Table], Calibration],
) -> Changed:  # fmt: skip
    """Trees left out at the end, then sibling leaves merged, as far as `quality` falls by at most `loss`; `calibrated`
    gives the curve of what is left. Raises UsageError."""
    full = bundle.model.table
    least = quality(full) - loss
    short = tree_levers.truncate(full, quality, least)
    table = tree_levers.merge_leaves(short, quality, least)
    detail = {"loss_allowed": loss, "trees_after_truncation": short.tree_count, "nodes_after_merging": table.node_count}
    return Changed("prune", xgboost_bytes(source, table), calibrated(table), detail)


def shortened(bundle: Bundle, source: bytes, trees: int, calibrated: Callable[[Table], Calibration]) -> Changed:
    """The first `trees` trees, which correct the most; `calibrated` gives the curve of what is left. Raises
    UsageError."""
    check(bundle, "first-trees", source, trees=trees)
    table = first_trees(bundle.model.table, trees)
    return Changed("first-trees", xgboost_bytes(source, table), calibrated(table), {"trees_kept": trees})


def taught(bundle: Bundle, X: np.ndarray, *, trees: int, depth: int, seed: int) -> Changed:
    """A small student of the bundle's scores on rows float32 [n, k]."""
    data, curve = distil(bundle, X, trees=trees, depth=depth, seed=seed, threads=2)
    return Changed("distil", data, curve, {"student_trees": trees, "student_depth": depth})


def isolated(
    bundle: Bundle, source: bytes, X: np.ndarray, calibrated: Callable[[Table], Calibration], *, trees: int, seed: int
) -> Changed:
    """An isolation forest of rows float32 [n, k] in place of the model; `calibrated` gives its curve. Raises
    UsageError."""
    # The file keeps the base score of `source`; the curve takes it in.
    table = replace(isolation_forest(X, trees=trees, seed=seed), base_margin=bundle.model.table.base_margin)
    detail = {"forest_trees": trees, "rows_a_tree": min(SAMPLE_ROWS, len(X))}
    return Changed("isolation-forest", xgboost_bytes(source, table), calibrated(table), detail)


def precision_of(X: np.ndarray, truth: np.ndarray) -> Callable[[Table], float]:
    """Average precision of a table on rows float32 [n, k] with truth bool [n]."""
    return lambda table: average_precision(truth, CompiledModel(table).margins(X).astype(np.float64))


# Of what follows `until_ms` is the first time after the rows: the new bundle's manifest says that it has seen them.


def quantise(
    path: Path,
    output: Path,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    bits: int,
    created_at: str,
    until_ms: int | None = None,
    payments: Payments | None = None,
) -> Compiled:
    """Leaves on a grid of `bits` bits. The calibration stays. Raises UsageError or BundleError."""
    bundle, source = _open(path, X, truth)
    check(bundle, "quantise-leaves", source, bits=bits)
    own = None if bundle.policy.flag.score is not None else until_ms  # then no row has a part in the bundle
    changed, decided = quantised(bundle, source, bits), payments or Payments.all_of(X)
    return _written(bundle, path, output, changed, X, truth, decided, created_at=created_at, until_ms=own)


def prune(
    path: Path,
    output: Path,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    loss: float,
    created_at: str,
    until_ms: int | None = None,
    payments: Payments | None = None,
    accept: bool = False,
) -> Compiled:
    """Trees left out at the end, then sibling leaves merged, as far as average precision on the rows falls by at most
    `loss`.

    The earlier half of the rows chooses, the later one measures. Where the measuring rows lose more than `loss` nothing
    is written and PromiseBroken is raised, unless `accept`. Raises UsageError or BundleError too.
    """
    bundle, source = _open(path, X, truth)
    check(bundle, "prune", source, loss=loss)
    earlier, later = _halves(truth)
    if min(int(truth[earlier].sum()), int(truth[later].sum())) < FRAUDS_MIN:
        raise UsageError(f"each half of the rows needs {FRAUDS_MIN} frauds: one chooses, the other measures")
    here, there = np.ascontiguousarray(X[earlier]), truth[earlier]
    # Pruning moves all margins: the calibration is fitted again.
    changed = pruned(bundle, source, precision_of(here, there), loss, refitted(here, there))
    rest, loss_max = np.ascontiguousarray(X[later]), None if accept else loss
    _, decided = (payments or Payments.all_of(X)).halves(later.start)
    return _written(
        bundle, path, output, changed, rest, truth[later], decided,
        created_at=created_at, until_ms=until_ms, loss_max=loss_max,
    )  # fmt: skip


def shorten(
    path: Path,
    output: Path,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    trees: int,
    created_at: str,
    until_ms: int | None = None,
    payments: Payments | None = None,
) -> Compiled:
    """The first `trees` trees: a small model, such as a student for degraded mode. The earlier half of the rows
    calibrates it, the later one measures."""
    bundle, source = _open(path, X, truth)
    _, later = _halves(truth)
    calibrating, decided = (payments or Payments.all_of(X)).halves(later.start)
    changed = shortened(bundle, source, trees, as_the_whole(bundle, calibrating.X))
    rest = np.ascontiguousarray(X[later])
    return _written(
        bundle, path, output, changed, rest, truth[later], decided, created_at=created_at, until_ms=until_ms
    )


def halves(rows: int) -> tuple[slice, slice]:
    """Of rows in order of time the earlier half, which chooses, and the later half, which measures: in the commands and
    in the report."""
    return slice(rows // 2), slice(rows // 2, None)


def as_the_whole(bundle: Bundle, X: np.ndarray) -> Callable[[Table], Calibration]:
    """The curve of the first trees: their scores mean what the whole model's do, on rows float32 [n, k]."""
    return refitted(X, bundle.scores(bundle.model.margins(X)))


def refitted(X: np.ndarray, target: np.ndarray) -> Callable[[Table], Calibration]:
    """A calibration fitted again on rows float32 [n, k] with target [n] in [0, 1]: labels, or probabilities."""
    return lambda table: fit_platt(CompiledModel(table).margins(X), target.astype(np.float64))


def student(
    path: Path,
    output: Path,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    trees: int,
    depth: int,
    seed: int,
    created_at: str,
    until_ms: int | None = None,
    payments: Payments | None = None,
) -> Compiled:
    """A small student of the bundle's scores. The earlier half of the rows teaches, the later one measures."""
    bundle, source = _open(path, X, truth)
    check(bundle, "distil", source, trees=trees, depth=depth)
    _, rest = _halves(truth)
    teaching, decided = (payments or Payments.all_of(X)).halves(rest.start)
    changed = taught(bundle, teaching.X, trees=trees, depth=depth, seed=seed)
    later, there = np.ascontiguousarray(X[rest]), truth[rest]
    teacher = bundle.scores(bundle.model.margins(later))
    own = changed.calibration.apply(CompiledModel.from_bytes(changed.data).margins(later), "logistic")
    changed.detail["score_correlation"] = float(np.corrcoef(_ranks(teacher), _ranks(own))[0, 1])
    return _written(bundle, path, output, changed, later, there, decided, created_at=created_at, until_ms=until_ms)


def isolate(
    path: Path,
    output: Path,
    X: np.ndarray,
    truth: np.ndarray,
    *,
    trees: int,
    seed: int,
    created_at: str,
    until_ms: int | None = None,
    payments: Payments | None = None,
) -> Compiled:
    """An isolation forest with the bundle's features, as a challenger that has learned from no label. It and its curve
    are made of the earlier half of the rows, the later one measures. Raises UsageError or BundleError."""
    bundle, source = _open(path, X, truth)
    check(bundle, "isolation-forest", source, trees=trees)
    earlier, later = _halves(truth)
    if int(truth[earlier].sum()) < FRAUDS_MIN:
        raise UsageError(f"the earlier half of the rows needs {FRAUDS_MIN} frauds: they give the scores their meaning")
    here, rest = np.ascontiguousarray(X[earlier]), np.ascontiguousarray(X[later])
    cut, decided = (payments or Payments.all_of(X)).halves(later.start)
    changed = isolated(bundle, source, cut.X, refitted(here, truth[earlier]), trees=trees, seed=seed)
    if changed.calibration.kind == "identity":
        raise UsageError(
            "no isolation forest is written: in the earlier half of the rows frauds look no more unusual than other "
            "payments, so its scores would mean nothing; choose features in which they do"
        )
    return _written(
        bundle, path, output, changed, rest, truth[later], decided, created_at=created_at, until_ms=until_ms
    )


def early_exit(path: Path, X: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What early exit saves at the bundle's threshold, and that every decision is the same. Writes nothing."""
    bundle, source = _open(path, X, truth)
    check(bundle, "early-exit", source)
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


def check(
    bundle: Bundle, lever: str, source: bytes, *, bits: int = 8, loss: float = 0.0, trees: int = 1, depth: int = 1
) -> None:
    """Raise UsageError or TrainError for what no payments are needed to know: options out of range, a bundle that the
    lever, as `Changed.lever` names it, does not work on, no xgboost. `source`: the bundle's model file."""
    if lever == "early-exit":
        _check_early_exit(bundle)
        return
    import_xgboost()
    if lever == "distil":
        if not (1 <= trees <= 1_000 and 1 <= depth <= 8):
            raise UsageError(f"--trees {trees} --depth {depth}: 1 to 1,000 trees of depth 1 to 8")
        return
    check_loss(loss)
    tree_levers.check_bits(bits)
    if lever == "first-trees" and not 1 <= trees <= bundle.model.tree_count:
        raise UsageError(f"--first-trees {trees}: {bundle.id} has {bundle.model.tree_count} trees; give 1 to as many")
    if lever == "isolation-forest" and not 1 <= trees <= 1_000:
        raise UsageError(f"--trees {trees}: 1 to 1,000 trees")
    if lever != "report":  # there each lever says it of itself
        require_xgboost(source, bundle.model.table)


def check_loss(loss: float) -> None:
    """Raise UsageError for a loss of average precision that none can be."""
    if not 0.0 <= loss < 1.0:
        raise UsageError(f"--loss {loss}: average precision may fall by 0 to 1; give a value such as 0.005")


def _check_early_exit(bundle: Bundle) -> None:
    if bundle.policy.flag.cost is not None:
        raise UsageError(
            f"{bundle.id} flags by cost: how many trees decide depends on each amount; early exit needs flag: "
            "{score: …} or {share: …}"
        )
    if bundle.policy.segments:
        raise UsageError(
            f"{bundle.id} has segments with thresholds of their own; early exit needs one threshold for all: give a "
            "bundle whose policy has no segments"
        )
    EarlyExit(bundle.model.table, float(bundle.threshold_margin))


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
    _require_genuine(truth, "the rows")
    return bundle, source_of(bundle, path)


def source_of(bundle: Bundle, path: Path) -> bytes:
    """The model file of the bundle in folder `path`."""
    name = bundle.manifest.model_file
    return checked(path, name, bundle.manifest.files[name])


def _halves(truth: np.ndarray) -> tuple[slice, slice]:
    """As `halves`, of rows with truth bool [n]. Raises UsageError where the later one cannot measure."""
    earlier, later = halves(len(truth))
    if not truth[later].any():
        raise UsageError("no fraud in the later half of the rows, which measures: give rows of a longer time")
    _require_genuine(truth[later], "the later half of the rows, which measures")
    return earlier, later


def _require_genuine(truth: np.ndarray, which: str) -> None:
    if truth.all():
        raise UsageError(
            f"no genuine payment in {which}, {len(truth):,} frauds alone: nothing can be measured; where frauds "
            "alone are reported give --genuine-after 60d"
        )


def _window(before: TrainingWindow | None, lever: str, until_ms: int | None) -> TrainingWindow | None:
    """The account of the rows used, up to `until_ms`: the changed model has seen them, so none of them can measure it.
    Its trees have learned from those that made the whole model's alone, unless they are new ones."""
    if before is None or until_ms is None or until_ms <= before.validation_until_ms:
        return before
    learned = before.validation_until_ms if before.learned_until_ms is None else before.learned_until_ms
    return before.model_copy(
        update={"validation_until_ms": until_ms, "learned_until_ms": None if lever in _NEW_TREES else learned}
    )


def _written(
    bundle: Bundle,
    path: Path,
    output: Path,
    changed: Changed,
    X: np.ndarray,
    truth: np.ndarray,
    payments: Payments,
    *,
    created_at: str,
    until_ms: int | None = None,
    loss_max: float | None = None,
) -> Compiled:
    """Measure the changed model beside the bundle's own on rows float32 [n, k] with truth bool [n], and write it.
    `payments`: all of the time of these rows, of which the share to flag is. `until_ms`: after the last row that it was
    made of or measured on.

    Raises PromiseBroken, and writes nothing, where average precision falls by more than `loss_max`.
    """
    xgboost, curve = import_xgboost(), changed.calibration
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(changed.data))
    compiled = CompiledBooster.of(xgboost, booster, threads=1)
    data, model = compiled.raw, compiled.model
    margins = model.margins(payments.X)
    scores = curve.apply(margins, model.link)
    manifest = bundle.manifest
    notes = notes_of(bundle, payments)
    if curve.kind == "identity" != manifest.calibration.kind:
        if bundle.policy.flag.cost is not None:
            raise UsageError(f"{UNCALIBRATED}; {bundle.id} flags by cost, which weighs them: nothing was written")
        notes.append(UNCALIBRATED)
    threshold = threshold_of(bundle, payments, scores)
    least = float(threshold), float(curve.margin_for(threshold, model.link))
    was = Decided.by_bundle(bundle, payments)
    now = Decided.of(bundle, payments, margins, scores, least)
    before = measure(source_of(bundle, path), bundle.model, manifest.calibration, X, truth, int(was.flags.sum()))
    after = measure(data, model, curve, X, truth, int(now.flags.sum()))
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
        saving_min=manifest.saving_min,
        calibration=curve,
        golden=compiled.golden(X),
        training=_window(manifest.training, changed.lever, until_ms),
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
    return Compiled(
        bundle_id=made.id,
        lever=changed.lever,
        before=before,
        after=after,
        rows=len(X),
        frauds=int(truth.sum()),
        payments_decided=len(payments.X),
        decisions_changed=int((was.flags != now.flags).sum()),
        score_distance_max=float(np.abs(scores - was.scores).max()),
        detail=changed.detail,
        notes=notes,
    )


def notes_of(bundle: Bundle, payments: Payments) -> list[str]:
    """What of the bundle and the payments makes the figures other than they seem."""
    found = [bundle.policy.without_segments(), payments.note()]
    if bundle.policy.flag.cost is not None and payments.amounts is None:
        found.append(
            f"{bundle.id} flags by cost, and no amounts are known here: what is flagged and what changes is by a score "
            "from which as many are flagged, not as payments are decided"
        )
    return [note for note in found if note is not None]
