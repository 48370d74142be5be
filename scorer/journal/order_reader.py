"""The order log, read: batches that a shard's owner may have answered already and that the journal does not hold yet.

    claim   batch  batch  claim   batch  batch(of the first claim: void)
    @7      7      7      @10     10     7

A claim's offset is the epoch of what its owner appends. A batch counts when the newest claim before it stands at its
epoch. So whoever reads the log up to a claim of its own knows all that will ever count before that claim; and whether a
batch counts is known as soon as it is read, because nothing that comes later changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from confluent_kafka import KafkaError, Message, TopicPartition

from schemas.order_record import ClaimRecord, OrderError, OrderRecord, order_log_record
from scorer import kafka
from scorer.journal.journal_reader import WAY_OUT
from scorer.journal.partition_buffers import MissingRange
from scorer.runtime.settings import KafkaSettings, Settings
from scorer.runtime.threads import Threads

WAIT_S = 0.2
RECORDS_MAX = 1_000
Found = tuple[int, ClaimRecord | OrderRecord]
Ordered = tuple[int, OrderRecord]


class Settled(NamedTuple):
    """Up to where a shard's order log is settled: the journal's batch `sequence` names the record at `offset`."""

    sequence: int
    offset: int


class OrdersLost(kafka.SourceChanged):
    """The order log does not hold what it has acknowledged."""


class OrderUnreadable(kafka.SourceChanged):
    """The order log holds what is no record of it: a stranger has written there, or a later release."""

    def __init__(self, message: str, *, offset: int, later_release: bool) -> None:
        """`offset`: of that record. `later_release`: whether it says that it is of a later version of the contract."""
        super().__init__(message)
        self.offset, self.later_release = offset, later_release
        self.before: list[Ordered] = []  # batches that follow the journal and can be read: no later record changes them


class Epochs:
    """Which batches of the log count, record after record. The first record that is given counts, or is a claim; what
    stands before the first claim otherwise does not."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._begun = False

    def counts(self, offset: int, record: ClaimRecord | OrderRecord) -> bool:
        """Whether the next record, at `offset`, is a batch that counts."""
        first, self._begun = not self._begun, True
        if isinstance(record, ClaimRecord):
            self._epoch = offset
            return False
        if first and record.epoch < offset:
            self._epoch = record.epoch
        return record.epoch == self._epoch


def counting(records: Iterable[Found]) -> Iterator[Ordered]:
    """The batches that count, each with its offset. The first of `records` as for Epochs."""
    epochs = Epochs()
    for offset, record in records:
        if epochs.counts(offset, record) and isinstance(record, OrderRecord):
            yield offset, record


def unsettled(
    settings: KafkaSettings,
    shard: int,
    *,
    clients: kafka.Clients,
    threads: Threads,
    broker: kafka.Broker,
    settled: Settled | None,
    sequence: int,
    end: int,
    no_progress_s: float,
) -> list[Ordered]:
    """The batches that count before offset `end` (that of a claim) and follow batch `sequence` - 1, which the journal
    ends with; each with its offset.

    Raises MissingRange when what is needed is gone, SourceChanged when the log is another one, when batches of it are
    gone (OrdersLost) or when it holds what is no record of it (OrderUnreadable, with the batches before that),
    NoProgress when reading stalls.
    """
    place = TopicPartition(kafka.Topics.of(settings).order, shard)
    name = f"{place.topic}/{place.partition}"
    start = broker.starts([place])[0]
    first = start if settled is None else settled.offset
    if first < start:
        raise MissingRange(f"{name}: offsets {first} to {start - 1} are gone (retention). {WAY_OUT}")
    if first >= end:
        if settled is None:
            return []
        if first > end and broker.ends([place])[0] > first:  # at `end` stands the claim
            raise _claimed(name, end)
        raise _changed(name, f"it ends at {end}", settled)
    place.offset = first
    found, unreadable = list[Found](), None
    try:
        for each in _read(settings, clients, place, end, threads, no_progress_s):
            found.append(each)  # what was read before an error counts
    except OrderUnreadable as exc:
        unreadable = exc
    if settled is not None and not _is_settled_by(found[0] if found else None, settled):
        raise _changed(name, "it holds another record there", settled) from unreadable
    pending = following(counting(found), sequence, name)
    if unreadable is not None:
        unreadable.before = pending
        raise unreadable
    return pending


