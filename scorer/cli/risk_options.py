"""What the commands that read files share: options, the report of a run, and when what was refused fails it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.durations import parse_duration_ms
from scorer.cli.command_support import check_output, err, read_options
from scorer.errors import FraudScorerError, UsageError
from scorer.runtime.settings import load

if TYPE_CHECKING:
    from features.feature_set import FeatureSet
    from scorer.files.payment_file import ReadOptions
    from scorer.files.refusals import Refusals
    from scorer.policy import Policy
    from scorer.replay import Report

InputOption = Annotated[
    str,
    typer.Option(
        "--input",
        help="Parquet, CSV or JSON, .gz and .zst too: a file, a folder, a pattern in quotes, a URL (s3://…), -.",
    ),
]
RefusedOption = Annotated[
    Path | None, typer.Option("--refused", help="Parquet to write the refused rows to: row, field, reason, message.")
]
RefusedMaxOption = Annotated[
    float | None,
    typer.Option("--refused-max", min=0, max=1, help="Share of refused rows that fails the run; 0.01 by default."),
]
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
        help="A payment without a label counts as genuine after so long (7d): only frauds are reported. What "
        "came later than so long before --as-of is left out, frauds too.",
    ),
]
PolicyOption = Annotated[Path, typer.Option("--policy", exists=True, dir_okay=False, help="The policy (YAML).")]


def read_feature_set(path: Path) -> FeatureSet:
    """The feature set that the user named. Raises UsageError with file, line and what to write instead."""
    from features.feature_set import FeatureSet, FeatureSetError  # noqa: PLC0415

    try:
        return FeatureSet.from_yaml(path)
    except (FeatureSetError, OSError, UnicodeDecodeError) as exc:
        raise UsageError(str(exc)) from exc


def read_policy(path: Path, feature_names: Sequence[str]) -> Policy:
    """The policy that the user named, for these features. Raises UsageError with the file and what to write instead."""
    from scorer.policy import Policy, PolicyError  # noqa: PLC0415

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


@dataclass(frozen=True)
class FileRun:
    """How a command reads a file, and what becomes of the rows that are refused."""

    options: ReadOptions
    refusals: Refusals
    refused_max: float

    @classmethod
    def of(cls, refused: Path | None = None, refused_max: float | None = None) -> FileRun:
        """By the options of a command and the settings. Raises UsageError."""
        from scorer.files.refusals import Refusals  # noqa: PLC0415

        if refused is not None:
            check_output(refused, "--refused")
        settings = load()
        share = settings.files.refused_max if refused_max is None else refused_max
        refusals = Refusals(refused)
        return cls(replace(read_options(settings), left_out=refusals.leave_out), refusals, share)

    def check(self, refusals: Refusals, rows: int) -> None:
        """Raise FraudScorerError when more of `rows` were refused than may be; all of them are always too many."""
        if refusals.total == 0 or (refusals.total <= self.refused_max * rows and refusals.total < rows):
            return
        raise FraudScorerError(
            f"{refusals.total:,} of {rows:,} rows were refused, more than {self.refused_max:.2%} (--refused-max): "
            + "; ".join(refused_lines(refusals)[:3])
        )


def refused_lines(refusals: Refusals) -> list[str]:
    """What was refused, a line for each field and reason, with rows as examples."""
    return [
        f"{one['rows']:,} × {one['field'] or 'the row'}: {one['reason']} (row {', '.join(map(str, one['examples']))}"
        f"{', …' if one['rows'] > len(one['examples']) else ''}): {one['message']}"
        for one in refusals.described()
    ]


def left_out(refusals: Refusals) -> dict[str, int]:
    """How many rows `where` leaves out, for a result; empty where there are none. Warns where it had no value."""
    if refusals.unknown:
        err.print(
            f"warning: where leaves out {refusals.unknown:,} rows because a cell that it names is empty; to keep such"
            " rows, write `is distinct from` for `<>`, or coalesce(column, '')"
        )
    return {"rows_left_out": refusals.left_out} if refusals.left_out else {}


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
    for line in refused_lines(report.refusals):
        err.print(f"refused: {line}")
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
        **({"refusals": report.refusals.described()} if report.refusals.total else {}),
        **left_out(report.refusals),
    }
