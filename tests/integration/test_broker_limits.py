"""FAULTS.md, rows 27-29: what topics do not take, two deployments on the same topics, and work before `setup`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from schemas.dead_letter import KEY_BYTES_MAX, DeadLetter
from schemas.label_record import Label
from scorer import kafka
from scorer.bundle import Bundle
from scorer.cli.label_commands import _send as send_labels
from scorer.operate.activation import new_activation
from scorer.operate.dead_letters import Filter, redrive
from scorer.operate.loss_acceptance import Recovery
from scorer.operate.record_sender import Sender
from scorer.operate.setup import create_topics
from scorer.replay import replay_topic
from scorer.runtime.settings import PREFIX, load
from tests.faults.broker import OwnBroker
from tests.faults.nursery import Child, Nursery
from tests.faults.payments import make_bundle, payments
from tests.faults.run import Application
from tests.integration.running import metrics, readiness

Make = Callable[..., Application]
# Longer than the usual 10 s: a machine that is too busy to commit in time would count a rebuild more.
PATIENT = {"transaction_timeout_ms": 60_000}
WAIT_S = 90.0


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    """One that makes the topics that it is asked for."""
    with OwnBroker({"auto.create.topics.enable": "true"}) as running:
        yield running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "faults")


@pytest.fixture(scope="module")
def nursery(bundle: Path) -> Iterator[Nursery]:
    with Nursery(bundle) as running:
        yield running


@pytest.fixture
def application(broker: OwnBroker, nursery: Nursery, bundle: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[Application] = []

    def make(**settings: Any) -> Application:
        made.append(Application(broker, nursery, tmp_path, bundle, standby_shards_max=0, **settings))
        return made[-1]

    yield make
    try:
        for app in made:
            app.check_answers()
    finally:
        for app in made:
            app.close()


def set_limit(app: Application, topic: str, size: int) -> None:
    """Give a topic its max.message.bytes."""
    resource = ConfigResource(
        ResourceType.TOPIC,
        topic,
        incremental_configs=[ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)],
    )
    client = kafka.admin(app.settings.kafka)  # its futures end with it
    client.incremental_alter_configs([resource])[resource].result(15)


def rebuilds(child: Child) -> float:
    return sum(value for name, value in metrics(child.port).items() if name.startswith("fraud_scorer_rebuilds_total"))


def test_a_record_that_no_decision_could_carry_is_a_dead_letter(application: Make) -> None:
    """A key as long as a record may be, a value of a megabyte, headers of 900 KB: each is decided or a dead letter, the
    payments behind them are decided, and a worker that starts anew decides the same."""
    app = application(**PATIENT)
    app.start("a")
    app.ready("a")
    app._producer = kafka.plain_producer(app.settings.kafka, **{"message.max.bytes": 1_100_000})
    given = payments(70, 60)
    large = [
        (b"k" * 1_020_000, given[0][1]),
        (given[0][0], b'{"' + b"x" * 1_000_000),
        (b"k" * KEY_BYTES_MAX, given[1][1]),
    ]
    app.pay([*given[:20], *large, *given[20:40]])
    app._producer.produce(app.topics.payments, given[40][1], key=given[40][0], headers=[("h", b"x" * 900_000)])
    app.sent.append(given[40])
    app.wait(lambda: app.flushed() and app.decided() >= len(app.sent), WAIT_S, "all to be decided")
    assert rebuilds(app.workers["a"]) == 0
    app.finish()
    app.start("a")
    app.ready("a")  # its journal decided again, each digest equal
    app.pay(given[41:])
    app.finish()
    app.check()
    letters = {m.offset(): (m, DeadLetter.from_headers(m.headers())) for m in app.dead_letters.messages}
    found = {about.reason.value: message for message, about in letters.values()}
    assert len(found["key_too_large"].key()) == KEY_BYTES_MAX
    assert "too_large" in found


def test_batches_are_split_for_topics_with_a_small_limit(application: Make) -> None:
    """Audit, decisions, journal and dead letters of 20 kB a record at most: large batches are committed all the same,
    at the first try, and verify."""
    app = application(batch_payments_max=2048, **PATIENT)
    for topic in (app.topics.audit, app.topics.decisions, app.topics.journal, app.topics.dead_letters):
        set_limit(app, topic, 20_000)
    app.pay(payments(71, 1500))
    app.wait(app.flushed, WAIT_S, "the payments to reach Kafka")
    worker = app.start("a")
    app.wait(lambda: app.decided() >= len(app.sent), WAIT_S, "all to be decided")
    assert rebuilds(worker) == 0
    app.finish()
    app.check()


def test_recover_splits_what_it_settles_for_topics_with_a_small_limit(application: Make, bundle: Path) -> None:
    """An owner is killed when a large batch is answered and not committed. `recover` commits it before it accepts
    anything, in records as small as the topics take them."""
    app = application(batch_payments_max=2048, session_timeout_ms=6_000, transaction_timeout_ms=10_000)
    app.pay(payments(73, 1500))
    app.wait(app.flushed, WAIT_S, "the payments to reach Kafka")
    child = app.start("a", "before_commit:1:kill")
    app.wait(lambda: child.poll() is not None, WAIT_S, "the owner to end")
    del app.workers["a"]
    for topic in (app.topics.audit, app.topics.decisions, app.topics.journal, app.topics.dead_letters):
        set_limit(app, topic, 20_000)
    assert Recovery(app.settings, 0).adopt_partitions(Bundle.load(bundle), "nothing was added") is None
    app.decisions.read_to_end()
    assert len(app.decisions.messages) > 100
    app.start("a")
    app.finish()
    app.check()


@pytest.mark.parametrize(
    ("topic", "limit"),
    [
        ("audit", 700),
        ("journal", 300),
        ("decisions", 150),
        ("dead_letters", 300),
        ("order", 200),
        ("decisions_fast", 150),
    ],
)
def test_a_limit_that_nothing_fits_is_named_and_waited_for(application: Make, topic: str, limit: int) -> None:
    """Lowered while the worker runs: not ready, with topic and setting named; raised again, it goes on by itself."""
    app = application()
    worker = app.start("a")
    app.ready("a")
    app.pay(payments(72, 50))
    app.wait(lambda: app.decided() >= 50, WAIT_S, "the first to be decided")
    name = getattr(app.topics, topic)
    set_limit(app, name, limit)
    app.pay([*payments(73, 50), (b"k", b"no JSON " * 200)])

    def is_named() -> bool:
        shown = readiness(worker.port)
        return f"topic {name}: a record of" in shown and "its max.message.bytes is" in shown

    app.wait(is_named, WAIT_S, "topic and setting to be named")
    set_limit(app, name, 1_048_588)
    app.wait(lambda: app.decided() >= len(app.sent), WAIT_S, "all to be decided")
    app.ready("a")
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()


def test_a_second_application_on_the_same_topics_is_refused(application: Make) -> None:
    """Another application name ends with 2 and names the one that is there, which goes on; each payment has one
    decision, and after a restart the journal still fits."""
    app = application(**PATIENT)
    first = app.start("a")
    app.ready("a")
    given = payments(74, 240)
    app.pay(given[:120])
    second = app.start("b", **{f"{PREFIX}WORKER__APPLICATION": "another"})
    app.pay(given[120:200])
    assert second.wait(40) == 2, second.log_end()
    assert "workers of the application fraud-scorer decide these payments already" in second.log_end()
    del app.workers["b"]
    app.wait(lambda: app.decided() >= 200, WAIT_S, "all to be decided")
    assert first.poll() is None
    assert rebuilds(first) == 0
    app.finish()
    app.start("a")
    app.pay(given[200:])
    app.finish()
    app.check()


def test_workers_of_a_release_before_are_waited_for(application: Make) -> None:
    """While a member of the former group is there, a worker stands by, ready; when it has left, what it left open is
    settled and the worker decides."""
    app = application(no_progress_s=20.0, transaction_timeout_ms=60_000)
    former = Consumer(
        {
            "bootstrap.servers": app.settings.kafka.bootstrap_servers,
            "group.id": f"{app.settings.kafka.topic_prefix}fraud-scorer",
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    former.subscribe([app.topics.journal])
    producer = kafka.transactional_producer(app.settings, "shard-0", former=True)
    producer.init_transactions(15)
    producer.begin_transaction()
    producer.produce(app.topics.journal, b"of a batch that was never committed", partition=0)
    producer.flush(10)
    app.wait(lambda: (former.poll(0.1), former.assignment())[1], WAIT_S, "the former member to be given the shard")
    worker = app.start("a")
    app.pay(payments(75, 50))
    app.wait(lambda: (former.poll(0.05), "standing by" in worker.log_end())[1], WAIT_S, "the worker to stand by")
    app.ready("a")
    for _ in range(20):
        former.poll(0.1)
    assert app.decided() == 0
    former.close()
    app.wait(lambda: app.decided() >= 50, WAIT_S, "the payments to be decided")
    app.finish()
    app.check()


def test_nothing_is_created_by_asking_for_it(broker: OwnBroker, nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """Before `setup`, on a broker that makes topics by itself: whatever is started names `setup`, and no topic is
    there afterwards."""
    settings = load(kafka={"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": "before-setup-"})
    monkey = {
        f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        f"{PREFIX}KAFKA__TOPIC_PREFIX": "before-setup-",
    }
    label = Label(payment_id="p_1", fraud=True, known_at="2026-01-01T00:00:00Z")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in monkey.items():
            patch.setenv(name, value)
        attempts: list[Callable[[], Any]] = [
            lambda: Sender(settings),
            lambda: redrive(settings, Filter(), dry_run=False),
            lambda: new_activation(settings, "faults-1", "/bundles/faults", None),
            lambda: send_labels([label], lambda _count: None),
            lambda: replay_topic(Bundle.load(bundle), settings, None),
        ]
        for attempt in attempts:
            with pytest.raises(kafka.KafkaFailure, match="does not exist; run `fraud-scorer setup` first"):
                attempt()
    log = tmp_path / "worker.log"
    log.touch()
    child = nursery.start({**monkey, f"{PREFIX}HTTP__WORKER_PORT": "0", "HOME": str(tmp_path)}, 0, log)
    assert child.wait(60) == 1, child.log_end()
    assert "run `fraud-scorer setup` first" in child.log_end()
    time.sleep(0.5)
    there = kafka.admin(settings.kafka).list_topics(timeout=10).topics
    assert [name for name in there if name.startswith("before-setup-")] == []


def test_dead_letters_may_have_any_number_of_partitions(broker: OwnBroker) -> None:
    """A dead-letters topic that exists keeps its partitions, whatever the payments topic has."""
    prefix = "letters-"
    settings = load(kafka={"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": prefix})
    few = load(
        kafka={"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": prefix}, topics={"payments_partitions": 3}
    )
    client = kafka.admin(settings.kafka)
    create_topics(few)
    gone = [f"{prefix}{name}" for name in ("payments", "decisions", "decisions-fast")]
    client.delete_topics(gone)
    for future in client.delete_topics(gone).values():
        future.exception(15)
    deadline = time.monotonic() + 15
    while not client.list_topics(timeout=5).topics.keys().isdisjoint(gone):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    create_topics(settings)
    assert kafka.partition_count(client, f"{prefix}dead-letters") == 3
