"""`features`: the training export; `features explain`: a feature set described, with its memory; `features schema`: for
editors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import Json, check_output, counting, out, read_mapping, show
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import (
    FileRun,
    LabelsOption,
    MappingOption,
    RefusedMaxOption,
    RefusedOption,
    read_feature_set,
    with_report,
)
from scorer.errors import UsageError

app = typer.Typer(
    help="Training export: the live engine's own feature values, plus label. Also: explain and schema.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def export(
    context: typer.Context,
    feature_set: Annotated[
        Path | None, typer.Option("--feature-set", exists=True, dir_okay=False, help="The feature set (YAML).")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--input", help="Parquet, CSV or JSON: a file, folder, pattern, URL, or - for stdin."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Parquet to write.")] = None,
    mapping: MappingOption = None,
    labels: LabelsOption = None,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Training export: the live engine's own feature values, plus label.

    Example: fraud-scorer features --feature-set cards.yaml --input history.parquet --mapping m.yaml --output
    features.parquet"""
    if context.invoked_subcommand is not None:
        return
    if feature_set is None or file is None or output is None:
        missing = [
            option
            for option, value in (("--feature-set", feature_set), ("--input", file), ("--output", output))
            if value is None
        ]
        raise UsageError(f"features needs {', '.join(missing)}; `fraud-scorer features --help` shows an example")
    check_output(output)
    from scorer.pipeline.card_keys import cards_of  # noqa: PLC0415
    from scorer.replay import file_batches, training_table, write_training_table  # noqa: PLC0415

    declared, keys = read_feature_set(feature_set), load_settings().pseudonym_keys
    run = FileRun.of(refused, refused_max)
    with counting("payments", quiet=as_json) as progress:
        options = replace(run.options, lateness_ms=declared.allowed_lateness, looking=progress.looking)
        batches = file_batches(
            file,
            read_mapping(mapping),
            labels=labels,
            cards=cards_of(declared, keys),
            options=options,
            expect=progress.expect,
        )
        table = training_table(declared, batches, source=file, keys=keys, progress=progress, refusals=run.refusals)
    run.check(table.report.refusals, table.report.payments)
    write_training_table(table, declared.names, output)
    result = {
        "rows": len(table.payment_id),
        "features": len(declared.names),
        "labelled": int((table.label >= 0).sum()),
        "fingerprint": declared.fingerprint,
    }
    show(with_report(result, table.report), as_json=as_json, title=str(output))


@app.command()
def explain(
    feature_set: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The feature set (YAML).")],
    as_json: Json = False,
) -> None:
    """Each feature described, the memory of a key and a payment, and the set's fingerprint.

    Example: fraud-scorer features explain cards.yaml
    """
    from features.feature_description import describe, duration  # noqa: PLC0415

    declared = read_feature_set(feature_set)
    cost = describe(declared)
    summary = {
        "name": declared.name, "fingerprint": cost.fingerprint, "features": len(cost.features), "windows": cost.windows,
        "bytes_per_payment": cost.bytes_per_payment, "log_kept": duration(cost.log_kept_ms),
        **{f"bytes_per_key_{entity}": size for entity, size in cost.bytes_per_key.items()},
    }  # fmt: skip
    if as_json:
        columns = [asdict(f) for f in cost.features]
        show({**summary, "columns": columns}, as_json=True, title="")
        return
    table = Table("feature", "description", "bytes a key", "at most, for", title=str(feature_set), title_justify="left")
    for f in cost.features:
        table.add_row(
            f.name, f.sentence, str(f.bytes_per_key or ""), f"{f.bytes_more_max} {f.counted}" if f.counted else ""
        )
    out.print(table)
    show(summary, as_json=False, title="Together (groups that features share are counted once)")


@app.command()
def schema() -> None:
    """JSON Schema of the feature set, for editors that complete and check YAML.

    Example: fraud-scorer features schema > feature_set.schema.json
    """
    from features.feature_description import json_schema  # noqa: PLC0415

    print(json.dumps(json_schema(), indent=2))
