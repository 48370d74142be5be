"""Whether a topic is known everywhere: each broker of a cluster hears of a new topic in its own time."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import BrokerMetadata, ClusterMetadata

from scorer.kafka import clients
from scorer.kafka.failures import Away, describe
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S
from scorer.runtime.settings import KafkaSettings

ASK_AGAIN_S = 0.1
ANSWER_S = 2.0  # one question; a broker that is slow is asked again


def wait_until_visible(settings: KafkaSettings, partitions: Mapping[str, int], *, timeout_s: float) -> None:
    """Wait until every broker knows each topic with so many partitions, and a leader of each.

    Raises Away, naming broker and topic, when one of them does not within `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    try:
        known = clients.admin(settings).list_topics(timeout=METADATA_TIMEOUT_S).brokers
    except KafkaException as exc:
        raise Away(f"Kafka at {settings.bootstrap_servers} does not answer: {describe(exc)}") from exc
    for broker in known.values():
        while missing := _missing(settings, broker, partitions):
            if time.monotonic() > until:
                address = f"{broker.host}:{broker.port}"
                raise Away(f"the broker at {address} does not know the topic yet: {missing}. Run setup again")
            time.sleep(ASK_AGAIN_S)


def _missing(settings: KafkaSettings, broker: BrokerMetadata, partitions: Mapping[str, int]) -> str:
    """The first topic that this broker does not show whole, for people; empty when there is none."""
    address = f"{broker.host}:{broker.port}"
    # A client that has heard of the cluster asks any of its brokers, so the answer counts where it names this one. A
    # new client each time: it has heard of none but this, and the others seldom come first.
    client = clients.admin(settings.model_copy(update={"bootstrap_servers": address}))
    try:
        # Of all topics: asking for one by name would create it where brokers do that.
        metadata = client.list_topics(timeout=ANSWER_S)
    except KafkaException as exc:
        return f"no answer ({describe(exc)})"
    if not is_of(metadata, broker):
        return "another broker answered for it"
    for name, count in partitions.items():
        found = metadata.topics[name].partitions.values() if name in metadata.topics else ()
        led = sum(partition.leader >= 0 for partition in found)
        if led < count:
            return f"{name} has {led} of {count} partitions with a leader there"
    return ""


def is_of(metadata: ClusterMetadata, broker: BrokerMetadata) -> bool:
    """Whether this broker gave the answer. A client that knows its address alone has no id for it yet, and names it
    by the address, behind the protocol unless that is plain text: `sasl_ssl://kafka-1:9093/bootstrap`."""
    address = str(metadata.orig_broker_name).rpartition("://")[2].removesuffix("/bootstrap")
    return metadata.orig_broker_id == broker.id or address == f"{broker.host}:{broker.port}"
