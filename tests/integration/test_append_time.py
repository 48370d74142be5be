"""Time is the broker's: no producer's clock moves stream time, and what is older than that rule is decided once."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from schemas.dead_letter import DeadLetter
from scorer import kafka
from scorer.bundle import Bundle
from scorer.local_services import Services
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX
from tests.integration.running import TopicReader, metrics, wait_for
from tests.integration.test_broker_changes import PARTITIONS, Application, ids

YEAR_MS = 365 * 86_400_000


@pytest.fixture
def app(services: Services, topics_prefix: str, database: str, bundle: Path, tmp_path: Path) -> Application:
    made = Application(services, topics_prefix, database, bundle, tmp_path)
    made.more[f"{PREFIX}TOPICS__PAYMENTS_PARTITIONS"] = str(PARTITIONS)
    return made


def set_timestamps(app: Application, topic: str, kind: str) -> None:
    """What a topic of an earlier release has: producers' timestamps, with no bound."""
    entries = []
    for name, value in (("message.timestamp.type", kind), ("message.timestamp.after.max.ms", str(2**63 - 1))):
        entries.append(ConfigEntry(name, value))
        entries[-1].incremental_operation = AlterConfigOpType.SET
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for future in app.admin.incremental_alter_configs([resource]).values():
        future.result(30)


def send(app: Application, name: str, event_time_ms: int, timestamp_ms: int = 0, partition: int = 0) -> int:
    """One payment; `timestamp_ms`: what its producer's clock says, 0 for now. Gives whose timestamp it was given."""
    given: list[int] = []
    payment = {
        "payment_id": name, "event_time": event_time_ms, "amount_minor": 100, "currency": "EUR",
        "customer_id": "c1", "terminal_id": "t1",
    }  # fmt: skip
    producer = kafka.plain_producer(app.settings.kafka)
    producer.produce(
        app.topics.payments, json.dumps(payment).encode(), partition=partition, timestamp=timestamp_ms,
        on_delivery=lambda error, message: given.append(message.timestamp()[0] if error is None else -1),
    )  # fmt: skip
    assert producer.flush(30) == 0
    return given[0]


def modes(app: Application) -> dict[str, str]:
    app.decisions.fill()
    return {decision["payment_id"]: decision["mode"] for decision in app.decisions.json()}


def letters(app: Application) -> list[tuple[str, bytes]]:
    reader = TopicReader(app.settings, app.topics.dead_letters)
    wait_for(lambda: reader.fill() > 0, 30, "a dead letter")
    reader.fill()
    reader.close()
    return [(DeadLetter.from_headers(m.headers()).reason.value, m.value()) for m in reader.messages]


def now_ms() -> int:
    return int(time.time() * 1000)


AHEAD = ("ahead", "forged", "meanwhile")  # refused, and answered so


def test_a_producer_with_a_wrong_clock_makes_no_other_payment_late(app: Application) -> None:
    """A payment dated years ahead by its event time and its producer's timestamp is a dead letter, and the payments
    after it are decided as if it had not come."""
    with app.worker() as worker:
        app.send(ids("before", 10))
        app.wait_decided(ids("before", 10))
        send(app, "ahead", now_ms() + 30 * YEAR_MS, now_ms() + 30 * YEAR_MS)
        send(app, "behind", now_ms(), 1_000)
        app.send(ids("after", 20))
        app.wait_decided([*ids("after", 20), "behind"])
        stream_s = metrics(worker.port)['fraud_scorer_stream_time_seconds{shard="0"}']
    assert {mode for name, mode in modes(app).items() if not name.startswith(AHEAD)} == {"normal"}
    assert abs(stream_s - time.time()) < 60
    ((reason, value),) = letters(app)
    assert (reason, json.loads(value)["payment_id"]) == ("event_time_in_future", "ahead")


