"""The past, read again: a shard's journal and the records it points to, as the very batches that were decided.

Recovery and the replay of topics both walk through here, so they read what the worker read,
in the order in which it did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, TopicPartition

from schemas import row_set
from schemas.journal_record import FIRST_PREVIOUS, Change, ControlRange, InputRange, JournalRecord, Sources
from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.journal.partition_buffers import MissingRange, ShardInputs, records_of
from scorer.pipeline.records import Batch
from scorer.runtime.settings import KafkaSettings, Settings
from scorer.runtime.threads import SYSTEM, Threads

WAY_OUT = "Restore it, or let `fraud-scorer recover` show what is missing and what can be accepted"


class JournalReader:
    """A shard's committed journal records from an offset on, each checked to follow the one before it.

    `position` is the offset that comes next. Transaction markers take offsets, so positions say how far we are, not
    counts.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        shard: int,
        *,
        clients: kafka.Clients,
        threads: Threads = SYSTEM,
        position: int,
        sequence: int,
        previous: str | None,
        containing: bytes | None = None,
    ) -> None:
        """`sequence`, `previous`: number of the record that must come next, and the head it must name (None: any).

        `containing`: pass over, unread and unchecked, what does not hold these bytes.
        """
        self._containing = containing
        self._partition = TopicPartition(kafka.Topics.of(settings).journal, shard, position)
        self._sequence, self._previous = sequence, previous
        self._threads = threads
        self.position = position
        self._consumer = clients.reader(f"{settings.topic_prefix}fraud-scorer-journal-reader", memory_kib=4096)
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
            if value is not None and self._containing is None:
                found.append((offset, self._checked(JournalRecord.from_bytes(value))))
            elif value is not None and self._containing is not None and self._containing in value:
                found.append((offset, JournalRecord.from_bytes(value)))
            self.position = offset + 1
        return found

    def until(
        self, end: int, *, no_progress_s: float, wait_s: float = 0.5, records_max: int = 1000
    ) -> Iterator[list[tuple[int, JournalRecord]]]:
        """What comes before offset `end`, piece by piece; a piece may be empty, so that the caller can stop.

        Raises as `read` does, and NoProgress when reading stands still for so long.
        """
        deadline = self._threads.monotonic() + no_progress_s
        while self.position < end:
            before = self.position
            yield self.read(wait_s, records_max=records_max)
            if self.position > before:
                deadline = self._threads.monotonic() + no_progress_s
            elif self._threads.monotonic() > deadline:
                raise kafka.NoProgress(
                    f"{self._partition.topic}/{self._partition.partition}: no progress towards offset {end} for "
                    f"{no_progress_s:.0f} s; an open transaction may hold it up, or the log was truncated"
                )

    def _checked(self, record: JournalRecord) -> JournalRecord:
        name = f"{self._partition.topic}/{self._partition.partition}"
        if self._sequence == 0 and record.sequence != 0:
            raise MissingRange(
                f"{name} begins with batch {record.sequence}: batches 0 to {record.sequence - 1} are gone, and no "
                f"snapshot reaches that far. {WAY_OUT}"
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
            return
        place = f"{self._partition.topic}/{self._partition.partition}"
        failed = kafka.read_failure(error, place)
        if kafka.log_was_cut(error):
            raise kafka.SourceChanged(
                f"{place}: the journal was cut below what was read already ({error.str()}), by an election of a leader "
                "that lacked records. Restore it: what it lacks was decided"
            )
        if isinstance(failed, kafka.OutOfRange):
            raise MissingRange(
                f"{place}: offset {self.position} is gone, and the journal is needed from there on. {WAY_OUT}"
            )
        if not isinstance(failed, kafka.Away):  # what passes by itself is waited for
            raise failed

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


def journal_bounds(settings: KafkaSettings, broker: kafka.Broker, shard: int) -> tuple[int, int]:
    """First offset of a shard's journal, and the one after its last record or marker."""
    partition = TopicPartition(kafka.Topics.of(settings).journal, shard)
    return broker.starts([partition])[0], broker.ends([partition])[0]


def read_journal(
    settings: KafkaSettings, clients: kafka.Clients, shard: int, *, no_progress_s: float, threads: Threads = SYSTEM
) -> list[JournalRecord]:
    """All committed journal records of `shard`, checked to be one unbroken chain from the first batch on.

    Raises MissingRange when the beginning is gone, PromiseBroken when the chain does not hold,
    NoProgress when reading stalls.
    """
    start, end = journal_bounds(settings, clients.broker(), shard)
    reader = JournalReader(
        settings, shard, clients=clients, threads=threads, position=start, sequence=0, previous=FIRST_PREVIOUS
    )
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
        f"reaches that far. {WAY_OUT}"
    )


