"""Records of the control and dead-letter topics as rows of their tables. Pure: no Kafka and no Postgres here.

control         labels, activations, control_changes; what is no control record is a dead letter of the worker's
dead-letters    dead_letters: reason and origin; the refused value stays on its topic
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from schemas.contract_error import ContractError
from schemas.control_record import Activate, parse_control
from schemas.dead_letter import REDRIVEN, DeadLetter
from schemas.label_record import Label
from scorer.sink.topic_reader import Record
from scorer.trail import audit_tables

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = tuple[sa.Table, dict[str, Any]]


def control_row(topic: str, record: Record) -> Row | None:
    """Table and row of a control record; None for bytes that are none."""
    try:
        parsed = parse_control(record.value)
    except ContractError:
        return None
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
    document = parsed.model_dump(mode="json")
    if isinstance(parsed, Activate):
        return audit_tables.activations, key | {"bundle": parsed.bundle, "record": document}
    return audit_tables.control_changes, key | {"type": document["type"], "record": document}


def dead_letter_row(topic: str, record: Record) -> Row | None:
    """Table and row of a dead letter; one that is not ours is kept too, as what it is. None for the note that a letter
    was sent again."""
    headers: Any = record.message.headers() or []  # a list of (name, bytes)
    if any(name == REDRIVEN for name, _ in headers):
        return None
    key = {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "recorded_at": _recorded_at(record),
    }
    try:
        letter = DeadLetter.from_headers(headers)
    except ValueError:
        return audit_tables.dead_letters, key | {
            "origin_topic": topic,
            "origin_partition": record.partition,
            "origin_offset": record.offset,
            "reason": "unreadable",
            "field": None,
            "message": "not a dead letter of fraud-scorer",
            "value_bytes": -1 if record.value is None else len(record.value),
            "masked": False,
        }
    return audit_tables.dead_letters, key | {
        "origin_topic": letter.topic,
        "origin_partition": letter.partition,
        "origin_offset": letter.offset,
        "reason": letter.reason.value,
        "field": letter.field,
        "message": letter.message,
        "value_bytes": letter.value_bytes,
        "masked": letter.masked,
    }


def _recorded_at(record: Record) -> datetime:
    kind, timestamp_ms = record.message.timestamp()
    return _time(max(0, timestamp_ms) if kind else 0)


def _time(epoch_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=epoch_ms)
