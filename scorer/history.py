"""The past, read again: a shard's journal and the records it points to, as the very batches that were decided.

Recovery and the replay of topics both walk through here, so they read what the worker read,
in the order in which it did.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.journal import FIRST_PREVIOUS, JournalRecord
from scorer import kafka
from scorer.enrich import Batch
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.inputs import Inputs, MissingRange, Raw
from scorer.settings import KafkaSettings


class NoProgress(FraudScorerError):
    """Reading stopped moving: a hanging transaction, a truncated log or a broker that does not answer."""


def read_journal(
    settings: KafkaSettings, client: AdminClient, shard: int, *, no_progress_s: float
) -> list[JournalRecord]:
    """All committed journal records of `shard`, checked to be one unbroken chain from the first batch on.

    Raises MissingRange when the beginning is gone, PromiseBroken when the chain does not hold,
    NoProgress when reading stalls.
    """
    topic = kafka.Topics.of(settings).journal
    partition = TopicPartition(topic, shard)
    start, end = kafka.starts(client, [partition])[0], kafka.ends(client, [partition])[0]
    if end == 0:
        return []
    records: list[JournalRecord] = []
    consumer = kafka.reader(settings, group=f"{settings.topic_prefix}fraud-scorer-journal-reader")
    try:
        consumer.assign([TopicPartition(topic, shard, start)])
        for raw in _to_end(consumer, partition, end, no_progress_s):
            record = JournalRecord.from_bytes(raw)
            expected = (records[-1].sequence + 1, records[-1].head) if records else (0, FIRST_PREVIOUS)
            if not records and record.sequence != 0:
                raise MissingRange(
                    f"{topic}/{shard} begins with batch {record.sequence}: batches 0 to {record.sequence - 1} "
                    "are gone, and there is no snapshot. Restore the topic, or start a new application "
                    "(FRAUD_SCORER_WORKER__APPLICATION)"
                )
            if (record.sequence, record.previous) != expected:
                raise PromiseBroken(
                    f"{topic}/{shard}: batch {record.sequence} does not follow batch {expected[0] - 1}; "
                    "the journal has been changed"
                )
            records.append(record)
    finally:
        consumer.close()
    if start > 0 and not records:
        raise MissingRange(f"{topic}/{shard} was emptied: offsets 0 to {start - 1} are gone, and there is no snapshot")
    return records


def _to_end(consumer: Consumer, partition: TopicPartition, end: int, no_progress_s: float) -> Iterator[bytes]:
    """Values of `partition` up to offset `end`. Control records take offsets, so positions decide, not counts."""
    deadline = time.monotonic() + no_progress_s
    while True:
        message = consumer.poll(0.5)
        error = None if message is None else message.error()
        if message is None:
            pass
        elif error is None:
            deadline = time.monotonic() + no_progress_s
            value = message.value()
            if value is not None:
                yield value
            if kafka.present(message.offset(), "offset") + 1 >= end:
                return
        elif error.code() == KafkaError._PARTITION_EOF:
            if kafka.present(message.offset(), "offset") >= end:  # the offset that would come next
                return
        elif error.fatal():
            raise kafka.KafkaFailure(f"reading {partition.topic} failed: {error.str()}")
        if time.monotonic() > deadline:
            raise NoProgress(
                f"{partition.topic}/{partition.partition}: no progress towards offset {end} for {no_progress_s:.0f} s; "
                "an open transaction may hold it up, or the log was truncated"
            )


def positions_after(
    records: Sequence[JournalRecord], partitions: Sequence[int], starts: Sequence[int]
) -> dict[int, int]:
    """Where each payments partition goes on after `records`; a partition never read goes on at its start."""
    result = dict(zip(partitions, starts, strict=True))
    for record in records:
        for r in record.inputs:
            result[r.partition] = r.end
    return result


def first_positions(records: Sequence[JournalRecord]) -> dict[int, int]:
    """The first offset of each payments partition that the journal knows."""
    result: dict[int, int] = {}
    for record in records:
        for r in record.inputs:
            result.setdefault(r.partition, r.start)
    return result


def check_retained(records: Sequence[JournalRecord], client: AdminClient, topics: kafka.Topics) -> None:
    """Raise MissingRange, naming it, when records that the journal points to are gone from their topics."""
    needed = first_positions(records)
    where = [TopicPartition(topics.payments, p) for p in needed]
    control = TopicPartition(topics.control, 0)
    first = [*needed.values(), records[0].control.start]
    for partition, want, have in zip([*where, control], first, kafka.starts(client, [*where, control]), strict=True):
        if have > want:
            raise MissingRange(
                f"{partition.topic}/{partition.partition}: offsets {want} to {have - 1} are gone (retention), "
                "and the journal needs them to rebuild the windows. Restore the topic, or start a new application "
                "(FRAUD_SCORER_WORKER__APPLICATION) with empty windows"
            )


def batches(
    records: Sequence[JournalRecord], inputs: Inputs, *, no_progress_s: float
) -> Iterator[tuple[JournalRecord, Batch]]:
    """The batches of `records`, read again through `inputs`, which stands at their first positions."""
    for record in records:
        wanted = {r.partition: r for r in record.inputs}
        deadline = time.monotonic() + no_progress_s
        while not _complete(record, inputs):
            for lane in (*(inputs.lanes[p] for p in wanted), inputs.control):
                inputs.resume(lane)
            if inputs.fill(0.5):
                deadline = time.monotonic() + no_progress_s
            if time.monotonic() > deadline:
                raise NoProgress(
                    f"batch {record.sequence} of shard {record.shard} cannot be read again: "
                    f"no records for {no_progress_s:.0f} s"
                )
        counts = {p: sum(1 for raw in _until(inputs.lanes[p].buffer, r.end)) for p, r in wanted.items()}
        control = sum(1 for raw in _until(inputs.control.buffer, record.control.end))
        batch = inputs.batch(counts, control)
        if list(batch.inputs) != list(record.inputs):
            raise MissingRange(
                f"batch {record.sequence} of shard {record.shard}: "
                "the log no longer holds the offsets that the journal names"
            )
        yield record, batch


def _until(buffer: Iterable[Raw], end: int) -> Iterator[Raw]:
    for raw in buffer:
        if raw.offset >= end:
            return
        yield raw


def _complete(record: JournalRecord, inputs: Inputs) -> bool:
    """Whether everything the record names is buffered.
    A range ends right after its last record, so that record must be there."""
    for r in record.inputs:
        buffer = inputs.lanes[r.partition].buffer
        if not buffer or buffer[-1].offset < r.end - 1:
            return False
    if record.control.end > inputs.control.position:
        buffer = inputs.control.buffer
        return bool(buffer) and buffer[-1].offset >= record.control.end - 1
    return True
