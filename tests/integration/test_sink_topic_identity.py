"""A topic deleted and made anew under a sink's positions: a loud stop that names both ids, for every kind of sink."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry

from scorer.local_services import Services
from scorer.runtime.settings import Settings
from scorer.sink import AuditSink, RecordSink, RecordTopic, SinkError, SinkMetrics, record_sink
from scorer.sink.store import set_position
from scorer.trail import audit_database
from tests.integration.running import test_settings
from tests.integration.sinks import query, wait_for
from tests.topic_made_anew import make_anew

LABEL = b'{"type":"label","payment_id":"p_%d","fraud":true,"known_at":"2026-01-09T08:00:00Z"}'


class Place:
    def __init__(self, settings: Settings) -> None:
        self.settings, self.servers = settings, settings.kafka.bootstrap_servers
        self.admin, self.error = AdminClient({"bootstrap.servers": self.servers}), None
        self.url = settings.postgres.url.get_secret_value()

    def make(self, topic: str) -> None:
        self.admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)

    def make_anew(self, topic: str) -> None:
        make_anew(self.admin, topic, 1)

    def send(self, topic: str, count: int) -> None:
        producer = Producer({"bootstrap.servers": self.servers})
        for n in range(count):
            producer.produce(topic, LABEL % n)
        assert producer.flush(30) == 0

    def start(self, sink: AuditSink | RecordSink) -> tuple[threading.Thread, threading.Event]:
        stop, self.error = threading.Event(), None

        def run() -> None:
            try:
                sink.run(stop)
            except SinkError as error:
                self.error = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, stop

    def drain(self, sink: AuditSink | RecordSink) -> None:
        thread, stop = self.start(sink)
        wait_for(lambda: self.error is not None or sink.drained(), "the sink to drain")
        stop.set()
        thread.join(30)
        assert self.error is None

    def refused(self, sink: AuditSink | RecordSink) -> str:
        thread, stop = self.start(sink)
        thread.join(60)
        stop.set()
        assert self.error is not None
        return str(self.error)


@pytest.fixture
def place(services: Services, topics_prefix: str, database: str) -> Place:
    audit_database.migrate(database)
    return Place(test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database}))


def test_row_24_a_sinks_topic_made_anew_and_filled_past_the_position_stops_it(place: Place) -> None:
    """Nothing of the new topic is taken for what follows the old one; after the operator's word it is read on."""
    topic = f"{place.settings.kafka.topic_prefix}labels"
    place.make(topic)
    place.send(topic, 3)
    place.drain(RecordSink(place.settings, RecordTopic.LABELS, SinkMetrics(CollectorRegistry())))
    [(before,)] = query(place.url, "SELECT topic_id FROM positions")
    place.make_anew(topic)
    place.send(topic, 5)
    message = place.refused(RecordSink(place.settings, RecordTopic.LABELS, SinkMetrics(CollectorRegistry())))
    assert topic in message
    assert before in message
    assert "accept-gap" in message
    assert query(place.url, "SELECT count(*) FROM labels") == [(3,)]
    set_position(place.url, topic, 0, 5)
    place.send(topic, 2)
    place.drain(RecordSink(place.settings, RecordTopic.LABELS, SinkMetrics(CollectorRegistry())))
    assert query(place.url, "SELECT count(*) FROM labels") == [(5,)]
    [(after,)] = query(place.url, "SELECT topic_id FROM positions")
    assert after not in (None, before)


def test_row_24_a_running_sink_notices_that_its_topic_was_made_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time between two looks, and before anything of the new topic past the old position is written."""
    monkeypatch.setattr(record_sink, "_PARTITIONS_CHECK_S", 0.5)
    topic = f"{place.settings.kafka.topic_prefix}labels"
    place.make(topic)
    place.send(topic, 3)
    sink = RecordSink(place.settings, RecordTopic.LABELS, SinkMetrics(CollectorRegistry()))
    thread, stop = place.start(sink)
    wait_for(sink.drained, "the sink to drain")
    place.make_anew(topic)
    thread.join(60)
    stop.set()
    assert place.error is not None
    assert "made anew" in str(place.error)


def test_row_24_the_audit_topic_made_anew_stops_its_sink(place: Place) -> None:
    """The audit sink compares ids before it compares chains."""
    topic = f"{place.settings.kafka.topic_prefix}audit"
    place.make(topic)
    place.drain(AuditSink(place.settings))
    place.make_anew(topic)
    assert "made anew" in place.refused(AuditSink(place.settings))
