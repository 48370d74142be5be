"""`features`, `train`, `replay`: what a risk team works with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from features.feature_set import FeatureSet
from schemas.durations import parse_duration_ms
from scorer.bundle import Bundle
from scorer.cli.common import Json, counting, parse_time_ms, read_mapping, read_text, show
from scorer.cli.common import settings as load_settings
from scorer.errors import UsageError
from scorer.replay import Report, file_batches, replay_file, replay_topic, training_table, write_training_table

InputOption = Annotated[Path, typer.Option("--input", exists=True, dir_okay=False, help="Parquet, CSV or JSON lines.")]
MappingOption = Annotated[Path | None, typer.Option("--mapping", help="Which column is which field (YAML).")]
SetOption = Annotated[Path, typer.Option("--feature-set", exists=True, dir_okay=False, help="The feature set (YAML).")]


def features(
    feature_set: SetOption,
    file: InputOption,
    output: Annotated[Path, typer.Option(help="Parquet to write.")],
    mapping: MappingOption = None,
    as_json: Json = False,
) -> None:
    """Training export: the live engine's own feature values, plus label.

    Example: fraud-scorer features --feature-set cards.yaml --input history.parquet --mapping m.yaml --output features.parquet
    """
    declared = FeatureSet.from_yaml(feature_set)
    with counting("payments", quiet=as_json) as progress:
        table = training_table(declared, file_batches(file, read_mapping(mapping)), progress=progress)
    write_training_table(table, declared.names, output)
    show(
        _with_report(
            {"rows": len(table.payment_id), "features": len(declared.names), "labelled": int((table.label >= 0).sum())},
            table.report,
        ),
        as_json=as_json,
        title=str(output),
    )


def train(
    feature_set: SetOption,
    policy: Annotated[Path, typer.Option("--policy", exists=True, dir_okay=False, help="The policy (YAML).")],
    file: InputOption,
    output: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    mapping: MappingOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="First day to learn from; earlier payments only fill the windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day after the last one to learn from.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the feature set's by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and data give the same model.")] = 1,
    label_gap: Annotated[str, typer.Option(help="Between training and validation: as long as labels take.")] = "7d",
    as_json: Json = False,
) -> None:
    """Train a model on a file's payments and write a bundle.

    Example: fraud-scorer train --feature-set cards.yaml --policy policy.yaml --input history.parquet --mapping m.yaml --output bundles/cards
    """
    from scorer.train import train as fit  # noqa: PLC0415 - xgboost is an extra

    text, policy_text = read_text(feature_set, "feature set"), read_text(policy, "policy")
    declared = FeatureSet.from_yaml(feature_set)
    try:
        gap_ms = parse_duration_ms(label_gap)
    except ValueError as exc:
        raise UsageError(f"--label-gap: {exc}") from exc
    with counting("payments", quiet=as_json) as progress:
        table = training_table(declared, file_batches(file, read_mapping(mapping)), progress=progress)
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    keep = np.ones(len(table.label), dtype=np.bool_)
    if begin_ms is not None:
        keep &= table.event_time_ms >= begin_ms
    if until_ms is not None:
        keep &= table.event_time_ms < until_ms
    report = fit(
        table.features[keep], table.label[keep], table.event_time_ms[keep], table.label_known_at_ms[keep], text, policy_text, output,
        seed=seed, label_gap_ms=gap_ms, created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), name=name or declared.name,
    )  # fmt: skip
    result: dict[str, Any] = {
        "bundle": report.bundle_id,
        "output": str(output),
        "trees": report.trees,
        "threshold_score": report.threshold_score,
        **report.metrics,
    }
    show(_with_report(result, table.report), as_json=as_json, title="Trained")


def replay(
    bundle: Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle to decide with.")],
    source: Annotated[str, typer.Option("--input", help="A file, or `topic`: the payments topic along its journal.")],
    output: Annotated[
        Path | None, typer.Option(help="Parquet to write: features, score, decision, reasons a payment.")
    ] = None,
    mapping: MappingOption = None,
    shard: Annotated[int, typer.Option(min=0, help="With topic: which shard's journal.")] = 0,
    as_json: Json = False,
) -> None:
    """Decide history again through the same function. Along the journal every digest is checked; a difference exits with 3.

    Example: fraud-scorer replay --bundle bundles/cards --input topic --output decided.parquet
    """
    loaded = Bundle.load(bundle)
    with counting("payments", quiet=as_json) as progress:
        if source == "topic":
            report = replay_topic(loaded, load_settings(), output, shard=shard, progress=progress)
        elif Path(source).is_file():
            report = replay_file(loaded, Path(source), read_mapping(mapping), output, progress=progress)
        else:
            raise UsageError(f"--input {source}: neither a file nor the word `topic`")
    result: dict[str, Any] = {"decisions": report.decisions, "flagged": report.flagged}
    if source == "topic":
        result["batches_equal"] = report.batches_checked
    show(_with_report(result, report), as_json=as_json, title=f"Replayed with {loaded.id}")


def _with_report(result: dict[str, Any], report: Report) -> dict[str, Any]:
    counts = {
        "payments": report.payments,
        "dead_letters": report.dead_letters,
        "duplicates": report.duplicates,
        "late": report.late,
    }
    return {
        **counts,
        **result,
        **{f"refused_{reason}": count for reason, count in sorted(report.reasons_refused.items())},
    }
