"""Directed schedules: an operator lets the state of idle shards begin anew, and snapshots of that state are taken."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from scorer.operate.loss_acceptance import Recovery
from scorer.runtime.settings import SnapshotSettings
from scorer.worker import follower
from tests.simulation import incarnation, invariants
from tests.simulation.invariants import Violation
from tests.simulation.operator import Operator
from tests.simulation.rules import product
from tests.simulation.shard_state import BUNDLE
from tests.simulation.world import World

SCHEDULES = 24
RESTORED_MIN = 2
EVERY_S = 1.0


class _NewState(Operator):
    """`recover --new-journal` of one shard after the other."""

    def _recover(self, shard: int) -> None:
        Recovery(self._world.settings, shard, ports=self._ports()).new_state(BUNDLE, "a test")


class Directed:
    """Schedules of chance; when all is decided and calm the state begins anew, and once it is kept in a snapshot all
    workers are killed. `refused`: snapshots of that state, refused as if they were older; `restored`: schedules in
    which one was used whose own record is the beginning."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.restored = 0

    def violation(self, seed: int) -> Violation | None:
        """What the schedule breaks."""
        waiting_for, restored_of = World._waiting_for, incarnation.States.restored
        begun = taken_up = killed = restored = False

        def kill_all(world: World) -> str:
            for process in list(world.processes):
                world.kill(process)
            return "other workers"

        def beginning(world: World) -> str | None:
            nonlocal begun, taken_up, killed
            waits_for = waiting_for(world)
            if waits_for is not None or not world.keeps_snapshots:
                return waits_for
            if not begun:
                begun = world.disturbed = True
                world.operator = _NewState(world)
                return "the state begins anew"
            if not taken_up:  # idle ones of before do not know yet that they are fenced
                taken_up = True
                return kill_all(world)
            if not killed:
                world.scheduler.pass_time(EVERY_S)
                if not all(_kept_anew(world, shard) for shard in range(world.shards)):
                    return "a snapshot of the new state"
                killed = True
                return kill_all(world)
            return None

        def noted(shard: int, reason: str) -> None:
            if killed and "before an operator let the state begin anew" in reason:
                sequence = int(reason.split()[1])
                if sequence > _begun_at(world, shard):
                    self.refused.append(f"seed {seed}: {reason}")

        def restoring(states: Any, bundle: Any, shard: int, known: Any, parts: Any) -> Any:
            nonlocal restored
            restored |= killed and known["sequence"] == _begun_at(states._world, shard) + 1
            return restored_of(states, bundle, shard, known, parts)

        kept = lambda **given: SnapshotSettings(**given | {"every_s": EVERY_S})  # noqa: E731
        with ExitStack() as stack:
            use = stack.enter_context(product())
            stack.enter_context(patch.object(incarnation, "SnapshotSettings", kept))
            stack.enter_context(patch.object(follower, "refused", noted))
            stack.enter_context(patch.object(incarnation.States, "restored", restoring))
            stack.enter_context(patch.object(World, "_waiting_for", beginning))
            use(world := World(seed))
            found = world.violation()
        self.restored += restored
        return found


def _begun_at(world: World, shard: int) -> int:
    """Number of the batch with which the state of a shard began anew last; -1 without one."""
    kinds = [record.change and record.change.kind for record in invariants._journal(world, shard)]
    return max((n for n, kind in enumerate(kinds) if kind == "new_state"), default=-1)


def _kept_anew(world: World, shard: int) -> bool:
    """Whether a snapshot of the state that began anew is kept."""
    begun_at = _begun_at(world, shard)
    named = [r.snapshot.sequence for r in invariants._journal(world, shard) if r.snapshot is not None]
    return begun_at < 0 or max(named, default=-1) > begun_at


def test_a_snapshot_of_a_state_that_began_anew_is_used() -> None:
    """Also where nothing came since: else each start would refuse it, and ask for a look at the snapshots."""
    directed = Directed()
    assert [(seed, found) for seed in range(SCHEDULES) if (found := directed.violation(seed))] == []
    assert directed.refused == []
    assert directed.restored >= RESTORED_MIN