def check_newest(claim: int, settings: Settings, clients: kafka.Clients, shard: int, cause: Exception) -> None:
    """Raise Rebuild from `cause` where something stands behind the claim at offset `claim`: an owner that was frozen
    after it, and finds what a later one did, is none any more. Raises KafkaFailure."""
    place = TopicPartition(kafka.Topics.of(settings.kafka).order, shard)
    with closing(clients.broker()) as broker:
        end = broker.ends([place])[0]
    if end > claim + 1:
        raise _claimed(f"{place.topic}/{place.partition}", claim) from cause


def following(ordered: Iterable[Ordered], sequence: int, name: str) -> list[Ordered]:
    """Those from batch `sequence` on. Raises OrdersLost when they do not follow each other."""
    missing = [(offset, record) for offset, record in ordered if record.sequence >= sequence]
    for n, (offset, record) in enumerate(missing, start=sequence):
        if record.sequence != n:
            raise OrdersLost(
                f"{name} offset {offset}: batch {record.sequence} does not follow batch {n - 1}: the order log lost "
                f"records, or was changed. {WAY_OUT}"
            )
    return missing


class OrderLogReader:
    """The batches that count, as they are appended, from a record that the journal names on: what a standby follows."""

    def __init__(self, settings: KafkaSettings, shard: int, *, clients: kafka.Clients, settled: Settled) -> None:
        self._place = TopicPartition(kafka.Topics.of(settings).order, shard, settled.offset)
        self._name = f"{self._place.topic}/{self._place.partition}"
        self._settled: Settled | None = settled  # until its record was read
        self._epochs = Epochs()
        self._claim = -1  # the newest
        self._position = settled.offset
        self._consumer = _reader(settings, clients)
        with kafka.surfaced():
            self._consumer.assign([self._place])

    def read(self, wait_s: float) -> list[Ordered]:
        """What has come, each with its offset, waiting at most `wait_s` for the first.

        Raises MissingRange when records before it are gone, SourceChanged when the log does not hold the record that
        the journal names, or holds what is no record of it (OrderUnreadable).
        """
        return [(o, record) for o, record, counts in self._read(wait_s) if counts and isinstance(record, OrderRecord)]

    def up_to(self, claim: int, *, threads: Threads, no_progress_s: float) -> list[Ordered]:
        """What comes yet before the claim at offset `claim` and counts. Of no further use afterwards.

        Raises as `read` does, SourceChanged as well when no claim stands there, Rebuild when there is a later one,
        NoProgress when reading stalls.
        """
        found: list[Ordered] = []
        deadline = threads.monotonic() + no_progress_s
        while self._position <= claim:
            for offset, record, counts in self._read(WAIT_S):
                if offset < claim and counts and isinstance(record, OrderRecord):
                    found.append((offset, record))
                deadline = threads.monotonic() + no_progress_s
            if threads.monotonic() > deadline:
                raise kafka.NoProgress(f"{self._name}: no progress towards offset {claim} for {no_progress_s:.0f} s")
        if self._claim > claim:
            raise _claimed(self._name, claim)
        if self._claim < claim:
            raise kafka.SourceChanged(
                f"{self._name}: the claim of this owner stands at offset {claim}, and another record was read there: "
                f"the topic was made anew, or its log was cut. {WAY_OUT}"
            )
        return found

    def _read(self, wait_s: float) -> Iterator[tuple[int, ClaimRecord | OrderRecord, bool]]:
        """Offset, record, and whether it is a batch that counts."""
        for message in kafka.take(self._consumer, wait_s, messages_max=RECORDS_MAX):
            self._position, found = _taken(message, self._position, self._place)
            if found is None:
                continue
            if self._settled is not None and not _is_settled_by(found, self._settled):
                raise _changed(self._name, "it holds another record there", self._settled)
            self._settled = None
            if isinstance(found[1], ClaimRecord):
                self._claim = found[0]
            yield *found, self._epochs.counts(*found)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