def first_positions(records: Sequence[JournalRecord]) -> dict[int, int]:
    """The first offset of each payments partition that has to be read along `records`."""
    result: dict[int, int] = {}
    for record in records:
        for r in record.inputs:
            result.setdefault(r.partition, r.start if record.change is None else r.end)
    return result


def check_retained(records: Sequence[JournalRecord], broker: kafka.Broker, topics: kafka.Topics) -> None:
    """Raise MissingRange, naming it, when records that the journal points to are gone from their topics."""
    needed = first_positions(records)
    where = [TopicPartition(topics.payments, p) for p in needed]
    first = [*needed.values(), records[0].control.start]
    where.append(TopicPartition(topics.control, 0))
    labels = first_labels(records)
    if labels is not None:
        first.append(labels)
        where.append(TopicPartition(topics.labels, 0))
    for partition, want, have in zip(where, first, broker.starts(where), strict=True):
        if have > want:
            raise MissingRange(
                f"{partition.topic}/{partition.partition}: offsets {want} to {have - 1} are gone (retention), "
                f"and the journal needs them to rebuild the windows. {WAY_OUT}"
            )


def first_labels(records: Sequence[JournalRecord]) -> int | None:
    """The first offset of topic labels that has to be read along `records`; None when they read none of it."""
    for record in records:
        if record.labels is not None:
            return record.labels.start if record.change is None else record.labels.end
    return None


def since_new_state(records: list[JournalRecord]) -> list[JournalRecord]:
    """The records from the last one on at which an operator let the state begin anew; all when there is none."""
    for i in range(len(records) - 1, 0, -1):
        change = records[i].change
        if change is not None and change.kind == "new_state":
            return records[i:]
    return records


def last_new_state(reader: JournalReader, end: int, *, no_progress_s: float) -> tuple[int, JournalRecord] | None:
    """Offset and record of the last `new_state` that `reader` finds before offset `end`; None without one."""
    found = None
    for records in reader.until(end, no_progress_s=no_progress_s):
        for offset, record in records:
            if record.change is not None and record.change.kind == "new_state":
                found = offset, record
    return found


def snapshot_digests(reader: JournalReader, end: int, *, no_progress_s: float) -> dict[int, str]:
    """Digests of the snapshots that the records name which `reader` finds before offset `end`, by sequence."""
    return {
        record.snapshot.sequence: record.snapshot.sha256
        for records in reader.until(end, no_progress_s=no_progress_s)
        for _, record in records
        if record.snapshot is not None
    }


def sources_of(facts: Mapping[str, kafka.TopicFacts], topics: kafka.Topics) -> Sources:
    """Ids of the topics that a shard reads, from what the broker answered about them."""
    return Sources(payments=facts[topics.payments].id, control=facts[topics.control].id, labels=facts[topics.labels].id)


def deployment_of(facts: Mapping[str, kafka.TopicFacts], topics: kafka.Topics) -> str:
    """Whose an activation is: the journal topic's name and id, which a topic made anew does not have."""
    journal = facts[topics.journal]
    return journal.name if journal.id == kafka.NO_ID else f"{journal.name}@{journal.id}"


def inputs_along(
    records: Sequence[JournalRecord], clients: kafka.Clients, settings: Settings, *, reader: str
) -> ShardInputs:
    """ShardInputs that stand where `records` begin, for reading their batches again; `reader` names who reads.

    Raises MissingRange when what they point to is gone, SourceChanged when they are of other topics.
    """
    topics = kafka.Topics.of(settings.kafka)
    broker = clients.broker()
    sources = sources_of(broker.topic_facts(topics.inputs), topics)
    named = next((record.sources for record in records if record.sources is not None), None)
    if named is not None:
        check_sources(named, sources, f"the journal of shard {records[0].shard}")
    check_retained(records, broker, topics)
    group = f"{settings.kafka.topic_prefix}fraud-scorer-{reader}"
    return ShardInputs(
        clients.reader(group, fetch_wait_ms=100),
        payments=topics.payments,
        control=topics.control,
        labels=topics.labels,
        positions=first_positions(records),
        control_position=records[0].control.start,
        labels_position=first_labels(records) or 0,
        buffered_max=settings.worker.buffered_payments_max,
        sources=sources,
        fresh=records[0].sequence == 0,
    )


