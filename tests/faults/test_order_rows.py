"""Order first, on real Kafka: owners that end or freeze between a batch's order and its decisions, and upgrades."""

from __future__ import annotations

import signal
from collections.abc import Callable

from confluent_kafka import TopicPartition

from schemas.order_record import ClaimRecord
from scorer import kafka
from scorer.journal.journal_reader import journal_records
from scorer.runtime.settings import PREFIX
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, pay_until_it_ends, stream
from tests.integration.running import metrics

Make = Callable[..., Application]
SWITCH = f"{PREFIX}WORKER__FAST_DECISIONS"


def test_an_owner_that_wakes_between_order_and_publication_repeats_the_same_bytes(application: Make) -> None:
    """Frozen with a durable order and nothing published, past the session timeout: the standby decides that very batch
    and goes on; awakened, the former owner publishes what stands there already, commits nothing, and ends."""
    app = application()
    frozen = app.start("a", "after_order:3:stop")
    app.ready("a")
    app.start("b")
    app.ready("b")
    stream(app, payments(41, 300))
    decided(app, 300)
    before = app.fast.fill()
    frozen.signal(signal.SIGCONT)
    app.wait(lambda: frozen.poll() is not None, 90, "the former owner to end")
    assert frozen.code not in (0, None), frozen.log_end()
    app.wait(lambda: app.fast.fill() >= before, 90, "what it repeats")
    stream(app, payments(42, 100))
    app.finish()
    app.check()


def test_a_claim_of_a_stranger_is_noticed_before_anything_is_published(application: Make) -> None:
    """Whoever claims the order log while a worker decides makes it rebuild before the next decision leaves; it claims
    the log again, and each payment has one decision."""
    app = application()
    worker = app.start("a")
    app.ready("a")
    stream(app, payments(44, 100))
    decided(app, 100)
    producer = kafka.plain_producer(app.settings.kafka)
    producer.produce(app.topics.order, ClaimRecord(shard=0, sequence=0, owner="a stranger").to_bytes(), partition=0)
    assert producer.flush(20) == 0
    stream(app, payments(45, 100))
    decided(app, 200)
    assert metrics(worker.port)['fraud_scorer_order_lost_total{shard="0"}'] == 1.0
    app.finish(supervised=False)
    app.check()


def test_an_order_log_that_is_trimmed_serves_owners_and_standbys(application: Make) -> None:
    """Gone is all that stands before the record that the journal names last, as retention by size may leave it: a
    standby takes over from an owner that was killed with a durable order, a worker starts cold, and the outcome is
    equal. One record more, and a start is refused with the topic's name."""
    app = application()
    given = payments(45, 900)
    app.start("a", "after_order:40:kill")
    app.ready("a")
    app.start("b")
    app.ready("b")
    owner = app.workers["a"]
    pay_until_it_ends(app, owner, given, 4, lambda: trim(app) if len(app.sent) == 100 else None)
    assert owner.code == -signal.SIGKILL, owner.log_end()
    del app.workers["a"]
    decided(app, len(app.sent))
    app.stop()
    del app.workers["b"]
    trim(app)
    app.start("c")
    stream(app, given)
    decided(app, 900)
    app.finish(supervised=False)
    app.check()
    del app.workers["c"]
    trim(app, beyond=1)
    refused = app.start("d")
    assert refused.wait(90) == 1, refused.log_end()
    assert f"{app.topics.order}/0: offsets" in refused.log_end()
    del app.workers["d"]


def trim(app: Application, *, beyond: int = 0) -> None:
    """Delete what stands on topic order before the record that the journal names last, and `beyond` records more."""
    records = journal_records(
        app.settings.kafka, kafka.RealClients(app.settings), 0, no_progress_s=app.settings.worker.no_progress_s
    )
    named = max(record.order for _, record in records if record.order is not None)
    client, gone = kafka.admin(app.settings.kafka), TopicPartition(app.topics.order, 0, named + beyond)
    client.delete_records([gone])[gone].result(15)
    assert kafka.starts(client, [TopicPartition(app.topics.order, 0)]) == [named + beyond]


def test_fast_decisions_are_switched_on_after_an_upgrade_and_off_again(application: Make) -> None:
    """A journal without an order log goes on with one, at the batch that follows; an owner that was killed with a
    durable order leaves it to one with fast decisions off, which decides that batch as it was ordered, and publishes
    nothing."""
    app = application(standby_shards_max=0, instance_id="a")
    given = payments(43, 900)
    app.start("a", **{SWITCH: "false"})
    app.pay(given[:200])
    del given[:200]
    app.finish()
    place = TopicPartition(app.topics.order, 0)
    assert kafka.ends(kafka.admin(app.settings.kafka), [place]) == [0]
    assert app.fast.fill() == 0

    child = app.start("a", "after_order:4:kill")
    pay_until_it_ends(app, child, given, 4)
    assert child.code == -signal.SIGKILL, child.log_end()
    assert app.fast.fill() > 0

    app.start("a", **{SWITCH: "false"})
    app.pay(given[:-100])
    decided(app, 800)
    app.stop()
    app.decisions.read_to_end()
    answered, published = len(app.decisions.messages), app.fast.fill()
    app.start("a")
    app.ready("a")
    assert metrics(app.workers["a"].port).get('fraud_scorer_fast_decisions_total{shard="0"}', 0.0) == 0.0
    app.pay(given[-100:])
    app.finish()
    app.decisions.read_to_end()
    app.fast.read_to_end()
    assert len(app.fast.messages) - published == len(app.decisions.messages) - answered > 0
    app.check(fast_whole=False)
