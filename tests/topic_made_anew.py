"""A topic deleted and made again under its name, for the tests of FAULTS' row 24."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic


def make_anew(client: AdminClient, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
    """Returns when the broker has made the new one; the old one may take a while to go."""
    client.delete_topics([topic])[topic].result(30)
    deadline = time.monotonic() + 30
    while True:
        try:
            client.create_topics([NewTopic(topic, partitions, 1, config=dict(config or {}))])[topic].result(30)
            return
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
