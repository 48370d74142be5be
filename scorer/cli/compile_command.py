"""`bundle compile`: one lever applied to a bundle's model and measured on held-out payments, or a report on all."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import (
    Json,
    check_new_bundle,
    counting,
    date_of,
    err,
    moment_of,
    out,
    parse_time_ms,
    read_mapping,
    show,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.lever_tables import show_report
from scorer.cli.risk_options import (
    FileRun,
    MappingOption,
    RefusedMaxOption,
    RefusedOption,
    parse_duration_option,
    with_report,
)
from scorer.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from scorer.bundle import Bundle
    from scorer.compress.held_out import Payments
    from scorer.replay import Report

_TREES = {"distil": 40, "isolation-forest": 100}


def compile_bundle(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's folder.")],
    file: Annotated[Path, typer.Option("--input", exists=True, dir_okay=False, help="Held-out payments with labels.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the new bundle (not for --early-exit).")] = None,
    mapping: MappingOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First day to measure on; earlier ones fill the windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day after the last one to measure on.")] = None,
    genuine_after: Annotated[
        str | None,
        typer.Option(
            "--genuine-after",
            help="A payment without a label counts as genuine after so long (30d): only frauds are reported. The "
            "last so long before the last payment, or report of fraud, is left out, frauds too.",
        ),
    ] = None,
    quantise_leaves: Annotated[
        bool, typer.Option("--quantise-leaves", help="Leaves on a grid of --bits bits (lossy).")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Leave out trees and merge leaves within --loss.")] = False,
    distil: Annotated[bool, typer.Option("--distil", help="Train a small student of the bundle's scores.")] = False,
    first_trees: Annotated[
        int | None, typer.Option("--first-trees", help="Keep so many trees, the first: a student without training.")
    ] = None,
    isolation_forest: Annotated[
        bool,
        typer.Option("--isolation-forest", help="An isolation forest of the rows instead, as a challenger: no labels."),
    ] = False,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Measure decisions without the rest of the trees.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Try every lever and print what each costs and gives; writes nothing. Labels may lack."
        ),
    ] = False,
    bits: Annotated[int, typer.Option(help="Bits of a leaf for --quantise-leaves.")] = 10,
    loss: Annotated[
        float, typer.Option(help="Average precision that --prune may give up, and a lever of --report may cost.")
    ] = 0.005,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Write it even where the rows that measure lose more than --loss.")
    ] = False,
    trees: Annotated[
        int | None, typer.Option(help="Trees of the student (40 by default) or of the isolation forest (100).")
    ] = None,
    depth: Annotated[int, typer.Option(help="Depth of the student's trees.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the student or of the isolation forest.")] = 1,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Apply one lever and print size, speed and quality before and after, on held-out payments; or report on all.

    Example: fraud-scorer bundle compile bundles/cards --prune --input later.parquet --mapping m.yaml --output
    bundles/cards-small
    """
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.compress import levers  # noqa: PLC0415 - needs a training library

    chosen = {
        "quantise-leaves": quantise_leaves,
        "prune": prune,
        "distil": distil,
        "first-trees": first_trees is not None,
        "isolation-forest": isolation_forest,
        "early-exit": early_exit,
        "report": report,
    }
    if sum(chosen.values()) != 1:
        raise UsageError(
            "give exactly one of --quantise-leaves, --prune, --distil, --first-trees, --isolation-forest, --early-exit "
            "and --report"
        )
    if output is None and not (early_exit or report):
        raise UsageError("--output: name the folder of the new bundle")
    if output is not None and report:
        raise UsageError("--report writes no bundle: leave --output out, and give it to the lever that you choose")
    if output is not None and not early_exit:
        check_new_bundle(output)
    begin_ms, end_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    if begin_ms is not None and end_ms is not None and begin_ms >= end_ms:
        raise UsageError(f"--from {begin} is not before --until {until}")
    window = _Window(begin_ms, end_ms, parse_duration_option(genuine_after, "--genuine-after"), genuine_after)
    lever = next(name for name, given in chosen.items() if given)
    many = first_trees if first_trees is not None else trees
    if many is None:
        many = _TREES.get(lever, 1)
    bundle = Bundle.load(folder)
    levers.check(bundle, lever, levers.source_of(bundle, folder), bits=bits, loss=loss, trees=many, depth=depth)
    run = FileRun.of(refused, refused_max)
    held_out = _held_out(bundle, file, mapping, window, run, unlabelled=report, quiet=as_json)
    X, truth, payments, until_ms = held_out.X, held_out.truth, held_out.payments, held_out.until_ms
    if report or truth is None:
        show_report(folder, X, truth, payments, held_out.read, loss=loss, seed=seed, as_json=as_json)
        return
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if early_exit or output is None:
        with counting("measuring", quiet=as_json):
            measured = levers.early_exit(folder, X, truth)
        show(with_report(measured, held_out.read), as_json=as_json, title="Early exit")
        return
    call = {
        "quantise-leaves": partial(levers.quantise, bits=bits),
        "prune": partial(levers.prune, loss=loss, accept=accept_loss),
        "first-trees": partial(levers.shorten, trees=many),
        "isolation-forest": partial(levers.isolate, trees=many, seed=seed),
        "distil": partial(levers.student, trees=many, depth=depth, seed=seed),
    }[lever]
    with counting("making the bundle smaller", quiet=as_json):
        done = call(folder, output, X, truth, created_at=created_at, until_ms=until_ms, payments=payments)
    for note in done.notes:
        err.print(f"note: {note}", markup=False)
    if as_json:
        show(with_report(asdict(done), held_out.read), as_json=True, title="")
        return
    table = Table("", "before", "after", title=f"{done.lever}: {output}", title_justify="left")
    after = done.after.document()
    for name, value in done.before.document().items():
        table.add_row(name.replace("_", " "), f"{value:,.6g}", f"{after[name]:,.6g}")
    out.print(table)
    changed = {
        "rows": done.rows,
        "frauds": done.frauds,
        "payments_decided": done.payments_decided,
        "decisions_changed": done.decisions_changed,
        "score_distance_max": done.score_distance_max,
    }
    result = with_report({"bundle": done.bundle_id, **changed, **done.detail}, held_out.read)
    show(result, as_json=False, title="On the held-out rows")


