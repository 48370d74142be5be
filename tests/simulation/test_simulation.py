"""The worker under thousands of schedules, and with rules taken away. Longer: python -m tests.simulation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.__main__ import first_violation, traced
from tests.simulation.rules import RULES

SCHEDULES = 1_200
BROKEN_SCHEDULES_MAX = 4_000
# Where the search begins for rules that only a rare schedule needs: none before it breaks a promise.
FIRST = {
    "topics_are_watched": 6_040,
    "orders_are_read_up_to_the_claim": 4_400,
    "standbys_follow_what_counts": 1_300,
    "added_partitions_from_their_start": 770,
    "positions_behind_records": 850,
    "one_transactional_id": 1_500,
}
# Needed only in schedules that chance hardly ever gives: test_given_up_ahead.py makes them.
DIRECTED = {"decided_ahead_is_compared"}


def test_whatever_is_killed_frozen_lost_or_late_every_payment_is_decided_once_along_one_chain() -> None:
    """In 1,200 schedules of kills, freezes, lost and late requests, rebalances, clocks that jump, rights taken away,
    logs that are cut, retained or made anew, and what an operator accepts then, every payment that is there ends in
    exactly one committed batch, the group's owner of a shard alone commits, digests chain, the state is a function of
    the journal, everything is decided after the last fault, and no process keeps a client or thread of a shard that it
    gave up."""
    assert first_violation(1, SCHEDULES) is None


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in DIRECTED])
def test_each_rule_of_the_protocol_is_needed(rule: str) -> None:
    """Without any one of the rules some schedule breaks a promise, and it is found."""
    assert first_violation(FIRST.get(rule, 1), BROKEN_SCHEDULES_MAX, frozenset({rule})) is not None


def test_a_seed_replays_its_schedule_step_by_step() -> None:
    """The same seed gives the same schedule, so a failure that was seen once can be seen again."""
    broken = frozenset({"generation_in_commits"})
    found = first_violation(1, BROKEN_SCHEDULES_MAX, broken)
    assert found is not None
    seed, violation = found
    trace = traced(seed, broken)
    assert trace == traced(seed, broken)
    assert trace[-1] == f"violated: {violation}"


def test_the_command_prints_the_failing_seed_and_how_to_replay_it() -> None:
    """`python -m tests.simulation` ends with 1, the story of the failing schedule, and the command that replays it."""
    command = [sys.executable, "-m", "tests.simulation", "--break", "state_dropped_after_failure"]
    done = subprocess.run([*command, "--schedules", "100"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "violated: " in done.stdout
    seed = done.stdout.rsplit("--seed ", 1)[1].split()[0]
    again = subprocess.run([*command, "--schedules", "1", "--seed", seed], capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