def test_topics_of_an_earlier_release_are_refused_then_migrated_with_what_they_hold(app: Application) -> None:
    """Worker and setup refuse CreateTime and name the command; after it, records from before are decided once, one with
    a forged timestamp moves nothing, and recovery and replay give every digest again."""
    set_timestamps(app, app.topics.payments, "CreateTime")
    app.send(ids("old", 12))
    send(app, "forged", now_ms() + 30 * YEAR_MS, now_ms() + 30 * YEAR_MS)
    for refused in (app.command("run", "--bundle", str(app.bundle)), app.command("setup", "--topics-only")):
        assert refused.returncode != 0
        assert "message.timestamp.type=CreateTime" in refused.stderr
        assert "setup --append-time" in refused.stderr
    migrated = app.command("setup", "--topics-only", "--append-time")
    assert migrated.returncode == 0, migrated.stderr
    app.send(ids("new", 12))
    with app.worker():
        app.wait_decided(ids("old", 12) + ids("new", 12))
    with app.worker():  # the journal's batches are read again with the bound that it names
        app.send(ids("later", 5))
        app.wait_decided(ids("later", 5))
    assert {mode for name, mode in modes(app).items() if not name.startswith(AHEAD)} == {"normal"}
    assert sorted(app.decided()) == sorted(ids("old", 12) + ids("new", 12) + ids("later", 5) + ["forged"])
    ((reason, value),) = letters(app)
    assert (reason, json.loads(value)["payment_id"]) == ("event_time_in_future", "forged")
    report = replay_topic(Bundle.load(app.bundle), app.settings, app.folder / "replay.parquet")
    assert (report.decisions, report.dead_letters) == (30, 1)  # the forged one is answered, too


def test_a_topic_that_is_altered_under_the_worker_stops_it_loudly(app: Application) -> None:
    """With CreateTime set while it runs, the worker ends with an error before it decides a payment with a producer's
    timestamp, and stays refused; after `setup --append-time` every payment is decided, once."""
    with app.worker() as worker:
        app.send(ids("first", 10))
        app.wait_decided(ids("first", 10))
        set_timestamps(app, app.topics.payments, "CreateTime")
        topic = app.topics.payments
        with closing(kafka.RealClients(app.settings).broker()) as broker:
            wait_for(lambda: broker.timestamp_types([topic]) == {topic: "CreateTime"}, 60, "the broker to show it")
        meanwhile: list[str] = []

        def is_applied() -> bool:  # a moment after it is shown
            meanwhile.append(f"meanwhile-{len(meanwhile)}")
            ahead_ms = now_ms() + 2 * YEAR_MS
            return send(app, meanwhile[-1], ahead_ms, ahead_ms) == TIMESTAMP_CREATE_TIME

        wait_for(is_applied, 60, "a payment with its producer's timestamp")
        app.send(ids("second", 10))
        assert worker.wait(60) == 1
    last = app.log.read_text()[-3000:]
    assert "CreateTime" in last
    assert "setup --append-time" in last
    assert not {*ids("second", 10), meanwhile[-1]} & set(modes(app))
    assert app.command("run", "--bundle", str(app.bundle)).returncode != 0
    assert app.command("setup", "--topics-only", "--append-time").returncode == 0
    with app.worker():
        app.wait_decided([*ids("second", 10), *meanwhile])
    assert {mode for name, mode in modes(app).items() if not name.startswith(AHEAD)} == {"normal"}
    assert sorted(app.decided()) == sorted(ids("first", 10) + ids("second", 10) + meanwhile)


@pytest.mark.parametrize("topic", ["control", "labels"])
def test_the_other_inputs_must_have_the_brokers_time_too(app: Application, topic: str) -> None:
    """Control and labels are refused likewise, by name."""
    name: Any = getattr(app.topics, topic)
    set_timestamps(app, name, "CreateTime")
    refused = app.command("run", "--bundle", str(app.bundle))
    assert refused.returncode != 0
    assert f"{name} has message.timestamp.type=CreateTime" in refused.stderr
