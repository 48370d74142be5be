"""`bundle compile --report`: every lever tried on one bundle and measured on the same rows; nothing is written.

The earlier half of the rows chooses (which trees stay, what the student learns), the later half measures. With labels a
lever costs average precision, with a paired interval; without labels what is known is how far margins move and how many
decisions change. Times are ratios to the bundle's own model in the same run, turn about: a busy machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from scorer.bundle import Bundle
from scorer.compress import levers
from scorer.compress.evaluator_times import BatchTime, ExportFigures, batch_times, exports
from scorer.compress.held_out import Decided, Payments, rule_of, threshold_of
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
    """Of all payments of the time, by what a bundle of it would have: the policy's costs, or the threshold of its share
    found on them."""
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
    threshold_score: float | None
    """None where the policy's costs decide, with the amounts."""
    flagged_share: float
    """Of all payments of the time, those without a known label too."""
    recall: float | None
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True)
class LeverReport:
    """All of it."""

    bundle: str
    rows: int
    payments_decided: int
    """All of the time of the measuring rows, those without a known label too."""
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
    """Rows float32 [n, k] and, where there are labels, truth bool [n]; all payments of their time."""

    X: np.ndarray
    truth: np.ndarray | None
    payments: Payments

    @classmethod
    def of(cls, X: np.ndarray, truth: np.ndarray | None, part: slice, payments: Payments) -> _Rows:
        return cls(np.ascontiguousarray(X[part]), None if truth is None else truth[part], payments)


def report(
    path: Path, X: np.ndarray, truth: np.ndarray | None, *, loss: float, seed: int, payments: Payments | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> LeverReport:  # fmt: skip
    """Try the levers on the bundle in folder `path`, with rows float32 [n, k] in order of time and truth bool [n] or
    None. `loss`: average precision that a lever may cost and still pay. `payments`: all of that time, those without a
    known label too; None: the rows are all. `progress` is called with the name of each part.

    Raises UsageError for rows that cannot measure, BundleError.
    """
    levers.check_loss(loss)
    bundle = Bundle.load(path)
    choosing, measuring = _halves(bundle, X, truth, payments or Payments.all_of(X))
    source = levers.source_of(bundle, path)
    unchanged = Changed("as it is", source, bundle.manifest.calibration, {})
    own = _Measured.of(bundle, unchanged, measuring, own_threshold=True)
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
        payments_decided=len(measuring.payments.X),
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


def _halves(bundle: Bundle, X: np.ndarray, truth: np.ndarray | None, payments: Payments) -> tuple[_Rows, _Rows]:
    """The rows that choose, and those that measure. Raises UsageError."""
    if X.shape[1] != bundle.model.feature_count:
        raise UsageError(f"the rows have {X.shape[1]} features, the bundle {bundle.model.feature_count}")
    if len(X) < 2 * ROWS_MIN:
        raise UsageError(f"{len(X)} rows are too few to choose and to measure on: {2 * ROWS_MIN} at least")
    earlier, later = levers.halves(len(X))
    sides = payments.halves(later.start)
    parts = _Rows.of(X, truth, earlier, sides[0]), _Rows.of(X, truth, later, sides[1])
    for part in parts:
        if part.truth is not None and not FRAUDS_MIN <= int(part.truth.sum()) < len(part.truth):
            raise UsageError(
                f"{int(part.truth.sum())} frauds in a half of the rows, {FRAUDS_MIN} at least are needed, and a "
                "genuine payment; give more rows, --genuine-after 60d where frauds alone are reported, or a file "
                "without labels to see how far decisions change"
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
        quality, target = _agreement(bundle, choosing), bundle.scores(bundle.model.margins(choosing.X))
        limits, name = CHANGES, "pruned within {:.0%} of decisions"
    calibrated, as_whole = levers.refitted(choosing.X, target), levers.as_the_whole(bundle, choosing.payments.X)
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
         partial(levers.taught, bundle, choosing.payments.X, trees=trees, depth=depth, seed=seed))
        for trees, depth in STUDENTS
    ]  # fmt: skip


