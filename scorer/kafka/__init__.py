"""The only room that builds Kafka clients: configuration, errors, topics, offsets, rights.

It may touch runtime's settings and the client library; what the records mean is not known here.
"""

from scorer.kafka.clients import (
    admin,
    client_config,
    member,
    plain_producer,
    reader,
    transactional_id,
    transactional_producer,
)
from scorer.kafka.failures import (
    DENIED,
    OLDER_GENERATION,
    TRANSIENT,
    TRANSIENT_RETRY_S,
    Away,
    Denied,
    Fenced,
    KafkaFailure,
    Rebuild,
    describe,
    failure,
    present,
)
from scorer.kafka.log_bounds import METADATA_TIMEOUT_S, ends, offsets, partition_count, starts
from scorer.kafka.topics import Topics

__all__ = [
    "DENIED",
    "METADATA_TIMEOUT_S",
    "OLDER_GENERATION",
    "TRANSIENT",
    "TRANSIENT_RETRY_S",
    "Away",
    "Denied",
    "Fenced",
    "KafkaFailure",
    "Rebuild",
    "Topics",
    "admin",
    "client_config",
    "describe",
    "ends",
    "failure",
    "member",
    "offsets",
    "partition_count",
    "plain_producer",
    "present",
    "reader",
    "starts",
    "transactional_id",
    "transactional_producer",
]
