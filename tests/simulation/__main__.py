"""`python -m tests.simulation --schedules N --seed S`: the first that breaks a promise is printed, step by step."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.invariants import Violation
from tests.simulation.rules import RULES, product
from tests.simulation.world import World


def first_violation(seed: int, schedules: int, broken: frozenset[str] = frozenset()) -> tuple[int, Violation] | None:
    """The seed of the first schedule among seed, seed + 1 … that breaks a promise, and which; None when all hold."""
    with product(broken) as use:
        for each in range(seed, seed + schedules):
            use(world := World(each, broken))
            violation = world.violation()
            if violation is not None:
                return each, violation
    return None


def traced(seed: int, broken: frozenset[str] = frozenset()) -> list[str]:
    """What happened in the schedule of `seed`, a line each, its end included."""
    trace: list[str] = []
    with product(broken) as use:
        use(world := World(seed, broken, trace=trace))
        violation = world.violation()
        trace.append("all promises hold" if violation is None else f"violated: {violation}")
    return trace


def main() -> int:
    """Exit code 0: all promises hold; 1: the trace of the first schedule that breaks one is on stdout."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next has the next number")
    parser.add_argument("--break", dest="broken", action="append", default=[], choices=RULES, help="a rule to break")
    arguments = parser.parse_args()
    broken = frozenset(arguments.broken)
    started = time.process_time()
    found = first_violation(arguments.seed, arguments.schedules, broken)
    seconds = time.process_time() - started
    if found is None:
        print(f"{arguments.schedules} schedules from seed {arguments.seed}: all promises hold "
              f"({arguments.schedules / seconds:,.0f} schedules per CPU second)")  # fmt: skip
        return 0
    seed, _ = found
    print("\n".join(traced(seed, broken)))
    options = "".join(f" --break {name}" for name in arguments.broken)
    print(f"replay: python -m tests.simulation --schedules 1 --seed {seed}{options}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
