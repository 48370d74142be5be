"""`bundle compile --report`: every lever tried on one bundle and measured on the same rows; nothing is written.

The earlier half of the rows chooses (which trees stay, what the student learns), the later half measures. With labels a
lever costs average precision, with a paired interval; without labels what is known is how far margins move and how many
decisions change. Times are ratios to the bundle's own model in the same run, turn about: a busy machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from scorer.bundle import Bundle
from scorer.bundle.bundle_folder import checked
from scorer.compress import levers
from scorer.compress.evaluator_times import BatchTime, ExportFigures, batch_times, exports
from scorer.compress.levers import FRAUDS_MIN, ROWS_MIN, Changed
from scorer.compress.model_figures import BATCH, Measure, measure, ratio
from scorer.errors import FraudScorerError, UsageError
from scorer.model import CompiledModel
from scorer.model.early_exit import EarlyExit
from scorer.model.tree_table import Table
from scorer.policy import score_of_as_many
from scorer.training import average_precision, import_xgboost
from scorer.training.compiled_booster import CompiledBooster
from scorer.training.ranking import resampled_precisions

BITS: Final = (6, 8, 10, 12)
LOSSES: Final = (0.001, 0.005, 0.02)
STUDENTS: Final = ((20, 3), (40, 4), (80, 5))
"""Trees and depth."""
FIRST: Final = (10, 20, 40)
CHANGES: Final = (0.01, 0.05)
"""Without labels pruning may change so many decisions for each one flagged."""
RESAMPLES: Final = 200
WORTH: Final = 0.9
"""A lever pays where it takes at most so much of the time, or of the size."""

Pays = Literal["time", "size", "time and size", "no", "not shown"]


@dataclass(frozen=True)
class LeverFigures:
    """What a lever makes of the bundle's model, on the measuring rows. Ratios: to the bundle's own."""

    lever: str
    unavailable: str | None = None
    """Why it cannot be used with this bundle; then nothing else is known."""
    trees: int = 0
    nodes: int = 0
    file_ratio: float = 1.0
    deflated_ratio: float = 1.0
    """Of the file compressed by zlib, as it is sent to a device."""
    memory_ratio: float = 1.0
    batch_time_ratio: float = 1.0
    single_time_ratio: float = 1.0
    average_precision: float | None = None
    lost: float | None = None
    """Average precision that it costs; below 0 it gains."""
    lost_interval: tuple[float, float] | None = None
    """95 %, paired."""
    margin_distance_mean: float = 0.0
    margin_distance_max: float = 0.0
    flagged: int = 0
    """By the threshold that a bundle of it would have: that of the policy's share, found on these rows."""
    decisions_changed: int = 0
    """By as many flags as the bundle's own."""
    pays: Pays = "no"
    """In what, where it costs no more than is allowed (`allowed` of the report): with labels by the whole interval.
    `not shown` where the interval also holds more than that, `no` otherwise."""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Degraded:
    """What decides payments whose deadline leaves no time for the model."""

    name: str
    threshold_score: float
    flagged_share: float
    recall: float | None
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True)
class LeverReport:
    """All of it."""

    bundle: str
    rows: int
    frauds: int | None
    """Among the measuring rows; None without labels."""
    allowed: str
    levers: list[LeverFigures]
    batches: list[BatchTime]
    exports: list[ExportFigures]
    degraded: list[Degraded]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows float32 [n, k] and, where there are labels, truth bool [n]."""

    X: np.ndarray
    truth: np.ndarray | None

    @classmethod
    def of(cls, X: np.ndarray, truth: np.ndarray | None, part: slice) -> _Rows:
        return cls(np.ascontiguousarray(X[part]), None if truth is None else truth[part])


def report(
    path: Path, X: np.ndarray, truth: np.ndarray | None, *, loss: float, seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> LeverReport:  # fmt: skip
    """Try the levers on the bundle in folder `path`, with rows float32 [n, k] in order of time and truth bool [n] or
    None. `loss`: average precision that a lever may cost and still pay. `progress` is called with the name of each
    part.

    Raises UsageError for rows that cannot measure, BundleError.
    """
    if not 0.0 <= loss < 1.0:
        raise UsageError(f"--loss {loss}: average precision may fall by 0 to 1; give a value such as 0.005")
    bundle = Bundle.load(path)
    choosing, measuring = _halves(bundle, X, truth)
    manifest = bundle.manifest
    source = checked(path, manifest.model_file, manifest.files[manifest.model_file])
    own = _Measured.of(bundle, Changed("as it is", source, manifest.calibration, {}), measuring, own_threshold=True)
    figures = [_figures(own, own, measuring, loss, seed)]
    students: list[tuple[str, _Measured]] = []
    for name, make in _levers(bundle, source, choosing, seed):
        progress(name)
        try:
            changed = make()
            made = _Measured.of(bundle, changed, measuring)
        except FraudScorerError as error:
            figures.append(LeverFigures(name, unavailable=str(error)))
            continue
        figures.append(_figures(made, own, measuring, loss, seed, name))
        if changed.lever in ("distil", "first-trees"):
            students.append((name, made))
    progress("early exit")
    figures.append(_early_exit(bundle, measuring))
    progress("exports")
    return LeverReport(
        bundle=bundle.id,
        rows=len(measuring.X),
        frauds=None if measuring.truth is None else int(measuring.truth.sum()),
        allowed=(
            f"average precision may fall by {loss:g}"
            if measuring.truth is not None
            else f"{CHANGES[-1]:.0%} as many decisions as are flagged may change"
        ),
        levers=figures,
        batches=batch_times(bundle, measuring.X),
        exports=exports(bundle, source, measuring.X),
        degraded=_degraded(bundle, own, students, measuring),
        notes=_notes(bundle, measuring),
    )


def _halves(bundle: Bundle, X: np.ndarray, truth: np.ndarray | None) -> tuple[_Rows, _Rows]:
    """The rows that choose, and those that measure. Raises UsageError."""
    if X.shape[1] != bundle.model.feature_count:
        raise UsageError(f"the rows have {X.shape[1]} features, the bundle {bundle.model.feature_count}")
    if len(X) < 2 * ROWS_MIN:
        raise UsageError(f"{len(X)} rows are too few to choose and to measure on: {2 * ROWS_MIN} at least")
    earlier, later = levers.halves(len(X))
    parts = _Rows.of(X, truth, earlier), _Rows.of(X, truth, later)
    for part in parts:
        if part.truth is not None and not FRAUDS_MIN <= int(part.truth.sum()) < len(part.truth):
            raise UsageError(
                f"{int(part.truth.sum())} frauds in a half of the rows, {FRAUDS_MIN} at least are needed; give more "
                "rows, or a file without labels to see how far decisions change"
            )
    return parts


def _levers(bundle: Bundle, source: bytes, choosing: _Rows, seed: int) -> list[tuple[str, Callable[[], Changed]]]:
    """Each lever's name, and what pulls it."""
    found: list[tuple[str, Callable[[], Changed]]] = [
        (f"leaves of {bits} bits", partial(levers.quantised, bundle, source, bits)) for bits in BITS
    ]
    limits: tuple[float, ...]
    if choosing.truth is not None:
        quality, target = levers.precision_of(choosing.X, choosing.truth), choosing.truth.astype(np.float64)
        limits, name = LOSSES, "pruned within {:g} AP"
    else:
        quality, target = _agreement(bundle, choosing.X), bundle.scores(bundle.model.margins(choosing.X))
        limits, name = CHANGES, "pruned within {:.0%} of decisions"
    calibrated, as_whole = levers.refitted(choosing.X, target), levers.as_the_whole(bundle, choosing.X)
    found += [
        (name.format(limit), partial(levers.pruned, bundle, source, quality, limit, calibrated)) for limit in limits
    ]
    found += [
        (f"first {trees} trees", partial(levers.shortened, bundle, source, trees, as_whole))
        for trees in FIRST
        if trees < bundle.model.tree_count
    ]
    return found + [
        (f"student, {trees} trees of depth {depth}",
         partial(levers.taught, bundle, choosing.X, trees=trees, depth=depth, seed=seed))
        for trees, depth in STUDENTS
    ]  # fmt: skip


