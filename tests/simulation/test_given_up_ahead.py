"""Directed schedules: an operator gives up orders along which a standby has decided already."""

from __future__ import annotations

from unittest.mock import patch

from tests.simulation import invariants
from tests.simulation.invariants import Violation
from tests.simulation.operator import Operator
from tests.simulation.rules import product
from tests.simulation.world import World

SCHEDULES = 100
MET_MIN = 10  # of them, where it comes to that


class Directed:
    """`met`: how often a standby was ahead when the orders were given up."""

    def __init__(self, broken: frozenset[str] = frozenset()) -> None:
        self._broken = broken
        self.met = 0

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        given_up = False
        disturb = World._disturb

        def disturbed(world: World, chance: float) -> None:
            nonlocal given_up
            shard = None if given_up or world.operator else _followed_ahead(world)
            if shard is not None and invariants.unsettled_orders(world, shard):
                given_up = True
                self.met += 1
                world.disturbed = True
                world.operator = Operator(world, gives_up=shard)
            disturb(world, chance)

        with product(self._broken) as use, patch.object(World, "_disturb", disturbed):
            use(world := World(seed, self._broken))
            return world.violation()


def _followed_ahead(world: World) -> int | None:
    """A shard that a standby has decided beyond its journal."""
    for process in world.processes:
        standbys = {} if process.worker is None else process.worker._standbys
        for shard, standby in standbys.items():
            if standby._follower is not None and len(standby._follower._ahead):
                return shard
    return None


def test_a_standby_drops_what_it_decided_along_orders_that_are_given_up() -> None:
    """The journal goes on without those batches, and so does the standby: its windows are those of the journal."""
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.met >= MET_MIN


def test_a_standby_that_compares_nothing_is_found() -> None:
    """Without that, it goes on from windows that the journal does not give."""
    directed = Directed(frozenset({"decided_ahead_is_compared"}))
    assert any(directed.violation(seed) for seed in range(SCHEDULES))