def batches(
    records: Sequence[JournalRecord], inputs: ShardInputs, *, no_progress_s: float
) -> Iterator[tuple[JournalRecord, Batch]]:
    """The batches of `records`, read again through `inputs`, which stands at their first positions."""
    for record in records:
        yield record, reread(record, inputs, no_progress_s=no_progress_s)


def reread(record: JournalRecord, inputs: ShardInputs, *, no_progress_s: float, threads: Threads = SYSTEM) -> Batch:
    """The batch of one journal record, from `inputs`, which stands where it begins.

    A record of a change reads nothing: `inputs` moves to where it ends. Raises MissingRange when the log does not hold
    the batch (any more), SourceChanged when it is of other topics, NoProgress when reading stalls.
    """
    if record.sources is not None and inputs.sources is not None and record.change is None:
        check_sources(record.sources, inputs.sources, f"batch {record.sequence} of shard {record.shard}")
    if record.change is not None:
        labels = record.labels
        labels_end = None if labels is None else labels.end
        inputs.move({r.partition: r.end for r in record.inputs}, record.control.end, labels_end)
        return empty_batch(record.inputs, record.control, labels=labels, sources=record.sources, change=record.change)
    for r in record.inputs:
        have = inputs.buffers[r.partition].position
        if have != r.start:
            raise MissingRange(
                f"batch {record.sequence} of shard {record.shard} begins at offset {r.start} of payments partition "
                f"{r.partition}, and reading stands at {have}: the records between are gone, or were never decided. "
                f"{WAY_OUT}"
            )
    deadline = threads.monotonic() + no_progress_s
    while not inputs.holds(record):
        for buffer in (*(inputs.buffers[r.partition] for r in record.inputs), inputs.control, inputs.labels):
            inputs.resume(buffer)
        if inputs.fill(0.5):
            deadline = threads.monotonic() + no_progress_s
        if threads.monotonic() > deadline:
            raise kafka.NoProgress(
                f"batch {record.sequence} of shard {record.shard} cannot be read again: no records for "
                f"{no_progress_s:.0f} s. {WAY_OUT}"
            )
    batch = inputs.batch_again(record)
    if len(batch.records) < record.decisions:
        raise MissingRange(
            f"batch {record.sequence} of shard {record.shard}: the log holds {len(batch.records)} records in its "
            f"ranges, and {record.decisions} were decided: it was cut, or records are gone from its middle. {WAY_OUT}"
        )
    return replace(
        batch,
        degraded=_degraded(record, len(batch.records)),
        sources=record.sources,
        activations=record.activations,
        snapshot=record.snapshot,
        pseudonym_key=record.pseudonym_key,
        answer_refused=record.refused is not None,
        digest=None if record.decided is None else record.digest,
    )


def _degraded(record: JournalRecord, count: int) -> npt.NDArray[np.bool_] | None:
    if not record.degraded:
        return None
    if record.degraded_rows is None:
        return np.ones(count, dtype=np.bool_)
    try:
        return row_set.from_text(record.degraded_rows, count)
    except ValueError as exc:
        raise PromiseBroken(
            f"batch {record.sequence} of shard {record.shard}: degraded_rows of its journal record: {exc}"
        ) from exc


def empty_batch(
    inputs: Sequence[InputRange],
    control: ControlRange,
    *,
    labels: ControlRange | None,
    sources: Sources | None,
    change: Change | None,
) -> Batch:
    """A batch without records: what a change comes to."""
    return Batch(records_of([], []), tuple(inputs), [], control, labels_range=labels, sources=sources, change=change)


def check_sources(named: Sources, present: Sources, what: str) -> None:
    """Raise SourceChanged, naming both ids, when `what` belongs to other topics than those that are there now."""
    for topic in ("payments", "control", "labels"):
        before, now = getattr(named, topic), getattr(present, topic)
        if None not in (before, now) and kafka.NO_ID not in (before, now) and before != now:
            raise kafka.SourceChanged(
                f"{what} read the topic {topic} of id {before}, and the topic of that name has id {now} now: it was "
                f"deleted and made anew, or this is another cluster. {WAY_OUT}"
            )
