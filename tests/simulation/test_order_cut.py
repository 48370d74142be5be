"""Directed schedules: an order log loses its newest records, which it had acknowledged, by an unclean election.

The decisions of their batches have left by then. Nothing in journal and order log shows that they ever were.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from scorer.journal.answered_batches import AnsweredBatches
from scorer.kafka import SourceChanged
from tests.simulation import invariants
from tests.simulation.chaos import Chaos
from tests.simulation.incarnation import Incarnation
from tests.simulation.invariants import Violation
from tests.simulation.rules import product
from tests.simulation.world import World

SCHEDULES = 200
CUT_MIN = 60  # of them
ACCEPTED_MIN = 30
CUT_CHANCE = 0.02
UNREADABLE = ("_retain_payments", "_cut_payments", "_make_payments_anew", "_add_partitions", "_write_to_journal")


class Directed:
    """Schedules of chance in which no other log is changed. `cut`: those in which orders were lost whose decisions had
    left, `refused`: those in which a worker refused to go on for it."""

    def __init__(self, *, looked_for: bool = True) -> None:
        """`looked_for`: whether new owners look at what was answered."""
        self._looked_for = looked_for
        self.cut = self.refused = 0

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        rng, between, read, refuses = random.Random(seed), World._between, World._read, Incarnation._may_refuse
        cut = refused = False

        def cutting(world: World) -> None:
            nonlocal cut
            if not cut and rng.random() < CUT_CHANCE:
                cut = any(_cut(world, shard) for shard in range(world.shards))
                world.disturbed |= cut
            between(world)

        def may_refuse(process: Incarnation, exc: Any) -> bool:
            nonlocal refused
            # From here on an operator accepts it, and the payments are decided anew, perhaps otherwise.
            refused |= isinstance(exc, SourceChanged)
            return refuses(process, exc)

        def reading(world: World) -> None:
            read(world)
            if not (refused or world.operated or world.spoilt):  # an operator may be the first to meet it
                invariants.check_answers(world)

        with ExitStack() as stack:
            use = stack.enter_context(product())
            for name in UNREADABLE:
                stack.enter_context(patch.object(Chaos, name, lambda *_: None))
            stack.enter_context(patch.object(World, "_between", cutting))
            stack.enter_context(patch.object(World, "_read", reading))
            stack.enter_context(patch.object(Incarnation, "_may_refuse", may_refuse))
            if not self._looked_for:
                stack.enter_context(patch.object(AnsweredBatches, "check", lambda *_: None))
            use(world := World(seed))
            found = world.violation()
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
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.cut >= CUT_MIN
    assert directed.refused >= ACCEPTED_MIN


def test_a_cut_that_is_not_looked_for_is_found_by_payment_systems() -> None:
    """Without that look, payments get two different decisions."""
    directed = Directed(looked_for=False)
    assert any("several decisions" in str(directed.violation(seed)) for seed in range(SCHEDULES))
