"""Directed schedules: an order log loses its newest records, which it had acknowledged, by an unclean election.

The decisions of their batches have left by then. Nothing in journal and order log shows that they ever were.
"""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

from scorer.journal.answered_batches import AnsweredBatches
from scorer.kafka import SourceChanged
from tests.simulation import directed, invariants
from tests.simulation.invariants import Violation
from tests.simulation.world import World

SCHEDULES = 100
CUT_MIN = 25  # of them
ACCEPTED_MIN = 15
CUT_CHANCE = 0.02


class Directed:
    """Schedules of chance in which no other log is changed. `cut`: those in which orders were lost whose decisions had
    left, `refused`: those in which a worker refused to go on for it."""

    def __init__(self, *, looked_for: bool = True) -> None:
        """`looked_for`: whether new owners look at what was answered."""
        self._looked_for = looked_for
        self.cut = self.refused = 0

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        rng = random.Random(seed)
        cut = refused = False

        def cutting(world: World) -> None:
            nonlocal cut
            if not cut and rng.random() < CUT_CHANCE:
                cut = any(_cut(world, shard) for shard in range(world.shards))
                world.disturbed |= cut

        def met(exc: Any) -> None:
            nonlocal refused
            # From here on an operator accepts it, and the payments are decided anew, perhaps otherwise.
            refused |= isinstance(exc, SourceChanged)

        def compares(world: World) -> bool:
            return not (refused or world.operated or world.spoilt)  # an operator may be the first to meet it

        blind = () if self._looked_for else (patch.object(AnsweredBatches, "check", lambda *_: None),)
        found = directed.violation(seed, before_step=cutting, compares=compares, met=met, also=blind)
        self.cut += cut
        self.refused += refused
        return found


def _cut(world: World, shard: int) -> bool:
    """Whether a shard's order log lost its newest order; only one whose decisions all stand on topic decisions-fast."""
    orders = invariants.unsettled_orders(world, shard)
    if not orders or world.operator is not None or any(p.silent_since_s is not None for p in world.processes):
        return False
    if invariants.counting_orders(world, shard)[orders[-1]].sequence > invariants.newest_answered(world, shard):
        return False
    world.note(None, f"the order log of shard {shard} is cut at {orders[-1]}")
    world.broker.log("order", shard).truncate(orders[-1])
    return True


def test_a_cut_of_what_was_answered_stops_the_shard_until_it_is_accepted() -> None:
    """Before an operator accepts it, no payment has a second decision; after that each has one on topic decisions, and
    no reader of decisions-fast takes a new decision for an old one."""
    chance = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := chance.violation(seed))] == []
    assert chance.cut >= CUT_MIN
    assert chance.refused >= ACCEPTED_MIN


def test_a_cut_that_is_not_looked_for_is_found_by_payment_systems() -> None:
    """Without that look, payments get two different decisions."""
    chance = Directed(looked_for=False)
    assert any("several decisions" in str(chance.violation(seed)) for seed in range(SCHEDULES))
