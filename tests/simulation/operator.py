"""An operator: where workers refuse to go on, `fraud-scorer recover` by the product's own code, and what it advises."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from scorer.errors import FraudScorerError, PromiseBroken
from scorer.journal.partition_buffers import MissingRange
from scorer.kafka import Fenced, SourceChanged, Topics
from scorer.operate.loss_acceptance import Loss, Recovery
from scorer.worker.ports import Ports
from tests.simulation import invariants
from tests.simulation.clients import SimClients
from tests.simulation.invariants import Violation
from tests.simulation.scheduler import Process
from tests.simulation.shard_state import BUNDLE, States
from tests.simulation.threads import SimThreads

if TYPE_CHECKING:
    from tests.simulation.world import World


class Operator(Process):
    """Runs the command once for each shard, and is gone."""

    def __init__(self, world: World, *, gives_up: int | None = None) -> None:
        """`gives_up`: instead, the shard of which what the order log holds beyond the journal is given up."""
        super().__init__("operator")
        self._world, self._gives_up = world, gives_up
        self.open_consumers: list[Any] = []
        self.producers: list[weakref.ref[Any]] = []
        self.log_producers: list[weakref.ref[Any]] = []
        self.hung = 0
        self.threads_port = SimThreads(world.scheduler, self)
        world.scheduler.spawn(self, self._main, "main")

    def _main(self) -> None:
        world = self._world
        for shard in range(world.shards) if self._gives_up is None else (self._gives_up,):
            try:
                if self._gives_up is None:
                    self._recover(shard)
                else:
                    self._give_up_orders(shard)
            except PromiseBroken as exc:
                if not (world.spoilt or world.rewritten):
                    raise Violation(f"recover of shard {shard} ends with {exc}") from exc
            except FraudScorerError as exc:
                world.note(self, f"recover of shard {shard} ends: {type(exc).__name__}: {exc}")
                world.refused = True  # to be tried again
                world.recoveries_fenced += isinstance(exc, Fenced)
        world.operator = None
        world.scheduler.kill(self)

    def _give_up_orders(self, shard: int) -> None:
        """As of batches that cannot be decided again, while workers run on."""
        world = self._world
        world.disturbed = True
        recovery = Recovery(world.settings, shard, ports=self._ports())
        offsets = invariants.unsettled_orders(world, shard)
        if offsets:
            loss = Loss(Topics.of(world.settings.kafka).order, shard, offsets[0], offsets[-1] + 1)
            world.note(self, f"has to give up the orders at {offsets} of shard {shard}")
            recovery.accept_loss(BUNDLE, [loss], "its payments are gone")

    def _ports(self) -> Ports:
        return Ports(SimClients(self._world, self), self.threads_port, States(self._world, self))

    def _recover(self, shard: int) -> None:
        world, ports = self._world, self._ports()
        recovery = Recovery(world.settings, shard, ports=ports)
        survey = recovery.survey()
        found = {finding.trouble: finding for finding in survey if finding.trouble != "ok"}
        world.note(self, f"shard {shard}: {', '.join(found) or 'nothing is found'}")
        if not survey:
            return
        try:
            if "cut" in found or "made anew" in found:
                recovery.new_state(BUNDLE, "the log is another one")
            elif "lost" in found:
                topics = Topics.of(world.settings.kafka)
                losses = [f.command.removeprefix("--accept-loss ") for f in survey if f.trouble == "lost"]
                recovery.accept_loss(BUNDLE, [Loss.parse(text, topics) for text in losses], "retention")
            elif "added" in found and found["added"].command:
                recovery.adopt_partitions(BUNDLE, "more load")
            else:
                recovery._follower(BUNDLE).close()  # as a worker finds it
                return
        except (MissingRange, SourceChanged):  # not even the windows can be rebuilt
            Recovery(world.settings, shard, ports=ports).new_state(BUNDLE, "history is gone")
        world.note(self, f"has accepted what shard {shard} lacks")
