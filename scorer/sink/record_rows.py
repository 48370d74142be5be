"""Records of the topics control, labels and dead-letters as rows of their tables. Pure: no Kafka and no Postgres here.

control         activations, control_changes, and labels of before those had a topic; what is no control record is a
                dead letter of the worker's
labels          labels; anything else is a dead letter of the worker's
dead-letters    dead_letters: reason and origin; the refused value stays on its topic

Whatever a record holds, its row is one that Postgres takes: a time past the year 9999 stands as the end of that year,
and a dead letter with a value that its table can't hold (a NUL, partition 2^40) is an unreadable one. Should Postgres
refuse a row all the same, `refused_row` is what stands for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from schemas.audit_record import EVENT_TIME_MS_MAX
from schemas.contract_error import ContractError
from schemas.control_record import Activate, Control, parse_control_masked, parse_label
from schemas.dead_letter import REDRIVEN, DeadLetter
from schemas.label_record import Label
from scorer import kafka
from scorer.sink.batch_rows import kept_sha256, masked_value
from scorer.sink.topic_reader import Record
from scorer.trail import audit_tables

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The index on the origin holds rows of 2,700 bytes; the names that Kafka takes have 249 characters.
_TOPIC_CHARACTERS_MAX: Final = 249
_TEXT_CHARACTERS_MAX: Final = 10_000
_FIELD_CHARACTERS_MAX: Final = 500

Row = tuple[sa.Table, dict[str, Any]]


def label_row(topic: str, record: Record) -> Row | None:
    """Table and row of a record of topic labels; None for what is no label."""
    try:
        return _control_row(topic, record, parse_label(record.value))
    except ContractError:
        return None


def control_row(topic: str, record: Record) -> Row | None:
    """Table and row of a control record; None for bytes that are none."""
    try:
        return _control_row(topic, record, parse_control_masked(record.value))
    except ContractError:
        return None


def _control_row(topic: str, record: Record, parsed: Control) -> Row:
    key: dict[str, Any] = {"topic": topic, "offset": record.offset, "recorded_at": _recorded_at(record)}
    if isinstance(parsed, Label):
        event_time_ms = parsed.event_time_ms
        return audit_tables.labels, key | {
            "payment_id": parsed.payment_id,
            "fraud": parsed.fraud,
            "known_at": _time(parsed.known_at_ms),
            "event_time": None if event_time_ms is None else _time(event_time_ms),
            "source": parsed.source,
            "analyst": parsed.analyst,
        }
    document = parsed.model_dump(mode="json", exclude_none=True)  # as before an activation had a signature
    if isinstance(parsed, Activate):
        return audit_tables.activations, key | {"bundle": parsed.bundle, "record": document}
    return audit_tables.control_changes, key | {"type": document["type"], "record": document}


def dead_letter_row(topic: str, record: Record) -> Row | None:
    """Table and row of a dead letter; one that is not ours is kept too, as what it is. None for the note that a letter
    was sent again."""
    headers: Any = kafka.headers_of(record.message)
    if headers is None:
        return _unreadable(topic, record)
    try:
        if any(name == REDRIVEN for name, _ in headers):
            return None
        letter = DeadLetter.from_headers(headers)
        _check_fits(letter)
    except ValueError:
        return _unreadable(topic, record)
    return audit_tables.dead_letters, _dead_letter_key(topic, record) | {
        "origin_topic": letter.topic,
        "origin_partition": letter.partition,
        "origin_offset": letter.offset,
        "reason": letter.reason.value,
        "field": letter.field,
        "message": letter.message,
        "value_bytes": letter.value_bytes,
        "masked": letter.masked,
    }


def refused_row(table: sa.Table, topic: str, record: Record, reason: str) -> Row:
    """What stands for a record whose row Postgres refused: an unreadable dead letter, or a row of table set_aside."""
    if table is audit_tables.dead_letters:
        return _unreadable(topic, record)
    value = None if record.value is None else masked_value("refused", record.value)
    return audit_tables.set_aside, {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "kind": "refused",
        "reason": reason,
        "value": value,
        "value_sha256": kept_sha256(record.value, value),
        "masked": value != record.value,
    }


def _unreadable(topic: str, record: Record) -> Row:
    return audit_tables.dead_letters, _dead_letter_key(topic, record) | {
        "origin_topic": topic,
        "origin_partition": record.partition,
        "origin_offset": record.offset,
        "reason": "unreadable",
        "field": None,
        "message": "not a dead letter of fraud-scorer",
        "value_bytes": -1 if record.value is None else len(record.value),
        "masked": False,
    }


def _dead_letter_key(topic: str, record: Record) -> dict[str, Any]:
    return {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "recorded_at": _recorded_at(record),
    }


def _check_fits(letter: DeadLetter) -> None:
    """Raises ValueError for what the table can't hold."""
    numbers = ((letter.partition, 2**31), (letter.offset, 2**63), (letter.value_bytes, 2**63))
    texts = (
        (letter.topic, _TOPIC_CHARACTERS_MAX),
        (letter.field or "", _FIELD_CHARACTERS_MAX),
        (letter.message, _TEXT_CHARACTERS_MAX),
    )
    if any(number >= end for number, end in numbers) or any(len(text) > most or "\0" in text for text, most in texts):
        raise ValueError("a dead letter that its table can't hold")


def _recorded_at(record: Record) -> datetime:
    kind, timestamp_ms = record.message.timestamp()
    return _time(max(0, timestamp_ms) if kind else 0)


def _time(epoch_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(epoch_ms, EVENT_TIME_MS_MAX))
