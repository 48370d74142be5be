"""Kafka as the protocol meets it: logs with open transactions, a transaction coordinator, committed group offsets.

ClientError            a call failed
├── TimedOut           no answer: it may have been done, may be done later, or never
├── Concurrent         the transaction before is still being completed: the client asks again
├── FencedEpoch        a newer epoch of this transactional id exists
├── StaleMember        the group knows this member or generation no more
└── InvalidState       there is no transaction to end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

OPEN, COMMITTED, ABORTED, MARKER = range(4)
EMPTY, ONGOING, COMMITTING, ABORTING = range(4)
TRANSACTION_TIMEOUT_MS = 10_000


class ClientError(Exception):
    pass


class TimedOut(ClientError):
    pass


class Concurrent(ClientError):
    pass


class FencedEpoch(ClientError):
    pass


class StaleMember(ClientError):
    pass


class InvalidState(ClientError):
    pass


class Log:
    """One partition. An entry is [value, state]; transaction markers take offsets as they do in Kafka."""

    __slots__ = ("entries", "open", "visible")

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.visible = 0  # committed records
        self.open: dict[str, tuple[int, list[list[Any]]]] = {}

    def append(self, value: object, owner: str | None = None) -> None:
        """A record; with an owner it belongs to that owner's transaction and waits for its marker."""
        entry = [value, COMMITTED if owner is None else OPEN]
        if owner is not None:
            opened = self.open.get(owner)
            if opened is None:
                self.open[owner] = (len(self.entries), [entry])
            else:
                opened[1].append(entry)
        else:
            self.visible += 1
        self.entries.append(entry)

    def mark(self, owner: str, state: int) -> None:
        """The transaction's marker: its records become COMMITTED or ABORTED."""
        opened = self.open.pop(owner, None)
        if opened is not None:
            for entry in opened[1]:
                entry[1] = state
            self.visible += len(opened[1]) * (state == COMMITTED)
        self.entries.append([None, MARKER])

    @property
    def end(self) -> int:
        """Offset after the last entry, whatever it is."""
        return len(self.entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: readers of committed records see nothing from here on."""
        return min(first for first, _ in self.open.values()) if self.open else len(self.entries)

    def committed(self, start: int, end: int | None = None) -> Iterator[tuple[int, Any]]:
        """(offset, value) as read_committed readers see them, up to the last stable offset."""
        stop = self.stable_end if end is None else min(end, self.stable_end)
        for offset in range(start, stop):
            value, state = self.entries[offset]
            if state == COMMITTED:
                yield offset, value


class _Transaction:
    __slots__ = ("epoch", "logs", "offsets", "started_ms", "status")

    def __init__(self) -> None:
        self.epoch = -1
        self.status = EMPTY
        self.logs: list[Log] = []
        self.offsets: dict[int, int] = {}
        self.started_ms = 0


class Broker:
    """Everything durable. A call is done at once and whole; what lies between calls is the schedule's affair."""

    def __init__(self, member_known: Callable[[tuple[str, int]], bool]) -> None:
        self.now_ms = 0
        self.offsets: dict[int, int] = {}
        self._member_known = member_known
        self._transactions: dict[str, _Transaction] = {}
        self._completing: list[tuple[str, _Transaction]] = []

    def init(self, owner: str) -> int:
        """InitProducerId: fences the epoch before, settles its open transaction, gives the new epoch."""
        transaction = self._transactions.get(owner)
        if transaction is None:
            transaction = self._transactions[owner] = _Transaction()
        if transaction.status == ONGOING:
            transaction.epoch += 1
            self._complete(owner, transaction, ABORTING)
        if transaction.status != EMPTY:
            raise Concurrent
        transaction.epoch += 1
        return transaction.epoch

    def produce(self, owner: str, epoch: int, log: Log, values: tuple[Any, ...]) -> None:
        """AddPartitionsToTxn and Produce. Brokers verify the transaction (KIP-890, part 1): what is late is refused."""
        transaction = self._begun(owner, epoch)
        if log not in transaction.logs:
            transaction.logs.append(log)
        for value in values:
            log.append(value, owner)

    def send_offsets(self, owner: str, epoch: int, offsets: dict[int, int], metadata: tuple[str, int] | None) -> None:
        """TxnOffsetCommit: refused when the member's generation is an old one. `None` leaves the group out of it."""
        transaction = self._begun(owner, epoch)
        if metadata is not None and not self._member_known(metadata):
            raise StaleMember
        transaction.offsets.update(offsets)

    def end(self, owner: str, epoch: int, status: int = COMMITTING) -> None:
        """EndTxn. Which transaction is meant is known by the epoch alone (no KIP-890 in the client)."""
        transaction = self._checked(owner, epoch)
        if transaction.status == ONGOING:
            self._complete(owner, transaction, status)
        elif transaction.status != status:
            raise InvalidState

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

    def expire(self) -> None:
        """Abort transactions that are open for too long; their producers' epoch is used up."""
        for owner, transaction in self._transactions.items():
            if transaction.status == ONGOING and transaction.started_ms + TRANSACTION_TIMEOUT_MS < self.now_ms:
                transaction.epoch += 1
                self._complete(owner, transaction, ABORTING)

    def _checked(self, owner: str, epoch: int) -> _Transaction:
        transaction = self._transactions[owner]
        if transaction.epoch != epoch:
            raise FencedEpoch
        return transaction

    def _begun(self, owner: str, epoch: int) -> _Transaction:
        transaction = self._checked(owner, epoch)
        if transaction.status == EMPTY:
            transaction.status = ONGOING
            transaction.started_ms = self.now_ms
        elif transaction.status != ONGOING:
            raise Concurrent
        return transaction

    def _complete(self, owner: str, transaction: _Transaction, status: int) -> None:
        transaction.status = status
        self._completing.append((owner, transaction))
