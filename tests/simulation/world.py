"""One schedule: a seed decides who goes on, what the network loses, who is killed or frozen, how time passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.simulation import invariants
from tests.simulation.broker import Broker, ClientError, Log, TimedOut
from tests.simulation.group import Group
from tests.simulation.protocol import Payment, Protocol, Ranges, State
from tests.simulation.worker import Process, Standing, Thread, Violation

CHAOS_STEPS = 130
HEALING_ROUNDS_MAX = 600
STRANGER = "a stranger's open transaction"


class World:
    """All that there is, and the one source of chance."""

    def __init__(self, seed: int, protocol: Protocol | None = None, *, trace: list[str] | None = None) -> None:
        self._rng = random.Random(seed)
        self.random = self._rng.random
        self.protocol = protocol or Protocol()
        self.shards = 1 if self.random() < 0.7 else 2
        self.group = Group(self.shards)
        self.broker = Broker(self.group.known)
        # Offsets that hold a payment, by partition; transaction markers of payment systems lie between them.
        self.payments: list[list[int]] = [[] for _ in range(2 * self.shards if self.random() < 0.5 else self.shards)]
        self.decisions, self.audit, self.journal = ([Log() for _ in range(self.shards)] for _ in range(3))
        self.snapshots: list[list[Standing]] = [[] for _ in range(self.shards)]
        self.payments_due = int(5 + 7 * self.random())
        # Some schedules have a calm network, others none at all.
        self._network_faults = (0.0, 0.01, 0.06)[int(self.random() * 3)]
        self._threads: list[tuple[Process, Thread]] = []
        self._members: list[tuple[Process, Thread]] = []
        self._processes: list[Process] = []
        self._late: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._incarnations = 0
        self._workers = 2 if self.random() < 0.6 else 3
        self.standbys = self.random() < 0.5
        self._trace = trace
        self.writers: list[list[str]] = [[] for _ in range(self.shards)]
        self._reader = invariants.Reader(self.decisions)
        for _ in range(self._workers):
            self._launch()

    # what workers call

    def start(self, process: Process, thread: Thread) -> None:
        self._threads.append((process, thread))

    def exited(self, process: Process) -> None:
        """A process ended by itself, loudly."""
        self.note(process, "exits")
        self._kill(process)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A request over the network: done and answered; lost; done but the answer lost; or done later."""
        chance = self.random()
        if chance >= self._network_faults:
            return function(*arguments)
        kind = int(3 * chance / self._network_faults)
        self.note(None, f"{getattr(function, '__name__', '')} is {('lost', 'done without an answer', 'late')[kind]}")
        if kind == 1:
            function(*arguments)
        elif kind == 2:
            self._late.append((function, arguments))
        raise TimedOut

    def crowded(self) -> bool:
        return self.random() < 0.2

    def committed(self, process: Process, shard: int, ownership: int) -> None:
        """A worker has heard that its batch is committed."""
        self.note(process, f"commits to shard {shard}")
        self.writers[shard].append(f"{process.name}/{ownership}")

    def partitions(self, shard: int) -> list[int]:
        return list(range(shard, len(self.payments), self.shards))

    def payments_of(self, ranges: Ranges) -> tuple[Payment, ...]:
        return tuple((p, offset) for p, start, end in ranges for offset in self.payments[p] if start <= offset < end)

    def note(self, process: Process | None, what: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self.broker.now_ms:>7} ms  {'-' if process is None else process.name:<4} {what}")

    # the schedule

    def run(self) -> None:
        """Chaos, then healing until everything is decided, then the reckoning. Raises Violation."""
        for _ in range(CHAOS_STEPS):
            self._step()
        self._heal()
        for _ in range(HEALING_ROUNDS_MAX):
            self._round()
            if self.payments_due == 0 and invariants.all_decided(self):
                break
        else:
            invariants.check(self)
            raise Violation(f"no progress: not everything is decided {HEALING_ROUNDS_MAX} rounds after the last fault")
        self._reader.read()
        invariants.check(self)

    def _step(self) -> None:
        chance = self.random()
        if chance < 0.60:
            self._go_on(self._threads)
        elif chance < 0.74:
            self._go_on(self._members)
        elif chance < 0.84:
            self.broker.write_marker(self.random())
        elif chance < 0.90:
            self._pay()
        elif chance < 0.92:
            self._reader.read()
        elif chance < 0.95:
            self._deliver_late()
        elif chance < 0.98:
            self._pass_time((20, 200, 3_000, 7_000)[int(self.random() * 4)])
        else:
            self._fault()

    def _round(self) -> None:
        """Everybody goes on once."""
        for entry in (*self._threads, *self._members):
            self._resume(entry)
        self.broker.write_marker(0.0)
        self._pay()
        self._deliver_late()
        self._pass_time(500)
        if len(self._processes) < self._workers:
            self._launch()

    def _go_on(self, threads: list[tuple[Process, Thread]]) -> None:
        if not threads:
            return
        entry = threads[int(self.random() * len(threads))]
        if not entry[0].frozen:
            self._resume(entry)

    def _resume(self, entry: tuple[Process, Thread]) -> None:
        try:
            next(entry[1])
        except StopIteration:
            for threads in (self._threads, self._members):
                if entry in threads:  # a process that exits is taken out whole
                    threads.remove(entry)

    def _pay(self) -> None:
        if self.payments_due:
            log = self.payments[int(self.random() * len(self.payments))]
            log.append((log[-1] + 1 if log else 0) + (self.random() < 0.2))
            self.payments_due -= 1

    def _deliver_late(self) -> None:
        if self._late:
            function, arguments = self._late.pop(int(self.random() * len(self._late)))
            try:
                function(*arguments)
                self.note(None, f"a late {getattr(function, '__name__', '')} arrives")
            except ClientError:
                pass

    def _pass_time(self, ms: int) -> None:
        self.broker.now_ms += ms
        members = self.group.members
        for process in self._processes:
            if not process.frozen and process.name in members:
                members[process.name] = self.broker.now_ms
        self.group.expire(self.broker.now_ms)
        self.broker.expire()

    def _fault(self) -> None:
        kind = self.random()
        process = self._processes[int(self.random() * len(self._processes))] if self._processes else None
        if kind < 0.25:
            if len(self._processes) < self._workers:
                self._launch()
        elif kind < 0.45 and process is not None:
            self.note(process, "is killed")
            self._kill(process)
        elif kind < 0.75 and process is not None:
            process.frozen = not process.frozen
            self.note(process, "is frozen" if process.frozen else "is awake")
        elif kind < 0.90:
            self.group.move(int(self.random() * self.shards), self.random())
        elif kind < 0.93:
            self.note(None, "the group's offsets expire")
            self.broker.offsets.clear()
        elif kind < 0.96:
            self._spoil_snapshots(int(self.random() * self.shards))
        else:
            log = self.journal[int(self.random() * self.shards)]
            if STRANGER not in log.open:
                self.note(None, "a stranger leaves a transaction open in the journal")
                log.append(b"", STRANGER)

    def _spoil_snapshots(self, shard: int) -> None:
        """The newest one is damaged, or one of another life of the journal lies in its place."""
        kept = self.snapshots[shard]
        if kept and self.random() < 0.5:
            self.note(None, f"the newest snapshot of shard {shard} is damaged")
            kept.pop()
            return
        self.note(None, f"a stranger's snapshot lies among those of shard {shard}")
        offset = 1 + int(self.random() * self.journal[shard].end)
        state = State(shard, sequence=offset, head="f" * 64, windows="another life")
        kept.append(Standing(state, dict.fromkeys(self.partitions(shard), offset), offset))

    def _heal(self) -> None:
        self.note(None, "from here on nothing fails")
        self._network_faults = 0.0
        for process in self._processes:
            process.frozen = False
        for log in self.journal:
            if STRANGER in log.open:
                log.mark(STRANGER, 2)

    def _launch(self) -> None:
        self._incarnations += 1
        process = Process(self, f"w{self._incarnations}")
        self._processes.append(process)
        self._members.append((process, process.main()))

    def _kill(self, process: Process) -> None:
        self._processes.remove(process)
        for threads in (self._threads, self._members):
            threads[:] = [entry for entry in threads if entry[0] is not process]