def _is_settled_by(found: Found | None, settled: Settled) -> bool:
    if found is None or found[0] != settled.offset:
        return False
    record = found[1]
    if isinstance(record, ClaimRecord):  # a later one stands there where starts have filled up a topic made anew
        return record.sequence <= settled.sequence
    return record.sequence == settled.sequence


def _claimed(name: str, claim: int) -> kafka.Rebuild:
    return kafka.Rebuild(f"{name}: another owner has claimed it after offset {claim}")


def _changed(name: str, now: str, settled: Settled) -> kafka.SourceChanged:
    return kafka.SourceChanged(
        f"{name}: the journal's batch {settled.sequence} stands at offset {settled.offset}, and {now}: the topic was "
        f"made anew, or its log was cut. {WAY_OUT}"
    )


def _read(
    settings: KafkaSettings,
    clients: kafka.Clients,
    place: TopicPartition,
    end: int,
    threads: Threads,
    no_progress_s: float,
) -> Iterator[Found]:
    """Everything from `place.offset` up to `end`."""
    consumer = _reader(settings, clients)
    position, deadline = place.offset, threads.monotonic() + no_progress_s
    try:
        with kafka.surfaced():
            consumer.assign([place])
        while position < end:
            for message in kafka.take(consumer, WAIT_S, messages_max=RECORDS_MAX):
                if message.error() is None and kafka.present(message.offset(), "offset") >= end:
                    return  # it is not looked at: what cannot be read there is the next reader's
                position, record = _taken(message, position, place)
                if record is not None:
                    yield record
                deadline = threads.monotonic() + no_progress_s
            if threads.monotonic() > deadline:
                raise kafka.NoProgress(
                    f"{place.topic}/{place.partition}: no progress towards offset {end} for {no_progress_s:.0f} s; a "
                    "transaction of a stranger may hold it up, or the log was truncated"
                )
    finally:
        consumer.close()


def _reader(settings: KafkaSettings, clients: kafka.Clients) -> kafka.Reader:
    return clients.reader(f"{settings.topic_prefix}fraud-scorer-order-reader", memory_kib=4096)


def _unreadable(place: TopicPartition, offset: int, exc: OrderError) -> OrderUnreadable:
    found = f"{place.topic}/{place.partition} offset {offset}: {exc}. "
    if exc.later_version:
        found += "A later release has written it: upgrade this one, which then reads it"
    else:
        found += f"A stranger has written to the order log, or a later release (then upgrade this one). {WAY_OUT}"
    return OrderUnreadable(found, offset=offset, later_release=exc.later_version)


def _taken(message: Message, position: int, place: TopicPartition) -> tuple[int, Found | None]:
    """The next position, and the record that a message holds."""
    error = message.error()
    if error is None:
        offset = kafka.present(message.offset(), "offset")
        try:
            return offset + 1, (offset, order_log_record(message.value()))
        except OrderError as exc:
            raise _unreadable(place, offset, exc) from exc
    if error.code() == KafkaError._PARTITION_EOF:
        return max(position, kafka.present(message.offset(), "offset")), None
    failed = kafka.read_failure(error, f"{place.topic}/{place.partition}")
    if isinstance(failed, kafka.OutOfRange):
        raise MissingRange(f"{failed}, and the order of batches is needed from there on. {WAY_OUT}")
    if not isinstance(failed, kafka.Away):  # what passes by itself is waited for
        raise failed
    return position, None
