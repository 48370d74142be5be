"""Topics that change: deleted and made again under their name (FAULTS' row 24), and given partitions (row 25)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from scorer import kafka
from scorer.runtime.settings import KafkaSettings


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


def grow(settings: KafkaSettings, topic: str, partitions: int) -> None:
    """Returns when everybody is shown so many partitions: a moment before, a reader may assign the old ones."""
    client = kafka.admin(settings)  # kept until its answer is there
    client.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)
    kafka.wait_until_visible(settings, {topic: partitions}, timeout_s=30.0)