@dataclass(frozen=True)
class _Window:
    """Which payments measure: those of [begin_ms, end_ms), epoch ms, None: no bound; those without a label as genuine
    after `genuine_ms`, which was given as `genuine_after`."""

    begin_ms: int | None
    end_ms: int | None
    genuine_ms: int | None
    genuine_after: str | None


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Rows float32 [n, k] and truth bool [n] of payments of known label, or None where none has one and the rows are
    all; all payments of their time; the first time after them; and what was read of the file."""

    X: np.ndarray
    truth: np.ndarray | None
    payments: Payments
    until_ms: int
    read: Report


def _held_out(
    bundle: Bundle, file: Path, mapping: Path | None, window: _Window, run: FileRun, *, unlabelled: bool, quiet: bool
) -> _HeldOut:
    """The payments that the bundle's model has not seen in training; with `unlabelled`, all where no label is known.
    Raises UsageError where it has seen all of them or where frauds alone are known, FraudScorerError where too many
    rows were refused."""
    import numpy as np  # noqa: PLC0415

    from scorer.compress.held_out import Payments  # noqa: PLC0415 - as in compile_bundle
    from scorer.pipeline.card_keys import cards_of  # noqa: PLC0415 - as below
    from scorer.replay import file_batches, training_table  # noqa: PLC0415 - the whole pipeline
    from scorer.training.time_split import reported_by_ms  # noqa: PLC0415

    declared, keys, training = bundle.feature_set, load_settings().pseudonym_keys, bundle.manifest.training
    with counting("payments", quiet=quiet) as progress:
        options = replace(run.options, lateness_ms=declared.allowed_lateness, looking=progress.looking)
        batches = file_batches(
            file, read_mapping(mapping), cards=cards_of(declared, keys), options=options, expect=progress.expect
        )
        table = training_table(declared, batches, source=file, keys=keys, progress=progress, refusals=run.refusals)
    run.check(table.report.refusals, table.report.payments)
    times = table.event_time_ms
    inside = np.ones(len(times), np.bool_)
    if window.begin_ms is not None:
        inside &= times >= window.begin_ms
    if window.end_ms is not None:
        inside &= times < window.end_ms
    without = unlabelled and window.genuine_ms is None and not (table.label >= 0).any()
    if window.genuine_ms is not None and inside.any():
        fraud = table.label[inside] == 1
        day_ms = reported_by_ms(times[inside], table.label_known_at_ms[inside][fraud])
        table = table.genuine_after(window.genuine_ms)
        inside &= times <= day_ms - window.genuine_ms
        err.print(
            f"note: payments of the last {window.genuine_after} before {date_of(day_ms)}, the last payment or report "
            "of fraud, are not used: only frauds have a label there"
        )
    keep = inside if without else inside & (table.label >= 0)
    if not keep.any():
        raise UsageError("no payment of known label lies in the window: check --from, --until and --genuine-after")
    if training is not None:
        keep = _unseen(keep, times, bundle.id, training.validation_until_ms)
        inside = inside & (times >= training.validation_until_ms)
    truth, until_ms = np.asarray(table.label[keep] == 1), int(times[keep].max()) + 1
    if not without and truth.all():
        raise UsageError(
            f"all {len(truth):,} payments of known label are frauds, so nothing can be measured: where frauds alone "
            "are reported, give --genuine-after 60d (as long as reports take), else labels of genuine payments"
        )
    inside &= (times >= times[keep].min()) & (times < until_ms)
    X = np.ascontiguousarray(table.features[inside])
    measuring = keep[inside]
    payments = Payments(X, measuring, table.amount[inside])
    rows = X if measuring.all() else np.ascontiguousarray(X[measuring])
    return _HeldOut(rows, None if without else truth, payments, until_ms, table.report)


def _unseen(keep: np.ndarray, times_ms: np.ndarray, name: str, seen_until_ms: int) -> np.ndarray:
    """bool [n]: those of `keep` that the bundle called `name` has not seen in training; of those before it a model
    ranks and rates too well. Raises UsageError where none is left."""
    seen = keep & (times_ms < seen_until_ms)
    if not seen.any():
        return keep
    day = moment_of(seen_until_ms)
    if not (keep & ~seen).any():
        raise UsageError(
            f"{name} has seen all of the {int(seen.sum()):,} payments (those before {day}) in training or in a `bundle "
            "compile` before, so nothing can be measured on them: give later payments, or train with an earlier "
            "--until and keep the days after it for this"
        )
    err.print(f"note: {int(seen.sum()):,} payments before {day} are left out: {name} has seen them in training")
    return keep & ~seen
