"""Threads that run one at a time, in the order that a seed decides, on a clock that only they move.

The product's code runs unchanged on real threads; each goes on only while it holds the baton. Whatever waits (scorer.
runtime.threads, and every call of a Kafka client) hands it on: `pause` to anybody who could go on, `wait` until
something has happened or a time-out is over. Nothing else can come in between, so a seed replays step by step.

A process that is killed does nothing any more: the next call of each of its threads raises Killed, and so does every
one after that, so that no `finally` of the dead reaches the world.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from typing import ClassVar, Final

STEP_S: Final = 0.002
# Nothing can go on and nothing has a time-out: time passes, so that a frozen process can be woken.
NOTHING_S: Final = 0.5

Waiters = list["SimThread"]


class Killed(BaseException):
    """This thread's process is dead, or the schedule is over."""


class Process:
    """What is killed, frozen and woken as one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.silent_since_s: float | None = None  # frozen
        self.ever_silent = False
        self.threads: dict[SimThread, None] = {}
        self.parked: list[SimThread] = []  # could go on, were the process not frozen


class _Runner:
    """An operating system's thread that runs one SimThread after another: they cost more to make than to switch."""

    _idle: ClassVar[list[_Runner]] = []

    def __init__(self) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread: SimThread | None = None
        threading.Thread(target=self._run, name="simulated", daemon=True).start()

    @classmethod
    def of(cls, thread: SimThread) -> _Runner:
        runner = cls._idle.pop() if cls._idle else cls()
        runner.thread = thread
        return runner

    def _run(self) -> None:
        while True:
            self.baton.acquire()
            thread, self.thread = self.thread, None
            assert thread is not None
            thread.run()
            scheduler = thread.scheduler
            del thread
            self._idle.append(self)
            scheduler.hand_on(None)
            del scheduler


class SimThread:
    """One thread of a process, as scorer.runtime.threads.Thread."""

    __slots__ = (
        "alive",
        "deadline_s",
        "joiners",
        "name",
        "process",
        "queued",
        "runner",
        "scheduler",
        "waiting_in",
        "work",
    )

    def __init__(self, scheduler: Scheduler, process: Process, work: Callable[[], None], name: str) -> None:
        self.scheduler = scheduler
        self.process = process
        self.work: Callable[[], None] | None = work
        self.name = name
        self.alive = True
        self.queued = False  # can go on, or could if its process were not frozen
        self.waiting_in: Waiters | None = None
        self.deadline_s = -1.0
        self.joiners: Waiters = []
        self.runner = _Runner.of(self)

    def run(self) -> None:
        """On its runner, once it is given the baton for the first time."""
        scheduler, work = self.scheduler, self.work
        try:
            if work is not None and not (self.process.dead or scheduler.over):
                work()
        except Killed:
            pass
        except BaseException as exc:  # noqa: BLE001 - a thread that ends so is a defect, and the schedule says so
            scheduler.fail(exc)
        self.alive, self.work = False, None
        self.process.threads.pop(self, None)
        scheduler.ended(self)

    def is_alive(self) -> bool:
        self.scheduler.check()
        return self.alive

    def join(self, timeout: float | None = None) -> None:
        until_s = self.scheduler.deadline(timeout)
        while self.alive and self.scheduler.wait(self.joiners, until_s):
            continue
        self.scheduler.check()


