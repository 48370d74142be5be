"""The protocol of delivery under thousands of schedules, and broken on purpose. Longer: python -m tests.simulation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from tests.simulation.__main__ import first_violation, traced
from tests.simulation.protocol import Protocol

RULES = [field.name for field in fields(Protocol)]


def test_whatever_is_killed_frozen_lost_or_late_every_payment_is_decided_once_along_one_chain() -> None:
    """In 4,000 schedules of kills, freezes, lost and late requests and rebalances, every payment ends in exactly one
    committed batch, one owner commits at a time, digests chain, and the state is a function of the journal."""
    assert first_violation(1, 4_000) is None


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_the_protocol_is_needed(rule: str) -> None:
    """Without any one of the rules (fencing, positions from the journal, a new producer after a timed-out commit, state
    dropped after a failure, the journal read to its end, a standby's state brought there, snapshots compared with it)
    some schedule breaks a promise, and it is found."""
    assert first_violation(1, 8_000, Protocol(**{rule: False})) is not None


def test_a_seed_replays_its_schedule_step_by_step() -> None:
    """The same seed gives the same schedule, so a failure that was seen once can be seen again."""
    broken = Protocol(fencing=False)
    found = first_violation(1, 8_000, broken)
    assert found is not None
    seed, violation = found
    trace = traced(seed, broken)
    assert trace == traced(seed, broken)
    assert trace[-1] == f"violated: {violation}"


def test_the_command_prints_the_failing_seed_and_how_to_replay_it() -> None:
    """`python -m tests.simulation` ends with 1, the story of the failing schedule, and the command that replays it."""
    command = [sys.executable, "-m", "tests.simulation", "--break", "fencing"]
    done = subprocess.run([*command, "--schedules", "8000"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "violated: " in done.stdout
    seed = done.stdout.rsplit("--seed ", 1)[1].split()[0]
    again = subprocess.run([*command, "--schedules", "1", "--seed", seed], capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
