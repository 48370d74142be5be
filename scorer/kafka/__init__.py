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
    OLDER_GENERATION,
    TRANSIENT,
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
from scorer.kafka.log_bounds import METADATA_TIMEOUT_S, ends, offsets, partition_count, stable_ends, starts
from scorer.kafka.range_reader import read_range, take
from scorer.kafka.topics import Topics

__all__ = [
    "DENIED",
    "METADATA_TIMEOUT_S",
    "OLDER_GENERATION",
    "TRANSIENT",
    "TRANSIENT_RETRY_S",
    "Away",
    "Denied",
    "Fatal",
    "Fenced",
    "KafkaFailure",
    "NoProgress",
    "OutOfRange",
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
    "transactional_id",
    "transactional_producer",
]
