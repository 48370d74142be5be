"""A shard's producer fenced again and again by somebody who is no owner: the worker goes on, and nothing piles up."""

from __future__ import annotations

import itertools
from pathlib import Path

from scorer import kafka
from scorer.local_services import Services
from scorer.operate.setup import setup
from tests.integration.handbook import handbook
from tests.integration.running import TopicReader, metrics, process, test_settings, wait_for

FENCINGS = 12
EACH = 50
REBUILDS = 'fraud_scorer_rebuilds_total{reason="fenced",shard="0"}'


def test_a_worker_that_is_fenced_by_a_stranger_goes_on_and_keeps_no_client_of_before(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """After each foreign init_transactions the shard is rebuilt, each payment is decided once, and threads and
    descriptors are as many after twelve times as after three."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    decisions = TopicReader(settings, topics.decisions)
    stranger = kafka.transactional_producer(settings, "shard-0")
    (block,) = handbook(5_000)
    payments = iter(zip(block.keys, block.values, strict=True))
    sender = kafka.plain_producer(settings.kafka)
    counted: list[tuple[int, int]] = []
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log") as worker:
        port = worker.port  # type: ignore[attr-defined]
        for fenced in range(FENCINGS + 1):
            for key, value in itertools.islice(payments, EACH):
                sender.produce(topics.payments, value, key=key)
            sender.flush(30)
            wait_for(lambda n=fenced: decisions.fill() >= EACH * (n + 1), 60, f"decisions after {fenced} fencings")
            counted.append(tuple(len(list(Path(f"/proc/{worker.pid}/{what}").iterdir())) for what in ("task", "fd")))  # type: ignore[arg-type]
            if fenced < FENCINGS:
                stranger.init_transactions(30)
                del stranger  # its next epoch comes from a client of its own, as with another deployment
                stranger = kafka.transactional_producer(settings, "shard-0")
        assert metrics(port)[REBUILDS] >= FENCINGS
    ids = [decided["payment_id"] for decided in decisions.json()]
    decisions.close()
    assert len(ids) == len(set(ids)) == EACH * (FENCINGS + 1)
    (threads_early, files_early), (threads_late, files_late) = counted[3], counted[-1]
    assert threads_late <= threads_early + 3, counted
    assert files_late <= files_early + 6, counted
