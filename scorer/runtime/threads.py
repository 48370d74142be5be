"""Time and threads as the worker uses them, so that a simulation can put its own in their place.

Whatever waits goes through here or through a Kafka client: then a simulation decides who goes on, and when a time-out
is over. `SYSTEM` is the real one: nothing but the functions of the standard library.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future as SystemFuture
from queue import Empty, SimpleQueue
from typing import Final, Protocol, TypeVar

__all__ = ["SYSTEM", "Empty", "Event", "Future", "Queue", "SystemThreads", "Thread", "Threads"]

_Item = TypeVar("_Item")


class Event(Protocol):
    """As threading.Event."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Queue(Protocol[_Item]):
    """As queue.SimpleQueue."""

    def put(self, item: _Item) -> None: ...
    def get(self, *, timeout: float | None = None) -> _Item:
        """Raises Empty when nothing comes in time."""

    def get_nowait(self) -> _Item: ...
    def empty(self) -> bool: ...


class Future(Protocol[_Item]):
    """As concurrent.futures.Future: a result that one thread gives and another waits for."""

    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> _Item: ...
    def set_result(self, result: _Item) -> None: ...
    def set_exception(self, exception: BaseException) -> None: ...


class Thread(Protocol):
    """A thread that has been started; it does not keep the process alive."""

    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Threads(Protocol):
    """Two clocks, and what threads need."""

    def monotonic(self) -> float:
        """Seconds that only ever rise, for durations and time-outs."""

    def epoch_s(self) -> float:
        """Seconds since 1970; may jump."""

    def sleep(self, seconds: float) -> None: ...
    def event(self) -> Event: ...
    def queue(self) -> Queue[_Item]: ...
    def future(self) -> Future[_Item]: ...

    def spawn(self, work: Callable[[], None], *, name: str) -> Thread:
        """Run `work` on a thread of its own, from now on."""


class SystemThreads:
    """The machine's own."""

    monotonic = staticmethod(time.monotonic)
    epoch_s = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    def event(self) -> Event:
        return threading.Event()

    def queue(self) -> Queue[_Item]:
        return SimpleQueue()

    def future(self) -> Future[_Item]:
        return SystemFuture()

    def spawn(self, work: Callable[[], None], *, name: str) -> Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread


SYSTEM: Final = SystemThreads()
