"""`python -m tests.faults --schedules N --seed S`: random faults on real Kafka; a failing one is run again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.broker import OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import make_bundle
from tests.faults.run import Torn
from tests.faults.schedule import Runner, Schedule


def main() -> int:
    """Exit code 0: every outcome equals an undisturbed run; 1: the first that does not is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next has the next number")
    parser.add_argument("--replays", type=int, default=1, help="how often a failing schedule is run again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, OwnBroker() as broker:
        bundle = make_bundle(Path(folder) / "bundle")
        with Nursery(bundle) as nursery:
            runner = Runner(broker, nursery, bundle)
            for seed in range(arguments.seed, arguments.seed + arguments.schedules):
                schedule = Schedule.drawn(seed)
                started = time.monotonic()
                try:
                    runner.run(schedule)
                except Torn as torn:
                    print(f"{schedule}\nTORN: {torn}\nreplay: python -m tests.faults --schedules 1 --seed {seed}")
                    for n in range(arguments.replays):
                        try:
                            runner.run(schedule)
                            print(f"replay {n + 1}: equal this time (real time is part of a schedule)")
                        except Torn as again:
                            print(f"replay {n + 1}: TORN: {str(again).splitlines()[0]}")
                    return 1
                print(f"{schedule}\n  equal, {time.monotonic() - started:.1f} s", flush=True)
            ends = "\n".join(f"  {count:4} x {how}" for how, count in sorted(runner.exits.items()))
            print(f"{arguments.schedules} schedules: every outcome equals an undisturbed run\nworkers ended:\n{ends}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
