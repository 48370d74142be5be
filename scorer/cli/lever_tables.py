"""`bundle compile --report` for people: a table for levers, batch sizes, exports and degraded mode each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from scorer.cli.command_support import counting, err, out, show
from scorer.cli.risk_options import with_report

if TYPE_CHECKING:
    import numpy as np

    from scorer.compress.held_out import Payments
    from scorer.compress.lever_report import LeverReport
    from scorer.replay import Report


def show_report(
    folder: Path,
    X: np.ndarray,
    truth: np.ndarray | None,
    payments: Payments,
    read: Report,
    *,
    loss: float,
    seed: int,
    as_json: bool,
) -> None:
    """Measure and print. X float32 [n, k], truth bool [n] or None; `payments`: all of their time; `read`: the counts of
    the file. Raises UsageError or BundleError."""
    from scorer.compress.lever_report import report  # noqa: PLC0415 - needs a training library

    with counting("measuring", quiet=as_json) as progress:
        found = report(folder, X, truth, loss=loss, seed=seed, payments=payments, progress=progress.describe)
    document = with_report(found.document(), read)
    if as_json:
        show(document, as_json=True, title="")
        return
    out.print(_levers(found))
    out.print(_batches(found))
    out.print(_exports(found))
    out.print(_degraded(found))
    for note in found.notes:
        err.print(f"note: {note}", markup=False)


def _levers(found: LeverReport) -> Table:
    frauds = "" if found.frauds is None else f" with {found.frauds:,} frauds"
    heads = (
        "lever", "trees", "nodes", "time, batch", "time, single", "file", "deflated", "memory", "AP lost", "95 %",
        "margin moved", "decided otherwise", "flagged", "pays in",
    )  # fmt: skip
    table = Table(*heads, title=f"{found.bundle}, {found.rows:,} rows{frauds}; {found.allowed}", title_justify="left")
    for one in found.levers:
        if one.unavailable is not None:
            table.add_row(one.lever, *[""] * (len(heads) - 2), f"not here: {one.unavailable}")
            continue
        ratios = (
            one.batch_time_ratio, one.single_time_ratio, one.file_ratio, one.deflated_ratio, one.memory_ratio
        )  # fmt: skip
        interval = "" if one.lost_interval is None else f"{one.lost_interval[0]:+.4f} to {one.lost_interval[1]:+.4f}"
        trees = f"{one.detail['mean_trees']:.0f} of {one.trees}" if "mean_trees" in one.detail else f"{one.trees:,}"
        table.add_row(
            one.lever,
            trees,
            f"{one.nodes:,}",
            *(f"x{ratio:.2f}" for ratio in ratios),
            "" if one.lost is None else f"{one.lost:+.4f}",
            interval,
            f"{one.margin_distance_mean:.3g}, at most {one.margin_distance_max:.3g}",
            f"{one.decisions_changed:,}",
            f"{one.flagged:,}",
            one.pays,
        )
    return table


def _batches(found: LeverReport) -> Table:
    table = Table("payments a call", "time of each", title="Batch sizes, by the largest", title_justify="left")
    for one in found.batches:
        table.add_row(f"{one.rows:,}", f"x{one.time_ratio:.2f}")
    return table


def _exports(found: LeverReport) -> Table:
    table = Table("evaluator", "rows", "time", "bytes", "margins", title="Exports, by ours", title_justify="left")
    for one in found.exports:
        if one.time_ratio is None or one.bytes is None:
            table.add_row(one.name, "", "", "", f"not here: {one.unavailable}")
            continue
        same = "bit for bit" if one.margin_distance_max == 0 else f"within {one.margin_distance_max:.3g}"
        table.add_row(one.name, f"{one.rows:,}", f"x{one.time_ratio:.2f}", f"{one.bytes:,}", same)
    return table


def _degraded(found: LeverReport) -> Table:
    heads = ("decides", "from score", "flags", "recall", "precision", "AP")
    table = Table(*heads, title="Degraded mode: payments without time for the model", title_justify="left")
    for one in found.degraded:
        known = [
            "" if value is None else f"{value:.3f}" for value in (one.recall, one.precision, one.average_precision)
        ]
        threshold = "by cost" if one.threshold_score is None else f"{one.threshold_score:.4g}"
        table.add_row(one.name, threshold, f"{one.flagged_share:.2%}", *known)
    return table
