"""`mapping`: a look at a file, and a draft of the mapping that it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import Json, check_output, counting, err, out, read_options
from scorer.errors import FraudScorerError, UsageError


def mapping(
    file: Annotated[str, typer.Argument(help="Parquet, CSV or JSON: a file, folder, pattern, URL, or - for stdin.")],
    output: Annotated[Path | None, typer.Option(help="File to write the draft to; stdout otherwise.")] = None,
    rows: Annotated[int, typer.Option(min=0, max=100, help="Payments to show as a preview.")] = 5,
    as_json: Json = False,
) -> None:
    """Look at a file and write a commented draft of its mapping.

    It has types, candidates for each field, and what it could not see; then come the first payments as the draft reads
    them, card numbers masked.

    Example: fraud-scorer mapping transactions.csv --output mapping.yaml
    """
    from scorer.files.mapping_draft import draft, preview  # noqa: PLC0415

    if output is not None:
        check_output(output)
        if output.exists():
            raise UsageError(f"--output {output} exists; name another file, so that no mapping of yours is lost")
    shown, reason = [], "the draft needs a person first: see its question marks"
    with counting("looking at the file", quiet=as_json) as progress:
        options = replace(read_options(), looking=progress.looking)
        found = draft(file, options)
        if found.previewed is not None and rows and file != "-":
            try:
                shown = preview(file, found.previewed, rows, options)
            except FraudScorerError as exc:
                reason = str(exc)
    if output is not None:
        output.write_text(found.text, encoding="utf-8")
    if as_json:
        print(json.dumps({"mapping": found.text, "open": found.open_questions, "preview": shown, "rows": found.rows}))
        return
    if output is None:
        print(found.text, end="")
    for question in found.open_questions:
        err.print(f"to decide: {question}")
    if shown:
        _show(shown)
    elif rows:
        err.print(f"no preview: {reason}")
    if output is not None:
        err.print(f"written to {output}; `fraud-scorer features --mapping {output} --input …` reads by it")


def _show(payments: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(name for row in payments for name in row if not name.startswith("attributes.")))
    table = Table(title="First payments, as the draft reads them", title_justify="left", show_header=False)
    for _ in range(len(payments) + 1):
        table.add_column(overflow="fold")
    for name in names:
        table.add_row(name, *("" if row.get(name) is None else str(row[name]) for row in payments))
    out.print(table)
