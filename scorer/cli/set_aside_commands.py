"""`audit set-aside list|redrive` and `audit accept-gap`: what the sink could not write."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from scorer.cli.command_support import Json, counting, out, show
from scorer.cli.command_support import settings as load_settings
from scorer.errors import FraudScorerError

app = typer.Typer(help="Batches that the sink could not write.", no_args_is_help=True)
Offline = Annotated[bool, typer.Option("--offline", help="Without Kafka, from the bytes that the database kept.")]


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Those that were written since, too.")] = False,
    as_json: Json = False,
) -> None:
    """What was set aside, why, and whether its batch stands in the tables by now; contents are never shown.

    Example: fraud-scorer audit set-aside list
    """
    import psycopg  # noqa: PLC0415

    from scorer.audit.maintain.quarantine import quarantined  # noqa: PLC0415 - compiles kernels

    try:
        found = quarantined(load_settings().postgres_url)
    except psycopg.Error as exc:
        raise FraudScorerError(f"Postgres: {type(exc).__name__}") from exc
    shown = [batch for batch in found if all_ or not batch.written]
    if as_json:
        rows: list[dict[str, Any]] = [vars(kept) | {"at": kept.at.isoformat()} for kept in shown]
        show({"count": len(shown), "set_aside": rows}, as_json=True, title="")
        return
    table = Table("batch", "topic", "offsets", "kind", "why", "written", title="Set aside", title_justify="left")
    for kept in shown:
        offsets = "-".join(str(offset) for offset in dict.fromkeys((kept.offsets[0], kept.offsets[-1])))
        batch = "unknown" if kept.sequence is None else f"{kept.shard}/{kept.sequence}"
        place = f"{kept.topic}/{kept.partition}"
        table.add_row(batch, place, offsets, kept.kind, kept.reason, "yes" if kept.written else "no")
    out.print(table)


@app.command("redrive")
def redrive_(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written; write nothing.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write batches that were set aside, once what kept them out is repaired. Needs the owner's login.

    Each goes through the sink's own checks, and must fit the chain and the journal topic. Exit 1 when some could not be
    written. Example: fraud-scorer audit set-aside redrive --dry-run
    """
    import psycopg  # noqa: PLC0415

    from scorer.audit.maintain.quarantine import redrive  # noqa: PLC0415
    from scorer.sink.sink_errors import StoreUnavailable  # noqa: PLC0415

    settings = load_settings()
    written, left = [], []
    try:
        with counting("batches", quiet=as_json) as progress:
            for result in redrive(settings.postgres_url, None if offline else settings, dry_run=dry_run):
                place: dict[str, Any] = {name: getattr(result.batch, name) for name in ("shard", "sequence")}
                place["offset"] = result.batch.offsets[0]
                if result.why_not is None:
                    written.append(place | {"rows": result.rows})
                else:
                    left.append(place | {"why_not": result.why_not})
                progress(len(written) + len(left))
    except (psycopg.Error, StoreUnavailable) as exc:
        raise FraudScorerError(f"Postgres: {exc}") from exc
    outcome = {"would_be_written" if dry_run else "written": written, "left": left}
    if as_json:
        show(outcome, as_json=True, title="")
    else:
        table = Table("batch", "what came of it", title="Set aside", title_justify="left")
        for row in written:
            verb = "would be written" if dry_run else "written"
            table.add_row(f"{row['shard']}/{row['sequence']}", f"{verb}, {row['rows']} rows")
        for row in left:
            batch = "unknown" if row["sequence"] is None else f"{row['shard']}/{row['sequence']}"
            table.add_row(batch, f"left: {row['why_not']}")
        out.print(table)
    if left:
        raise FraudScorerError(f"{len(left)} of {len(left) + len(written)} stay set aside: {left[0]['why_not']}")


def accept_gap(
    partition: Annotated[int, typer.Option("--partition", min=0, help="Partition of the topic.")],
    offset: Annotated[int, typer.Option("--to", min=0, help="Offset that the sink goes on at.")],
    topic: Annotated[str | None, typer.Option("--topic", help="Topic; the audit topic by default.")] = None,
    as_json: Json = False,
) -> None:
    """Let the sink go on past records that are lost for good, with any batch as the next. `audit verify` names them.

    Example: fraud-scorer audit accept-gap --partition 0 --to 1234
    """
    from scorer import kafka  # noqa: PLC0415
    from scorer.sink import set_position  # noqa: PLC0415
    from scorer.sink.sink_errors import StoreUnavailable  # noqa: PLC0415

    settings = load_settings()
    name = topic or kafka.Topics.of(settings.kafka).audit
    try:
        set_position(settings.postgres_url, name, partition, offset)
    except StoreUnavailable as exc:
        raise FraudScorerError(str(exc)) from exc
    show({"topic": name, "partition": partition, "goes_on_at": offset}, as_json=as_json, title="Accepted")
