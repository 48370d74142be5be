"""`setup`, `simulate`, `send`, `settings`, `schemas`: topics and what goes onto them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    stop_on_signals,
)
from scorer.cli.command_support import settings as load_settings
from scorer.cli.risk_options import FileRun, InputOption, RefusedMaxOption, RefusedOption, left_out, refused_lines
from scorer.errors import UsageError
from scorer.runtime.settings_listing import described

if TYPE_CHECKING:
    from scorer.operate.record_sender import Outgoing

DAY_MS = 86_400_000
NOT_SIMULATED = ("account_id",)


def _lateness_ms() -> int:
    """A feature set's allowed lateness where it declares none."""
    from features.feature_set import FeatureSet  # noqa: PLC0415

    return int(FeatureSet.model_fields["allowed_lateness"].default)


def setup(
    as_json: Json = False,
    topics_only: Annotated[bool, typer.Option("--topics-only", help="Leave Postgres alone.")] = False,
    append_time: Annotated[
        bool,
        typer.Option("--append-time", help="Set LogAppendTime on topics of earlier releases, which lack it."),
    ] = False,
) -> None:
    """Create topics and tables. Idempotent; what exists is checked, and changed with --append-time alone.

    Example: fraud-scorer setup
    """
    from scorer.operate.setup import setup as run_setup  # noqa: PLC0415

    made = run_setup(load_settings(), postgres=not topics_only, append_time=append_time)
    if as_json:
        print(
            json.dumps(
                {
                    "topics": {
                        plan.name: {"partitions": plan.partitions, "made": new, "config": plan.config}
                        for plan, new in made
                    }
                }
            )
        )
        return
    table = Table("topic", "partitions", "retention", "made now", "what for", title="Topics", title_justify="left")
    for plan, new in made:
        hours = int(plan.config["retention.ms"]) // 3_600_000
        table.add_row(
            plan.name,
            str(plan.partitions),
            "kept" if hours < 0 else f"{hours / 24:g} d",
            "yes" if new else "no",
            plan.why,
        )
    out.print(table)


