"""What `audit verify` reads of Kafka: no more than it needs."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from schemas.journal_record import ControlRange, JournalRecord
from scorer.audit import topic_history
from scorer.local_services import Services
from tests.integration.audit_batches import make_topic
from tests.integration.running import test_settings

RECORDS = 5_000


@pytest.mark.parametrize("sequence", [0, 1, 300, 2_500, RECORDS - 1, RECORDS + 10])
def test_the_journal_is_read_from_where_it_matters(
    services: Services, topics_prefix: str, sequence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any batch on, every head comes and in order; of what lies before, at most a few hundred records are read."""
    servers = services.kafka.bootstrap_servers
    settings = test_settings(servers, topics_prefix)
    make_topic(servers, f"{topics_prefix}journal")
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5})
    for number in range(RECORDS):
        record = JournalRecord(
            shard=0, sequence=number, inputs=(), control=ControlRange(start=0, end=0), stream_time_ms=0, bundle="b",
            decisions=0, dead_letters=0, digest="0" * 64, previous="0" * 64,
        )  # fmt: skip
        producer.produce(f"{topics_prefix}journal", record.to_bytes(), partition=0)
    assert producer.flush(30) == 0
    began: list[int] = []
    whole = topic_history.messages

    def noted(*arguments: object) -> object:
        began.append(arguments[3])  # type: ignore[arg-type]
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(topic_history, "messages", noted)
    found = [head.sequence for head in topic_history.journal_heads(settings, 0, from_sequence=sequence)]
    assert found == list(range(sequence, RECORDS))
    assert min(sequence, RECORDS) - 512 <= began[0] <= sequence