def _agreement(bundle: Bundle, X: np.ndarray) -> Callable[[Table], float]:
    """1 less the share of decisions that change by as many flags, by each payment flagged."""
    margins = bundle.model.margins(X)
    flags = margins >= bundle.threshold_margin
    count = max(1, int(flags.sum()))
    first = np.argsort(-margins, kind="stable")[:count]

    def quality(table: Table) -> float:
        found = np.argsort(-CompiledModel(table).margins(X), kind="stable")[:count]
        return 1.0 - 2.0 * (count - len(np.intersect1d(first, found))) / count

    return quality


@dataclass(frozen=True, eq=False)
class _Measured:
    """A model on the measuring rows: its margins float32 [n], its threshold, and what it flags, bool [n]."""

    changed: Changed
    model: CompiledModel
    margins: np.ndarray
    threshold_score: float
    flags: np.ndarray
    measure: Measure

    @classmethod
    def of(cls, bundle: Bundle, changed: Changed, rows: _Rows, *, own_threshold: bool = False) -> _Measured:
        """`own_threshold`: the bundle itself; else what the lever's bundle would be, its threshold found on the
        rows."""
        data, model = changed.data, bundle.model
        if not own_threshold:
            xgboost = import_xgboost()
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(changed.data))
            compiled = CompiledBooster.of(xgboost, booster, threads=1)
            data, model = compiled.raw, compiled.model
        margins, curve = model.margins(rows.X), changed.calibration
        threshold = bundle.manifest.threshold_score
        if not own_threshold:
            threshold = levers.threshold_of(bundle, rows.X, curve.apply(margins, model.link))
        least = curve.margin_for(threshold, model.link)
        truth = np.zeros(len(margins), bool) if rows.truth is None else rows.truth
        found = measure(data, model, curve, float(least), rows.X, truth)
        return cls(changed, model, margins, float(threshold), margins >= least, found)


