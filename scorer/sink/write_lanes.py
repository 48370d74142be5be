"""Several transactions at once over as many connections, committed one after another in the order of the topic.

A transaction has two parts. COPY, nearly all of its time, needs nothing of the one before, so it runs beside it; moving
the position needs the one before to be committed, so it waits for that (`Flight.turn`). Rows and position are in the
same transaction all the same, and positions move in order: when one fails, those behind it find that out at their turn
and are rolled back.

    lane 0      COPY ─────────── position, commit   COPY ─────────── …
    lane 1            COPY ─────────── … position, commit

While lanes write, the thread that reads gathers and checks what comes next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from scorer.sink.assembler import Batch, Quarantined
from scorer.sink.sink_errors import StoreUnavailable
from scorer.sink.store import Store


@dataclass(eq=False)
class Flight:
    """What one transaction is to write. `ends`: offsets that are reached with it, by partition. `topic_id`: of the
    topic, where it is to be compared with that of the positions first."""

    items: list[Batch | Quarantined]
    ends: dict[int, int]
    topic_id: str | None
    before: Flight | None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def turn_to_wait_for(self) -> Callable[[], None] | None:
        """`turn`; None when the one before is committed already. Raises as `turn` does when it failed."""
        if self.before is not None and not self.before.ended.is_set():
            return self.turn
        self.turn()
        return None

    def turn(self) -> None:
        """Waits until the one before is committed. Raises StoreUnavailable when it was not."""
        if self.before is not None:
            self.before.ended.wait()
            if self.before.error is not None:
                raise StoreUnavailable("the transaction before it was not committed")


class WriteLanes:
    """One thread a connection, from `with` to its end. The methods are for the one thread that reads the topic; while
    the lanes are `idle` it may use the connections itself."""

    def __init__(self, stores: Sequence[Store], write: Callable[[Store, Flight], None]) -> None:
        """`write` puts a flight into Postgres, on the thread of the lane.

        It may replace the flight's items by what stands for them.
        """
        self._write = write
        self._queues: list[SimpleQueue[Flight | None]] = [SimpleQueue() for _ in stores]
        self._threads = [
            # Daemons: a call of Postgres that hangs must not keep a process alive that has an error to report.
            threading.Thread(target=self._run, args=lane, name=f"sink-lane-{number}", daemon=True)
            for number, lane in enumerate(zip(stores, self._queues, strict=True))
        ]
        self._flights: deque[Flight] = deque()
        self._number = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is under way: after it no transaction of these lanes will be committed."""
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def idle(self) -> bool:
        """Whether everything submitted was taken back."""
        return not self._flights

    @property
    def room(self) -> bool:
        """Whether a lane is free."""
        return len(self._flights) < len(self._queues)

    def submit(self, items: list[Batch | Quarantined], ends: dict[int, int], topic_id: str | None) -> None:
        """Begins the next transaction. Only where there is `room`."""
        flight = Flight(items, ends, topic_id, self._flights[-1] if self._flights else None)
        self._flights.append(flight)
        self._queues[self._number % len(self._queues)].put(flight)
        self._number += 1

    def reached(self, ends: dict[int, int]) -> bool:
        """Adds to the ends of what was submitted last; False when there is none under way."""
        if not self._flights:
            return False
        self._flights[-1].ends |= ends
        return True

    def take_back(self, *, wait: bool) -> Flight | None:
        """The oldest flight, if it is committed. `wait`: until it is. Raises the error that ended it."""
        if not self._flights or not (wait or self._flights[0].ended.is_set()):
            return None
        flight = self._flights[0]
        flight.ended.wait()
        if flight.error is not None:
            raise flight.error
        return self._flights.popleft()

    def _run(self, store: Store, queue: SimpleQueue[Flight | None]) -> None:
        while (flight := queue.get()) is not None:
            try:
                self._write(store, flight)
            except BaseException as exc:  # noqa: BLE001 - raised by `take_back` in the thread that reads
                flight.error = exc
            finally:
                flight.before = None  # a chain of all flights would never be freed
                flight.ended.set()
