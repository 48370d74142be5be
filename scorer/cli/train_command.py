"""`train`: from history to a bundle."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from schemas.durations import parse_duration_ms
from schemas.finite_json import finite
from scorer.cli.command_support import (
    Counting,
    Json,
    check_new_bundle,
    check_output,
    counting,
    date_of,
    err,
    out,
    parse_time_ms,
    read_mapping,
    read_text,
    show,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import (
    FileRun,
    GenuineOption,
    InputOption,
    LabelsOption,
    MappingOption,
    RefusedMaxOption,
    RefusedOption,
    parse_duration_option,
    read_feature_set,
    read_policy,
    with_report,
)
from scorer.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from features.feature_set import FeatureSet
    from scorer.replay import TrainingTable
    from scorer.training.training_run import TrainingReport

OwnSetOption = Annotated[
    Path | None,
    typer.Option(
        "--feature-set", exists=True, dir_okay=False, help="The feature set (YAML); the continued bundle's own."
    ),
]
OwnPolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", exists=True, dir_okay=False, help="The policy (YAML); the continued bundle's own."),
]


def train(
    file: InputOption,
    output: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    feature_set: OwnSetOption = None,
    policy: OwnPolicyOption = None,
    present: Annotated[
        Path | None,
        typer.Option(
            "--continue",
            exists=True,
            file_okay=False,
            help="A bundle to learn on from, with newer payments: its model stays unless more trees, or a new fit, are "
            "better by more than chance on payments that it has not seen.",
        ),
    ] = None,
    mapping: MappingOption = None,
    labels: LabelsOption = None,
    genuine_after: GenuineOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First day to learn from; earlier payments only fill the windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day after the last one to learn from.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            help="Day of training: labels known later are not used. By default all of the window; with "
            "--genuine-after the time of the last payment, or by which nearly all frauds were reported.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the feature set's by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and data give the same model.")] = 1,
    label_gap: Annotated[str, typer.Option(help="Between training and validation: as long as labels take.")] = "7d",
    trials: Annotated[
        int, typer.Option(min=0, help="Recipes to search on later days; 0: three known ones are compared.")
    ] = 0,
    search_time: Annotated[
        str,
        typer.Option("--search-time", help="No further recipe is begun after this time; 0s: the first one only, once."),
    ] = "30m",
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
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.pipeline.card_keys import cards_of  # noqa: PLC0415
    from scorer.policy import Policy  # noqa: PLC0415
    from scorer.replay import file_batches, training_table  # noqa: PLC0415
    from scorer.training import TrainingRows, TrainingSettings, prepare  # noqa: PLC0415 - only this command trains
    from scorer.training import train as fit  # noqa: PLC0415
    from scorer.training.boosting import STOP_FRAUDS_MIN  # noqa: PLC0415
    from scorer.training.time_split import day_of_training  # noqa: PLC0415

    check_new_bundle(output)
    if report_file is not None:
        check_output(report_file, "--report")
    declared, text, policy_text = _declared(feature_set, policy, present)
    genuine_ms = parse_duration_option(genuine_after, "--genuine-after")
    settings = TrainingSettings(
        name=name or declared.name,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seed=seed,
        label_gap_ms=_duration_ms(label_gap, "--label-gap"),
        threads=threads,
        trials=trials,
        search_s_max=_duration_ms(search_time, "--search-time") / 1000,
        refit=refit,
        as_of_ms=parse_time_ms(as_of, "--as-of"),
        genuine_after_ms=genuine_ms,
        accepted=accept or (),
    )
    begin_ms, end_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    if begin_ms is not None and end_ms is not None and begin_ms >= end_ms:
        raise UsageError(f"--from {begin} is not before --until {until}")
    prepare(text, policy_text, output, settings, present)
    keys = load_settings().pseudonym_keys
    run = FileRun.of(refused, refused_max)
    with counting("payments", quiet=as_json) as progress:
        options = dataclasses.replace(run.options, lateness_ms=declared.allowed_lateness, looking=progress.looking)
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
        table.features[kept],
        table.label[kept],
        table.event_time_ms[kept],
        table.label_known_at_ms[kept],
        table.amount[kept],
    )
    if genuine_ms is not None and (day := day_of_training(rows, settings)) is not None:
        what = "--as-of" if as_of is not None else f"{date_of(day)}, the last payment or report of fraud (no --as-of)"
        err.print(f"note: rows of the last {genuine_after} before {what} are not used: only frauds have a label there")
    with counting("training", quiet=as_json) as progress:
        rounds, tried = _progress(progress)
        report = fit(rows, text, policy_text, output, settings, present=present, progress=rounds, trial_progress=tried)
    for note in report.notes:
        err.print(f"note: {note}", markup=False)
    fewest = min(report.training.validation_frauds, report.training.train_frauds)
    if trials and fewest < STOP_FRAUDS_MIN:
        err.print(
            f"note: --trials searched nothing: {fewest} frauds in the later days, or before them, can not choose a "
            f"recipe, {STOP_FRAUDS_MIN} can"
        )
    if present is not None and (dropped := Bundle.load(present).challengers):
        names = ", ".join(item.id for item in dropped)
        err.print(
            f"note: the new bundle has no challengers and no student ({names}): add them with `bundle challenge`",
            markup=False,
        )
    if (segments := Policy.from_yaml(policy_text).without_segments()) is not None:
        err.print(f"note: {segments}", markup=False)
    lineage = None if report.lineage is None else report.lineage.model_dump()
    document = dataclasses.asdict(report) | {
        "output": str(report.output),
        "training": report.training.model_dump(),
        "lineage": lineage,
    }
    document["history"] = table.report.counts()
    if report_file is not None:
        report_file.write_text(json.dumps(finite(document), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    result: dict[str, Any] = {
        "bundle": report.bundle_id,
        "output": str(output),
        "trees": report.trees,
        **({} if report.lineage is None else _learned_on(report)),
        "threshold_score": report.threshold_score,
        **({} if report.saving_min is None else {"saving_min": report.saving_min}),
        **report.metrics,
        "rows_learned_from": report.training.refit_rows or report.training.train_rows,
    }
    result = with_report(result, table.report)
    if as_json:
        selection = {
            "recipe": document["recipe"],
            "trials": document["trials"],
            "late_trials": document["late_trials"],
            "selection": document["features"],
        }
        selection |= {} if lineage is None else {"lineage": lineage, "candidates": report.candidates}
        show(result | selection, as_json=True, title="")
        return
    show(result, as_json=False, title="Trained (figures: later days that the measured model had not seen)")
    _show_features(report)


def _declared(feature_set: Path | None, policy: Path | None, present: Path | None) -> tuple[FeatureSet, str, str]:
    """The feature set, its text, and the policy's: those named, else those of the bundle that is continued. Raises
    UsageError where neither is there."""
    from features.feature_set import FeatureSet  # noqa: PLC0415
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.bundle.bundle_folder import checked  # noqa: PLC0415
    from scorer.bundle.manifest import FEATURE_SET, POLICY  # noqa: PLC0415

    own: dict[str, str] = {}
    if present is not None:
        files = Bundle.load(present).manifest.files
        own = {name: checked(present, name, files[name]).decode() for name in (FEATURE_SET, POLICY)}
    for path, option in ((feature_set, "--feature-set"), (policy, "--policy")):
        if path is None and present is None:
            raise UsageError(f"{option}: name the file, or --continue a bundle that has one")
    text = own[FEATURE_SET] if feature_set is None else read_text(feature_set, "feature set")
    declared = FeatureSet.from_yaml(text) if feature_set is None else read_feature_set(feature_set)
    if policy is None:
        return declared, text, own[POLICY]
    read_policy(policy, declared.names)
    return declared, text, read_text(policy, "policy")


def _learned_on(report: TrainingReport) -> dict[str, Any]:
    """What a continued bundle's model became, for people."""
    lineage = report.lineage
    assert lineage is not None
    made = {
        "kept": "kept as it is: nothing newer was better by more than chance; calibration and threshold are new",
        "continued": f"its {lineage.trees_kept} trees, and {report.trees - lineage.trees_kept} new ones",
        "anew": "fitted anew on all rows",
    }
    return {
        "continues": lineage.bundle,
        "model": made[lineage.made],
        **{f"average_precision_{name}": value for name, value in report.candidates.items()},
    }


def _duration_ms(text: str, option: str) -> int:
    try:
        return parse_duration_ms(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from exc


def _inside(table: TrainingTable, begin_ms: int | None, end_ms: int | None) -> np.ndarray:
    """bool [n]: payments of [begin_ms, end_ms), epoch ms; None: no bound. Raises UsageError when there are none."""
    import numpy as np  # noqa: PLC0415

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
    from scorer.training.leakage_suspects import DOUBTFUL_PRECISION  # noqa: PLC0415

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


def _progress(training: Counting) -> tuple[Callable[[int, int, float], None], Callable[[int, int, float], None]]:
    """What the rounds of boosting and the trials of recipes call: (done, at most, average precision)."""
    lines: dict[str, Counting] = {}

    def shown(what: str, done: int, most: int, precision: float) -> None:
        if what not in lines:
            lines[what] = training.part(what)
        lines[what].of(done, most)
        lines[what].describe(f"{what} (average precision {precision:.4f})")

    return partial(shown, "rounds"), partial(shown, "trials")
