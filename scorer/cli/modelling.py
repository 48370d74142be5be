"""`features`: the training export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from features.feature_set import FeatureSet
from scorer.cli.common import Json, counting, read_mapping, show
from scorer.replay import Report, file_batches, training_table, write_training_table

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
        with_report(
            {"rows": len(table.payment_id), "features": len(declared.names), "labelled": int((table.label >= 0).sum())},
            table.report,
        ),
        as_json=as_json,
        title=str(output),
    )


def with_report(result: dict[str, Any], report: Report) -> dict[str, Any]:
    """A result with the counts of the run it came from before it, and the reasons of refusal after it."""
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