def simulate(
    seed: Annotated[int, typer.Option(help="The same seed gives the same payments.")] = 1,
    customers: Annotated[int, typer.Option(min=100, help="People in the world.")] = 2000,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Event time of the first payment, such as 2026-01-01; a year ago by default."),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Payments a second.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Times real time.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many payments.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so many seconds.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write a file instead of onto Kafka (needs --count): NAME.parquet, a table with the column fraud, for "
            "deploy/examples/demo/mapping.yaml; otherwise JSON lines in the contract's form."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="With --output: label records, JSON lines, which `train --labels` takes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulated payments with five kinds of fraud, and labels with their delays, onto the topics or into a file.

    Example: fraud-scorer simulate --rate 200 --seconds 60
    """
    from scorer.operate.record_sender import Sender  # noqa: PLC0415
    from scorer.simulate import World  # noqa: PLC0415

    if rate is not None and speed is not None:
        raise UsageError("give --rate or --speed, not both")
    start_ms = parse_time_ms(start, "--from")
    world = World(seed, customers=customers)
    if start_ms is None:
        start_ms = int(datetime.now(UTC).timestamp() * 1000) // DAY_MS * DAY_MS - 365 * DAY_MS
    blocks = simulated(world, start_ms)
    if output is not None:
        if count is None:
            raise UsageError("--output needs --count: the simulation itself has no end")
        for path, option in ((output, "--output"), (labels, "--labels")):
            if path is not None:
                check_output(path, option)
        write = write_table if output.suffix == ".parquet" else _write
        with counting("payments", quiet=as_json) as progress:
            progress.expect(count)
            made = write(blocks, count, output, labels, progress)
        show(made, as_json=as_json, title="Simulated")
        return
    sender = Sender(load_settings())

    def counted() -> Iterator[Outgoing]:
        for block in blocks:
            progress(sender.sent.payments)
            yield block

    with stop_on_signals() as stop, counting("payments", quiet=as_json) as progress:
        progress.expect(count or int((seconds or 0) * (rate or 0)))
        sent = sender.run(counted(), stop=stop, rate=rate, speed=speed, limit=count, seconds=seconds)
    show({"payments": sent.payments, "labels": sent.labels}, as_json=as_json, title="Sent")


def simulated(world: object, start_ms: int) -> Iterator[Outgoing]:
    """The simulator's batches as the sender takes them."""
    from scorer.operate.record_sender import Outgoing, outgoing_pairs  # noqa: PLC0415

    for batch in world.stream(start_ms):  # type: ignore[attr-defined]
        known = batch.label_known_at_ms[batch.label_known_at_ms >= 0]
        yield Outgoing(batch.keys(), batch.to_json(), batch.event_time_ms, outgoing_pairs(batch.labels_json(), known))


def write_table(
    blocks: Iterator[Outgoing],
    count: int,
    output: Path,
    labels: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Payments as a table, a column a field; fraud is 1 where a fraud was reported and 0 otherwise."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS  # noqa: PLC0415

    if labels is not None:
        raise UsageError("--labels: a table has its labels in the column fraud; leave --labels out")
    rows: list[dict[str, object]] = []
    frauds: set[str] = set()
    for block in blocks:
        for value in block.values[: count - len(rows)]:
            payment = json.loads(value or b"{}")
            rows.append({**payment, **payment.pop("attributes", {})})
        for _, label in block.labels:
            record = json.loads(label)
            if record["fraud"]:
                frauds.add(record["payment_id"])
        progress(len(rows))
        if len(rows) >= count:
            break
    texts = [name for name in TEXT_FIELDS if name not in NOT_SIMULATED]
    kinds = {
        "payment_id": pa.string(), "event_time": pa.string(), "amount_minor": pa.int64(),
        **dict.fromkeys(texts, pa.string()), **dict.fromkeys(POSITION_FIELDS, pa.float64()),
        "three_ds": pa.bool_(),
    }  # fmt: skip
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    fraud = [int(row["payment_id"] in frauds) for row in rows]
    pq.write_table(pa.table({**columns, "fraud": pa.array(fraud, pa.int8())}), output)
    return {"payments": len(rows), "frauds": sum(fraud)}


def _write(
    blocks: Iterator[Outgoing], count: int, output: Path, labels: Path | None, progress: Callable[[int], None]
) -> dict[str, int]:
    written = labelled = 0
    with output.open("wb") as payments, labels.open("wb") if labels else Path("/dev/null").open("wb") as verdicts:
        for block in blocks:
            values = block.values[: count - written]
            payments.write(b"".join(value + b"\n" for value in values))
            for _, label in block.labels:
                verdicts.write(label + b"\n")
            written += len(values)
            labelled += len(block.labels)
            progress(written)
            if written >= count:
                break
    return {"payments": written, "labels": labelled if labels else 0}


def send(
    file: InputOption,
    mapping: Annotated[
        Path | None,
        typer.Option(help="Which column is which field (YAML); not needed for JSON lines in the contract's form."),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Payments a second.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Times real time.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many payments.")] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Payments only.")] = False,
    refused: RefusedOption = None,
    refused_max: RefusedMaxOption = None,
    as_json: Json = False,
) -> None:
    """Payments of a file, and their labels when they become known, onto the topics.

    Example: fraud-scorer send --input payments.parquet --mapping mapping.yaml --speed 1000
    """
    import numpy as np  # noqa: PLC0415

    from scorer.files.file_reader import label_records, payment_blocks  # noqa: PLC0415
    from scorer.operate.record_sender import Outgoing, Sender, outgoing_pairs  # noqa: PLC0415

    if rate is not None and speed is not None:
        raise UsageError("give --rate or --speed, not both")

    run, rows_read = FileRun.of(refused, refused_max), 0
    sender = Sender(load_settings())

    def blocks() -> Iterator[Outgoing]:
        nonlocal rows_read
        for number, block in enumerate(read):
            rows_read += len(block.values) + len(block.refused)
            if number == 0:
                _warn_of_cards(block.keys, block.values)
            for one in block.refused:
                run.refusals.add(one.row, one.error)
            known = block.label_known_at_ms[np.asarray(block.label) >= 0]
            yield Outgoing(block.keys, block.values, block.event_time_ms, outgoing_pairs(label_records(block), known))
            progress(sender.sent.payments)

    with stop_on_signals() as stop, counting("payments", quiet=as_json) as progress:
        # What will be late is for the workers' feature set to say; by default it allows this.
        options = replace(run.options, lateness_ms=_lateness_ms(), looking=progress.looking)
        rows, read = payment_blocks(file, read_mapping(mapping), rows_per_block=4096, options=options)
        progress.expect(min(rows, count or rows))
        sent = sender.run(blocks(), stop=stop, rate=rate, speed=speed, limit=count, with_labels=not no_labels)
    run.refusals.close()
    for line in refused_lines(run.refusals):
        err.print(f"refused: {line}")
    refusals = {"refusals": run.refusals.described(), "rows_refused": run.refusals.total} if run.refusals.total else {}
    refusals |= left_out(run.refusals)
    show({"payments": sent.payments, "labels": sent.labels} | refusals, as_json=as_json, title="Sent")
    run.check(run.refusals, rows_read)


def _warn_of_cards(keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
    """Print what the feature set should declare of the fields, by what the first payments have in them."""
    from schemas.card_fields import UNDECLARED  # noqa: PLC0415
    from schemas.payment_decoder import decode_payments  # noqa: PLC0415
    from scorer.pipeline.card_shares import PAYMENTS_MAX, CardShares  # noqa: PLC0415
    from scorer.pipeline.records import Rejected  # noqa: PLC0415

    shares = CardShares(UNDECLARED)
    found = decode_payments(values[:PAYMENTS_MAX], keys[:PAYMENTS_MAX])
    shares.add(found, [Rejected(reject.index, reject.error) for reject in found.rejects])
    for share in shares.found():
        typer.echo(f"warning: without a declaration {share.sentence()} (`card_numbers` in the feature set)", err=True)


def settings(as_json: Json = False) -> None:
    """All settings with value, source and meaning; secrets hidden.

    Example: fraud-scorer settings
    """
    rows = list(described(load_settings()))
    if as_json:
        print(
            json.dumps(
                {name: {"value": value, "source": source, "meaning": meaning} for name, value, source, meaning in rows}
            )
        )
        return
    table = Table("setting", "value", "source", "meaning")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def schemas(
    output: Annotated[
        Path | None, typer.Option(help="Folder to write one file per contract to; stdout otherwise.")
    ] = None,
) -> None:
    """JSON Schema of every contract: payment, label, control, decision, fast decision, journal, audit, dead letter.

    Example: fraud-scorer schemas --output contracts/
    """
    from schemas.json_schemas import json_schemas  # noqa: PLC0415

    documents = json_schemas()
    if output is None:
        print(json.dumps(documents, indent=2))
        return
    output.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (output / f"{name}.schema.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    err.print(f"{len(documents)} contracts written to {output}")
