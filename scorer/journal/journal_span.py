"""A run of a shard's journal that is decided again: read once for what has to be known beforehand, and once to decide.

Replay, prove and explain walk along a journal here. Its records are read twice rather than kept, so that memory does
not grow with the journal, which is kept for ever.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace

from confluent_kafka import TopicPartition

from schemas.journal_record import JournalRecord, Sources
from scorer import kafka
from scorer.errors import PromiseBroken
from scorer.journal import journal_reader
from scorer.journal.journal_reader import JournalReader
from scorer.journal.partition_buffers import MissingRange, ShardInputs
from scorer.runtime.settings import KafkaSettings, Settings
from scorer.runtime.threads import SYSTEM, Threads


@dataclass
class JournalSpan:
    """Consecutive journal records of one shard, of which only the first and the last are kept.

    `start`, `end`: journal offset of the first record, and the one after the last · `count`: records · `decisions`,
    `dead_letters`: of all records · `positions`: first offset to read of each payments partition · `labels`: first
    offset to read of topic labels, None when none of it was read · `sources`: the first topic ids that a record names.
    """

    start: int
    end: int
    first: JournalRecord
    last: JournalRecord
    count: int = 0
    decisions: int = 0
    dead_letters: int = 0
    positions: dict[int, int] = field(default_factory=dict)
    labels: int | None = None
    sources: Sources | None = None

    @classmethod
    def beginning(cls, offset: int, record: JournalRecord) -> JournalSpan:
        """Of the one record at journal offset `offset`."""
        span = cls(offset, offset + 1, record, record)
        span.add(offset, record)
        return span

    def add(self, offset: int, record: JournalRecord) -> None:
        """Take in the record that follows, at journal offset `offset`."""
        self.end, self.last = offset + 1, record
        self.count += 1
        self.decisions += record.decisions
        self.dead_letters += record.dead_letters
        passed = record.change is not None  # a change passes over its ranges unread
        for r in record.inputs:
            self.positions.setdefault(r.partition, r.end if passed else r.start)
        if self.labels is None and record.labels is not None:
            self.labels = record.labels.end if passed else record.labels.start
        self.sources = self.sources or record.sources

    def until_now(self) -> JournalSpan:
        """A copy, to which later records are not added."""
        return replace(self, positions=dict(self.positions))


def extended(span: JournalSpan | None, offset: int, record: JournalRecord) -> JournalSpan:
    """`span` with the record that follows it. It begins anew at a record with which an operator let the state begin
    anew: what was decided before cannot be decided again, its topics may be gone."""
    if span is None or (record.change is not None and record.change.kind == "new_state"):
        return JournalSpan.beginning(offset, record)
    span.add(offset, record)
    return span


def span_of(records: Iterable[tuple[int, JournalRecord]]) -> JournalSpan | None:
    """Of a whole journal, or of what follows its last `new_state`; None when it is empty. No record is kept but the
    first and the last. `records`: as `journal_reader.journal_records` gives them."""
    span = None
    for offset, record in records:
        span = extended(span, offset, record)
    return span


def records_of(
    span: JournalSpan,
    settings: KafkaSettings,
    clients: kafka.Clients,
    *,
    no_progress_s: float,
    threads: Threads = SYSTEM,
) -> Generator[JournalRecord, None, None]:
    """The records of `span`, read a second time. At most RECORDS_PER_READ of them are in memory at once.

    Raises as `journal_reader.journal_records` does, and PromiseBroken when the last one is not that of the span.
    """
    first, last = span.first, span.last
    reader = JournalReader(
        settings, first.shard, clients=clients, threads=threads, position=span.start, sequence=first.sequence,
        previous=first.previous,
    )  # fmt: skip
    try:
        for found in reader.until(span.end, no_progress_s=no_progress_s, records_max=journal_reader.RECORDS_PER_READ):
            for _, record in found:
                if record.sequence == last.sequence and record.head != last.head:
                    raise _changed(settings, span)
                yield record
                if record.sequence == last.sequence:
                    return
    finally:
        reader.close()
    raise _changed(settings, span)


def _changed(settings: KafkaSettings, span: JournalSpan) -> PromiseBroken:
    return PromiseBroken(
        f"{kafka.Topics.of(settings).journal}/{span.first.shard}: batch {span.last.sequence} is not the one that was "
        "read before; the journal was changed"
    )


def check_retained(span: JournalSpan, broker: kafka.Broker, topics: kafka.Topics) -> None:
    """Raise MissingRange, naming it, when records that the journal points to are gone from their topics."""
    where = [TopicPartition(topics.payments, p) for p in span.positions]
    first = [*span.positions.values(), span.first.control.start]
    where.append(TopicPartition(topics.control, 0))
    if span.labels is not None:
        first.append(span.labels)
        where.append(TopicPartition(topics.labels, 0))
    for partition, want, have in zip(where, first, broker.starts(where), strict=True):
        if have > want:
            raise MissingRange(
                f"{partition.topic}/{partition.partition}: offsets {want} to {have - 1} are gone (retention), "
                f"and the journal needs them to rebuild the windows. {journal_reader.WAY_OUT}"
            )


def inputs_along(span: JournalSpan, clients: kafka.Clients, settings: Settings, *, reader: str) -> ShardInputs:
    """ShardInputs that stand where `span` begins, for reading its batches again; `reader` names who reads.

    Raises MissingRange when what it points to is gone, SourceChanged when it is of other topics.
    """
    topics = kafka.Topics.of(settings.kafka)
    broker = clients.broker()
    sources = journal_reader.sources_of(broker.topic_facts(topics.inputs), topics)
    if span.sources is not None:
        journal_reader.check_sources(span.sources, sources, f"the journal of shard {span.first.shard}")
    check_retained(span, broker, topics)
    group = f"{settings.kafka.topic_prefix}fraud-scorer-{reader}"
    return ShardInputs(
        clients.flat_reader(group, fetch_wait_ms=100),
        payments=topics.payments,
        control=topics.control,
        labels=topics.labels,
        positions=span.positions,
        control_position=span.first.control.start,
        labels_position=span.labels or 0,
        buffered_max=settings.worker.buffered_payments_max,
        sources=sources,
        fresh=span.first.sequence == 0,
    )