class Scheduler:
    """Who goes on. `between` is called before each choice: chaos, the passing of time and the end happen in there."""

    def __init__(self, rng: random.Random, between: Callable[[], None]) -> None:
        self.random = rng.random
        self._between = between
        self.now_s = 0.0
        self.over = False
        self.current: SimThread | None = None
        self._failure: BaseException | None = None
        self._ready: list[SimThread] = []
        self._sleeping: list[tuple[float, int, SimThread]] = []
        self._number = 0
        self._alive: dict[SimThread, None] = {}
        self._main = threading.Lock()
        self._main.acquire()

    # for the world

    def run(self) -> None:
        """Until `stop` or `fail`; then every thread is unwound. Raises what was given to `fail`."""
        self.hand_on(None)
        self._main.acquire()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """The schedule is over; called in `between`."""
        self.over = True

    def fail(self, exc: BaseException) -> None:
        """The schedule is over, and this is why."""
        self._failure = self._failure or exc
        self.over = True

    def spawn(self, process: Process, work: Callable[[], None], name: str) -> SimThread:
        thread = SimThread(self, process, work, name)
        process.threads[thread] = None
        self._alive[thread] = None
        self._queue(thread)
        return thread

    def kill(self, process: Process) -> None:
        process.dead = True
        self.thaw(process)
        for thread in process.threads:  # each has to run once more, to end
            self._queue(thread)

    def freeze(self, process: Process) -> None:
        process.silent_since_s = self.now_s

    def thaw(self, process: Process) -> None:
        process.silent_since_s = None
        self._ready += process.parked
        process.parked.clear()

    def pass_time(self, seconds: float) -> None:
        """Whoever has a time-out by then can go on."""
        self.now_s += seconds
        while self._sleeping and self._sleeping[0][0] <= self.now_s:
            until_s, _, thread = heappop(self._sleeping)
            if thread.deadline_s == until_s and thread.alive:
                self._queue(thread)

    def ended(self, thread: SimThread) -> None:
        self._alive.pop(thread, None)
        self.wake(thread.joiners)

    # for the threads

    def check(self) -> None:
        """Raises Killed for a thread that must not do anything any more."""
        if self.over or self.current.process.dead:  # type: ignore[union-attr]
            raise Killed

    def deadline(self, timeout: float | None) -> float | None:
        """When a time-out is over. A short one may be over a good while later than asked for, as on a busy machine."""
        if timeout is None:
            return None
        return self.now_s + timeout * (1.0 + 9.0 * self.random() ** 2 if timeout <= 0.5 else 1.0)

    def pause(self) -> None:
        """Anybody may go on before this thread does."""
        self.check()
        me = self.current
        self._queue(me)
        self.hand_on(me)
        self.check()

    def sleep(self, seconds: float) -> None:
        self.wait([], self.deadline(seconds))

    def wait(self, waiters: Waiters, until_s: float | None = None) -> bool:
        """Wait in `waiters` for `wake`, True, or for a time to come, False."""
        self.check()
        me = self.current
        assert me is not None
        waiters.append(me)
        me.waiting_in = waiters
        if until_s is not None:
            self._number += 1
            me.deadline_s = until_s
            heappush(self._sleeping, (until_s, self._number, me))
            if until_s <= self.now_s:
                self._queue(me)
        self.hand_on(me)
        me.deadline_s = -1.0
        woken = me.waiting_in is None
        if not woken:
            waiters.remove(me)
            me.waiting_in = None
        self.check()
        return woken

    def wake(self, waiters: Waiters) -> None:
        """All who wait in `waiters` can go on."""
        for thread in waiters:
            thread.waiting_in = None
            self._queue(thread)
        waiters.clear()

    def hand_on(self, me: SimThread | None) -> None:
        """Give the baton to whoever is next, and wait until it comes back to `me`, unless that is None."""
        chosen = self._choose()
        if chosen is None:
            self._main.release()
            return
        chosen.queued = False
        self.current = chosen
        if chosen is me:
            return
        chosen.runner.baton.release()
        if me is not None:
            me.runner.baton.acquire()

    def _queue(self, thread: SimThread | None) -> None:
        if thread is not None and not thread.queued:
            thread.queued = True
            process = thread.process
            (self._ready if process.silent_since_s is None else process.parked).append(thread)

    def _choose(self) -> SimThread | None:
        """Whose turn it is; None when the schedule is over and no thread is left."""
        while True:
            if not self.over:
                self.pass_time(STEP_S * self.random())
                try:
                    self._between()
                except BaseException as exc:  # noqa: BLE001 - given to the caller of `run`
                    self.fail(exc)
            if self.over:
                return next(iter(self._alive), None)
            ready = self._ready
            if ready:
                at = int(self.random() * len(ready))
                thread, ready[at] = ready[at], ready[-1]
                ready.pop()
                if not thread.alive:
                    continue
                if thread.process.silent_since_s is None:
                    return thread
                thread.process.parked.append(thread)
            else:
                self.pass_time(max(0.0, self._sleeping[0][0] - self.now_s) if self._sleeping else NOTHING_S)
