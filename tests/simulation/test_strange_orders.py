"""Directed schedules: a stranger writes to an order log what is no record of it."""

from __future__ import annotations

import random
from typing import Any

from scorer.journal.order_reader import OrderUnreadable
from tests.simulation import directed
from tests.simulation.broker import COMMITTED, Entry
from tests.simulation.invariants import Violation
from tests.simulation.world import World

SCHEDULES = 60
WRITTEN_CHANCE = 0.01
REFUSED_MIN = 20


class Directed:
    """Schedules of chance in which no other log is changed. `refused`: those in which a worker refused to go on for a
    record of the stranger."""

    def __init__(self) -> None:
        self.refused = 0

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        rng = random.Random(seed)
        written = refused = False

        def writing(world: World) -> None:
            nonlocal written
            log = world.broker.log("order", 0)
            if not written and log.all and world.operator is None and rng.random() < WRITTEN_CHANCE:
                written = world.disturbed = True
                world.note(None, "a stranger writes to the order log of shard 0")
                log.append(Entry(None, b"hello", COMMITTED, world.broker.timestamp_ms()))

        def met(exc: Any) -> None:
            nonlocal refused
            refused |= isinstance(exc, OrderUnreadable)

        found = directed.violation(seed, before_step=writing, compares=lambda world: not world.spoilt, met=met)
        self.refused += refused
        return found


def test_a_strangers_record_stops_the_shard_until_an_operator_accepts_it() -> None:
    """Workers do not go on beyond what they cannot read; `recover` shows a way out that can be taken, and after it each
    payment is decided once, as it was answered if it was, and shards and standbys go on."""
    chance = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := chance.violation(seed))] == []
    assert chance.refused >= REFUSED_MIN
