"""Random schedules of faults, a bounded number. Many more: python -m tests.faults --schedules 1000 --seed 1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.broker import OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.schedule import Runner, Schedule

# What a fixed choice covers: points and signals, a frozen worker, the network, snapshots cut off, KIP-848, an exception
# in a thread, undecided payments deleted, foreign init_transactions, payments made anew.
SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "14,62,140").split(",")]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_the_outcome_equals_an_undisturbed_run(
    seed: int, broker: OwnBroker, nursery: Nursery, bundle: Path
) -> None:
    """Decisions, scores, reasons, audit rows and dead letters are those of an undisturbed run, and replay verifies
    every digest along the journal. A change of the topics after that ends as its row of FAULTS.md says."""
    Runner(broker, nursery, bundle).run(Schedule.drawn(seed))
