"""The only room that builds Kafka clients: configuration, errors, topics, offsets, rights.

It may touch runtime's settings and the client library; what the records mean is not known here.
"""

from scorer.kafka.admin_answers import answer_of
from scorer.kafka.client_ports import (
    Broker,
    Clients,
    ColumnProducer,
    FlatReader,
    LogProducer,
    Member,
    Reader,
    TransactionalProducer,
)
from scorer.kafka.clients import (
    BATCH_BYTES_MAX,
    admin,
    application_of,
    client_config,
    former_transactional_id,
    member,
    partition_member,
    plain_producer,
    reader,
    transactional_id,
    transactional_producer,
)
from scorer.kafka.column_producer import PlainColumns
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
    Kind,
    NoProgress,
    OutOfRange,
    Rebuild,
    Unfit,
    describe,
    failure,
    log_was_cut,
    meaning,
    present,
    read_failure,
    reported_offset,
    surfaced,
)
from scorer.kafka.group_callbacks import KeptCallbacks
from scorer.kafka.log_bounds import ends, offsets, partition_count, stable_ends, starts
from scorer.kafka.log_epochs import LastRecord, first_of_later_epochs, is_cut_below
from scorer.kafka.message_headers import headers_of
from scorer.kafka.plain_reader import PlainReader
from scorer.kafka.range_reader import read_range, take
from scorer.kafka.real_clients import RealClients
from scorer.kafka.record_blocks import NO_TRACES, Found, RecordBlock
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, NO_ID, SourceChanged, TopicFacts, topic_facts
from scorer.kafka.topic_limits import APPEND_TIME, APPEND_TIME_WAY_OUT, timestamp_types
from scorer.kafka.topic_visibility import wait_until_visible
from scorer.kafka.topics import Topics, workers_group

__all__ = [
    "APPEND_TIME",
    "APPEND_TIME_WAY_OUT",
    "BATCH_BYTES_MAX",
    "DENIED",
    "METADATA_TIMEOUT_S",
    "NO_ID",
    "NO_TRACES",
    "OLDER_GENERATION",
    "TRANSIENT",
    "TRANSIENT_RETRY_S",
    "Away",
    "Broker",
    "Clients",
    "ColumnProducer",
    "Denied",
    "Fatal",
    "Fenced",
    "FlatReader",
    "Found",
    "KafkaFailure",
    "KeptCallbacks",
    "Kind",
    "LastRecord",
    "LogProducer",
    "Member",
    "NoProgress",
    "OutOfRange",
    "PlainColumns",
    "PlainReader",
    "Reader",
    "RealClients",
    "Rebuild",
    "RecordBlock",
    "SourceChanged",
    "TopicFacts",
    "Topics",
    "TransactionalProducer",
    "Unfit",
    "admin",
    "answer_of",
    "application_of",
    "client_config",
    "describe",
    "ends",
    "failure",
    "first_of_later_epochs",
    "former_transactional_id",
    "headers_of",
    "is_cut_below",
    "log_was_cut",
    "meaning",
    "member",
    "offsets",
    "partition_count",
    "partition_member",
    "plain_producer",
    "present",
    "read_failure",
    "read_range",
    "reader",
    "reported_offset",
    "stable_ends",
    "starts",
    "surfaced",
    "take",
    "timestamp_types",
    "topic_facts",
    "transactional_id",
    "transactional_producer",
    "wait_until_visible",
    "workers_group",
]
