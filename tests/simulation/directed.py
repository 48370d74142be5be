"""Schedules of chance in which a test's own fault stands in place of what chance does to logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from tests.simulation import invariants
from tests.simulation.chaos import Chaos
from tests.simulation.incarnation import Incarnation
from tests.simulation.invariants import Violation
from tests.simulation.rules import product
from tests.simulation.world import World

# What makes a log unreadable.
UNREADABLE = ("_retain_payments", "_cut_payments", "_make_payments_anew", "_add_partitions", "_write_to_journal")


def violation(
    seed: int,
    *,
    before_step: Callable[[World], None],
    compares: Callable[[World], bool],
    met: Callable[[Any], None],
    also: tuple[Any, ...] = (),
) -> Violation | None:
    """What a schedule breaks in which no log is made unreadable but by `before_step`, called before each step.

    `compares`: whether answers are compared after each reading. `met` gets what workers refuse to go on for. `also`:
    more patches.
    """
    between, read, refuses = World._between, World._read, Incarnation._may_refuse

    def stepping(world: World) -> None:
        before_step(world)
        between(world)

    def may_refuse(process: Incarnation, exc: Any) -> bool:
        met(exc)
        return refuses(process, exc)

    def reading(world: World) -> None:
        read(world)
        if compares(world):
            invariants.check_answers(world)

    with ExitStack() as stack:
        use = stack.enter_context(product())
        for name in UNREADABLE:
            stack.enter_context(patch.object(Chaos, name, lambda *_: None))
        stack.enter_context(patch.object(World, "_between", stepping))
        stack.enter_context(patch.object(World, "_read", reading))
        stack.enter_context(patch.object(Incarnation, "_may_refuse", may_refuse))
        for each in also:
            stack.enter_context(each)
        use(world := World(seed))
        return world.violation()
