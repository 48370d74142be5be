"""The past, read again: a shard's journal and the records it points to, as the very batches that were decided.

Recovery and the replay of topics both walk through here, so they read what the worker read,
in the order in which it did.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.journal_record import FIRST_PREVIOUS, JournalRecord
from scorer import kafka
from scorer.errors import FraudScorerError, PromiseBroken
from scorer.journal.partition_buffers import MissingRange, RawRecord, ShardInputs
from scorer.pipeline.records import Batch
from scorer.runtime.settings import KafkaSettings, Settings


class NoProgress(FraudScorerError):
    """Reading stopped moving: a hanging transaction, a truncated log or a broker that does not answer."""


class JournalReader:
    """A shard's committed journal records from an offset on, each checked to follow the one before it.

    `position` is the offset that comes next. Transaction markers take offsets, so positions say how far we are, not
    counts.
    """

    def __init__(
        self, settings: KafkaSettings, shard: int, *, position: int, sequence: int, previous: str | None
    ) -> None:
        """`sequence`, `previous`: number of the record that must come next, and the head it must name (None: any)."""
        self._partition = TopicPartition(kafka.Topics.of(settings).journal, shard, position)
        self._sequence, self._previous = sequence, previous
        self.position = position
        self._consumer: Consumer = kafka.reader(
            settings, group=f"{settings.topic_prefix}fraud-scorer-journal-reader", memory_kib=4096
        )
        self._consumer.assign([self._partition])

    def read(self, wait_s: float, *, records_max: int = 1000) -> list[tuple[int, JournalRecord]]:
        """What has come, each with its offset, waiting at most `wait_s` for the first; about `records_max` at most.

        Raises MissingRange when records before it are gone, PromiseBroken when the chain does not hold.
        """
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        found = []
        more = self._consumer.consume(records_max - 1, 0) if records_max > 1 else []
        for message in (first, *more):
            error, offset = message.error(), kafka.present(message.offset(), "offset")
            if error is not None:
                self._on_error(error, offset)
                continue
            value = message.value()
            if value is not None:
                found.append((offset, self._checked(JournalRecord.from_bytes(value))))
            self.position = offset + 1
        return found

    def until(
        self, end: int, *, no_progress_s: float, wait_s: float = 0.5, records_max: int = 1000
    ) -> Iterator[list[tuple[int, JournalRecord]]]:
        """What comes before offset `end`, piece by piece; a piece may be empty, so that the caller can stop.

        Raises as `read` does, and NoProgress when reading stands still for so long.
        """
        deadline = time.monotonic() + no_progress_s
        while self.position < end:
            before = self.position
            yield self.read(wait_s, records_max=records_max)
            if self.position > before:
                deadline = time.monotonic() + no_progress_s
            elif time.monotonic() > deadline:
                raise NoProgress(
                    f"{self._partition.topic}/{self._partition.partition}: no progress towards offset {end} for "
                    f"{no_progress_s:.0f} s; an open transaction may hold it up, or the log was truncated"
                )

    def _checked(self, record: JournalRecord) -> JournalRecord:
        name = f"{self._partition.topic}/{self._partition.partition}"
        if self._sequence == 0 and record.sequence != 0:
            raise MissingRange(
                f"{name} begins with batch {record.sequence}: batches 0 to {record.sequence - 1} are gone, and no "
                "snapshot reaches that far. Restore the topic, or start a new application "
                "(FRAUD_SCORER_WORKER__APPLICATION)"
            )
        if self._previous is None:
            self._previous = record.previous
        if (record.sequence, record.previous) != (self._sequence, self._previous):
            raise PromiseBroken(
                f"{name}: batch {record.sequence} does not follow batch {self._sequence - 1}; the journal was changed"
            )
        self._sequence, self._previous = record.sequence + 1, record.head
        return record

    def _on_error(self, error: KafkaError, offset: int) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self.position = max(self.position, offset)  # the offset that would come next
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise MissingRange(
                f"{self._partition.topic}/{self._partition.partition}: offset {self.position} is gone, and the journal "
                "is needed from there on. Restore the topic, or start a new application "
                "(FRAUD_SCORER_WORKER__APPLICATION)"
            )
        elif error.code() in kafka.DENIED:
            raise kafka.Denied(f"Kafka's authoriser refused: missing Read on topic {self._partition.topic}")
        elif error.fatal():
            raise kafka.KafkaFailure(f"reading {self._partition.topic} failed: {error.str()}")

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


def journal_bounds(settings: KafkaSettings, client: AdminClient, shard: int) -> tuple[int, int]:
    """First offset of a shard's journal, and the one after its last record or marker."""
    partition = TopicPartition(kafka.Topics.of(settings).journal, shard)
    return kafka.starts(client, [partition])[0], kafka.ends(client, [partition])[0]


