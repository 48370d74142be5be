"""What Kafka still holds of the audit trail: heads from the journal topic, rows from the audit topic. Reads only."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from schemas.audit_record import AuditColumns, AuditError, AuditHeader, decode
from schemas.journal_record import is_foreign
from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.runtime.settings import Settings

_NO_PROGRESS_S = 30.0
_NEAR = 256  # offsets: nearer than this, reading on is quicker than another look


@dataclass(frozen=True)
class JournalHead:
    """One record of the journal topic, as far as it is compared."""

    sequence: int
    head: str
    day: str


def journal_heads(settings: Settings, shard: int, *, from_sequence: int = 0) -> Iterator[JournalHead]:
    """The heads on the journal topic from `from_sequence` on, in order; what lies before is not read, and what no
    worker has written is passed over.

    Raises KafkaFailure, PromiseBroken for a record that cannot be read.
    """
    topic = kafka.Topics.of(settings.kafka).journal
    start = _journal_offset(settings, topic, shard, from_sequence) if from_sequence else 0
    for offset, value in _values(settings, topic, shard, (start, None)):
        if is_foreign(value):
            continue
        record = _journal_fields(value, f"{topic}/{shard} offset {offset}")
        if record.sequence >= from_sequence:
            day = time.strftime("%Y-%m-%d", time.gmtime(max(0, record.stream_time_ms) / 1000))
            yield JournalHead(record.sequence, hashlib.sha256(value).hexdigest(), day)


class _Fields(msgspec.Struct):
    sequence: int
    stream_time_ms: int


def _journal_fields(value: bytes, where: str) -> _Fields:
    """What is needed of a journal record. Its other fields are not looked at: the head is over all of them."""
    try:
        return _DECODE(value)
    except msgspec.MsgspecError as exc:
        raise PromiseBroken(
            f"{where}: a value of {len(value)} bytes is no journal record, though it names a head; a later release has "
            "written it (then upgrade this one), or the journal was changed"
        ) from exc


_DECODE = msgspec.json.Decoder(_Fields).decode


def audit_rows(
    settings: Settings, topic: str, partition: int, *, shard: int, sequence: int, start: int, end: int
) -> tuple[AuditHeader, list[AuditColumns]] | None:
    """The chunks of a batch between offsets start and end (exclusive); None when the topic no longer holds them."""
    chunks: list[AuditColumns] = []
    header: AuditHeader | None = None
    for _, value in _values(settings, topic, partition, (start, end)):
        try:
            found, columns = decode(value)
        except AuditError:
            continue
        if (found.shard, found.sequence) == (shard, sequence):
            header = found
            chunks.append(columns)
    if header is None or header.chunk + 1 != header.chunks or len(chunks) != header.chunks:
        return None
    return header, chunks


def journal_shards(settings: Settings) -> range:
    """The shards that the journal topic has room for: its partitions, whatever the database names."""
    return range(kafka.partition_count(kafka.admin(settings.kafka), kafka.Topics.of(settings.kafka).journal))


def next_sequence(settings: Settings, shard: int, *, start: int) -> int | None:
    """Sequence of the first batch on the audit topic at or past offset `start`; None without one."""
    for _, value in _values(settings, kafka.Topics.of(settings.kafka).audit, shard, (start, None)):
        try:
            header, _ = decode(value)
        except AuditError:
            continue
        return header.sequence
    return None


def _journal_offset(settings: Settings, topic: str, shard: int, sequence: int) -> int:
    """An offset at or before the record of `sequence`, and after nearly all before it: numbers rise along the journal,
    so a few dozen records are read, however long it is."""
    client = kafka.admin(settings.kafka)
    place = TopicPartition(topic, shard)
    kafka.partition_count(client, topic)
    (low,), (high,) = kafka.starts(client, [place]), kafka.stable_ends(client, [place])
    # One record is wanted of each place: nothing is fetched ahead.
    consumer = _consumer(settings, **{"queued.min.messages": 1, "fetch.message.max.bytes": 65_536})
    try:
        while high - low > _NEAR:
            middle = (low + high) // 2
            part = kafka.read_range(consumer, TopicPartition(topic, shard, middle), high, messages_max=1)
            found = next((value for one in part if not is_foreign(value := one.value() or b"")), None)
            if found is None or _journal_fields(found, f"{topic}/{shard}").sequence >= sequence:
                high = middle
            else:
                low = middle
    finally:
        consumer.close()
    return low


def _values(
    settings: Settings, topic: str, partition: int, bounds: tuple[int, int | None]
) -> Iterator[tuple[int, bytes]]:
    """(offset, value) of committed records of a partition, within offsets [start, end)."""
    for message in messages(settings, topic, partition, *bounds):
        value = message.value()
        if value is not None:
            yield kafka.present(message.offset(), "offset"), value


def range_of(settings: Settings, topic: str, partition: int) -> tuple[int, int]:
    """The first offset that a partition still has, and its end, open transactions included. Raises KafkaFailure."""
    client = kafka.admin(settings.kafka)
    place = TopicPartition(topic, partition)
    (first,), (last,) = kafka.starts(client, [place]), kafka.ends(client, [place])
    return first, last


def messages(settings: Settings, topic: str, partition: int, start: int, end: int | None = None) -> Iterator[Message]:
    """The committed records of a partition within offsets [start, end), up to the first transaction that is open now.

    Raises KafkaFailure.
    """
    client = kafka.admin(settings.kafka)
    kafka.partition_count(client, topic)
    place = TopicPartition(topic, partition)
    (first,), (stable,) = kafka.starts(client, [place]), kafka.stable_ends(client, [place])
    first, last = max(first, start), stable if end is None else min(stable, end)
    if first >= last:
        return
    consumer = _consumer(settings)
    try:
        place = TopicPartition(topic, partition, first)
        yield from kafka.read_range(consumer, place, last, no_progress_s=_NO_PROGRESS_S)
    finally:
        consumer.close()


def _consumer(settings: Settings, **overrides: Any) -> Consumer:
    group = f"{settings.kafka.topic_prefix}fraud-scorer-verify"
    return kafka.reader(settings.kafka, group=group, fetch_wait_ms=50, **overrides)
