"""What the risk team's commands share: options, and the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from features.feature_set import FeatureSet, FeatureSetError
from schemas.durations import parse_duration_ms
from scorer.errors import UsageError
from scorer.policy import Policy, PolicyError
from scorer.replay import Report

InputOption = Annotated[Path, typer.Option("--input", exists=True, dir_okay=False, help="Parquet, CSV or JSON lines.")]
MappingOption = Annotated[Path | None, typer.Option("--mapping", help="Which column is which field (YAML).")]
SetOption = Annotated[Path, typer.Option("--feature-set", exists=True, dir_okay=False, help="The feature set (YAML).")]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels", exists=True, dir_okay=False, help="Label records (JSON lines), as `simulate --labels` writes them."
    ),
]
GenuineOption = Annotated[
    str | None,
    typer.Option(
        "--genuine-after",
        help="A payment without a label counts as genuine after so long (7d): only frauds are reported.",
    ),
]
PolicyOption = Annotated[Path, typer.Option("--policy", exists=True, dir_okay=False, help="The policy (YAML).")]


def read_feature_set(path: Path) -> FeatureSet:
    """The feature set that the user named. Raises UsageError with file, line and what to write instead."""
    try:
        return FeatureSet.from_yaml(path)
    except (FeatureSetError, OSError, UnicodeDecodeError) as exc:
        raise UsageError(str(exc)) from exc


def read_policy(path: Path, feature_names: Sequence[str]) -> Policy:
    """The policy that the user named, for these features. Raises UsageError with the file and what to write instead."""
    try:
        policy = Policy.from_yaml(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"policy {path} cannot be read: {exc}") from exc
    try:
        policy.check(feature_names)
    except PolicyError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    return policy


def parse_duration_option(text: str | None, option: str) -> int | None:
    """A duration such as 7d in ms; None for none. Raises UsageError naming the option."""
    try:
        return None if text is None else parse_duration_ms(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from exc


def with_report(result: dict[str, Any], report: Report) -> dict[str, Any]:
    """A result between the counts of its run and the reasons of refusal; warns of labels that were lost."""
    counts = {
        "payments": report.payments,
        "dead_letters": report.dead_letters,
        "refused": report.refused,
        "duplicates": report.duplicates,
        "late": report.late,
        "labels_refused": report.labels_refused,
        "labels_unmatched": report.labels_unmatched,
        "labels_invalid": report.labels_invalid,
    }
    for share in () if report.card_shares is None else report.card_shares.found():
        typer.echo(f"warning: {share.sentence()} (`card_numbers` in the feature set)", err=True)
    if report.labels_refused:
        typer.echo(
            f"warning: {report.labels_refused} labels exceeded the engine's capacity, so label features are too "
            f"low; shorten the mapping's label_delay, or give a shorter history",
            err=True,
        )
    if report.labels_unmatched:
        typer.echo(
            f"warning: {report.labels_unmatched} labels were dropped for newer ones before their payments came. Those "
            f"of refused or late payments never match; if others are among them, label features are too low",
            err=True,
        )
    return {
        **counts,
        **result,
        **{f"refused_{reason}": count for reason, count in sorted(report.reasons_refused.items())},
    }
