"""One run measured, or two side by side on the same payments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scorer.backtest import backtest_figures as figures
from scorer.backtest.decided_payments import DAY_MS, FLAGGED_MIN, BacktestError, Decided
from scorer.backtest.effects import Effect, effects_of, sentences_of
from scorer.policy import FlagCost, money_saved
from scorer.training.label_delays import late_reports
from scorer.training.ranking import card_precision

REFERENCE_ROWS_MAX = 200_000


@dataclass(frozen=True)
class Side:
    """A bundle and its policy over the matured payments."""

    name: str
    overall: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    days: list[dict[str, Any]]
    segments: dict[str, list[dict[str, Any]]]
    sweep: list[dict[str, float]]
    calibration: list[dict[str, float]]
    drift: list[dict[str, Any]]


@dataclass(frozen=True)
class Backtest:
    """All figures of a backtest."""

    from_ms: int
    until_ms: int
    payments: int
    matured: int
    currency: str
    alerts: int
    cards: int
    sides: list[Side]
    changes: pa.Table | None = None
    """Payments that the second side decides otherwise: their fields, and score, decision, reasons and rules of both."""
    notes: list[str] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    """What a day brings by the last side, against the first one, or against flagging nothing."""
    summary: list[str] = field(default_factory=list)
    """The same in sentences."""

    def write_numbers(self, folder: Path) -> None:
        """All figures as Parquet files in `folder`: overall, effects, days, segments, sweep, calibration, drift,
        changes."""
        folder.mkdir(parents=True, exist_ok=True)

        def write(name: str, rows: list[dict[str, Any]]) -> None:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")

        each = [(side, {"side": side.name}) for side in self.sides]
        overall: list[dict[str, Any]] = []
        for side, head in each:
            for name, value in side.overall.items():
                low, high = side.intervals.get(name, (None, None))
                overall.append(head | {"figure": name, "value": value, "low": low, "high": high})
        write("overall", overall)
        write("effects", [asdict(effect) for effect in self.effects])
        for name in ("days", "sweep", "calibration", "drift"):
            write(name, [head | row for side, head in each for row in getattr(side, name)])
        write(
            "segments",
            [
                head | {"kind": kind} | row
                for side, head in each
                for kind, rows in side.segments.items()
                for row in rows
            ],
        )
        if self.changes is not None:
            pq.write_table(self.changes, folder / "changes.parquet")


def measure(
    name: str,
    decided: Decided,
    everything: Decided,
    reference: Decided | None,
    *,
    alerts: int,
    cards: int,
    rounds: int,
    seed: int,
    cost: FlagCost | None = None,
) -> Side:
    """Figures of one side. `decided`: matured payments; `everything`: all of the window, for drift against `reference`,
    payments before it, and for what is flagged a day. `cost`: what money saved is counted by. What ranks is of the
    payments that the model scored: those decided without it have a student's score, or none."""
    saved = {} if cost is None else _saved(decided, cost)
    side = _measured(name, decided, alerts=alerts, cards=cards, rounds=rounds, seed=seed)
    if decided.degraded.any():
        model = decided.take(~decided.degraded)
        of_model = _measured(name, model, alerts=alerts, cards=cards, rounds=rounds, seed=seed) if len(model) else None
        side = _ranked_by(side, of_model)
    there = of_days(everything, decided)
    return replace(
        side,
        overall=side.overall
        | {"flagged_a_day": float(there.flagged.sum()) / len(np.unique(decided.day))}
        | {figure: float(values.sum()) for figure, values in saved.items()},
        intervals=side.intervals | figures.day_intervals(decided.day, saved, rounds=rounds, seed=seed),
        drift=_drift(everything, reference),
    )


def of_days(everything: Decided, decided: Decided) -> Decided:
    """All payments of the days that `decided`, some of them, lie on."""
    return everything.take(np.isin(everything.day, np.unique(decided.day)))


