"""Starting behind: partitions of unequal length are caught up together; nothing becomes late by being read late."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from scorer import kafka
from scorer.local_services import Services
from scorer.operate.setup import setup
from tests.integration.running import TopicReader, process, test_settings, wait_for

pytestmark = pytest.mark.usefixtures("one_decision_each")

HOUR_MS = 3_600_000


def test_after_an_outage_none_is_late_that_was_in_time_when_produced(
    services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path
) -> None:
    """Six days of payments wait on three partitions, two of them short, one long: read one after the other, most would
    lie days behind stream time, far beyond the allowed lateness; advanced together, none is late."""
    settings = test_settings(
        services.kafka.bootstrap_servers,
        topics_prefix,
        postgres={"url": database},
        topics={"payments_partitions": 3},
        worker={"batch_payments_max": 512, "buffered_payments_max": 3072},
    )
    setup(settings)
    topics = kafka.Topics.of(settings.kafka)
    producer = kafka.plain_producer(settings.kafka)
    start = int(time.time() * 1000) - 6 * 24 * HOUR_MS
    # Partition 2 holds nine of ten payments; all three span the same six days.
    count = {0: 300, 1: 450, 2: 6000}
    for partition, n in count.items():
        for i in range(n):
            payment = {
                "payment_id": f"{partition}-{i}",
                "event_time": start + i * 6 * 24 * HOUR_MS // n,
                "amount_minor": 100 + i,
                "currency": "EUR",
                "customer_id": f"c{i % 50}",
                "terminal_id": f"t{i % 20}",
            }
            producer.produce(topics.payments, json.dumps(payment).encode(), partition=partition)
        assert producer.flush(30) == 0
    decisions = TopicReader(settings, topics.decisions)
    with process("run", ["--bundle", str(bundle)], settings, tmp_path / "worker.log") as worker:
        wait_for(lambda: decisions.fill() >= sum(count.values()), 60, "all decisions")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    assert len(decisions.messages) == sum(count.values())
    late = [decided["payment_id"] for decided in decisions.json() if decided["mode"] != "normal"]
    assert late == []
    decisions.close()
