"""`prove`: history decided again and compared with what was decided live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from scorer.cli.command_support import (
    Json,
    check_output,
    counting,
    err,
    out,
    parse_time_ms,
    read_mapping,
    show,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import FileRun, MappingOption, RefusedMaxOption, RefusedOption, with_report
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.runtime.settings import reading_history

if TYPE_CHECKING:
    from scorer.proof import Proof
    from scorer.replay.replay_report import Report


def prove(
    bundle: Annotated[Path, typer.Option("--bundle", exists=True, file_okay=False, help="The bundle to decide with.")],
    source: Annotated[
        str, typer.Option("--input", help="`topic`: the payments topic along its journal; or a file of payments.")
    ] = "topic",
    mapping: MappingOption = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Compare payments from this time on; earlier ones fill windows.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Compare payments before this time.")] = None,
    shard: Annotated[int, typer.Option(min=0, help="With topic: which shard's journal.")] = 0,
    differences: Annotated[
        Path | None, typer.Option("--differences", help="Write each difference: NAME.parquet or NAME.jsonl.")
    ] = None,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Decide history again and compare each payment with the audit trail; each difference is reported with its cause.

    Causes: another bundle or feature set decided live; a late label; other values in the file; tampering. Exits 3
    when a row was tampered with, is missing, or differs without a cause; 1 when a file has no payment to compare.

    Example: fraud-scorer prove --bundle bundles/cards --differences differences.parquet
    """
    from scorer.bundle import Bundle  # noqa: PLC0415
    from scorer.cli.audit_output import postgres_errors  # noqa: PLC0415
    from scorer.proof import Differences, prove_file, prove_topic  # noqa: PLC0415

    if differences is not None:
        check_output(differences)
    loaded, settings = Bundle.load(bundle), reading_history(load_settings())
    begin_ms, until_ms = parse_time_ms(begin, "--from"), parse_time_ms(until, "--until")
    found, run, report = Differences(differences), FileRun.of(refused, refused_max), None
    try:
        with counting("payments", quiet=as_json) as progress, postgres_errors():
            if source == "topic":
                prove_topic(
                    loaded,
                    settings,
                    found,
                    shard=shard,
                    begin_ms=begin_ms,
                    until_ms=until_ms,
                    progress=progress,
                    expect=progress.expect,
                )
            else:
                report = prove_file(
                    loaded, source, read_mapping(mapping), settings.postgres_url, found,
                    options=replace(run.options, looking=progress.looking), refusals=run.refusals,
                    begin_ms=begin_ms, until_ms=until_ms, keys=settings.pseudonym_keys, progress=progress,
                    expect=progress.expect,
                )  # fmt: skip
    finally:
        proof = found.close()
    _report(proof, report, as_json=as_json)
    if not proof.holds:
        raise PromiseBroken(
            "the trail differs from the decisions made again, and not by another bundle, feature set, label or payment"
        )
    if report is not None:
        run.check(report.refusals, report.payments)
        if not proof.compared:
            raise FraudScorerError(
                f"nothing was compared: {source} has no payment between --from and --until that is not refused or a "
                "repetition"
            )


def _report(proof: Proof, report: Report | None, *, as_json: bool) -> None:
    from scorer.proof.differences import SENTENCES  # noqa: PLC0415

    result: dict[str, Any] = {"compared": proof.compared, "equal": proof.equal}
    result |= {cause.value: count for cause, count in sorted(proof.causes.items())}
    result |= {"behind": proof.behind, "erased": proof.erased, "dropped": proof.dropped, "holds": proof.holds}
    if report is not None:
        result = with_report(result, report)
    if not as_json and proof.first:
        table = Table(
            "payment", "cause", "columns", "why", title=f"First {len(proof.first)} differences", title_justify="left"
        )
        for difference in proof.first:
            columns = ", ".join(difference.columns[:4]) + (", …" if len(difference.columns) > 4 else "")
            table.add_row(difference.payment_id, difference.cause.value, columns, difference.detail)
        out.print(table)
        for cause, count in sorted(proof.causes.items()):
            err.print(f"{count:,} {cause.value}: {SENTENCES[cause]}")
    show(result, as_json=as_json, title="Compared with what was decided live")
