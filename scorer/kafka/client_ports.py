"""The few calls of Kafka's clients that the worker makes, as types: confluent-kafka's objects fit them as they are.

A simulation gives a Worker its own `Clients`, with a seeded broker behind them; `scorer.kafka.real_clients` gives the
real ones. What is called must stand here: mypy sees to it, and the simulation then has to offer it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, Message, TopicPartition

from schemas.byte_column import ByteColumn
from scorer.kafka.clients import BATCH_BYTES_MAX
from scorer.kafka.record_blocks import Found
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, TopicFacts
from scorer.runtime.trace_context import NO_HEADERS, HeadersOfRows

OnDelivery = Callable[[KafkaError | None, Message], None]
OnPartitions = Callable[[Any, list[TopicPartition]], None]


class Reader(Protocol):
    """A consumer for manual assignment: it joins no group and commits nothing."""

    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def poll(self, timeout: float) -> Message | None: ...
    def consume(self, num_messages: int, timeout: float) -> list[Message]: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]: ...
    def close(self) -> None: ...


class FlatReader(Protocol):
    """A consumer for manual assignment that gives columns of records instead of messages. All calls from one thread."""

    @property
    def way(self) -> str:
        """`borrowed`: by the C interface of the client library, `plain`: by its Python objects."""

    def number_header(self, topic: str, name: str) -> None:
        """From here on blocks of `topic` hold the number that the header `name` says."""

    def trace_headers(self, topic: str) -> None:
        """From here on blocks of `topic` hold the trace context that their records carry."""

    def read(self, wait_s: float, room: int) -> Found:
        """What is there, waiting at most `wait_s` for the first; about `room` records at most."""

    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]: ...
    def close(self) -> None: ...


class Member(Protocol):
    """A consumer in a group; its callbacks run within `poll` and `close`."""

    def subscribe(
        self, topics: list[str], *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions
    ) -> None: ...
    def poll(self, timeout: float) -> Message | None: ...
    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[False]) -> Any: ...
    def consumer_group_metadata(self) -> Any: ...
    def memberid(self) -> str | None: ...
    def incremental_assign(self, partitions: list[TopicPartition]) -> None: ...
    def incremental_unassign(self, partitions: list[TopicPartition]) -> None: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def close(self) -> None: ...


class LogProducer(Protocol):
    """An idempotent producer without transactions. What it has sent to a partition is at any time a beginning of what
    it was given, in that order: it never gives a message up and goes on with the next, until it is purged.

    Reports come within `poll`, on whichever thread calls it. Every call may raise KafkaException, those that produce
    BufferError too. It ends when the last reference to it is gone, as a TransactionalProducer does.
    """

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        *,
        on_delivery: OnDelivery | None = None,
        headers: Any = None,
    ) -> None: ...
    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> int: ...
    def list_topics(self, topic: str, timeout: float) -> Any: ...
    def poll(self, timeout: float) -> int: ...
    def purge(self) -> None: ...


class TransactionalProducer(LogProducer, Protocol):
    """A producer with a transactional id. Every call may raise KafkaException, those that produce BufferError too.

    It ends when the last reference to it is gone. Its own close() aborts an open transaction first, and waits without
    an end for a broker that is away. Before the reference goes: `purge` and `poll(0)`, because a record that waits
    keeps its callback, and all that the callback holds.
    """

    def init_transactions(self, timeout: float) -> None: ...
    def begin_transaction(self) -> None: ...
    def send_offsets_to_transaction(self, positions: list[TopicPartition], metadata: Any, timeout: float) -> None: ...
    def commit_transaction(self, timeout: float) -> None: ...
    def abort_transaction(self, timeout: float) -> None: ...


class ColumnProducer(Protocol):
    """Hands columns of messages to a producer, and is closed before it."""

    @property
    def way(self) -> str:
        """As of a FlatReader."""

    def know(self, topic: str, partitions: int) -> None:
        """Have the client know so many partitions of the topic, before any message goes to one of them by the
        producer's own call. Raises KafkaException where the topic has fewer, or the broker does not answer."""

    def produce(
        self,
        topic: str,
        values: ByteColumn,
        keys: ByteColumn,
        partitions: npt.NDArray[np.int32],
        headers: HeadersOfRows = NO_HEADERS,
    ) -> None:
        """One message for each value, to its partition, in their order; `headers` by row. Raises BufferError when the
        client's queue does not drain, KafkaException when the client refuses a message."""

    def close(self) -> None: ...


class Broker(Protocol):
    """Questions to the broker. Each raises KafkaFailure when it cannot be answered; Away and Denied are among these.

    `timeout_s`: of one request. The client sends some of them to one node, and learns only from the next request that
    this node is gone.
    """

    def topic_facts(self, names: Sequence[str], *, timeout_s: float = METADATA_TIMEOUT_S) -> Mapping[str, TopicFacts]:
        """Id and partition count of each topic; creates none."""

    def starts(self, partitions: list[TopicPartition]) -> list[int]:
        """Offset of the first record still there."""

    def ends(self, partitions: list[TopicPartition]) -> list[int]:
        """Offset after the last record or marker, open and aborted transactions included."""

    def record_bytes_max(self, names: Sequence[str]) -> Mapping[str, int]:
        """The largest record that each topic takes, its max.message.bytes; Kafka's default where it is not shown."""

    def obstacle(self, needed: Mapping[str, int], *, timeout_s: float = METADATA_TIMEOUT_S) -> str:
        """What settings of the topics that the worker writes to keep a transaction from being committed, for people:
        fewer replicas in sync than min.insync.replicas, a max.message.bytes below `needed` (bytes by topic). Empty when
        there is nothing, or nothing is shown."""

    def forgettable(self, names: Sequence[str]) -> str:
        """What lets the broker lose records of these topics that it has acknowledged, for people; empty when nothing is
        found."""

    def timestamp_types(self, names: Sequence[str]) -> Mapping[str, str]:
        """The message.timestamp.type of each topic that shows it: LogAppendTime or CreateTime."""

    def group_clients(self, group: str) -> Sequence[str] | None:
        """The client.id of each member of a group; None when the broker knows no such group."""

    def is_idle(self, group: str, member_id: str, *, timeout_s: float) -> bool:
        """Whether the member is in the group (of the consumer protocol), and has and gets no partition."""

    def close(self) -> None: ...


class Clients(Protocol):
    """Builds clients. Whoever asks for one ends it."""

    def reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> Reader: ...
    def flat_reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> FlatReader: ...
    def member(self, group: str) -> Member: ...
    def transactional_producer(
        self, owner: str, *, batch_bytes_max: int = BATCH_BYTES_MAX, former: bool = False
    ) -> TransactionalProducer: ...
    def log_producer(self, *, batch_bytes_max: int = BATCH_BYTES_MAX) -> LogProducer: ...
    def columns(self, producer: LogProducer) -> ColumnProducer: ...

    def connect(self, producer: LogProducer, topics: Sequence[str]) -> None:
        """Have it ask for these topics, so that it is connected and knows them when it needs them. Raises
        KafkaFailure."""

    def broker(self) -> Broker: ...

    def lacking_rights(self) -> str:
        """What the worker is not allowed to do, for people; empty when nothing is missing or the broker cannot say."""
