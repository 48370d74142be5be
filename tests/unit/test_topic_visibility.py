"""Which broker an answer about topics is of."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import BrokerMetadata, ClusterMetadata

from scorer.kafka.topic_visibility import is_of


def _answer(broker_id: int, name: str) -> ClusterMetadata:
    metadata = ClusterMetadata()
    metadata.orig_broker_id, metadata.orig_broker_name = broker_id, name
    return metadata


@pytest.mark.parametrize(
    ("broker_id", "name", "expected"),
    [
        (-1, "kafka-1:9093/bootstrap", True),
        (-1, "ssl://kafka-1:9093/bootstrap", True),
        (-1, "sasl_plaintext://kafka-1:9093/bootstrap", True),
        (-1, "sasl_ssl://kafka-1:9093/bootstrap", True),
        (1, "sasl_ssl://kafka-1:9093/1", True),
        (1, "sasl_ssl://10.0.0.7:9093/1", True),  # found under another address
        (2, "sasl_ssl://kafka-2:9093/2", False),
        (-1, "sasl_ssl://kafka-11:9093/bootstrap", False),
        (-1, "sasl_ssl://kafka-1:9094/bootstrap", False),
    ],
)
def test_an_answer_is_of_the_broker_that_it_names(broker_id: int, name: str, expected: bool) -> None:
    """Whatever protocol its listener speaks: `setup` waits for each broker to show the topics, and would wait for ever
    for one whose answers it does not recognise."""
    broker = BrokerMetadata()
    broker.id, broker.host, broker.port = 1, "kafka-1", 9093
    assert is_of(_answer(broker_id, name), broker) is expected
