"""What Kafka still holds of the audit trail: heads from the journal topic, rows from the audit topic. Reads only."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, TopicPartition

from schemas.audit import AuditColumns, AuditError, AuditHeader, decode
from scorer import kafka
from scorer.settings import Settings

_NO_PROGRESS_S = 30.0
_MESSAGES = 10_000


@dataclass(frozen=True)
class JournalHead:
    """One record of the journal topic, as far as it is compared."""

    sequence: int
    head: str
    day: str


def journal_heads(settings: Settings, shard: int, *, from_sequence: int = 0) -> Iterator[JournalHead]:
    """The heads on the journal topic from `from_sequence` on, in order. Raises KafkaFailure."""
    topic = kafka.Topics.of(settings.kafka).journal
    for _, value in _values(settings, topic, shard, None):
        record = json.loads(value)
        if record["sequence"] >= from_sequence:
            day = time.strftime("%Y-%m-%d", time.gmtime(max(0, record["stream_time_ms"]) / 1000))
            yield JournalHead(record["sequence"], hashlib.sha256(value).hexdigest(), day)


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
    """The shards that the journal topic has room for: its partitions, whatever the database says of them."""
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


def _values(
    settings: Settings, topic: str, partition: int, bounds: tuple[int, int | None] | None
) -> Iterator[tuple[int, bytes]]:
    """(offset, value) of committed records of a partition, within offsets [start, end) when given."""
    client = kafka.admin(settings.kafka)
    place = TopicPartition(topic, partition)
    kafka.partition_count(client, topic)
    (first,), (last,) = kafka.starts(client, [place]), kafka.ends(client, [place])
    if bounds is not None:
        first = max(first, bounds[0])
        last = min(last, last if bounds[1] is None else bounds[1])
    if first >= last:
        return
    consumer = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}fraud-scorer-verify", fetch_wait_ms=50)
    try:
        consumer.assign([TopicPartition(topic, partition, first)])
        deadline = time.monotonic() + _NO_PROGRESS_S
        while True:
            messages = consumer.consume(_MESSAGES, 0.2)
            if messages:
                deadline = time.monotonic() + _NO_PROGRESS_S
            for message in messages:
                error, offset, value = message.error(), message.offset(), message.value()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        return
                    if error.fatal():
                        raise kafka.KafkaFailure(f"reading {topic} failed: {error.str()}")
                    continue
                if offset is None or offset >= last:
                    return
                if value is not None:
                    yield offset, value
                if offset + 1 >= last:
                    return
            if time.monotonic() > deadline:
                raise kafka.KafkaFailure(f"{topic}/{partition}: no progress for {_NO_PROGRESS_S:.0f} s")
    finally:
        consumer.close()
