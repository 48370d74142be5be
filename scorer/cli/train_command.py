"""`train`: from history to a bundle."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from schemas.durations import parse_duration_ms
from scorer.cli.command_support import Json, counting, err, out, parse_time_ms, read_mapping, read_text, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import (
    FileRun,
    GenuineOption,
    InputOption,
    LabelsOption,
    MappingOption,
    PolicyOption,
    RefusedMaxOption,
    RefusedOption,
    SetOption,
    parse_duration_option,
    read_feature_set,
    read_policy,
    with_report,
)
from scorer.errors import UsageError
from scorer.pipeline.card_keys import cards_of
from scorer.replay import TrainingTable, file_batches, training_table
from scorer.training.leakage_suspects import DOUBTFUL_PRECISION
from scorer.training.training_run import TrainingReport


def train(
    feature_set: SetOption,
    policy: PolicyOption,
    file: InputOption,
    output: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    mapping: MappingOption = None,
    labels: LabelsOption = None,
    genuine_after: GenuineOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First day to learn from; earlier payments only fill the windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day after the last one to learn from.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="Day of training: labels known later are not used. By default all of the window."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the feature set's by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and data give the same model.")] = 1,
    label_gap: Annotated[str, typer.Option(help="Between training and validation: as long as labels take.")] = "7d",
    trials: Annotated[int, typer.Option(min=0, help="Recipes to try on later days; 0: the default recipe.")] = 0,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Fit once more on all known rows, validation included.")
    ] = True,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", help="A suspected feature that is known before the decision; may be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for xgboost.")] = 2,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", help="JSON to write: metrics, recipe, trials, what each feature is worth."),
    ] = None,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Train a model on a file's payments and write a bundle.

    Example: fraud-scorer train --feature-set cards.yaml --policy policy.yaml --input history.parquet --mapping m.yaml
    --from 2018-05-01 --until 2018-08-22 --trials 20 --output bundles/cards
    """
    from scorer.training import TrainingRows, TrainingSettings  # noqa: PLC0415 - only this command trains
    from scorer.training import train as fit  # noqa: PLC0415

    text, policy_text = read_text(feature_set, "feature set"), read_text(policy, "policy")
    declared = read_feature_set(feature_set)
    read_policy(policy, declared.names)
    settings = TrainingSettings(
        name=name or declared.name,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seed=seed,
        label_gap_ms=_duration_ms(label_gap, "--label-gap"),
        threads=threads,
        trials=trials,
        refit=refit,
        as_of_ms=parse_time_ms(as_of, "--as-of"),
        accepted=accept or (),
    )
    begin_ms, end_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    if begin_ms is not None and end_ms is not None and begin_ms >= end_ms:
        raise UsageError(f"--from {begin} is not before --until {until}")
    keys = load_settings().pseudonym_keys
    run = FileRun.of(refused, refused_max)
    with counting("payments", quiet=as_json) as progress:
        options = dataclasses.replace(run.options, lateness_ms=declared.allowed_lateness)
        batches = file_batches(
            file,
            read_mapping(mapping),
            until_ms=end_ms,
            labels=labels,
            cards=cards_of(declared, keys),
            options=options,
            expect=progress.expect,
        )
        table = training_table(
            declared,
            batches,
            source=file,
            as_of_ms=settings.as_of_ms,
            keys=keys,
            progress=progress,
            refusals=run.refusals,
        )
    run.check(table.report.refusals, table.report.payments)
    if genuine_ms is not None:
        table = table.genuine_after(genuine_ms)
    kept = _inside(table, begin_ms, end_ms)
    rows = TrainingRows(
        table.features[kept], table.label[kept], table.event_time_ms[kept], table.label_known_at_ms[kept]
    )
    with _progress(quiet=as_json) as (rounds, tried):
        report = fit(rows, text, policy_text, output, settings, progress=rounds, trial_progress=tried)
    document = dataclasses.asdict(report) | {"output": str(report.output), "training": report.training.model_dump()}
    document["history"] = table.report.counts()
    if report_file is not None:
        report_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    result: dict[str, Any] = {
        "bundle": report.bundle_id,
        "output": str(output),
        "trees": report.trees,
        "threshold_score": report.threshold_score,
        **report.metrics,
        "rows_learned_from": report.training.refit_rows or report.training.train_rows,
    }
    result = with_report(result, table.report)
    if as_json:
        selection = {"recipe": document["recipe"], "trials": document["trials"], "selection": document["features"]}
        show(result | selection, as_json=True, title="")
        return
    show(result, as_json=False, title="Trained (figures: later days that the measured model had not seen)")
    _show_features(report)


def _duration_ms(text: str, option: str) -> int:
    try:
        return parse_duration_ms(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from exc


def _inside(table: TrainingTable, begin_ms: int | None, end_ms: int | None) -> np.ndarray:
    """bool [n]: payments of [begin_ms, end_ms), epoch ms; None: no bound. Raises UsageError when there are none."""
    kept = np.ones(len(table.label), dtype=np.bool_)
    if begin_ms is not None:
        kept &= table.event_time_ms >= begin_ms
    if end_ms is not None:
        kept &= table.event_time_ms < end_ms
    if not kept.any():
        raise UsageError("no payment of the file lies in the window: check --from and --until")
    return kept


def _show_features(report: TrainingReport) -> None:
    """What each feature is worth, and a warning for those that may be made of the label."""
    heads = ("feature", "gain", "AP lost when shuffled", "impact", "direction", "missing", "verdict")
    worth = Table(*heads, title="What each feature is worth", title_justify="left")
    for row in report.features:
        direction = "" if row.direction is None else f"{row.direction:+.2f}"
        figures = (f"{row.gain:.1%}", f"{row.loss:+.4f}", f"{row.impact:.3f}", direction, f"{row.missing:.0%}")
        worth.add_row(row.name, *figures, row.verdict)
    out.print(worth)
    for row in report.features:
        if row.alone >= DOUBTFUL_PRECISION:
            err.print(
                f"warning: {row.name} reaches an average precision of {row.alone:.2f} alone, by its values or by being "
                f"present at all; make sure that it is known before the decision",
                markup=False,
            )


@contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Any, Any]]:
    """Lines on stderr: every 25th round, every trial."""
    if quiet or not err.is_terminal:
        yield None, None
        return

    def rounds(done: int, most: int, precision: float) -> None:
        if done % 25 == 0:
            err.print(f"round {done} of at most {most}: average precision {precision:.4f}")

    def tried(done: int, trials: int, best: float) -> None:
        err.print(f"trial {done} of {trials}: best average precision {best:.4f}")

    yield rounds, tried