def _measured(name: str, decided: Decided, *, alerts: int, cards: int, rounds: int, seed: int) -> Side:
    """The figures that need neither money saved nor another time."""
    fraud, score, flagged, amount = decided.fraud, decided.score, decided.flagged, decided.money
    # The margin ranks: a calibrated score may tie where margins differ.
    rank = decided.margin
    common = (fraud, rank, flagged, amount)
    days, number = np.unique(decided.day, return_inverse=True)
    names = [str(np.datetime64(int(day), "D")) for day in days]
    daily = figures.by_group(number, names, *common)
    precision = card_precision(decided.day, decided.customer, rank, fraud, cards)
    for row, value, day in zip(daily, precision, days, strict=True):
        at = decided.day == day
        row[f"card_precision_{cards}"] = value
        for rate in figures.FALSE_POSITIVE_RATES:
            row[f"recall_at_fpr_{rate:g}"] = figures.recall_at(fraud[at], rank[at], rate)
    return Side(
        name=name,
        overall=figures.overall(decided.day, decided.customer, *common, alerts=alerts, cards=cards),
        intervals=figures.intervals(decided.customer, *common, rounds=rounds, seed=seed),
        days=daily,
        segments={
            kind: figures.by_group(codes, values, *common) for kind, (codes, values) in decided.segments().items()
        },
        sweep=figures.sweep(decided.day, fraud, score, amount),
        calibration=figures.calibration(fraud, score),
        drift=[],
    )


_OF_RANKS = ("average_precision", "auc", "recall_at_fpr_", "card_precision_", "precision_of_", "recall_of_")


