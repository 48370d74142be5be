"""Of an order log only what the journal does not hold is needed, and the record that it names last: the rest may go."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

from scorer.journal.partition_buffers import MissingRange
from tests.simulation import invariants
from tests.simulation.incarnation import Incarnation
from tests.simulation.invariants import Violation
from tests.simulation.rules import product
from tests.simulation.world import World

SCHEDULES = 80
TRIMMED_MIN = 35
STANDBYS_MAX = 10
TRIM_CHANCE = 0.02


class Directed:
    """Schedules of chance; but again and again the order logs begin at the newest record that their journal names,
    `beyond` records later where that is not 0."""

    def __init__(self, beyond: int = 0) -> None:
        self._beyond = beyond
        self.trimmed = 0  # schedules in which a log has lost records
        self.behind = 0  # standbys that were asked to take over from what was gone by then

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        rng, between, refuses = random.Random(seed), World._between, Incarnation._may_refuse

        def trimming(world: World) -> None:
            if rng.random() < TRIM_CHANCE:
                self._trim(world)
            between(world)

        def may_refuse(process: Incarnation, exc: Any) -> bool:
            # A standby that is behind what the log has now ends; the process starts again, and reads the journal.
            if not self._beyond and isinstance(exc, MissingRange) and str(exc).startswith("order/"):
                self.behind += 1
                return True
            return refuses(process, exc)

        with (
            product() as use,
            patch.object(World, "_between", trimming),
            patch.object(Incarnation, "_may_refuse", may_refuse),
        ):
            use(world := World(seed))
            found = world.violation()
        self.trimmed += any(world.broker.log("order", shard).start for shard in range(world.shards))
        return found

    def _trim(self, world: World) -> None:
        for shard in range(world.shards):
            named = [record.order for record in invariants._journal(world, shard) if record.order is not None]
            if named and not world.spoilt:
                log = world.broker.log("order", shard)
                log.retain_from(min(max(named) + self._beyond, log.end))


def test_what_the_journal_holds_may_leave_the_order_log() -> None:
    """However often the order logs are trimmed up to the record that the journal names last, all promises hold: owners
    start, take over and settle, and each payment has one decision on all topics."""
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.trimmed >= TRIMMED_MIN
    assert directed.behind <= STANDBYS_MAX


def test_what_the_journal_does_not_hold_may_not() -> None:
    """Trimmed by one record more, an order log stops a worker that starts."""
    directed = Directed(beyond=1)
    assert any("order/" in str(directed.violation(seed)) for seed in range(SCHEDULES))
