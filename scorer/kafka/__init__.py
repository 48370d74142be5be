"""The only room that builds Kafka clients: configuration, errors, topics, offsets, rights.

It may touch runtime's settings and the client library; what the records mean is not known here.
"""

from scorer.kafka.clients import (
    admin,
    client_config,
    member,
    partition_member,
    plain_producer,
    reader,
    transactional_id,
    transactional_producer,
)
from scorer.kafka.failures import (
    DENIED,
    OFFSETS_GONE,
    OLDER_GENERATION,
    TRANSIENT,
    TRANSIENT_FOR_READERS,
    TRANSIENT_RETRY_S,
    Away,
    Denied,
    Fatal,
    Fenced,
    KafkaFailure,
    NoProgress,
    OutOfRange,
    Rebuild,
    describe,
    failure,
    present,
    read_failure,
    surfaced,
)
from scorer.kafka.log_bounds import ends, offsets, partition_count, stable_ends, starts
from scorer.kafka.ports import Broker, Clients, Member, Reader, TransactionalProducer
from scorer.kafka.range_reader import read_range, take
from scorer.kafka.real_clients import RealClients
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, NO_ID, SourceChanged, TopicFacts, topic_facts
from scorer.kafka.topics import Topics

__all__ = [
    "DENIED",
    "METADATA_TIMEOUT_S",
    "NO_ID",
    "OFFSETS_GONE",
    "OLDER_GENERATION",
    "TRANSIENT",
    "TRANSIENT_FOR_READERS",
    "TRANSIENT_RETRY_S",
    "Away",
    "Broker",
    "Clients",
    "Denied",
    "Fatal",
    "Fenced",
    "KafkaFailure",
    "Member",
    "NoProgress",
    "OutOfRange",
    "Reader",
    "RealClients",
    "Rebuild",
    "SourceChanged",
    "TopicFacts",
    "Topics",
    "TransactionalProducer",
    "admin",
    "client_config",
    "describe",
    "ends",
    "failure",
    "member",
    "offsets",
    "partition_count",
    "partition_member",
    "plain_producer",
    "present",
    "read_failure",
    "read_range",
    "reader",
    "stable_ends",
    "starts",
    "surfaced",
    "take",
    "topic_facts",
    "transactional_id",
    "transactional_producer",
]
