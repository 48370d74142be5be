"""The worker under thousands of schedules, and with rules taken away. Longer: python -m tests.simulation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.__main__ import first_violation, traced
from tests.simulation.rules import RULES

SCHEDULES = 600
BROKEN_SCHEDULES_MAX = 4_000
# Where the search for a rule begins: a little before the first schedule that breaks a promise without it today. Where a
# change of the worker or of the simulation moves that one, the search goes on from there.
FIRST = {
    "one_transactional_id": 1_520,
    "generation_in_commits": 50,
    "journal_read_to_its_end": 90,
    "new_producer_after_timeout": 100,
    "positions_behind_records": 950,
    "journal_is_checked": 195,
    "topics_are_watched": 6_040,
    "lost_positions_stop": 430,
    "cuts_are_searched": 50,
    "snapshots_end_with_their_state": 425,
    "added_partitions_from_their_start": 775,
    "denials_are_waited_for": 125,
    "order_offsets_are_compared": 185,
    "later_claims_end_earlier_ones": 575,
    "orders_are_read_up_to_the_claim": 4_730,
    "standbys_follow_what_counts": 3_085,
    "nothing_commits_after_a_failure": 40,
    "log_producers_give_nothing_up": 35,
    "given_up_numbers_are_used_up": 40,
}
# Needed only in schedules that chance hardly ever gives: test_given_up_ahead.py makes them.
DIRECTED = {"decided_ahead_is_compared"}


def test_whatever_is_killed_frozen_lost_or_late_every_payment_is_decided_once_along_one_chain() -> None:
    """In 600 schedules of kills, freezes, lost and late requests, rebalances, clocks that jump, rights taken away,
    logs that are cut, retained or made anew, and what an operator accepts then, every payment that is there ends in
    exactly one committed batch, the group's owner of a shard alone commits, digests chain, the state is a function of
    the journal, everything is decided after the last fault, and no process keeps a client or thread of a shard that it
    gave up."""
    assert first_violation(1, SCHEDULES) is None


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in DIRECTED])
def test_each_rule_of_the_protocol_is_needed(rule: str) -> None:
    """Without any one of the rules some schedule breaks a promise, and it is found; with all of them that one breaks
    none."""
    found = first_violation(FIRST.get(rule, 1), BROKEN_SCHEDULES_MAX, frozenset({rule}))
    assert found is not None
    assert first_violation(found[0], 1) is None


def test_a_seed_replays_its_schedule_step_by_step() -> None:
    """The same seed gives the same schedule, so a failure that was seen once can be seen again."""
    broken = frozenset({"generation_in_commits"})
    found = first_violation(FIRST["generation_in_commits"], BROKEN_SCHEDULES_MAX, broken)
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
