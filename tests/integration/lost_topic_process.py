"""Reads topics of librdkafka's mock cluster by one way while the payments topic is lost: lost_topic_process.py WAY.

A process of its own because a callback within a call of ours would abort it. Prints a line of JSON for each of LOSSES:
its name, the way, the names of the error codes that came, how ShardInputs failed first (empty: it waited), and how many
payments of partition 0 came, those after a topic was back included. Each has a cluster of its own, which runs in this
process and shows topics in any state, at once.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable

from confluent_kafka import KafkaError, Producer, TopicPartition, cimpl

from scorer import kafka
from scorer.errors import FraudScorerError
from scorer.journal.partition_buffers import ShardInputs
from scorer.kafka import borrowed_library
from scorer.kafka.record_access import RecordAccess
from scorer.kafka.record_blocks import Found
from scorer.runtime.settings import KafkaSettings, load

NAMES = ("payments", "control", "labels")
RECORDS = 10
LOST_S = 2.0  # what is waited for lasts so long at least; the client has asked twenty times by then
LOST_S_MAX = 60.0  # on a busy machine
# How long a topic must have been there to be gone for the client (30 s by default), and how often it asks (5 min).
AT_ONCE = {"topic.metadata.propagation.max.ms": 100, "topic.metadata.refresh.interval.ms": 100}


class Cluster:
    """A mock cluster of one node with the three topics, two partitions of payments."""

    def __init__(self) -> None:
        self._host = Producer({"test.mock.num.brokers": 1, "client.id": "mock"})
        self._calls = ctypes.CDLL(cimpl.__file__)
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        handle = borrowed_library.handle_of(self._host, "mock")
        self._cluster = self._function("handle_mock_cluster", pointer, pointer)(handle)
        self.servers = self._function("mock_cluster_bootstraps", text, pointer)(self._cluster).decode()
        self._create = self._function("mock_topic_create", ctypes.c_int, pointer, text, ctypes.c_int, ctypes.c_int)
        self._delete = self._function("mock_topic_delete", ctypes.c_int, pointer, text)
        self._set_error = self._function("mock_topic_set_error", None, pointer, text, ctypes.c_int)
        self.create("payments", 2)
        self.create("control", 1)
        self.create("labels", 1)

    def _function(self, name: str, result: object, *arguments: object) -> Callable[..., object]:
        function = self._calls[f"rd_kafka_{name}"]
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]

    def create(self, topic: str, partitions: int) -> None:
        assert self._create(self._cluster, topic.encode(), partitions, 1) == 0

    def delete(self, topic: str) -> None:
        assert self._delete(self._cluster, topic.encode()) == 0

    def set_error(self, topic: str, code: int) -> None:
        self._set_error(self._cluster, topic.encode(), code)

    def send(self, partition: int) -> None:
        producer = Producer({"bootstrap.servers": self.servers})
        for _ in range(RECORDS):
            producer.produce("payments", b"value", partition=partition)
        assert producer.flush(20) == 0


def _deleted(cluster: Cluster) -> None:
    cluster.delete("payments")


def _denied(cluster: Cluster) -> None:
    cluster.set_error("payments", KafkaError.TOPIC_AUTHORIZATION_FAILED)


def _fewer(cluster: Cluster) -> None:  # the client may ask between the two
    cluster.delete("payments")
    cluster.create("payments", 1)


def _unknown(cluster: Cluster) -> None:
    cluster.set_error("payments", KafkaError.UNKNOWN_TOPIC_OR_PART)


LOSSES = {"deleted": _deleted, "denied": _denied, "fewer partitions": _fewer, "unknown for a moment": _unknown}


# Codes that came, how it failed, payments of partition 0. A topic that is gone, or unknown to a node that has just
# started, is waited for: TopicWatch ends a worker where it stays so. Of one made anew with fewer partitions the
# position lies beyond the end.
EXPECTED = {
    "deleted": (["UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_PARTITION"], "", 10),
    "denied": (["TOPIC_AUTHORIZATION_FAILED"], "Denied", 20),
    "fewer partitions": (["_AUTO_OFFSET_RESET", "_UNKNOWN_PARTITION"], "MissingRange", 10),
    "unknown for a moment": (["UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_PARTITION"], "", 20),
}


class Noted:
    """A FlatReader that notes the codes of what is no record and no end."""

    def __init__(self, reader: kafka.FlatReader) -> None:
        self._reader = reader
        self.codes: set[int] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    def read(self, wait_s: float, room: int) -> Found:
        found = self._reader.read(wait_s, room)
        self.codes |= {event.error().code() for event in found.events}
        self.codes.discard(KafkaError._PARTITION_EOF)
        return found

    def names(self) -> list[str]:
        """Of the codes."""
        return sorted(KafkaError(code).name() for code in self.codes)


def read_through(way: str, loss: str) -> None:
    cluster = Cluster()
    settings: KafkaSettings = load(kafka={"bootstrap_servers": cluster.servers}).kafka
    for partition in (0, 1):
        cluster.send(partition)
    access = RecordAccess(plain=way == "plain", client_id=settings.client_id)
    reader = Noted(access.reader(lambda on_error: kafka.reader(settings, group="reader", on_error=on_error, **AT_ONCE)))
    inputs = ShardInputs(
        reader,  # type: ignore[arg-type]
        payments="payments", control="control", labels="labels",
        positions={0: 0, 1: 0}, control_position=0, labels_position=0, buffered_max=1_000,
    )  # fmt: skip
    _read(inputs, lambda: inputs.buffered == 2 * RECORDS)
    time.sleep(2 * AT_ONCE["topic.metadata.propagation.max.ms"] / 1000)
    LOSSES[loss](cluster)
    began, failed = time.monotonic(), ""
    (codes, failure, _) = EXPECTED[loss]

    def goes_on() -> bool:
        lost_s = time.monotonic() - began
        came = set(codes) <= set(reader.names()) and failed == failure
        return lost_s < (LOST_S if came else LOST_S_MAX)

    while goes_on():
        try:
            inputs.fill(0.05)
        except FraudScorerError as exc:
            failed = failed or type(exc).__name__
    if loss in ("denied", "unknown for a moment"):
        cluster.set_error("payments", KafkaError.NO_ERROR)
        cluster.send(0)
        if failed:  # as a shard does: with a reader of its own, and from its positions on
            reader.assign([TopicPartition("payments", 0, RECORDS)])  # type: ignore[operator]
        _read(inputs, lambda: len(inputs.buffers[0].records) == 2 * RECORDS)
    came = len(inputs.buffers[0].records)
    inputs.close()
    result = {"loss": loss, "way": reader.way, "codes": reader.names(), "failed": failed, "came": came}
    print(json.dumps(result), flush=True)


def _read(inputs: ShardInputs, done: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not done():
        inputs.fill(0.05)
        assert time.monotonic() < until, {p: len(b.records) for p, b in inputs.buffers.items()}


if __name__ == "__main__":
    for name in LOSSES:
        read_through(sys.argv[1], name)
