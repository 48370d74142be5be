"""What a reader's client meets that is no record: an error without an offset, and one that its call raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from scorer import kafka
from scorer.journal.journal_reader import JournalReader
from scorer.journal.order_reader import OrderLogReader, Settled
from scorer.journal.partition_buffers import ShardInputs
from scorer.runtime.settings import Settings, load
from tests.refusing_cluster import FIND_COORDINATOR, RefusingCluster, held_by_each_client
from tests.waits import WaitEnded

WAIT_S = 60.0
Read = Callable[[], object]


class _Clients(kafka.RealClients):
    """Each reader that is made holds a cluster, which refuses to name its group's coordinator."""

    def __init__(self, settings: Settings, access: str) -> None:
        kafka_settings = settings.kafka.model_copy(update={"record_access": access})
        super().__init__(settings.model_copy(update={"kafka": kafka_settings}))
        self._topics = kafka.Topics.of(settings.kafka)

    def prepared(self, consumer: Consumer) -> Consumer:
        cluster = RefusingCluster(consumer, self._settings.kafka.client_id)
        for topic in self._topics.all:
            cluster.create(topic)
        cluster.refuse(FIND_COORDINATOR, [KafkaError.GROUP_AUTHORIZATION_FAILED] * 100)
        return consumer

    def reader(self, *given: Any, **more: Any) -> Any:
        return self.prepared(super().reader(*given, **more))  # type: ignore[arg-type]

    def flat_reader(self, group: str, **more: Any) -> kafka.FlatReader:
        return self._access.reader(
            lambda on_error: self.prepared(
                kafka.reader(self._settings.kafka, group=group, on_error=on_error, **more)  # type: ignore[arg-type]
            )
        )


READERS = ["journal", "order log", "payments, plain", "payments, borrowed"]


@pytest.fixture(params=READERS)
def reading(request: pytest.FixtureRequest) -> Iterator[Read]:
    """One read of a reader that the product has, whose group this client may not describe."""
    settings = held_by_each_client()
    clients = _Clients(settings, "plain" if "plain" in request.param else "auto")
    match request.param:
        case "journal":
            journal = JournalReader(settings.kafka, 0, clients=clients, position=0, sequence=0, previous=None)
            with closing(journal):
                yield lambda: journal.read(0.1)
        case "order log":
            order = OrderLogReader(settings.kafka, 0, clients=clients, settled=Settled(0, 0))
            with closing(order):
                yield lambda: order.read(0.1)
        case _:
            inputs = _inputs(clients.flat_reader("g"))
            assert inputs.way == request.param.split()[-1]
            with closing(inputs):
                yield lambda: inputs.fill(0.1)


def test_a_right_that_is_missing_on_a_readers_group_is_named(reading: Read) -> None:
    """The client looks up its group's coordinator, though it joins none, and what that is refused with has no offset:
    it is a right to wait for, not the end of the process."""

    def wait() -> None:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            reading()
        raise WaitEnded(f"no refusal within {WAIT_S} s")

    with pytest.raises(kafka.Denied):
        wait()


class _Raising:
    """A client's consumer one of whose calls raises."""

    def __init__(self, call: str) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            if name == self._call:
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
            first = Message(error=KafkaError(KafkaError._TRANSPORT))  # type: ignore[arg-type]
            return {"poll": first, "consume": [], "get_watermark_offsets": (0, 0)}.get(name)

        return called


class _RaisingClients(kafka.RealClients):
    def __init__(self, settings: Settings, call: str) -> None:
        super().__init__(settings)
        self._call = call

    def reader(self, *_: Any, **__: Any) -> Any:
        return _Raising(self._call)


@pytest.mark.parametrize("call", ["assign", "poll", "consume", "get_watermark_offsets"])
def test_an_error_that_a_call_of_the_client_raises_is_one_of_ours(call: str) -> None:
    """A shard is taken up again, a standby begins anew: neither ends the process with the client's own exception."""
    settings = load()
    clients = _RaisingClients(settings, call)

    def journal() -> None:
        JournalReader(settings.kafka, 0, clients=clients, position=0, sequence=0, previous=None).read(0.0)

    def order() -> None:
        OrderLogReader(settings.kafka, 0, clients=clients, settled=Settled(0, 0)).read(0.0)

    def payments() -> None:
        inputs = _inputs(kafka.PlainReader(clients.reader("g")))
        inputs.fill(0.0)
        inputs.caught_up(inputs.buffers[0])

    def lag() -> None:
        _inputs(kafka.PlainReader(clients.reader("g"))).lag_of(0)

    for read in (lag,) if call == "get_watermark_offsets" else (journal, order, payments):
        with pytest.raises(kafka.Away):
            read()


def _inputs(reader: kafka.FlatReader) -> ShardInputs:
    return ShardInputs(
        reader, payments="payments", control="control", labels="labels", positions={0: 0}, control_position=0,
        labels_position=0, buffered_max=1024,
    )  # fmt: skip
