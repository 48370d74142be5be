"""`labels`: chargebacks and analysts' verdicts onto their topic, and the verdicts on a payment."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from schemas.contract_error import ContractError
from scorer.cli.command_support import Json, counting, out, show
from scorer.cli.command_support import settings as load_settings
from scorer.errors import UsageError

if TYPE_CHECKING:
    from schemas.label_record import Label

app = typer.Typer(help="Verdicts on payments: chargebacks, analysts.", no_args_is_help=True)
_VERDICTS = {"fraud": True, "genuine": False, "true": True, "false": False, "1": True, "0": False}
_ENCODING = "utf-8-sig"  # with the mark before it that spreadsheets write, or without
_FLUSH_S = 30.0
_SHOWN_EACH = 1_000


@app.command()
def add(
    payment_id: Annotated[str | None, typer.Argument(help="The payment judged; leave out with --input.")] = None,
    fraud: Annotated[bool | None, typer.Option("--fraud/--genuine", help="The verdict.")] = None,
    known_at: Annotated[
        str | None, typer.Option(help="When it became known (RFC 3339, on the scale of event time); now by default.")
    ] = None,
    event_time: Annotated[str | None, typer.Option(help="Event time of the payment, when known.")] = None,
    source: Annotated[str | None, typer.Option(help="chargeback, analyst, customer_report …")] = None,
    analyst: Annotated[str | None, typer.Option(help="Who gave it.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--input", exists=True, dir_okay=False, help="JSON lines, CSV or Parquet of labels instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send verdicts to topic labels: they reach the features of later payments, and table labels keeps them all.

    A file has the columns payment_id and fraud (or verdict: fraud, genuine), and optionally known_at, event_time,
    source, analyst; options given here fill in what a line lacks. All lines are checked before the first is sent.

    Example: fraud-scorer labels add p_7f3a19 --fraud --source chargeback
    """
    if (payment_id is None) == (file is None):
        raise UsageError("give either a payment id or --input FILE")
    given = {"known_at": known_at, "event_time": event_time, "source": source, "analyst": analyst}
    given = {name: value for name, value in given.items() if value is not None}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    default: dict[str, Any] = {"type": "label", "known_at": now} | given
    if fraud is not None:
        default["fraud"] = fraud
    if file is None:
        if fraud is None:
            raise UsageError("give the verdict: --fraud or --genuine")
        labels = [_label(default | {"payment_id": payment_id}, "the label")]
    with counting("labels", quiet=as_json) as progress:
        if file is not None:
            labels = [_label(default | line, f"{file}, line {number}") for number, line in _lines(file)]
        progress.expect(len(labels))
        _send(labels, progress)
    show({"labels": len(labels), "fraud": sum(label.fraud for label in labels)}, as_json=as_json, title="Sent")


@app.command()
def history(payment_id: Annotated[str, typer.Argument(help="The payment.")], as_json: Json = False) -> None:
    """Every verdict ever given on a payment: who, when, known at. The last line is the one that holds.

    Example: fraud-scorer labels history p_7f3a19
    """
    import psycopg  # noqa: PLC0415

    from scorer.cli.audit_output import postgres_errors  # noqa: PLC0415
    from scorer.trail.audit_database import connect_text  # noqa: PLC0415

    names = ("fraud", "known_at", "source", "analyst", "recorded_at")
    with postgres_errors(), psycopg.connect(connect_text(load_settings().postgres_url)) as connection:
        rows = connection.execute(
            f'SELECT {", ".join(names)} FROM labels WHERE payment_id = %s ORDER BY known_at, "offset"',  # noqa: S608
            (payment_id,),
        ).fetchall()
    found = [
        {n: v.isoformat() if isinstance(v, datetime) else v for n, v in zip(names, row, strict=True)} for row in rows
    ]
    if as_json:
        show({"payment_id": payment_id, "labels": found}, as_json=True, title="")
        return
    table = Table("verdict", *names[1:], title=payment_id, title_justify="left")
    for label in found:
        verdict = "fraud" if label["fraud"] else "genuine"
        table.add_row(verdict, *("" if label[name] is None else str(label[name]) for name in names[1:]))
    out.print(table if found else f"nothing is known of {payment_id}")


