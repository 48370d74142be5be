"""Labels have a topic of their own: who may send them may send nothing else, and those of before are not lost."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from schemas.dead_letter import DeadLetter
from schemas.journal_record import JournalRecord, Sources
from scorer import kafka
from scorer.bundle import Bundle
from scorer.journal.partition_buffers import ShardInputs
from scorer.local_services import Services
from scorer.pipeline import Pipeline
from scorer.replay import replay_topic
from scorer.worker.ports import Ports
from scorer.worker.publisher import Publisher
from tests.integration.running import TopicReader, metrics, process, wait_for
from tests.integration.test_broker_changes import Application, ids


@pytest.fixture
def app(services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path) -> Application:
    return Application(services, topics_prefix, database, bundle, tmp_path)


def label(payment_id: str) -> bytes:
    known_at = int(time.time() * 1000) - 600_000  # stream time is past it
    return json.dumps({"type": "label", "payment_id": payment_id, "fraud": True, "known_at": known_at}).encode()


def send(app: Application, topic: str, *values: bytes) -> None:
    producer = kafka.plain_producer(app.settings.kafka)
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def stored(app: Application, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(app.settings.postgres_url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def applied(port: int) -> float:
    return metrics(port).get('fraud_scorer_labels_applied_total{shard="0"}', 0.0)


def tick(app: Application, port: int, name: str, count: int) -> list[str]:
    """Send payments until so many labels are in the windows, which a label that was read reaches with the next payment;
    gives the payments' ids."""
    sent: list[str] = []

    def are_applied() -> bool:
        sent.append(f"{name}-{len(sent)}")
        app.send(sent[-1:])
        app.wait_decided(sent[-1:])
        time.sleep(0.2)  # counted a moment after the decision can be read
        return applied(port) == count

    wait_for(are_applied, 60, f"{count} labels in the windows")
    return sent


def test_a_label_source_can_change_no_list_and_choose_no_bundle(app: Application) -> None:
    """Labels reach windows and table; what else stands on their topic is a dead letter that says where it belongs, the
    same after a restart; labels sent to the control topic as before count as well."""
    activation = {"type": "activate", "bundle": "another", "location": str(app.folder / "another")}
    change = {"type": "list_add", "list": "blocked", "value": "t1"}
    app.send(ids("first", 20))
    with app.worker() as worker, process("sink", [], app.settings, app.folder / "sink.log"):
        app.wait_decided(ids("first", 20))
        send(app, app.topics.labels, label("first-1"), json.dumps(activation).encode(), json.dumps(change).encode())
        send(app, app.topics.control, label("first-2"))
        letters = TopicReader(app.settings, app.topics.dead_letters)
        wait_for(lambda: letters.fill() == 2, 30, "the dead letters")
        letters.close()
        ticks = tick(app, worker.port, "tick", 2)
        wait_for(lambda: len(stored(app, "SELECT 1 FROM labels")) == 2, 30, "the labels in their table")
        wait_for(lambda: len(stored(app, "SELECT 1 FROM dead_letters")) == 2, 30, "the dead letters in theirs")
        verified = app.command("audit", "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    origins = [DeadLetter.from_headers(message.headers()) for message in letters.messages]
    assert {(o.topic, o.reason.value) for o in origins} == {(app.topics.labels, "not_a_label")}
    assert "bundle.refused" not in app.log.read_text()
    assert stored(app, "SELECT 1 FROM activations UNION ALL SELECT 1 FROM control_changes") == []
    topics = (app.topics.control, app.topics.labels)
    assert sorted(stored(app, "SELECT topic, payment_id FROM labels")) == [
        *zip(topics, ("first-2", "first-1"), strict=True)
    ]
    with app.worker():
        app.send(ids("second", 5))
        app.wait_decided(ids("second", 5))
    report = replay_topic(Bundle.load(app.bundle), app.settings, None)
    assert (report.decisions, report.labels_invalid) == (25 + len(ticks), 2)


def test_a_journal_from_before_labels_had_a_topic_is_gone_on_with(app: Application) -> None:
    """After an upgrade the old batches are decided again, label on control included, each digest checked; labels are
    then read from the first on their topic, and replay and recovery go over the border."""
    app.send(ids("old", 10), partitions=1)  # all on partition 0
    send(app, app.topics.control, label("old-1"))
    written = as_the_release_before(app)
    assert b"labels" not in written.to_bytes()  # neither the topic's range nor labels_by
    send(app, app.topics.labels, label("old-2"))
    ticks: list[str] = []
    for name in ("new", "later"):
        with app.worker() as worker:
            app.send(ids(name, 10))
            app.wait_decided(ids(name, 10))
            ticks += tick(app, worker.port, f"{name}-tick", 2)
    every = [*ids("old", 10), *ids("new", 10), *ids("later", 10), *ticks]
    assert sorted(app.decided()) == sorted(every)
    assert replay_topic(Bundle.load(app.bundle), app.settings, None).decisions == 30 + len(ticks)
    shown = app.command("recover", "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr


def as_the_release_before(app: Application) -> JournalRecord:
    """The ten payments and the control topic's record, decided and committed with no word of labels."""
    ports = Ports.real(app.settings)
    inputs = ShardInputs(
        ports.clients.flat_reader("test-reader"),
        payments=app.topics.payments,
        control=app.topics.control,
        labels=app.topics.labels,
        positions={0: 0, 1: 0},
        control_position=0,
        labels_position=0,
        buffered_max=4096,
        fresh=True,
    )
    wait_for(lambda: inputs.fill(0.1) < 0 or (inputs.buffered == 10 and len(inputs.control.records) == 1), 30, "them")
    batch = inputs.batch({0: 10}, 1, 0)
    inputs.close()
    facts = kafka.topic_facts(app.admin, app.topics.all)
    sources = Sources(payments=facts[app.topics.payments].id, control=facts[app.topics.control].id)
    producer = ports.clients.transactional_producer("shard-0")
    producer.init_transactions(30)
    publisher = Publisher(producer, app.topics, ports.threads, shard=0, group_metadata=lambda: None)
    pipeline = Pipeline(Bundle.load(app.bundle))
    outcomes = pipeline.run(replace(batch, labels_range=None, sources=sources, labels_by_arrival=True))
    publisher.wait(publisher.submit(outcomes))
    publisher.close()
    pipeline.close()
    return outcomes.journal
