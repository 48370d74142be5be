"""A worker process: the real scorer.worker.worker.Worker on simulated threads, from its start to its end."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from scorer.errors import FraudScorerError, PromiseBroken, UsageError
from scorer.journal.partition_buffers import MissingRange
from scorer.kafka import Denied, Fenced, SourceChanged
from scorer.runtime.settings import KafkaSettings, Settings, SnapshotSettings, WorkerSettings
from scorer.worker.ports import Ports
from scorer.worker.worker import Worker
from tests.simulation.clients import SimClients
from tests.simulation.invariants import Violation
from tests.simulation.scheduler import Process
from tests.simulation.shard_state import BUNDLE, States
from tests.simulation.threads import SimThreads

if TYPE_CHECKING:
    from tests.simulation.world import World

# Ends of a process that nothing explains in a world whose journals only workers write.
_NEVER = (PromiseBroken, MissingRange, SourceChanged, UsageError)


class Incarnation(Process):
    """One life of a worker process: a restart makes another one."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self._world = world
        self.open_consumers: list[Any] = []
        self.producers: list[weakref.ref[Any]] = []  # those that somebody still has are alive
        self.log_producers: list[weakref.ref[Any]] = []
        self.hung = 0  # calls that do not come back, each with its thread and producer
        self.threads_port = SimThreads(world.scheduler, self)
        self.stop = self.threads_port.event()
        self.worker: Worker | None = None
        world.scheduler.spawn(self, self._main, "main")

    def _main(self) -> None:
        """`fraud-scorer run`, without compiling."""
        world = self._world
        ports = Ports(SimClients(world, self), self.threads_port, States(world, self))
        try:
            self.worker = Worker(world.settings_of(self.name), BUNDLE, ports)
            self.worker.take_part(self.stop)
        except FraudScorerError as exc:
            world.note(self, f"exits: {type(exc).__name__}: {exc}")
            if isinstance(exc, Denied) and self.worker is not None and self.worker._joined:
                raise Violation(f"{self.name} ends, though a right was missing for a minute at most: {exc}") from exc
            if isinstance(exc, Fenced) and self.stop.is_set_now and not self.ever_silent:
                raise Violation(f"{self.name}, asked to end and never out of the group, ends with {exc}") from exc
            if isinstance(exc, _NEVER) and not self._may_refuse(exc):
                raise Violation(f"{self.name} ends with {type(exc).__name__}: {exc}") from exc
        world.kill(self)

    def _may_refuse(self, exc: FraudScorerError) -> bool:
        """Whether the topics are such that a worker has to refuse them; then an operator looks at them."""
        world = self._world
        # Where other records stand at the offsets that were decided, a digest may be the first to show it.
        if world.disturbed and (world.rewritten or not isinstance(exc, PromiseBroken)):
            world.refused = True
            return True
        return bool(world.spoilt)

    def unrest(self) -> str | None:
        """What is missing until it is in the group, decides what it owns, and keeps nothing of what it owned before."""
        worker = self.worker
        if worker is None or not worker._joined:
            return f"{self.name} is not in the group"
        owned, standbys = worker._owned, worker._standbys
        if not all(each.shard.recovered.is_set_now for each in owned.values()):
            return f"{self.name} is not ready"
        if set(owned) != self._world.group.assigned(self.name):
            return f"{self.name} owns {sorted(owned)}, not what the group says"
        cold = [shard for shard, standby in standbys.items() if not standby.warm]
        if cold and not self._world.disturbed:  # else what it would have to read may be gone
            return f"{self.name} follows shards {cold}, and has not caught up"
        self.producers = [each for each in self.producers if each() is not None]
        self.log_producers = [each for each in self.log_producers if each() is not None]
        # Its member; a reader of payments for each shard; of journal, order log and payments for each standby; a
        # producer for each shard and standby.
        consumers_max = 1 + len(owned) + 3 * len(standbys)
        producers_max = len(owned) + len(standbys) + self.hung
        kept = max(len(self.producers), len(self.log_producers))
        if len(self.open_consumers) > consumers_max or kept > producers_max:
            consumers = ", ".join(type(each).__name__ for each in self.open_consumers)
            return (
                f"{self.name} has {len(owned)} shards and {len(standbys)} standbys, and keeps {consumers} and "
                f"{len(self.producers)} transactional and {len(self.log_producers)} other producers"
            )
        # Main and the watch over topics; the shard's, its commits' and its snapshots'; the standby's.
        if len(self.threads) > 2 + 3 * len(owned) + len(standbys) + self.hung:
            return f"{self.name} keeps threads: {', '.join(each.name for each in self.threads)}"
        return None


def settings(
    shards: int, *, standbys: bool, deadlines: bool, fast: bool, transaction_batches_max: int, gather_ms: float
) -> Settings:
    """Small bounds, so that they are reached. Nothing is read from the environment."""
    worker = WorkerSettings(
        shards=shards,
        standby_shards_max=int(standbys),
        batch_payments_max=3,
        deadline_ms=50.0 if deadlines else None,
        fast_decisions=fast,
        transaction_batches_max=transaction_batches_max,
        transaction_gather_ms=gather_ms,
    )
    worker = worker.model_copy(update={"buffered_payments_max": 8})
    return Settings.model_construct(
        kafka=KafkaSettings(), worker=worker, snapshots=SnapshotSettings(every_payments=3, kept=3)
    )