def _label(document: dict[str, Any], where: str) -> Label:
    """A checked label. Raises UsageError naming the line and the field, never the value."""
    from schemas.field_types import check_contract  # noqa: PLC0415
    from schemas.label_record import Label  # noqa: PLC0415

    try:
        return check_contract(Label, document)
    except ContractError as exc:
        raise UsageError(f"{where}: {exc.field or 'the label'}: {exc.message}; nothing was sent") from None


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's labels with their line numbers; empty cells are left out."""
    from pyarrow import ArrowInvalid  # noqa: PLC0415

    try:
        for number, row in _rows(file):
            if None in row:
                raise UsageError(f"{file}, line {number}: more cells than the header has; nothing was sent")
            yield number, _plain(row, f"{file}, line {number}")
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"{file}: not UTF-8 (byte {exc.start} of a block); convert it first: iconv -f cp1252 -t utf-8; nothing was "
            "sent"
        ) from None
    except csv.Error as exc:
        raise UsageError(f"{file}: not readable as CSV: {exc}; nothing was sent") from None
    except ArrowInvalid:
        raise UsageError(f"{file}: not readable as Parquet; nothing was sent") from None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    kind = file.suffix.lower()
    if kind == ".csv":
        with file.open(newline="", encoding=_ENCODING) as text:
            yield from enumerate(csv.DictReader(text), start=2)
    elif kind == ".parquet":
        yield from enumerate(pq.read_table(file).to_pylist(), start=1)
    elif kind in {".jsonl", ".ndjson", ".json"}:
        yield from ((number, _json(line, file, number)) for number, line in _texts(file))
    else:
        raise UsageError(f"{file}: neither .jsonl, .csv nor .parquet")


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding=_ENCODING) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, line


def _json(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        raise UsageError(f"{file}, line {number}: not JSON; nothing was sent") from None
    if not isinstance(document, dict):
        raise UsageError(f"{file}, line {number}: not a JSON object; nothing was sent")
    return document


def _plain(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Cells as the contract wants them: a verdict in words, times as text."""
    result = {name: value for name, value in row.items() if value not in (None, "")}
    for name in ("verdict", "fraud"):
        value = result.get(name)
        if name == "verdict" or isinstance(value, str | int):
            if value is None or isinstance(value, bool):
                continue
            verdict = _VERDICTS.get(str(value).strip().lower())
            if verdict is None:
                raise UsageError(f"{where}: {name}: write fraud or genuine; nothing was sent")
            result.pop(name)
            result["fraud"] = verdict
    for name in ("known_at", "event_time"):
        if isinstance(result.get(name), datetime):
            moment: datetime = result[name]
            result[name] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        elif isinstance(result.get(name), str) and re.fullmatch(r"[0-9]{1,19}", result[name]):
            result[name] = int(result[name])  # epoch milliseconds in a CSV
    return result


def _send(labels: list[Label], progress: Callable[[int], None]) -> None:
    from confluent_kafka import KafkaError, KafkaException, Message  # noqa: PLC0415

    from scorer import kafka  # noqa: PLC0415

    settings = load_settings()
    topic = kafka.Topics.of(settings.kafka).labels
    kafka.partition_count(kafka.admin(settings.kafka), topic)  # raises when setup was forgotten
    producer = kafka.plain_producer(settings.kafka)
    failed: list[str] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failed.append(error.name())

    for sent, label in enumerate(labels):
        if sent % _SHOWN_EACH == 0:
            progress(sent)
        value = label.model_dump_json(exclude_none=True).encode()
        while True:
            try:
                producer.produce(topic, value, partition=0, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
            except KafkaException as exc:
                raise kafka.KafkaFailure(f"a label was refused ({kafka.describe(exc)})") from exc
    progress(len(labels))
    remaining = producer.flush(_FLUSH_S)
    if remaining or failed:
        raise kafka.KafkaFailure(
            f"{remaining + len(failed)} of {len(labels)} labels did not reach Kafka "
            f"({failed[0] if failed else 'no answer'}); sending the file again does no harm"
        )
