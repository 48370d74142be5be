"""One run measured, or two side by side on the same payments."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.backtest import backtest_figures as figures
from scorer.backtest.decided_payments import DAY_MS, BacktestError, Decided
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

    def write_numbers(self, folder: Path) -> None:
        """All figures as Parquet files in `folder`: overall, days, segments, sweep, calibration, drift, changes."""
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
) -> Side:
    """Figures of one side. `decided`: matured payments; `everything`: all of the window, for drift against `reference`,
    payments before it."""
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
    sweep = figures.sweep(decided.day, fraud, score, amount)
    return Side(
        name=name,
        overall=figures.overall(decided.day, decided.customer, *common, alerts=alerts, cards=cards),
        intervals=figures.intervals(decided.customer, *common, rounds=rounds, seed=seed),
        days=daily,
        segments={
            kind: figures.by_group(codes, values, *common) for kind, (codes, values) in decided.segments().items()
        },
        sweep=sweep,
        calibration=figures.calibration(fraud, score),
        drift=_drift(everything, reference),
    )


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
) -> Backtest:
    """Measure `first`, and `second` if given, on payments from `from_ms` on whose label was known by `as_of_ms`.

    Payments before `from_ms` are the reference of the drift figures. `reasons`: as `changes` takes them. `alerts`: how
    many payments a team looks at in a day; `cards`: k of the card precision; `rounds`: draws of the bootstrap.
    Raises BacktestError.
    """
    sides = []
    window = first.time_ms >= (from_ms or 0)
    for name, run in zip(names, (first, second), strict=True):
        if run is None:
            continue
        current, reference = run.take(window), run.take(~window) if not window.all() else None
        matured = current.matured(as_of_ms)
        if not matured.fraud.any():
            raise BacktestError(f"none of the {len(matured)} matured payments is fraud: nothing can be measured")
        sides.append(measure(name, matured, current, reference, alerts=alerts, cards=cards, rounds=rounds, seed=seed))
    current = first.take(window)
    table = None
    if second is not None:
        kept = (
            {new: reasons[row] for new, row in enumerate(np.flatnonzero(window).tolist()) if row in reasons}
            if reasons is not None
            else None
        )
        table = changes(current, second.take(window), kept)
    notes = [f"{len(current) - len(current.matured(as_of_ms)):,} payments are left out: their labels had not matured."]
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
        notes=notes,
    )
