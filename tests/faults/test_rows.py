"""FAULTS.md row by row, on real Kafka: what must hold of each named case. Postgres (14, 15), malformed
input (16, 17), bundles (19, 20) and catching up (23) have tests of their own in tests/integration and tests/unit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from confluent_kafka import Producer, TopicPartition

from scorer import kafka
from tests.faults.broker import OwnBroker
from tests.faults.nursery import CLOCK_AHEAD, Child
from tests.faults.payments import Payment, payments
from tests.faults.run import SESSION_MS, Application, was_replaced
from tests.integration.running import metrics
from tests.record_ways import BOTH_WAYS
from tests.topic_made_anew import grow

Make = Callable[..., Application]
# As many commits as batches, so that a busy machine has as many of them as a quiet one.
EACH_BATCH = {"transaction_batches_max": 1}


def stream(app: Application, given: list[Payment], *, rate: float = 500.0, until: Callable[[], object] = bool) -> None:
    """Send `given` at a rate under the supervisor; then wait for `until`, if it is given."""
    started, sent = time.monotonic(), 0
    while sent < len(given):
        count = min(len(given), int((time.monotonic() - started) * rate)) - sent
        app.pay(given[sent : sent + count])
        sent += count
        app.decided()
        app.supervise()
        time.sleep(0.01)
    if until is not bool:
        app.wait(until, 60, "what the test waits for", supervised=True)


def decided(app: Application, count: int) -> None:
    app.wait(lambda: app.decided() >= count, 120, f"{count} decisions")


def pay_until_it_ends(
    app: Application, worker: Child, given: list[Payment], size: int, each: Callable[[], object] = bool
) -> None:
    """Take portions from the front of `given` until the worker ends, each sent once the one before is decided: however
    long the worker takes, a portion is a batch of its own. `each` is called after each portion."""

    def has_ended() -> bool:
        if worker.poll() is None and app.decided() >= len(app.sent):
            assert given, f"the payments are used up, and the worker goes on\n{worker.log_end()}"
            app.pay(given[:size])
            del given[:size]
            each()
        return worker.poll() is not None

    app.wait(has_ended, 180, "the worker to end")


@BOTH_WAYS
def test_row_1_killed_at_each_named_step_and_terminated_in_the_middle(application: Make) -> None:
    """SIGKILL after consuming, while the order is appended, after computing, before and after decisions leave, inside
    the transaction, before and after the commit, and in recovery: the outcome is equal. SIGTERM in the middle of a
    batch: drained, exit 0."""
    # Static membership: a restart has its shard again at once, not when the killed one's session ends.
    app = application(standby_shards_max=0, instance_id="a")
    points = [
        "after_consume", "in_order", "after_compute", "after_order", "after_publish", "in_transaction", "before_commit",
        "after_commit", "in_recovery",
    ]  # fmt: skip
    given = payments(1, 2_400)
    for point in points:
        child = app.start("a", f"{point}:2:kill")
        pay_until_it_ends(app, child, given, 4)
        assert child.code == -signal.SIGKILL, (point, child.log_end())
    child = app.start("a", "after_compute:5:term")
    stream_without_supervisor(app, given[:300], child.poll)
    del given[:300]
    assert child.wait(60) == 0, child.log_end()
    app.start("a")
    app.pay(given)
    app.finish()
    app.check()


def stream_without_supervisor(app: Application, given: list[Payment], ended: Callable[[], object]) -> None:
    while given and ended() is None:
        app.pay(given[:15])
        del given[:15]
        time.sleep(0.05)
    app.pay(given)
    app.wait(lambda: ended() is not None, 90, "the worker to end")


@BOTH_WAYS
def test_row_2_a_commit_that_times_out_rebuilds_and_tears_nothing(application: Make) -> None:
    """Done or not: after a commit that timed out producer and state are rebuilt, counted, and all is equal."""
    # Longer than the usual 10 s: a machine that is too busy to commit in time would count a rebuild more.
    app = application(**EACH_BATCH, transaction_timeout_ms=60_000)
    app.start("a", "before_commit:4:timeout,after_commit:8:timeout")
    app.ready("a")
    stream(app, payments(2, 500))
    decided(app, 500)

    def rebuilds() -> dict[str, float]:
        counted = metrics(app.workers["a"].port)
        return {name: value for name, value in counted.items() if name.startswith("fraud_scorer_rebuilds_total")}

    # The last payment may be decided before its commit is found to have timed out.
    app.wait(lambda: sum(rebuilds().values()) >= 2, 60, "two rebuilds to be counted")
    assert sum(rebuilds().values()) == 2, rebuilds()
    app.finish()
    app.check()


def test_row_10_a_call_that_never_comes_back_is_given_up(application: Make) -> None:
    """The client can hang in a call beyond the timeout that it was given (librdkafka#5456): the call is given up with
    its producer, the shard is rebuilt in the same process, and all is equal. SIGTERM ends it with 0 all the same."""
    app = application(standby_shards_max=0, **EACH_BATCH)
    worker = app.start("a", "in_offsets:4:sleep=600")
    app.ready("a")
    stream(app, payments(24, 300))
    decided(app, 300)
    assert "has not come back" in worker.log.read_text(), worker.log_end()
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    assert worker.code == 0, worker.log_end()
    app.check()


@BOTH_WAYS
def test_rows_3_and_8_a_frozen_owner_with_an_open_transaction_is_replaced_and_fenced(application: Make) -> None:
    """Frozen before its commit, past the session timeout: the standby settles the open transaction and goes on;
    awakened, the former owner is fenced and exits non-zero; all is equal."""
    app = application(**EACH_BATCH)
    frozen = app.start("a", "before_commit:3:stop")
    app.ready("a")
    app.start("b")
    app.ready("b")
    given = payments(3, 600)
    stream(app, given[:300])
    decided(app, 300)  # the standby has them all, the open transaction of the former owner notwithstanding
    frozen.signal(signal.SIGCONT)
    assert frozen.wait(60) == 1, frozen.log_end()
    assert was_replaced(frozen.log_end()), frozen.log_end()
    del app.workers["a"]
    stream(app, given[300:])
    app.finish(supervised=False)
    app.check()


def test_rows_4_and_22_workers_join_and_leave_whatever_their_clocks_say(application: Make) -> None:
    """Two shards move between workers that come and go in the middle of batches, one of them with a clock that is an
    hour ahead: no gap, no duplicate, and event time rules."""
    app = application(partitions=4, shards=2)
    given = payments(4, 1_200)
    app.start("a")
    app.ready("a")
    stream(app, given[:400])
    app.start("b", **{CLOCK_AHEAD: "3600"})
    stream(app, given[400:800])
    app.kill("a", signal.SIGTERM)
    assert app.workers.pop("a").wait(60) == 0
    stream(app, given[800:])
    app.finish(supervised=False)
    app.check()


def test_row_6_two_workers_with_one_static_member_id(application: Make) -> None:
    """The one that is put out exits loudly and names the id; the other decides everything."""
    app = application(instance_id="blue-1")
    first = app.start("a")
    app.ready("a")
    given = payments(6, 400)
    stream(app, given[:200])
    app.start("b")
    assert first.wait(60) == 1, first.log_end()
    assert "blue-1" in first.log_end()
    del app.workers["a"]
    stream(app, given[200:])
    app.finish(supervised=False)
    app.check()


def test_row_7_handed_over_while_still_recovering(application: Make) -> None:
    """A worker that is asked to go while it recovers goes at once; the next one recovers, and all is equal."""
    app = application(standby_shards_max=0, batch_payments_max=16, instance_id="a")
    app.start("a")
    app.ready("a")
    given = payments(7, 600)
    stream(app, given[:400])
    decided(app, 400)
    app.kill("a")
    app.workers.pop("a").wait(90)
    slow = app.start("b", "in_recovery:3:sleep=2")
    app.wait(lambda: "shard.assigned" in slow.log_end(), 90, "the shard to be assigned")
    time.sleep(1.0)
    app.kill("b", signal.SIGTERM)
    assert slow.wait(90) == 0, slow.log_end()
    app.start("b")
    stream(app, given[400:])
    app.finish()
    app.check()


def test_row_9_the_journals_start_is_gone(application: Make) -> None:
    """A worker does not start on half a journal: it names the missing batches and what can be done."""
    app = application(standby_shards_max=0)
    app.start("a")
    app.ready("a")
    stream(app, payments(9, 300))
    decided(app, 300)
    app.finish()
    client = kafka.admin(app.settings.kafka)
    journal = TopicPartition(app.topics.journal, 0)
    gone = TopicPartition(app.topics.journal, 0, kafka.ends(client, [journal])[0] // 2)
    client.delete_records([gone])[gone].result(15)
    child = app.start("a")
    assert child.wait(90) == 1, child.log_end()
    assert "batches 0 to" in child.log_end()
    assert "are gone" in child.log_end()


def test_row_10_a_hanging_transaction_stops_recovery_loudly(application: Make) -> None:
    """Recovery that makes no progress ends with the offset it could not reach, after its deadline."""
    app = application(no_progress_s=2.0, standby_shards_max=0)
    app.start("a")
    app.ready("a")
    app.pay(payments(10, 50))
    app.finish()
    hanging = Producer(
        {
            "bootstrap.servers": app.settings.kafka.bootstrap_servers,
            "transactional.id": f"{app.topics.journal}-stranger",
        }
    )
    hanging.init_transactions(15)
    hanging.begin_transaction()
    hanging.produce(app.topics.journal, b"x", partition=0)
    hanging.flush(10)
    child = app.start("a")
    assert child.wait(90) == 1, child.log_end()
    assert "no progress towards offset" in child.log_end()
    hanging.abort_transaction(15)
    app.start("a")
    app.pay(payments(11, 50))
    app.finish()


def test_row_11_payments_that_are_gone_before_they_were_decided(application: Make) -> None:
    """A position below the input's start is refused, with the offsets; so is a changed number of partitions."""
    app = application(standby_shards_max=0)
    app.start("a")
    app.ready("a")
    app.pay(payments(12, 50))
    app.finish()
    client = kafka.admin(app.settings.kafka)
    app.pay(payments(13, 50))
    app.wait(lambda: kafka.ends(client, [TopicPartition(app.topics.payments, 0)])[0] >= 100, 90, "the payments")
    gone = TopicPartition(app.topics.payments, 0, 70)
    client.delete_records([gone])[gone].result(15)
    child = app.start("a")
    assert child.wait(90) == 1, child.log_end()
    assert "are gone" in child.log_end()

    grow(app.settings.kafka, app.topics.payments, 3)
    child = app.start("a")
    assert child.wait(90) != 0, child.log_end()
    assert "partitions" in child.log_end()


def test_row_13_the_broker_is_killed_and_comes_back(application: Make, broker: OwnBroker) -> None:
    """While the broker is away the worker waits and is not ready; then it goes on by itself, and all is equal."""
    app = application()
    worker = app.start("a")
    app.ready("a")
    given = payments(14, 800)
    stream(app, given[:300])
    broker.kill()
    app.pay(given[300:500])
    time.sleep(2.0)
    broker.start()
    stream(app, given[500:])
    decided(app, 800)
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()


def test_row_13_the_network_hangs_and_is_cut(application: Make, broker: OwnBroker) -> None:
    """Half-open connections, then refused ones, then slow ones: nothing is lost, nothing comes twice."""
    app = application()
    app.start("a")
    app.ready("a")
    given = payments(15, 900)
    stream(app, given[:300])
    broker.proxy.hang()
    stream(app, given[300:600])
    time.sleep(SESSION_MS / 1000)  # the session ends while nothing is heard
    broker.proxy.cut()
    time.sleep(0.5)
    broker.proxy.heal()
    broker.proxy.delay_s = 0.02
    stream(app, given[600:])
    app.finish()
    app.check()


def test_row_18_a_repeated_payment_has_the_same_decision_and_counts_once(application: Make) -> None:
    """Same bytes or other bytes: the decision is the first one's, marked duplicate; other bytes are counted."""
    app = application()
    app.start("a")
    app.ready("a")
    key, value = payments(18, 1)[0]
    other = value.replace(b'"amount_minor": ', b'"amount_minor": 1')
    app.pay([(key, value), (key, value), (key, other)])
    decided(app, 3)
    conflicts = lambda: [  # noqa: E731 - counted a moment after the commit
        value for name, value in metrics(app.workers["a"].port).items() if "conflict" in name and "total" in name
    ]
    app.wait(lambda: conflicts() == [1.0], 90, "the conflict to be counted")
    app.finish()
    app.check()
    texts = [message.value().replace(b"duplicate", b"normal") for message in app.decisions.messages]
    assert texts[0] == texts[1] == texts[2]