def _ranked_by(side: Side, model: Side | None) -> Side:
    """`side` with what ranks, thresholds and calibration taken from `model`, of the payments that the model scored;
    None: of none."""

    def row(of: dict[str, Any], found: dict[str, Any] | None) -> dict[str, Any]:
        ranks = [name for name in of if name.startswith(_OF_RANKS)]
        return of | {name: float("nan") if found is None else found[name] for name in ranks}

    def rows(of: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        by_name = {item["name"]: item for item in found}
        return [row(item, by_name.get(item["name"])) for item in of]

    ranges = {name: bounds for name, bounds in side.intervals.items() if not name.startswith(_OF_RANKS)}
    of_model = {} if model is None else model.intervals
    ranges |= {name: bounds for name, bounds in of_model.items() if name.startswith(_OF_RANKS)}
    segments = {} if model is None else model.segments
    return replace(
        side,
        overall=row(side.overall, None if model is None else model.overall),
        intervals=ranges,
        days=rows(side.days, [] if model is None else model.days),
        segments={kind: rows(found, segments.get(kind, [])) for kind, found in side.segments.items()},
        sweep=[] if model is None else model.sweep,
        calibration=[] if model is None else model.calibration,
    )


def _saved(decided: Decided, cost: FlagCost) -> dict[str, npt.NDArray[np.float64]]:
    """What each payment's decision saved against flagging nothing, float64 [n]; of a policy by cost also what the score
    alone would have saved by as many flags, and the difference."""
    amounts = np.nan_to_num(decided.money)
    saved = {"money_saved": money_saved(cost, decided.fraud, decided.flagged, amounts)}
    if decided.flagged_by_score is not None:
        saved["money_saved_by_score"] = money_saved(cost, decided.fraud, decided.flagged_by_score, amounts)
        saved["money_saved_more"] = saved["money_saved"] - saved["money_saved_by_score"]
    return saved


def _drift(current: Decided, reference: Decided | None) -> list[dict[str, Any]]:
    if reference is None or not len(reference):
        return []
    step = max(1, len(reference) // REFERENCE_ROWS_MAX)
    names = {"score": "score", **current.columns_of_features}
    rows = [
        {
            "feature": name,
            "psi": figures.psi(
                np.asarray(reference.table[column].to_numpy())[::step], np.asarray(current.table[column].to_numpy())
            ),
        }
        for name, column in names.items()
    ]
    return sorted(rows, key=lambda row: (-np.nan_to_num(row["psi"]), row["feature"]))


def changes(before: Decided, after: Decided, reasons: dict[int, tuple[str, ...]] | None = None) -> pa.Table:
    """Payments decided otherwise by `after`, payment by payment; both hold the same payments in the same order.

    Raises BacktestError where they do not.
    """
    if not before.table["payment_id"].equals(after.table["payment_id"]):
        raise BacktestError("the two runs are not of the same payments: replay the same file over the same window")
    rows = np.flatnonzero(before.flagged != after.flagged)
    at = pa.array(rows)
    first, second = before.table.take(at), after.table.take(at)
    why: Any = second["reasons"]
    if reasons is not None:
        why = pa.array([list(reasons.get(int(row), ())) for row in rows], pa.list_(pa.string()))
    label = before.label[rows]
    return pa.table(
        {
            "payment_id": first["payment_id"],
            "event_time": first["event_time"],
            "money": pa.array(before.money[rows]),
            "fraud": pa.array(label == 1, mask=label < 0),
            "decision_before": first["decision"],
            "decision_after": second["decision"],
            "score_before": first["score"],
            "score_after": second["score"],
            "reasons_before": first["reasons"],
            "reasons_after": why,
            "fired_before": first["fired"],
            "fired_after": second["fired"],
        }
    )


def check_currencies(first: str, second: str | None, cost: FlagCost | None) -> None:
    """Raise BacktestError where money of two currencies would be counted together: those in which the bundles count
    (None: there is one), and that of the costs."""
    if second is not None and second != first:
        raise BacktestError(
            f"the bundles count in {first} and {second}: their money can not be compared; train one "
            "of them with a feature set whose currency is the other's"
        )
    if cost is not None and cost.currency != first:
        raise BacktestError(
            f"flag.cost.currency is {cost.currency}, the bundle counts in {first}: give the costs in {first}"
        )


def _check_classes(matured: Decided) -> None:
    """Raise BacktestError where the matured payments are all fraud or all genuine."""
    if not matured.fraud.any():
        raise BacktestError(f"none of the {len(matured)} matured payments is fraud: nothing can be measured")
    if matured.fraud.all():
        raise BacktestError(
            f"none of the {len(matured)} matured payments is genuine, so nothing that flags would cost anything: where "
            "only frauds are reported, give --genuine-after 60d (as long as reports take)"
        )


def backtest(
    first: Decided,
    second: Decided | None = None,
    *,
    names: tuple[str, str] = ("bundle", "against"),
    reasons: dict[int, tuple[str, ...]] | None = None,
    from_ms: int | None = None,
    as_of_ms: int | None = None,
    alerts: int = 100,
    cards: int = 100,
    rounds: int = 200,
    seed: int = 1,
    cost: FlagCost | None = None,
    seen_until_ms: Mapping[str, int | None] | None = None,
) -> Backtest:
    """Measure `first`, and `second` if given, on payments from `from_ms` on whose label was known by `as_of_ms`.

    Payments before `from_ms` are the reference of the drift figures. `reasons`: as `changes` takes them. `alerts`: how
    many payments a team looks at in a day; `cards`: k of the card precision; `rounds`: draws of the bootstrap. `cost`:
    money saved is counted by these costs, on both sides. `seen_until_ms`: by bundle, before which event time payments
    had a part in its training, epoch ms; None: unknown.
    Raises BacktestError.
    """
    check_currencies(first.currency, None if second is None else second.currency, cost)
    sides: list[Side] = []
    measured: list[Decided] = []
    window = first.time_ms >= (from_ms or 0)
    for name, run in zip(names, (first, second), strict=True):
        if run is None:
            continue
        current, reference = run.take(window), run.take(~window) if not window.all() else None
        matured = current.matured(as_of_ms)
        _check_classes(matured)
        sides.append(
            measure(name, matured, current, reference, alerts=alerts, cards=cards, rounds=rounds, seed=seed, cost=cost)
        )
        measured.append(matured)
    current = first.take(window)
    table = None
    if second is not None:
        kept = (
            {new: reasons[row] for new, row in enumerate(np.flatnonzero(window).tolist()) if row in reasons}
            if reasons is not None
            else None
        )
        table = changes(current, second.take(window), kept)
        if cost is not None:
            more = _saved(measured[1], cost)["money_saved"] - _saved(measured[0], cost)["money_saved"]
            name = "money_saved_more_than_first"
            sides[1].overall[name] = float(more.sum())
            sides[1].intervals.update(figures.day_intervals(measured[1].day, {name: more}, rounds=rounds, seed=seed))
    for name in {name for side in sides for name in side.overall}:
        for side in sides:  # what one side has and the other has not
            side.overall.setdefault(name, float("nan"))
    whole = [of_days(run.take(window), done) for run, done in zip((first, second or first), measured, strict=False)]
    effects = effects_of(
        measured[0] if second is not None else None, measured[-1], cost, rounds=rounds, seed=seed,
        whole=(whole[0] if second is not None else None, whole[-1]),
    )  # fmt: skip
    notes = [f"{len(current) - len(current.matured(as_of_ms)):,} payments are left out: their labels had not matured."]
    if (without := len(whole[-1]) - len(measured[-1])) > 0:
        notes.append(
            f"{without:,} of the {len(whole[-1]):,} payments of the measured days have no matured label: what is "
            "flagged a day counts them; frauds, money, alerts and thresholds are of the others."
        )
    notes += [_seen(measured[0], name, until) for name, until in (seen_until_ms or {}).items()]
    for side, run in zip(sides, measured, strict=True):
        if without := int(run.degraded.sum()):
            notes.append(
                f"{side.name}: {without:,} payments were decided without the model (degraded); they count as decided, "
                "and have no part in what ranks: average precision, AUC, alerts, thresholds, calibration."
            )
    at_ms = int(current.time_ms.max()) if as_of_ms is None else as_of_ms
    known = current.known_by(at_ms)
    labelled = None if int(current.flagged.sum()) < FLAGGED_MIN else known.labelled_by_decision()
    if labelled is not None and first.genuine_after_ms is None:
        notes.append(
            f"{labelled[0]:.1%} of the payments that {names[0]} flags have a label, {labelled[1]:.1%} of those that it "
            "approves: who has one depends on what is flagged, and the figures are of those alone. Where every fraud "
            "is reported sooner or later, give --genuine-after 60d, else labels of all payments."
        )
    known_at_ms = np.asarray(known.numbers("label_known_at"), dtype=np.int64)
    if (late := late_reports(known.label, known.time_ms, known_at_ms, at_ms)) is not None:
        as_of = np.datetime64(at_ms, "ms").astype("datetime64[s]")
        notes.append(f"{late.sentence()[0].upper()}{late.sentence()[1:]}; give --until {late.day} --as-of {as_of}Z.")
    if first.genuine_after_ms is not None:
        notes.append(
            f"Measured are payments that had {first.genuine_after_ms / DAY_MS:g} days to count as genuine "
            "(--genuine-after); of later ones only frauds would have a label."
        )
    if cost is not None and (days := len(np.unique(current.matured(as_of_ms).day))) < figures.DAYS_MIN:
        notes.append(
            f"The money saved has no interval: {days} days are measured, {figures.DAYS_MIN} are needed to draw from."
        )
    if window.all():
        notes.append(
            "No payments before the window: drift is not shown. Give --from to compare with the time before it."
        )
    return Backtest(
        from_ms=int(current.time_ms.min()) // DAY_MS * DAY_MS,
        until_ms=int(current.time_ms.max()) + 1,
        payments=len(current),
        matured=len(current.matured(as_of_ms)),
        currency=first.currency,
        alerts=alerts,
        cards=cards,
        sides=sides,
        changes=table,
        notes=[note for note in notes if note],
        effects=effects,
        summary=sentences_of(effects, [side.name for side in sides], _counted(len(current), table), cost),
    )


def _seen(measured: Decided, name: str, until_ms: int | None) -> str:
    """What to know of measured payments that a bundle has learned from or was chosen by; empty: there are none."""
    if until_ms is None:
        return f"{name}: which payments it has learned from is not known; figures on those would flatter it."
    if not (seen := int((measured.time_ms < until_ms).sum())):
        return ""
    day = np.datetime64(-(-until_ms // DAY_MS), "D")
    return (
        f"{name}: {seen:,} of the {len(measured):,} measured payments had a part in its training, so that the figures "
        f"flatter it; give --from {day}, or decisions of later days."
    )


def _counted(payments: int, table: pa.Table | None) -> tuple[int, int, int] | None:
    """Of `payments`, how many are flagged now and how many approved, by what `changes` gave."""
    if table is None:
        return None
    flagged = int(pc.sum(pc.equal(table["decision_after"], "flag")).as_py() or 0)
    return payments, flagged, table.num_rows - flagged