def _figures(
    made: _Measured, own: _Measured, rows: _Rows, loss: float, seed: int, name: str = "as it is"
) -> LeverFigures:
    distance = np.abs(made.margins.astype(np.float64) - own.margins)
    changed = _changed(made.margins, own.flags)
    batch = np.ascontiguousarray(np.resize(rows.X, (BATCH, rows.X.shape[1])))
    one = batch[:1].copy()
    batch_ratio = single_ratio = 1.0
    if made is not own:
        batch_ratio = ratio(lambda: own.model.margins(batch), lambda: made.model.margins(batch))
        single_ratio = ratio(
            lambda: [own.model.margins(one) for _ in range(50)], lambda: [made.model.margins(one) for _ in range(50)]
        )
    precision: float | None = None
    lost: float | None = None
    interval: tuple[float, float] | None = None
    if rows.truth is not None:
        both = [average_precision(rows.truth, side.margins) for side in (own, made)]
        precision, lost = both[1], both[0] - both[1]
        if made is not own:
            drawn = resampled_precisions(rows.truth, (own.margins, made.margins), RESAMPLES, seed)
            low, high = np.percentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5])
            interval = float(low), float(high)
    deflated = made.measure.deflated_bytes / own.measure.deflated_bytes
    # Times of one run scatter: they count where there is less to do.
    less = made.measure.nodes <= WORTH * own.measure.nodes
    pays = _pays(min(batch_ratio, single_ratio) if less else 1.0, deflated)
    if (changed > CHANGES[-1] * max(1, int(own.flags.sum()))) if lost is None else lost > loss:
        pays = "no"
    elif pays != "no" and interval is not None and interval[1] > loss:
        pays = "not shown"
    return LeverFigures(
        lever=name,
        trees=made.measure.trees,
        nodes=made.measure.nodes,
        file_ratio=made.measure.file_bytes / own.measure.file_bytes,
        deflated_ratio=deflated,
        memory_ratio=made.measure.table_bytes / max(1, own.measure.table_bytes),
        batch_time_ratio=batch_ratio,
        single_time_ratio=single_ratio,
        average_precision=precision,
        lost=lost,
        lost_interval=interval,
        margin_distance_mean=float(distance.mean()),
        margin_distance_max=float(distance.max()),
        flagged=int(made.flags.sum()),
        decisions_changed=changed,
        pays=pays,
        detail=made.changed.detail,
    )


def _changed(margins: np.ndarray, flags: np.ndarray) -> int:
    """Decisions that differ from `flags`, bool [n], where the margins float32 [n] flag as many payments."""
    if not flags.any():
        return 0
    least = score_of_as_many(margins.astype(np.float64), int(flags.sum()))
    return int(((margins >= least) != flags).sum())


