"""Kafka as its clients meet it: topics with ids, logs with transactions, epochs and ends, a transaction coordinator,
committed group offsets.

A call is done at once and whole; what lies between calls, and whether an answer arrives, is the schedule's affair.

Refused        the broker's answer is an error, by its code in KafkaError
TimedOut       no answer: it may have been done, may be done later, or never
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError

from scorer.kafka import TopicFacts

OPEN, COMMITTED, ABORTED, MARKER = range(4)
EMPTY, ONGOING, COMMITTING, ABORTING = range(4)
TRANSACTION_TIMEOUT_S = 10.0


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class TimedOut(Exception):
    pass


class Entry:
    """A record, or a transaction's marker: markers take offsets as they do in Kafka."""

    __slots__ = ("headers", "key", "state", "timestamp_ms", "value")

    def __init__(
        self, key: bytes | None, value: bytes | None, state: int, timestamp_ms: int, headers: Any = None
    ) -> None:
        self.key, self.value, self.state, self.timestamp_ms, self.headers = key, value, state, timestamp_ms, headers


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.start = 0  # offset of the first entry still there
        self.entries: list[Entry] = []
        self.all: list[Entry] = []  # by offset, what retention took included
        self.cuts: list[tuple[int, int, list[Entry]]] = []  # (leader epoch, offset, what its election lost)
        self.visible = 0  # committed records, gone ones included
        self.open: dict[str, tuple[int, list[Entry]]] = {}
        self.epochs = [(0, 0)]  # (leader epoch, offset it began at)
        self.watchers: list[Callable[[], None]] = []  # called when readers of committed records may see more

    @property
    def end(self) -> int:
        """Offset after the last entry, whatever it is."""
        return self.start + len(self.entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: readers of committed records see nothing from here on."""
        return min(first for first, _ in self.open.values()) if self.open else self.end

    def append(self, entry: Entry, owner: str | None = None) -> int:
        """The record's offset; with an owner it belongs to that owner's transaction and waits for its marker."""
        offset = self.end
        entry.state = COMMITTED if owner is None else OPEN
        self.entries.append(entry)
        self.all.append(entry)
        if owner is not None:
            self.open.setdefault(owner, (offset, []))[1].append(entry)
        else:
            self.visible += 1
            self._changed()
        return offset

    def mark(self, owner: str, state: int) -> None:
        """The transaction's marker: its records become COMMITTED or ABORTED."""
        _, entries = self.open.pop(owner, (0, []))
        for entry in entries:
            entry.state = state
        self.visible += len(entries) * (state == COMMITTED)
        marker = Entry(None, None, MARKER, 0)
        self.entries.append(marker)
        self.all.append(marker)
        self._changed()

    def committed(self, start: int, end: int | None = None) -> Iterator[tuple[int, Entry]]:
        """(offset, record) as readers of committed records see them, up to the last stable offset."""
        stop = self.stable_end if end is None else min(end, self.stable_end)
        for offset in range(max(start, self.start), stop):
            entry = self.entries[offset - self.start]
            if entry.state == COMMITTED:
                yield offset, entry

    def retain_from(self, offset: int) -> None:
        """Retention: what stands before is gone."""
        if offset > self.start:
            del self.entries[: offset - self.start]
            self.start = offset

    def elect(self) -> None:
        """Another leader, which has all that the one before had."""
        self.epochs.append((self.epochs[-1][0] + 1, self.end))

    def truncate(self, offset: int) -> None:
        """An unclean election: the new leader has nothing from `offset` on."""
        epoch = self.epochs[-1][0] + 1
        lost = self.all[offset:]
        self.cuts.append((epoch, offset, lost))
        del self.all[offset:]
        del self.entries[offset - self.start :]
        self.visible -= sum(entry.state == COMMITTED for entry in lost)
        gone = set(map(id, lost))
        self.open = {
            owner: (first, [entry for entry in entries if id(entry) not in gone])
            for owner, (first, entries) in self.open.items()
            if first < offset
        }
        self.epochs = [*(known for known in self.epochs if known[1] < offset), (epoch, offset)]

    def under(self, epoch: int, start: int, end: int) -> Iterator[tuple[int, Entry]]:
        """(offset, record) of the committed ones in [start, end), as the log was when `epoch` was its newest."""
        entries = self.all
        for later, offset, lost in reversed(self.cuts):
            if later > epoch:
                entries = entries[:offset] + lost
        for offset in range(start, min(end, len(entries))):
            if entries[offset].state == COMMITTED:
                yield offset, entries[offset]

    def epoch_at(self, offset: int) -> int:
        """Leader epoch of the record at `offset`."""
        return self.epochs[bisect_right([first for _, first in self.epochs], offset) - 1][0]

    def epoch_end(self, epoch: int) -> int:
        """Offset after the last record of `epoch` (OffsetForLeaderEpoch)."""
        return next((first for later, first in self.epochs if later > epoch), self.end)

    def _changed(self) -> None:
        for watcher in self.watchers:
            watcher()


def topic_id(number: int) -> str:
    """In the form that Kafka's tools print."""
    return f"{number:022d}"


@dataclass
class Topic:
    """`id`: another one for a topic that was deleted and made anew."""

    id: int
    logs: list[Log]


@dataclass
class Transaction:
    """Of one transactional id."""

    epoch: int = -1
    status: int = EMPTY
    logs: list[Log] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    started_s: float = 0.0


class Broker:
    """Everything durable."""

    def __init__(self, now_s: Callable[[], float], refusal_of: Callable[[Any], int | None]) -> None:
        """`refusal_of` a member's metadata: None when the group takes it, else the error's code."""
        self._now_s = now_s
        self._refusal_of = refusal_of
        self._ids = 0
        self.topics: dict[str, Topic] = {}
        self.logs_of: dict[str, list[Log]] = {}  # by id, of topics that are gone too
        self.offsets: dict[tuple[str, int], int] = {}
        self.transactions: dict[str, Transaction] = {}
        self._completing: list[tuple[str, Transaction]] = []
        self.record_bytes_max: dict[str, int] = {}  # where a topic has a limit of its own

    # topics

    def create(self, name: str, partitions: int) -> None:
        """Also of a name that was deleted: another topic then."""
        self._ids += 1
        watchers = [log.watchers for log in self.topics[name].logs] if name in self.topics else []
        self.topics[name] = Topic(self._ids, [Log() for _ in range(partitions)])
        self.logs_of[topic_id(self._ids)] = self.topics[name].logs
        for log, kept in zip(self.topics[name].logs, watchers, strict=False):
            log.watchers = kept

    def add_partitions(self, name: str, count: int) -> None:
        self.topics[name].logs += [Log() for _ in range(count)]

    def log(self, topic: str, partition: int) -> Log:
        return self.topics[topic].logs[partition]

    def facts(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        return {name: TopicFacts(name, topic_id(self.topics[name].id), self.partition_count(name)) for name in names}

    def metadata(self, topic: str) -> Any:
        """What a client is shown of the topic."""
        shown = SimpleNamespace(error=None, partitions=range(self.partition_count(topic)))
        return SimpleNamespace(topics={topic: shown})

    def partition_count(self, topic: str) -> int:
        return len(self.topics[topic].logs)

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None) -> int:
        """A record outside any transaction, of a payment system say."""
        return self.log(topic, partition).append(Entry(key, value, COMMITTED, self.timestamp_ms()))

    def timestamp_ms(self) -> int:
        """LogAppendTime."""
        return 1_767_225_600_000 + int(self._now_s() * 1000)

    # transactions

    def init(self, owner: str) -> int:
        """InitProducerId: fences the epoch before, settles its open transaction, gives the new epoch."""
        transaction = self.transactions.setdefault(owner, Transaction())
        if transaction.status == ONGOING:
            transaction.epoch += 1
            self._complete(owner, transaction, ABORTING)
        if transaction.status != EMPTY:
            raise Refused(KafkaError.CONCURRENT_TRANSACTIONS)
        transaction.epoch += 1
        return transaction.epoch

    def produce(self, owner: str, epoch: int, log: Log, entries: list[Entry]) -> int:
        """AddPartitionsToTxn and Produce; the first offset. Brokers verify the transaction (KIP-890, part 1): what is
        late is refused."""
        transaction = self._begun(owner, epoch)
        limit = self._limit_of(log)
        if limit is not None and any(len(entry.value or b"") > limit for entry in entries):
            raise Refused(KafkaError.MSG_SIZE_TOO_LARGE)
        if log not in transaction.logs:
            transaction.logs.append(log)
        first = log.end
        for entry in entries:
            log.append(entry, owner)
        return first

    def _limit_of(self, log: Log) -> int | None:
        return next((limit for name, limit in self.record_bytes_max.items() if log in self.topics[name].logs), None)

    def send_offsets(self, owner: str, epoch: int, offsets: dict[tuple[str, int], int], metadata: Any) -> None:
        """TxnOffsetCommit: refused when the member's generation is an old one."""
        transaction = self._begun(owner, epoch)
        refusal = self._refusal_of(metadata)
        if refusal is not None:
            raise Refused(refusal)
        transaction.offsets.update(offsets)

    def end(self, owner: str, epoch: int, status: int = COMMITTING) -> None:
        """EndTxn. Which transaction is meant is known by the epoch alone (no KIP-890 in the client)."""
        transaction = self._checked(owner, epoch)
        if transaction.status == ONGOING:
            self._complete(owner, transaction, status)
        elif transaction.status != status:
            raise Refused(KafkaError.INVALID_TXN_STATE)

    def write_marker(self, choice: float) -> None:
        """One marker of one transaction that is being completed; the last one frees the transactional id."""
        if not self._completing:
            return
        at = int(choice * len(self._completing))
        owner, transaction = self._completing[at]
        if transaction.logs:
            transaction.logs.pop().mark(owner, COMMITTED if transaction.status == COMMITTING else ABORTED)
            return
        if transaction.status == COMMITTING:
            self.offsets.update(transaction.offsets)
        transaction.offsets.clear()
        transaction.status = EMPTY
        del self._completing[at]

    @property
    def settled(self) -> bool:
        """Whether no transaction of a worker is open or being completed."""
        return all(transaction.status == EMPTY for transaction in self.transactions.values())

    def expire(self) -> None:
        """Abort transactions that are open for too long; their producers' epoch is used up."""
        for owner, transaction in self.transactions.items():
            if transaction.status == ONGOING and transaction.started_s + TRANSACTION_TIMEOUT_S < self._now_s():
                transaction.epoch += 1
                self._complete(owner, transaction, ABORTING)

    def _checked(self, owner: str, epoch: int) -> Transaction:
        transaction = self.transactions[owner]
        if transaction.epoch != epoch:
            raise Refused(KafkaError.INVALID_PRODUCER_EPOCH)
        return transaction

    def _begun(self, owner: str, epoch: int) -> Transaction:
        transaction = self._checked(owner, epoch)
        if transaction.status == EMPTY:
            transaction.status = ONGOING
            transaction.started_s = self._now_s()
        elif transaction.status != ONGOING:
            raise Refused(KafkaError.CONCURRENT_TRANSACTIONS)
        return transaction

    def _complete(self, owner: str, transaction: Transaction, status: int) -> None:
        transaction.status = status
        self._completing.append((owner, transaction))
