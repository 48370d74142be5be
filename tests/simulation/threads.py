"""scorer.runtime.threads for one process of a simulation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any

from tests.simulation.scheduler import Process, Scheduler, SimThread, Waiters

EPOCH_S = 1_767_225_600.0


class SimThreads:
    """Clocks and threads of `process`. Its clock can be set wrong: `clock_offset_s`."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process
        self.clock_offset_s = 0.0

    def monotonic(self) -> float:
        self._scheduler.check()
        return self._scheduler.now_s

    def epoch_s(self) -> float:
        return EPOCH_S + self.monotonic() + self.clock_offset_s

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)

    def event(self) -> SimEvent:
        return SimEvent(self._scheduler)

    def queue(self) -> SimQueue:
        return SimQueue(self._scheduler)

    def future(self) -> SimFuture:
        return SimFuture(self._scheduler)

    def spawn(self, work: Callable[[], None], *, name: str) -> SimThread:
        self._scheduler.check()
        return self._scheduler.spawn(self._process, work, name)


class SimEvent:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiters: Waiters = []

    def is_set(self) -> bool:
        self._scheduler.check()
        return self._set

    @property
    def is_set_now(self) -> bool:
        """For the world, which is no thread of the process."""
        return self._set

    def set(self) -> None:
        self._scheduler.check()
        self.set_from_outside()

    def set_from_outside(self) -> None:
        """By the world, as a signal does."""
        self._set = True
        self._scheduler.wake(self._waiters)

    def clear(self) -> None:
        self._scheduler.check()
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        until_s = self._scheduler.deadline(timeout)
        while not self._set and self._scheduler.wait(self._waiters, until_s):
            continue
        self._scheduler.check()
        return self._set


class SimQueue:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()
        self._waiters: Waiters = []

    def put(self, item: Any) -> None:
        self._scheduler.check()
        self._items.append(item)
        self._scheduler.wake(self._waiters)

    def get(self, *, timeout: float | None = None) -> Any:
        until_s = self._scheduler.deadline(timeout)
        while not self._items:
            if not self._scheduler.wait(self._waiters, until_s) and not self._items:
                raise Empty
        return self.get_nowait()

    def get_nowait(self) -> Any:
        self._scheduler.check()
        if not self._items:
            raise Empty
        return self._items.popleft()

    def empty(self) -> bool:
        self._scheduler.check()
        return not self._items


class SimFuture:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._given: tuple[Any, BaseException | None] | None = None
        self._waiters: Waiters = []

    def done(self) -> bool:
        self._scheduler.check()
        return self._given is not None

    def result(self, timeout: float | None = None) -> Any:
        until_s = self._scheduler.deadline(timeout)
        while self._given is None:
            if not self._scheduler.wait(self._waiters, until_s) and self._given is None:
                raise TimeoutError
        self._scheduler.check()
        result, exception = self._given
        if exception is not None:
            raise exception
        return result

    def set_result(self, result: Any) -> None:
        self._give(result, None)

    def set_exception(self, exception: BaseException) -> None:
        self._give(None, exception)

    def _give(self, result: Any, exception: BaseException | None) -> None:
        self._scheduler.check()
        self._given = result, exception
        self._scheduler.wake(self._waiters)
