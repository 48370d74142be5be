"""`dead-letters list|redrive`: what was refused and why, and sending it again once the cause is removed."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import Json, counting, out, parse_time_ms
from scorer.cli.command_support import settings as load_settings
from scorer.errors import UsageError

if TYPE_CHECKING:
    from scorer.operate.dead_letters import Filter, Letter

app = typer.Typer(help="What was refused, and sending it again.", no_args_is_help=True)

Reason = Annotated[list[str] | None, typer.Option("--reason", help="Only this reason; may be given several times.")]
Topic = Annotated[
    str | None, typer.Option("--topic", help="Only from this topic (payments, control, labels), with prefix.")
]
Partition = Annotated[int | None, typer.Option("--partition", min=0, help="Only from this partition of the origin.")]
FromOffset = Annotated[int | None, typer.Option("--from-offset", min=0, help="From this offset of the origin on.")]
UntilOffset = Annotated[int | None, typer.Option("--until-offset", min=0, help="Below this offset of the origin.")]
From = Annotated[str | None, typer.Option("--from", help="Refused at or after: 2026-01-31 or an RFC 3339 time.")]
Until = Annotated[str | None, typer.Option("--until", help="Refused before this time.")]
Key = Annotated[str | None, typer.Option("--key", help="Only with this record key, as text.")]


def _filter(
    reason: list[str] | None,
    topic: str | None,
    partition: int | None,
    from_offset: int | None,
    until_offset: int | None,
    after: str | None,
    before: str | None,
    key: str | None,
) -> Filter:
    from scorer.operate.dead_letters import Filter, reasons  # noqa: PLC0415

    return Filter(
        reasons=reasons(reason or ()),
        topic=topic,
        partition=partition,
        from_offset=from_offset,
        until_offset=until_offset,
        from_ms=parse_time_ms(after, "--from"),
        until_ms=parse_time_ms(before, "--until"),
        key=None if key is None else key.encode(),
    )


def _shown(letter: Letter) -> dict[str, object]:
    about = letter.about
    return {
        "partition": letter.place[0],
        "offset": letter.place[1],
        "refused_at": datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "topic": about.topic,
        "origin_partition": about.partition,
        "origin_offset": about.offset,
        "reason": about.reason.value,
        "field": about.field,
        "message": about.message,
        "bytes": about.value_bytes,
        "masked": about.masked,
        "truncated": about.truncated,
    }


@app.command("list")
def list_(
    reason: Reason = None,
    topic: Topic = None,
    partition: Partition = None,
    from_offset: FromOffset = None,
    until_offset: UntilOffset = None,
    after: From = None,
    before: Until = None,
    key: Key = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Show so many at most; all count.")] = 50,
    as_json: Json = False,
) -> None:
    """Dead letters with where they came from and why; contents are never shown.

    Example: fraud-scorer dead-letters list --reason not_json --from 2026-01-31
    """
    from scorer.operate.dead_letters import history, letters  # noqa: PLC0415

    settings = load_settings()
    wanted = _filter(reason, topic, partition, from_offset, until_offset, after, before, key)
    rows: list[dict[str, object]] = []
    counted: Counter[str] = Counter()
    with counting("records", quiet=as_json) as progress:
        known = history(settings, progress.of)
        for letter in letters(settings, wanted, progress.of):
            counted[letter.about.reason.value] += 1
            if len(rows) < limit:
                rows.append(_shown(letter) | {"sent_again": letter.place in known.sent, "times": known.times(letter)})
    if as_json:
        print(json.dumps({"count": counted.total(), "by_reason": dict(counted), "letters": rows}))
        return
    table = Table("refused at", "origin", "reason", "field", "bytes", "", title="Dead letters", title_justify="left")
    for row in rows:
        marks = [n for n in ("masked", "truncated", "sent_again") if row[n]] + (
            [f"×{row['times']}"] if row["times"] else []
        )
        origin = f"{row['topic']}/{row['origin_partition']}/{row['origin_offset']}"
        table.add_row(
            str(row["refused_at"]),
            origin,
            str(row["reason"]),
            str(row["field"] or ""),
            str(row["bytes"]),
            " ".join(marks),
        )
    out.print(table)
    out.print(f"{counted.total():,} in all: " + ", ".join(f"{name} {n:,}" for name, n in counted.most_common()))


@app.command("redrive")
def redrive_(
    reason: Reason = None,
    topic: Topic = None,
    partition: Partition = None,
    from_offset: FromOffset = None,
    until_offset: UntilOffset = None,
    after: From = None,
    before: Until = None,
    key: Key = None,
    everything: Annotated[bool, typer.Option("--all", help="Yes, every letter: needed without a filter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Send so many at most.")] = None,
    times_max: Annotated[
        int, typer.Option("--times-max", min=1, help="Leave out what was refused again after so many redrives.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Send dead letters back to the partition they came from, under the same key, each once.

    Example: fraud-scorer dead-letters redrive --reason no_exchange_rate --dry-run
    """
    from scorer.operate.dead_letters import Filter, redrive  # noqa: PLC0415

    wanted = _filter(reason, topic, partition, from_offset, until_offset, after, before, key)
    if wanted == Filter() and not everything:
        raise UsageError("give a filter, or --all to mean every letter; --dry-run shows which")
    shown = 0

    def report(letter: Letter, fate: str) -> None:
        nonlocal shown
        if as_json or fate == "sent":
            return
        shown += 1
        if shown <= 50:
            about = letter.about
            out.print(f"{about.topic}/{about.partition}/{about.offset}  {about.reason.value}  {fate}")

    with counting("records", quiet=as_json) as progress:
        done = redrive(
            load_settings(), wanted, dry_run=dry_run, limit=limit, times_max=times_max, on_letter=report,
            progress=progress.of,
        )  # fmt: skip
    result = {
        "sent": 0 if dry_run else done.sent,
        "would_be_sent": done.sent if dry_run else 0,
        "already": done.already,
        "refused": dict(done.refused),
    }
    if as_json:
        print(json.dumps(result))
        return
    verb = "would be sent" if dry_run else "sent again"
    out.print(f"{done.sent:,} {verb}, {done.already:,} were sent before, {done.refused.total():,} cannot be sent")
