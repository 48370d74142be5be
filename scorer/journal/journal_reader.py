"""The past, read again: a shard's journal and the records it points to, as the very batches that were decided.

Recovery and the replay of topics both walk through here, so they read what the worker read,
in the order in which it did.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import structlog
from confluent_kafka import KafkaError, Message, TopicPartition

from schemas import row_set
from schemas.journal_record import (
    FIRST_PREVIOUS,
    BatchOrder,
    Change,
    ControlRange,
    InputRange,
    JournalError,
    JournalRecord,
    Sources,
)
from schemas.order_record import OrderRecord
from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.journal.partition_buffers import MissingRange, ShardInputs, no_records
from scorer.pipeline.records import Batch
from scorer.runtime.settings import KafkaSettings
from scorer.runtime.threads import SYSTEM, Threads

log = structlog.get_logger()

# What one read of a journal gives: records, each with its offset.
Found = list[tuple[int, JournalRecord]]

# What a walk along a whole journal has in memory at once: 1.4 MB at 7 KB a record.
RECORDS_PER_READ = 200

WAY_OUT = "Restore it, or let `fraud-scorer recover` show what is missing and what can be accepted"


class JournalReader:
    """A shard's committed journal records from an offset on, each checked to follow the one before it.

    `position` is the offset that comes next. Transaction markers take offsets, so positions say how far we are, not
    counts. `at_end`: whether what was read last was the end of what is committed.
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
        self.at_end = False
        self._consumer = clients.reader(f"{settings.topic_prefix}fraud-scorer-journal-reader", memory_kib=4096)
        with kafka.surfaced():
            self._consumer.assign([self._partition])

    def read(self, wait_s: float, *, records_max: int = 1000) -> list[tuple[int, JournalRecord]]:
        """What has come, each with its offset, waiting at most `wait_s` for the first; about `records_max` at most.
        What no worker has written is passed over, and logged.

        Raises MissingRange when records before it are gone, PromiseBroken when the chain does not hold or a record of
        it cannot be read, KafkaFailure.
        """
        found, foreign = [], list[int]()
        for message in kafka.take(self._consumer, wait_s, messages_max=records_max):
            error = message.error()
            if error is not None:
                self._on_error(error, message)
                continue
            self.at_end, offset = False, kafka.present(message.offset(), "offset")
            value = message.value() or b""
            if self._containing is None or self._containing in value:
                record = self._parsed(offset, value)
                if record is None:
                    foreign.append(offset)
                else:
                    found.append((offset, self._checked(record) if self._containing is None else record))
            self.position = offset + 1
        if foreign:
            log.warning(
                "journal.foreign_records", topic=self._partition.topic, partition=self._partition.partition,
                count=len(foreign), first_offset=foreign[0],
            )  # fmt: skip
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
                    f"{self._name}: no progress towards offset {end} for "
                    f"{no_progress_s:.0f} s; an open transaction may hold it up, or the log was truncated"
                )

    def _parsed(self, offset: int, value: bytes) -> JournalRecord | None:
        """The record that `value` is; None where a stranger has written it, which the chain goes on without."""
        try:
            return JournalRecord.from_bytes(value)
        except JournalError as exc:
            if exc.foreign:
                return None
            raise PromiseBroken(
                f"{self._name} offset {offset}: {exc}. A later release has written it (then upgrade this one), or the "
                "journal was changed"
            ) from exc

    @property
    def _name(self) -> str:
        return f"{self._partition.topic}/{self._partition.partition}"

    def _checked(self, record: JournalRecord) -> JournalRecord:
        name = self._name
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

    def _on_error(self, error: KafkaError, message: Message) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            # The offset that would come next.
            self.position = max(self.position, kafka.present(message.offset(), "offset"))
            self.at_end = True
            return
        place = self._name
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


