"""The payment systems: payments, garbage, labels, control records, and transactions of their own on topic payments."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.broker import ABORTED, COMMITTED, OPEN, Broker, Entry
from tests.simulation.shard_state import GARBAGE, NAMED

PAYER = "a payment system"
LATE_MS_MAX = 5_000


class Payers:
    """Send `due` records in all, one with each call of `pay`."""

    def __init__(self, broker: Broker, random: Callable[[], float], due: int) -> None:
        self._broker, self._random = broker, random
        self.due = due
        self._sent = 0
        self._open: set[int] = set()  # partitions with a transaction that is not over yet

    def pay(self) -> None:
        """One record, with what stands around it."""
        if not self.due:
            for partition in sorted(self._open):
                self._end(partition)
            return
        self.due -= 1
        random, broker = self._random, self._broker
        chance = random()
        if chance < 0.12:
            broker.append("labels" if chance < 0.07 else "control", 0, None, b"c%d" % self.due)
            return
        partition = int(random() * broker.partition_count("payments"))
        log = broker.log("payments", partition)
        self._end(partition)
        kind = random()
        if kind < 0.15:  # of a transaction that was over already: a marker alone
            log.mark(PAYER, COMMITTED)
        elif kind < 0.3:  # a payment that is taken back, or committed late
            log.append(Entry(b"k", self._payment(1), OPEN, broker.timestamp_ms()), PAYER)
            self._open.add(partition)
        payment = self._payment(broker.timestamp_ms() - int(LATE_MS_MAX * random()))
        value = GARBAGE if chance < 0.16 else NAMED + payment.split()[1] if chance < 0.2 else payment
        broker.append("payments", partition, b"k", value)

    def _payment(self, event_time_ms: int) -> bytes:
        """Each is another one: its number stands behind its event time."""
        self._sent += 1
        return b"%d p%d" % (event_time_ms, self._sent)

    def _end(self, partition: int) -> None:
        if partition in self._open:
            self._open.remove(partition)
            self._broker.log("payments", partition).mark(PAYER, COMMITTED if self._random() < 0.3 else ABORTED)
