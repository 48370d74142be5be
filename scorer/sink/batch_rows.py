"""Batches, positions and quarantined records as rows of their tables. Pure: no Kafka and no Postgres here."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, date, datetime, timedelta

import numpy as np

from schemas.card_mask import mask_card_numbers, mask_digits
from schemas.decision import MODES
from scorer.sink.assembler import Batch, Position, Quarantined

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"(?:\d(?:\W|_){0,3}){13,}")
_REASON_CHARACTERS_MAX = 2_000
_COUNTED = (("duplicates", "duplicate"), ("late", "late"), ("degraded", "degraded"))


def quarantine_row(topic: str, item: Quarantined) -> dict[str, object]:
    """The row of table set_aside, which Postgres takes whatever the record holds."""
    masked = None if item.value is None else masked_value(item.kind, item.value)
    return {
        "topic": topic,
        "partition": item.partition,
        "offset": item.offset,
        "kind": item.kind,
        "reason": _for_people(item.reason),
        "shard": item.shard,
        "sequence": item.sequence,
        "value": masked,
        "value_sha256": kept_sha256(item.value, masked),
        "masked": masked != item.value,
    }


def kept_sha256(value: bytes | None, masked: bytes | None) -> str | None:
    """SHA-256 of a quarantined record; none of one with masked digits, which could be found by trying them."""
    return None if value is None or masked != value else hashlib.sha256(value).hexdigest()


def _for_people(reason: str) -> str:
    """A reason may name a field as the record has it: a NUL, half a character or a card number in it is not kept."""
    shown = "".join(c if c.isprintable() else "?" for c in reason[:_REASON_CHARACTERS_MAX])
    return mask_card_numbers(shown.encode()).decode()


def masked_value(kind: str, value: bytes) -> bytes:
    """`value` without anything that may hold a card number.

    In Arrow's buffers one text follows the other, so a card number may have digits of its neighbours at its ends, where
    no Luhn check finds it: every 13 digits in a row are masked, whatever they are and whatever but letters is between
    them; of a record quarantined for a card number every digit is. The topic still has them.
    """
    if kind == "card_number":
        return mask_digits(value)
    text = mask_card_numbers(value).decode("utf-8", "surrogateescape")
    masked = _DIGITS.sub(lambda match: re.sub(r"\d", "*", match[0]), text)
    return masked.encode("utf-8", "surrogateescape")


def position_row(position: Position) -> dict[str, object]:
    return {
        "next_offset": position.next_offset,
        "shard": position.shard,
        "sequence": position.sequence,
        "head": position.head,
        "gap": position.gap,
    }


def batch_row(topic: str, origin_topic: str, batch: Batch) -> dict[str, object]:
    times = [rows.column("event_time_ms").to_numpy(zero_copy_only=True) for _, rows in batch.chunks if rows.num_rows]
    modes = sum(
        (
            np.bincount(rows.column("mode").to_numpy(zero_copy_only=True), minlength=len(MODES))
            for _, rows in batch.chunks
        ),
        np.zeros(len(MODES), np.int64),
    )
    return {
        "shard": batch.journal.shard,
        "sequence": batch.journal.sequence,
        "day": date_of(batch.day),
        "audit_topic": topic,
        "audit_partition": batch.partition,
        "audit_offset": batch.offset,
        "origin_topic": origin_topic,
        "stream_time": None if batch.journal.stream_time_ms < 0 else time_of(batch.journal.stream_time_ms),
        "event_time_min": time_of(min(int(part.min()) for part in times)) if times else None,
        "event_time_max": time_of(max(int(part.max()) for part in times)) if times else None,
        "decisions": batch.journal.decisions,
        "flagged": sum(int(rows.column("decision").to_numpy(zero_copy_only=True).sum()) for _, rows in batch.chunks),
        **{name: int(modes[MODES.index(mode)]) for name, mode in _COUNTED},
        "dead_letters": batch.journal.dead_letters,
        "bundle": batch.header.bundle,
        "threshold": batch.header.threshold,
        "feature_fingerprint": batch.header.feature_fingerprint,
        "challengers": list(batch.header.challengers),
        "digest": batch.journal.digest,
        "previous": batch.journal.previous,
        "head": batch.journal.head,
        "journal": json.loads(batch.header.journal),
        "salt": None if batch.header.salt is None else bytes.fromhex(batch.header.salt),
        "refused": batch.journal.refused,
    }


def date_of(day: int) -> date:
    return _EPOCH.date() + timedelta(days=day)


def time_of(epoch_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=epoch_ms)
