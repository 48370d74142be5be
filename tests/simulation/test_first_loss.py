"""An operator gives up ordered batches of a shard whose journal has no record yet: rare in schedules of chance."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from scorer.operate import loss_acceptance
from tests.simulation import invariants
from tests.simulation.invariants import Violation
from tests.simulation.operator import Operator
from tests.simulation.rules import product
from tests.simulation.world import World

SCHEDULES = 40
MET_MIN = 10


class Directed:
    """Schedules of chance; but as soon as an order stands beyond an empty journal, every process is frozen, the
    payments are gone in one of two schedules, and an operator gives the order up."""

    def __init__(self) -> None:
        self.met = 0  # schedules in which the operator has written the journal's first record

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        given_up = False
        disturb = World._disturb

        def disturbed(world: World, chance: float) -> None:
            nonlocal given_up
            empty = not any(world.broker.log("journal", 0).committed(0))
            if not (given_up or world.operator) and empty and invariants.unsettled_orders(world, 0):
                given_up = True
                self._give_up(world)
            disturb(world, chance)

        with product() as use, patch.object(World, "_disturb", disturbed):
            use(world := World(seed))
            found = world.violation()
        first = next(iter(world.broker.log("journal", 0).committed(0)), None)
        self.met += first is not None and invariants.read_record(first[1].value or b"").change is not None
        return found

    def _give_up(self, world: World) -> None:
        for process in world.processes:
            if process.silent_since_s is None:
                world.scheduler.freeze(process)
                world.silent(process)
        world.disturbed = True
        if world.random() < 0.5:
            for partition in world.partitions(0):
                log = world.broker.log("payments", partition)
                log.retain_from(log.stable_end)
        world.operator = Operator(world, gives_up=0)


def test_what_is_gone_before_the_first_record_of_a_journal_is_named_in_it() -> None:
    """The record by which an operator gives up the first batches says where every partition goes on: what is gone
    before that was given up in the journal, and what is lost after it stops the worker."""
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.met >= MET_MIN


def test_a_first_record_that_names_no_partition_is_found() -> None:
    """Without that, the next owner begins wherever retention has left a partition by then."""

    def as_given(follower: Any, inputs: Any, starts: Any = None) -> Any:
        return inputs

    directed = Directed()
    with patch.object(loss_acceptance, "_first_named", as_given):
        assert any("does not name partitions" in str(directed.violation(seed)) for seed in range(SCHEDULES))
