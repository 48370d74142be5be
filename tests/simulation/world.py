"""One schedule: a seed decides who goes on, what the network loses, who is killed or frozen, how time passes."""

from __future__ import annotations

import random
from typing import Any

from scorer.runtime.settings import Settings
from tests.simulation import invariants
from tests.simulation.broker import Broker
from tests.simulation.chaos import Chaos
from tests.simulation.group import SESSION_TIMEOUT_S, Group
from tests.simulation.incarnation import Incarnation, settings
from tests.simulation.invariants import Violation
from tests.simulation.network import Network
from tests.simulation.operator import Operator
from tests.simulation.payers import Payers
from tests.simulation.scheduler import Process, Scheduler, Waiters
from tests.simulation.shard_state import Kept

CHAOS_STEPS = 450
HEALING_STEPS_MAX = 12_000
SPOILT_STEPS = 800  # how long workers may try to go on along a journal that a stranger has written to
CHECKED_EVERY = 25
RECOVERIES_FENCED_MAX = 3
EXPIRED_EVERY = 8
ELECTED_SHARE = 0.01  # of the steps


class World:
    """All that there is, and the one source of chance."""

    def __init__(self, seed: int, broken: frozenset[str] = frozenset(), *, trace: list[str] | None = None) -> None:
        """`broken`: rules of tests.simulation.rules that do not hold in this world."""
        rng = random.Random(seed)
        self.random = rng.random
        self.broken = broken
        self._trace = trace
        self._steps = 0
        # Of its own: elections change nothing that a right client does, and so leave a seed's schedule as it is.
        self._elections = random.Random(f"elections of {seed}")
        self.scheduler = Scheduler(rng, self._between)
        self.shards = 1 if self.random() < 0.7 else 2
        self.partitions_at_first = partitions = self.shards * (2 if self.random() < 0.5 else 1)
        self.group_waiters: Waiters = []
        self.group = Group(self.shards, lambda: self.scheduler.wake(self.group_waiters))
        self.broker = Broker(lambda: self.scheduler.now_s, self.group.refusal)
        for topics, count in (
            (("payments", "decisions", "decisions-fast"), partitions),
            (("journal", "audit", "order"), self.shards),
            (("control", "labels", "dead-letters"), 1),
        ):
            for topic in topics:
                self.broker.create(topic, count)
        self.keeps_snapshots = self.random() < 0.6
        self.snapshots: list[list[Kept]] = [[] for _ in range(self.shards)]
        self._payers = Payers(self.broker, self.random, due=int(6 + 10 * self.random()))
        # Some schedules have a calm network, others none at all.
        faults = (0.0, 0.01, 0.06)[int(self.random() * 3)]
        self.network = Network(self.scheduler, self.note, faults=faults, throttled=0.05 if self.random() < 0.2 else 0.0)
        # By shard: the last epoch that began before a stranger's batch stood in its journal.
        self.spoilt: dict[int, int] = {}
        # Logs were cut, made anew, or lost records, or there are more partitions and several shards: workers may refuse
        # to go on, and an operator accepts what is the case.
        self.disturbed = self.rewritten = False
        # By shard, how many batches were committed when the payments topic was made anew (first).
        self.remade: dict[int, int] = {}
        self.refused = False
        self.recoveries_fenced = 0
        self.operator: Operator | None = None
        self.operated: set[int] = set()  # shards whose journal an operator has written to
        standbys, deadlines = self.random() < 0.5, self.random() < 0.3
        # In some schedules fast decisions are off, in others they are switched on and off with each process.
        kind = self.random()
        self.fast_changes = kind < 0.25
        self.settings = settings(
            self.shards,
            standbys=standbys,
            deadlines=deadlines,
            fast=kind < 0.8,
            transaction_batches_max=1 + int(3 * self.random()),
            gather_ms=(0.0, 50.0)[int(2 * self.random())],
        )
        self._committers: list[list[str]] = [[] for _ in range(self.shards)]
        self.reader = invariants.Reader(self.broker.topics["decisions"].logs)
        self.fast_reader = invariants.FastReader(self.broker.topics["decisions-fast"].logs)
        self._chaos = Chaos(self)
        self._chaos_until = int(CHAOS_STEPS * (0.6 + 0.8 * self.random()))
        self._healed = False
        self.processes: list[Incarnation] = []
        self._silent: list[Process] = []  # frozen or dead, and perhaps still in the group
        self._incarnations = 0
        self._workers = 2 if self.random() < 0.6 else 3
        for _ in range(self._workers):
            self.launch()

    def run(self) -> None:
        """Chaos, then healing until everything is decided and calm, then the reckoning. Raises Violation."""
        self.scheduler.run()
        self._read()
        if not self.spoilt:
            invariants.check(self)

    def violation(self) -> Violation | None:
        """What the schedule breaks, run to its end; None when all promises hold."""
        try:
            self.run()
        except Violation as found:
            return found
        return None

    def _read(self) -> None:
        """What payment systems do."""
        self.reader.read()
        self.fast_reader.read()
        if not (self.disturbed or self.spoilt):
            invariants.check_answers(self)

    def settings_of(self, name: str) -> Settings:
        """Of a process."""
        if not self.fast_changes:
            return self.settings
        worker = self.settings.worker.model_copy(update={"fast_decisions": int(name.strip("w")) % 2 == 0})
        return self.settings.model_copy(update={"worker": worker})

    # what the broker does for clients, watched

    def offsets_sent(self, process: Process, owner: str, epoch: int, offsets: dict[Any, int], metadata: Any) -> None:
        """TxnOffsetCommit. What the group takes comes from the shard's owner."""
        if "generation_in_commits" in self.broken:
            metadata = (self.group.members[0], self.group.generation) if self.group.members else metadata
        self.broker.send_offsets(owner, epoch, offsets, metadata)
        rightful = self.group.owner(shard_of(owner))
        if rightful != process.name:
            raise Violation(f"{process.name} commits as {owner}, which the group has given to {rightful}")

    def committed(self, process: Process, owner: str, epoch: int) -> None:
        """EndTxn. Once another has committed, the former owner never does again."""
        self.broker.end(owner, epoch)
        self.note(process, f"commits as {owner}")
        shard = shard_of(owner)
        if process is self.operator:
            self.operated.add(shard)
        committer, before = f"{process.name}, epoch {epoch}", self._committers[shard]
        if epoch > self.spoilt.get(shard, epoch):
            raise Violation(f"{committer} decides on a journal that does not chain")
        if committer in before[:-1]:
            raise Violation(f"{committer} commits as {owner} again after {before[-1]} has")
        if committer not in before:
            before.append(committer)

    def positions(self) -> dict[int, int]:
        """Where the journals say that each payments partition is decided to; 0 where they do not name it."""
        known = dict.fromkeys(range(self.broker.partition_count("payments")), 0)
        for shard in range(self.shards):
            raws = [entry.value or b"" for _, entry in self.broker.log("journal", shard).committed(0)]
            known |= invariants.positions_after(raws)
        return known

    def partitions(self, shard: int) -> list[int]:
        return list(range(shard, self.broker.partition_count("payments"), self.shards))

    # processes

    def launch(self) -> None:
        """Another worker, if one is missing."""
        if len(self.processes) < self._workers:
            self._incarnations += 1
            self.processes.append(Incarnation(self, f"w{self._incarnations}"))

    def kill(self, process: Incarnation) -> None:
        self.processes.remove(process)
        self.scheduler.kill(process)
        process.silent_since_s = self.scheduler.now_s
        process.worker = None
        self.silent(process)

    def silent(self, process: Process) -> None:
        """The group hears nothing of it from now on."""
        process.ever_silent = True
        if process not in self._silent:
            self._silent.append(process)

    def passing(self, point: str) -> None:
        """scorer.runtime.fault_points.point: between two steps of a batch anything may come."""
        if self.random() < 0.3:
            self.scheduler.pause()

    def note(self, process: Process | None, what: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self.scheduler.now_s:>8.3f} s  {'-' if process is None else process.name:<4} {what}")

    # the schedule

    def _between(self) -> None:
        """Before each choice of who goes on."""
        self._steps += 1
        if self.random() < 0.22:
            self.broker.write_marker(self.random())
        if self._steps < self._chaos_until:
            self._disturb(self.random())
            if self._elections.random() < ELECTED_SHARE:
                self._elections.choice(self.broker.topics["payments"].logs).elect()
        elif self._healed:
            self._calm(self.random())
        else:
            self._healed = True
            self._chaos.heal()
        if self._steps % EXPIRED_EVERY == 0:
            self._expire()

    def _disturb(self, chance: float) -> None:
        if chance < 0.04:
            self._payers.pay()
        elif chance < 0.05:
            self._read()
        elif chance < 0.06:
            self.network.deliver_late()
        elif chance < 0.075:
            self.scheduler.pass_time((0.02, 0.2, 3.0, 7.0)[int(self.random() * 4)])
        elif chance < 0.085:
            self._chaos.strike()

    def _calm(self, chance: float) -> None:
        if chance > 0.9:
            self._payers.pay()
            self.network.deliver_late()
        # After some tries the operator stops the workers, which take the shard from the command each time they start.
        if chance > 0.97 and not (self.operator is not None and self.recoveries_fenced > RECOVERIES_FENCED_MAX):
            self.launch()
        if self.refused and self.operator is None and chance > 0.9:
            self.refused = False
            self.operator = Operator(self)
        if self._steps % CHECKED_EVERY == 0:
            waiting = self._waiting_for()
            given_up = self.spoilt and self._steps > self._chaos_until + SPOILT_STEPS
            if waiting is None or (given_up and self.broker.settled):
                self.scheduler.stop()
            elif self._steps > self._chaos_until + HEALING_STEPS_MAX:
                self._read()
                invariants.check(self)
                raise Violation(f"no progress after the last fault: {waiting}")

    def _waiting_for(self) -> str | None:
        """What is missing until everything is decided and every process is calm."""
        if self._payers.due or not invariants.all_decided(self):
            return "not everything is decided"
        if not self.broker.settled:
            return "a transaction is open"
        if not (self.disturbed or invariants.all_settled(self)):
            return "an order is not settled"
        if self.refused or self.operator is not None:
            return "an operator is needed"
        if len(self.processes) < self._workers:
            return "a worker is not there"
        return next(filter(None, (process.unrest() for process in self.processes)), None)

    def _expire(self) -> None:
        """Members that were silent for too long are put out, transactions that are open for too long aborted."""
        for process in list(self._silent):
            since_s = process.silent_since_s
            if since_s is not None and since_s + SESSION_TIMEOUT_S >= self.scheduler.now_s:
                continue
            self._silent.remove(process)
            if since_s is not None and process.name in self.group.members:
                self.note(None, f"the group puts {process.name} out")
                self.group.leave(process.name)
        self.broker.expire()


def shard_of(owner: str) -> int:
    """Of a transactional id as the worker names its producers."""
    return int(owner.removeprefix("shard-").partition("@")[0])