def read_journal(
    settings: KafkaSettings, client: AdminClient, shard: int, *, no_progress_s: float
) -> list[JournalRecord]:
    """All committed journal records of `shard`, checked to be one unbroken chain from the first batch on.

    Raises MissingRange when the beginning is gone, PromiseBroken when the chain does not hold,
    NoProgress when reading stalls.
    """
    start, end = journal_bounds(settings, client, shard)
    reader = JournalReader(settings, shard, position=start, sequence=0, previous=FIRST_PREVIOUS)
    records: list[JournalRecord] = []
    try:
        for found in reader.until(end, no_progress_s=no_progress_s):
            records += [record for _, record in found]
    finally:
        reader.close()
    if start > 0 and not records:
        raise emptied(settings, shard, start)
    return records


def emptied(settings: KafkaSettings, shard: int, start: int) -> MissingRange:
    """The error of a journal that once had records and has none now."""
    return MissingRange(
        f"{kafka.Topics.of(settings).journal}/{shard} was emptied: offsets 0 to {start - 1} are gone, and no snapshot "
        "reaches that far. Restore the topic, or start a new application (FRAUD_SCORER_WORKER__APPLICATION)"
    )


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


def inputs_along(
    records: Sequence[JournalRecord], client: AdminClient, settings: Settings, *, reader: str
) -> ShardInputs:
    """ShardInputs that stand where `records` begin, for reading their batches again; `reader` names who reads.

    Raises MissingRange when what they point to is gone.
    """
    topics = kafka.Topics.of(settings.kafka)
    check_retained(records, client, topics)
    group = f"{settings.kafka.topic_prefix}fraud-scorer-{reader}"
    return ShardInputs(
        kafka.reader(settings.kafka, group=group, fetch_wait_ms=100),
        payments=topics.payments,
        control=topics.control,
        positions=first_positions(records),
        control_position=records[0].control.start,
        buffered_max=settings.worker.buffered_payments_max,
        fresh=records[0].sequence == 0,
    )


def batches(
    records: Sequence[JournalRecord], inputs: ShardInputs, *, no_progress_s: float
) -> Iterator[tuple[JournalRecord, Batch]]:
    """The batches of `records`, read again through `inputs`, which stands at their first positions."""
    for record in records:
        yield record, reread(record, inputs, no_progress_s=no_progress_s)


def reread(record: JournalRecord, inputs: ShardInputs, *, no_progress_s: float) -> Batch:
    """The batch of one journal record, from `inputs`, which stands where it begins.

    Raises MissingRange when the log does not hold it (any more), NoProgress when reading stalls.
    """
    wanted = {r.partition: r for r in record.inputs}
    for p, r in wanted.items():
        if inputs.buffers[p].position > r.start:
            raise MissingRange(
                f"batch {record.sequence} of shard {record.shard} begins at offset {r.start} of payments partition "
                f"{p}, and the log begins at {inputs.buffers[p].position}: the records between are gone (retention). "
                "Restore the topic, or start a new application (FRAUD_SCORER_WORKER__APPLICATION) with empty windows"
            )
    deadline = time.monotonic() + no_progress_s
    while not _complete(record, inputs):
        for buffer in (*(inputs.buffers[p] for p in wanted), inputs.control):
            inputs.resume(buffer)
        if inputs.fill(0.5):
            deadline = time.monotonic() + no_progress_s
        if time.monotonic() > deadline:
            raise NoProgress(
                f"batch {record.sequence} of shard {record.shard} cannot be read again: "
                f"no records for {no_progress_s:.0f} s"
            )
    counts = {p: _held(inputs.buffers[p].records, r.end) for p, r in wanted.items()}
    batch = inputs.batch(counts, _held(inputs.control.records, record.control.end))
    if list(batch.inputs) != list(record.inputs):
        raise MissingRange(
            f"batch {record.sequence} of shard {record.shard}: "
            "the log no longer holds the offsets that the journal names"
        )
    return replace(batch, degraded=record.degraded)


def _held(buffer: Sequence[RawRecord], end: int) -> int:
    """How many of the buffer's records stand before offset `end`."""
    return sum(1 for _ in takewhile(lambda raw: raw.offset < end, buffer))


def _complete(record: JournalRecord, inputs: ShardInputs) -> bool:
    """Whether everything the record names is buffered.
    A range ends right after its last record, so that record must be there."""
    for r in record.inputs:
        buffer = inputs.buffers[r.partition].records
        if r.end > r.start and (not buffer or buffer[-1].offset < r.end - 1):
            return False
    if record.control.end > inputs.control.position:
        buffer = inputs.control.records
        return bool(buffer) and buffer[-1].offset >= record.control.end - 1
    return True