def journal_records(
    settings: KafkaSettings, clients: kafka.Clients, shard: int, *, no_progress_s: float, threads: Threads = SYSTEM
) -> Generator[tuple[int, JournalRecord], None, None]:
    """All committed journal records of `shard`, each with its offset, checked to be one unbroken chain from the first
    batch on. At most RECORDS_PER_READ of them are in memory at once.

    Raises MissingRange when the beginning is gone, PromiseBroken when the chain does not hold,
    NoProgress when reading stalls.
    """
    start, end = journal_bounds(settings, clients.broker(), shard)
    reader = JournalReader(
        settings, shard, clients=clients, threads=threads, position=start, sequence=0, previous=FIRST_PREVIOUS
    )
    empty = True
    try:
        for found in reader.until(end, no_progress_s=no_progress_s, records_max=RECORDS_PER_READ):
            empty = empty and not found
            yield from found
    finally:
        reader.close()
    if start > 0 and empty:
        raise emptied(settings, shard, start)


def emptied(settings: KafkaSettings, shard: int, start: int) -> MissingRange:
    """The error of a journal that once had records and has none now."""
    return MissingRange(
        f"{kafka.Topics.of(settings).journal}/{shard} was emptied: offsets 0 to {start - 1} are gone, and no snapshot "
        f"reaches that far. {WAY_OUT}"
    )


def last_new_state(found_records: Iterable[Found]) -> tuple[int, JournalRecord] | None:
    """Offset and record of the last `new_state` among what a reader has found; None without one."""
    found = None
    for records in found_records:
        for offset, record in records:
            if record.change is not None and record.change.kind == "new_state":
                found = offset, record
    return found


def new_state_from(
    offset: int,
    settings: KafkaSettings,
    clients: kafka.Clients,
    shard: int,
    *,
    no_progress_s: float,
    threads: Threads = SYSTEM,
) -> bool:
    """Whether an operator let the state of `shard` begin anew with a record from journal offset `offset` on.

    Records that do not name it are not parsed, and the chain is not checked.
    """
    _, end = journal_bounds(settings, clients.broker(), shard)
    reader = JournalReader(
        settings, shard, clients=clients, threads=threads, position=offset, sequence=0, previous=None,
        containing=b'"new_state"',
    )  # fmt: skip
    try:
        return last_new_state(reader.until(end, no_progress_s=no_progress_s)) is not None
    finally:
        reader.close()


