"""A shard's producer fenced again and again by somebody who is no owner: the worker goes on, and nothing piles up.

The long form, with a payment decided after each: FENCINGS=100 FOREIGN_INITS=1.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from scorer import kafka
from scorer.local_services import Services
from scorer.operate.setup import setup
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for

pytestmark = pytest.mark.usefixtures("one_decision_each")

# Rounds in which the worker is fenced and decides again, and how often the stranger takes the id in each.
FENCINGS = int(os.environ.get("FENCINGS", "12"))
FOREIGN_INITS = int(os.environ.get("FOREIGN_INITS", "9"))
EACH = 50
# A state of its own (a fencing that was kept) is tens of MiB; allocators and caches still grow a little.
MEMORY_KIB = 40 * 1024
REBUILDS = 'fraud_scorer_rebuilds_total{reason="fenced",shard="0"}'


def test_a_worker_that_is_fenced_by_a_stranger_goes_on_and_keeps_no_client_of_before(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """The transactional id is taken more than a hundred times by somebody else: after each round of that the shard is
    rebuilt, each payment is decided once, and threads, descriptors and memory are at the end what they were early."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    decisions = TopicReader(settings, topics.decisions)
    (block,) = handbook(5_000)
    payments = iter(zip(block.keys, block.values, strict=True))
    sender = kafka.plain_producer(settings.kafka)
    counted: list[tuple[int, int, int]] = []
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log") as worker:
        port = worker.port  # type: ignore[attr-defined]
        for fenced in range(FENCINGS + 1):
            for key, value in itertools.islice(payments, EACH):
                sender.produce(topics.payments, value, key=key)
            sender.flush(30)
            wait_for(lambda n=fenced: decisions.fill() >= EACH * (n + 1), 60, f"decisions after {fenced} fencings")
            counted.append(resources(worker.pid))
            for _ in range(FOREIGN_INITS if fenced < FENCINGS else 0):
                # Each time a client of its own, as with another deployment.
                kafka.transactional_producer(settings, "shard-0").init_transactions(30)
        deadline = time.monotonic() + 60  # what the last fencing leaves is closed a moment later
        while not bounded(counted) and time.monotonic() < deadline:
            time.sleep(0.5)
            counted.append(resources(worker.pid))
        assert metrics(port)[REBUILDS] >= FENCINGS
    ids = [decided["payment_id"] for decided in decisions.json()]
    decisions.close()
    assert len(ids) == len(set(ids)) == EACH * (FENCINGS + 1)
    assert bounded(counted), counted


def bounded(counted: list[tuple[int, int, int]]) -> bool:
    """Whether threads, descriptors and memory are at the end what they were early."""
    (threads_early, files_early, kib_early), (threads_late, files_late, kib_late) = counted[3], counted[-1]
    return threads_late <= threads_early + 3 and files_late <= files_early + 6 and kib_late <= kib_early + MEMORY_KIB


def resources(pid: int) -> tuple[int, int, int]:
    """Threads, descriptors and resident memory (KiB) of a process."""
    threads, files = (len(list(Path(f"/proc/{pid}/{what}").iterdir())) for what in ("task", "fd"))
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return threads, files, next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