def _pays(time_ratio: float, size_ratio: float) -> Pays:
    if time_ratio <= WORTH:
        return "time and size" if size_ratio <= WORTH else "time"
    return "size" if size_ratio <= WORTH else "no"


def _early_exit(bundle: Bundle, rows: _Rows) -> LeverFigures:
    """Decisions without the rest of the trees: the model is the same, and so is each decision."""
    name = "early exit"
    if bundle.policy.flag.cost is not None:
        return LeverFigures(name, unavailable=f"{bundle.id} flags by cost: the threshold is another for each amount")
    if bundle.policy.segments:
        return LeverFigures(name, unavailable=f"{bundle.id} has segments with thresholds of their own")
    try:
        early = EarlyExit(bundle.model.table, float(bundle.threshold_margin))
    except FraudScorerError as error:
        return LeverFigures(name, unavailable=str(error))
    flags, trees = early.decide(rows.X)
    batch = np.ascontiguousarray(np.resize(rows.X, (BATCH, rows.X.shape[1])))
    one = batch[:1].copy()
    margins = bundle.model.margins(rows.X)
    batch_ratio = ratio(lambda: bundle.model.margins(batch), lambda: early.decide(batch))
    single_ratio = ratio(
        lambda: [bundle.model.margins(one) for _ in range(50)], lambda: [early.decide(one) for _ in range(50)]
    )
    precision = None if rows.truth is None else average_precision(rows.truth, margins)
    return LeverFigures(
        lever=name,
        trees=bundle.model.tree_count,
        nodes=bundle.model.table.node_count,
        batch_time_ratio=batch_ratio,
        single_time_ratio=single_ratio,
        average_precision=precision,
        lost=None if precision is None else 0.0,
        flagged=int(flags.sum()),
        decisions_changed=int((flags != (margins >= bundle.threshold_margin)).sum()),
        pays=_pays(min(batch_ratio, single_ratio) if trees.mean() <= WORTH * bundle.model.tree_count else 1.0, 1.0),
        detail={"mean_trees": float(trees.mean())},
    )


def _degraded(bundle: Bundle, own: _Measured, students: list[tuple[str, _Measured]], rows: _Rows) -> list[Degraded]:
    """The model itself for comparison, the bundle's student, and each one made here: at its own threshold, and at the
    model's, by which a poor one flags another share."""
    found = [_deciding("the model, in time", own.margins, own.flags, own.threshold_score, rows)]
    if bundle.student is not None:
        margins, _, flags = bundle.degraded(rows.X)
        assert flags is not None
        found.append(_deciding("the bundle's student", margins, flags, bundle.student_threshold_score, rows))
    for name, made in students:
        found.append(_deciding(name, made.margins, made.flags, made.threshold_score, rows))
        scores = made.changed.calibration.apply(made.margins, made.model.link)
        flags = scores >= own.threshold_score
        found.append(_deciding(f"{name}, by the model's threshold", made.margins, flags, own.threshold_score, rows))
    return found


def _deciding(name: str, margins: np.ndarray, flags: np.ndarray, threshold: float, rows: _Rows) -> Degraded:
    recall = precision = ranked = None
    if rows.truth is not None:
        hits = int((rows.truth & flags).sum())
        recall, ranked = hits / int(rows.truth.sum()), average_precision(rows.truth, margins)
        precision = hits / int(flags.sum()) if flags.any() else None
    return Degraded(name, float(threshold), float(flags.mean()), recall, precision, ranked)


def _notes(bundle: Bundle, rows: _Rows) -> list[str]:
    notes = [
        "Times are ratios to the bundle's own model, measured turn about in this run; those of a busy machine scatter.",
        "The earlier half of the rows chose what each lever keeps, the later half measured it.",
    ]
    if rows.truth is None:
        notes.append("No row has a label: what a lever costs in average precision is not known, only what it changes.")
    elif int(rows.truth.sum()) < 100:
        notes.append(
            f"{int(rows.truth.sum())} frauds measured it: an average precision over so few is uncertain, see intervals."
        )
    if (segments := bundle.policy.without_segments()) is not None:
        notes.append(f"{segments[0].upper()}{segments[1:]}.")
    return notes