def snapshot_digests(found_records: Iterable[Found]) -> dict[int, str]:
    """Digests of the snapshots that the records name which a reader has found, by sequence."""
    return {
        record.snapshot.sequence: record.snapshot.sha256
        for records in found_records
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


def reread(record: JournalRecord, inputs: ShardInputs, *, no_progress_s: float, threads: Threads = SYSTEM) -> Batch:
    """The batch of one journal record, from `inputs`, which stands where it begins.

    A record of a change reads nothing: `inputs` moves to where it ends. Raises MissingRange when the log does not hold
    the batch (any more), SourceChanged when it is of other topics, NoProgress when reading stalls.
    """
    if record.change is not None:
        labels = record.labels
        labels_end = None if labels is None else labels.end
        inputs.move({r.partition: r.end for r in record.inputs}, record.control.end, labels_end)
        return empty_batch(
            record.inputs,
            record.control,
            labels=labels,
            sources=record.sources,
            change=record.change,
            order=record.order,
        )
    batch = _read_again(record, inputs, no_progress_s=no_progress_s, threads=threads)
    if len(batch.records) < record.decisions:
        raise MissingRange(
            f"batch {record.sequence} of shard {record.shard}: the log holds {len(batch.records)} records in its "
            f"ranges, and {record.decisions} were decided: it was cut, or records are gone from its middle. {WAY_OUT}"
        )
    return replace(
        batch,
        answer_refused=record.refused is not None,
        digest=None if record.decided is None else record.digest,
        order=record.order,
    )


def reread_order(
    record: OrderRecord, offset: int, inputs: ShardInputs, *, no_progress_s: float, threads: Threads = SYSTEM
) -> Batch:
    """The batch of the order record at `offset`, as `reread` gives that of a journal record. Raises as it does."""
    batch = _read_again(record, inputs, no_progress_s=no_progress_s, threads=threads)
    if len(batch.records) != record.records:
        raise MissingRange(
            f"batch {record.sequence} of shard {record.shard}: the log holds {len(batch.records)} records in its "
            f"ranges, and its order record names {record.records}: it was cut, or records are gone from its middle. "
            f"{WAY_OUT}"
        )
    return replace(batch, order=offset)


def _read_again(record: BatchOrder, inputs: ShardInputs, *, no_progress_s: float, threads: Threads) -> Batch:
    """What the record's ranges hold, with all that the record says of how to decide it."""
    fetch_all(record, inputs, no_progress_s=no_progress_s, threads=threads)
    batch = inputs.batch_again(record)
    return replace(
        batch,
        degraded=_degraded(record, len(batch.records)),
        sources=record.sources,
        activations=record.activations,
        snapshot=record.snapshot,
        pseudonym_key=record.pseudonym_key,
        labels_by_arrival=record.labels_by is None,
    )


def fetch_all(
    record: BatchOrder,
    inputs: ShardInputs,
    *,
    no_progress_s: float,
    threads: Threads,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Read on to the end of the record's ranges. False when `stopped` before that.

    Raises SourceChanged when they are of other topics, MissingRange when `inputs` does not stand where they begin,
    NoProgress when reading stalls.
    """
    if record.sources is not None and inputs.sources is not None:
        check_sources(record.sources, inputs.sources, f"batch {record.sequence} of shard {record.shard}")
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
        if stopped():
            return False
        if fetch(record, inputs, 0.5):
            deadline = threads.monotonic() + no_progress_s
        if threads.monotonic() > deadline:
            raise kafka.NoProgress(
                f"batch {record.sequence} of shard {record.shard} cannot be read again: no records for "
                f"{no_progress_s:.0f} s. {WAY_OUT}"
            )
    return True


def fetch(record: BatchOrder, inputs: ShardInputs, wait_s: float) -> int:
    """Read on towards the end of the record's ranges, waiting at most `wait_s` for the first record. Gives how many
    payments came."""
    for buffer in (*(inputs.buffers[r.partition] for r in record.inputs), inputs.control, inputs.labels):
        inputs.resume(buffer)
    empty = [r for r in record.inputs if _holds_no_payment(record, r)]
    unread = [inputs.buffers[r.partition] for r in empty]
    # What a partition lacks that the record does not need is raised where it is needed.
    count = inputs.fill(wait_s, [buffer for buffer in inputs.lacking(record) if buffer not in unread])
    inputs.pass_gone(empty)
    return count


def _holds_no_payment(record: BatchOrder, of: InputRange) -> bool:
    """Whether a range of the record is known to hold transaction markers and aborted records alone: when retention has
    taken those, nothing is missing."""
    if of.records_end is not None and of.records_end <= of.start:
        return True
    if isinstance(record, OrderRecord):
        return record.records == 0
    return isinstance(record, JournalRecord) and not (record.decisions or record.dead_letters)


def _degraded(record: BatchOrder, count: int) -> npt.NDArray[np.bool_] | None:
    if not record.degraded:
        return None
    if record.degraded_rows is None:
        return np.ones(count, dtype=np.bool_)
    try:
        return row_set.from_text(record.degraded_rows, count)
    except ValueError as exc:
        raise PromiseBroken(
            f"batch {record.sequence} of shard {record.shard}: degraded_rows of its record: {exc}"
        ) from exc


def empty_batch(
    inputs: Sequence[InputRange],
    control: ControlRange,
    *,
    labels: ControlRange | None,
    sources: Sources | None,
    change: Change | None,
    order: int | None,
) -> Batch:
    """A batch without records: what a change comes to."""
    return Batch(
        no_records(), tuple(inputs), [], control, labels_range=labels, sources=sources, change=change, order=order
    )


def check_sources(named: Sources, present: Sources, what: str) -> None:
    """Raise SourceChanged, naming both ids, when `what` belongs to other topics than those that are there now."""
    for topic in ("payments", "control", "labels"):
        before, now = getattr(named, topic), getattr(present, topic)
        if None not in (before, now) and kafka.NO_ID not in (before, now) and before != now:
            raise kafka.SourceChanged(
                f"{what} read the topic {topic} of id {before}, and the topic of that name has id {now} now: it was "
                f"deleted and made anew, or this is another cluster. {WAY_OUT}"
            )