def _agreement(bundle: Bundle, rows: _Rows) -> Callable[[Table], float]:
    """1 less the share of decisions that change by as many flags, of the highest margins, by each payment flagged."""
    X, own = rows.payments.X, Decided.by_bundle(bundle, rows.payments)
    margins, count = own.margins, max(1, int(own.flags.sum()))
    first = np.argsort(-margins, kind="stable")[:count]

    def quality(table: Table) -> float:
        found = np.argsort(-CompiledModel(table).margins(X), kind="stable")[:count]
        return 1.0 - 2.0 * (count - len(np.intersect1d(first, found))) / count

    return quality


@dataclass(frozen=True, eq=False)
class _Measured:
    """A model on the measuring rows: its margins float32 [n]; and how it decides all payments of their time."""

    changed: Changed
    model: CompiledModel
    margins: np.ndarray
    decided: Decided
    measure: Measure

    @classmethod
    def of(cls, bundle: Bundle, changed: Changed, rows: _Rows, *, own_threshold: bool = False) -> _Measured:
        """`own_threshold`: the bundle itself; else what the lever's bundle would be, its threshold found on the
        payments."""
        data, model = changed.data, bundle.model
        if not own_threshold:
            xgboost = import_xgboost()
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(changed.data))
            compiled = CompiledBooster.of(xgboost, booster, threads=1)
            data, model = compiled.raw, compiled.model
        payments, curve = rows.payments, changed.calibration
        if own_threshold:
            decided = Decided.by_bundle(bundle, payments)
        else:
            everything = model.margins(payments.X)
            scores = curve.apply(everything, model.link)
            threshold = threshold_of(bundle, payments, scores)
            least = float(threshold), float(curve.margin_for(threshold, model.link))
            decided = Decided.of(bundle, payments, everything, scores, least)
        margins = decided.margins[payments.measuring]
        truth = np.zeros(len(margins), bool) if rows.truth is None else rows.truth
        found = measure(data, model, curve, rows.X, truth, int(decided.flags.sum()))
        return cls(changed, model, margins, decided, found)


def _figures(
    made: _Measured, own: _Measured, rows: _Rows, loss: float, seed: int, name: str = "as it is"
) -> LeverFigures:
    distance = np.abs(made.margins.astype(np.float64) - own.margins)
    changed = _changed(made.decided.rank, own.decided.flags)
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
    if (changed > CHANGES[-1] * max(1, int(own.decided.flags.sum()))) if lost is None else lost > loss:
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
        flagged=int(made.decided.flags.sum()),
        decisions_changed=changed,
        pays=pays,
        detail=made.changed.detail,
    )


def _changed(rank: np.ndarray, flags: np.ndarray) -> int:
    """Decisions that differ from `flags`, bool [m], where as many are flagged, those of highest rank, float64 [m]."""
    if not flags.any():
        return 0
    return int(((rank >= score_of_as_many(rank, int(flags.sum()))) != flags).sum())


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
    model's, by which a poor one flags another share. By cost all decide with the amounts, and there is no threshold."""
    by_cost = rule_of(bundle, rows.payments) is not None
    found = [_deciding("the model, in time", own.decided, rows, by_cost=by_cost)]
    if bundle.student is not None:
        margins, scores, _ = bundle.degraded(rows.payments.X)
        least = bundle.student_threshold_score, bundle.student_threshold_margin
        student = Decided.of(bundle, rows.payments, margins, scores, least)
        found.append(_deciding("the bundle's student", student, rows, by_cost=by_cost))
    for name, made in students:
        found.append(_deciding(name, made.decided, rows, by_cost=by_cost))
        if not by_cost:
            threshold = own.decided.threshold_score
            flags = made.decided.scores >= threshold
            other = replace(made.decided, threshold_score=threshold, flags=flags)
            found.append(_deciding(f"{name}, by the model's threshold", other, rows, by_cost=False))
    return found


def _deciding(name: str, decided: Decided, rows: _Rows, *, by_cost: bool) -> Degraded:
    recall = precision = ranked = None
    measuring = rows.payments.measuring
    if rows.truth is not None:
        flags = decided.flags[measuring]
        hits = int((rows.truth & flags).sum())
        recall, ranked = hits / int(rows.truth.sum()), average_precision(rows.truth, decided.margins[measuring])
        precision = hits / int(flags.sum()) if flags.any() else None
    threshold = None if by_cost else float(decided.threshold_score)
    return Degraded(name, threshold, float(decided.flags.mean()), recall, precision, ranked)


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
    return notes + [f"{note[0].upper()}{note[1:]}." for note in levers.notes_of(bundle, rows.payments)]
