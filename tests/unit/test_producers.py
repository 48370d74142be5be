"""Clients that write: what asking for a topic does to the broker."""

from __future__ import annotations

from typing import Any

import pytest

from scorer import kafka
from tests.refusing_cluster import held_by_each_client


@pytest.mark.parametrize("kind", ["log", "transactional"])
def test_asking_for_a_topic_that_was_deleted_does_not_make_it(kind: str) -> None:
    """A standby's producers ask for their topics every minute. On a broker that makes what is asked for, a deleted
    order log would come back, with the broker's defaults and without its records."""
    clients = kafka.RealClients(held_by_each_client())
    producer: Any = clients.log_producer() if kind == "log" else clients.transactional_producer("shard-0")
    clients.connect(producer, ["order"])
    assert "order" not in producer.list_topics(timeout=10).topics
