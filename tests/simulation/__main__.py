"""`python -m tests.simulation --schedules N --seed S`: the first that breaks a promise is printed, step by step."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields

from tests.simulation.protocol import Protocol
from tests.simulation.worker import Violation
from tests.simulation.world import World


def first_violation(seed: int, schedules: int, protocol: Protocol | None = None) -> tuple[int, Violation] | None:
    """The seed of the first schedule among seed, seed + 1 … that breaks a promise, and which; None when all hold."""
    for each in range(seed, seed + schedules):
        try:
            World(each, protocol).run()
        except Violation as violation:
            return each, violation
    return None


def traced(seed: int, protocol: Protocol | None = None) -> list[str]:
    """What happened in the schedule of `seed`, a line each, its end included."""
    trace: list[str] = []
    try:
        World(seed, protocol, trace=trace).run()
        trace.append("all promises hold")
    except Violation as violation:
        trace.append(f"violated: {violation}")
    return trace


def main() -> int:
    """Exit code 0: all promises hold; 1: the trace of the first schedule that breaks one is on stdout."""
    rules = [field.name for field in fields(Protocol)]
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next has the next number")
    parser.add_argument("--break", dest="broken", action="append", default=[], choices=rules, help="a rule to break")
    arguments = parser.parse_args()
    protocol = Protocol(**dict.fromkeys(arguments.broken, False))
    started = time.process_time()
    found = first_violation(arguments.seed, arguments.schedules, protocol)
    seconds = time.process_time() - started
    if found is None:
        print(f"{arguments.schedules} schedules from seed {arguments.seed}: all promises hold "
              f"({arguments.schedules / seconds:,.0f} schedules per CPU second)")  # fmt: skip
        return 0
    seed, _ = found
    print("\n".join(traced(seed, protocol)))
    options = "".join(f" --break {name}" for name in arguments.broken)
    print(f"replay: python -m tests.simulation --schedules 1 --seed {seed}{options}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
