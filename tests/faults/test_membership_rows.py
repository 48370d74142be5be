"""FAULTS.md, membership: strangers in the group, and its own silence. Joining and leaving: tests/faults/test_rows
(classic protocol), tests/integration/test_hand_over (KIP-848), and the schedules (both)."""

from __future__ import annotations

import signal
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError

from tests.faults.broker import OwnBroker
from tests.faults.payments import payments
from tests.faults.run import SESSION_MS, Application
from tests.faults.test_rows import decided, stream

Make = Callable[..., Application]


def test_a_long_warm_up_is_no_freeze(application: Make, broker: OwnBroker) -> None:
    """Compiling for longer than the session, and then losing the shard to the network: the worker joins again by
    itself, for it never stood still."""
    app = application(standby_shards_max=0)
    worker = app.start("a", f"after_warm_up:1:sleep={SESSION_MS / 1000 + 0.5}")
    app.wait(lambda: "shard.deciding" in worker.log.read_text(), 60, "the shard to be decided")
    broker.proxy.hang()
    app.wait(lambda: "shard.lost" in worker.log.read_text(), 60, "the shard to be lost")
    broker.proxy.heal()
    app.pay(payments(41, 200))
    decided(app, 200)
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()


def test_a_shard_that_is_slow_to_end_is_no_freeze(application: Make, broker: OwnBroker) -> None:
    """The shard is lost to the network while a batch waits for an answer for longer than the session: the worker joins
    again by itself, for it never stood still."""
    app = application(standby_shards_max=0)
    worker = app.start("a", f"in_order:2:sleep={2 * SESSION_MS / 1000 + 2}")
    app.ready("a")
    given = payments(42, 200)
    app.pay(given[:1])
    decided(app, 1)
    app.pay(given[1:])
    app.wait(lambda: "shard.deciding" in worker.log.read_text() and app.flushed(), 60, "the second batch")
    broker.proxy.hang()
    app.wait(lambda: "shard.lost" in worker.log.read_text(), 60, "the shard to be lost")
    broker.proxy.heal()
    decided(app, 200)
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()


def test_row_4_a_member_with_another_assignor_is_refused(application: Make) -> None:
    """The eager protocol cannot be mixed in: a stranger that joins the workers' group with another assignor is the one
    that is refused, and the workers go on undisturbed."""
    app = application()
    worker = app.start("a")
    app.ready("a")
    given = payments(43, 400)
    stream(app, given[:200])
    stranger = Consumer(
        {
            "bootstrap.servers": app.settings.kafka.bootstrap_servers,
            "group.id": f"{app.topics.journal}-workers",
            "partition.assignment.strategy": "range",
            "log_level": 0,
        }
    )
    stranger.subscribe([app.topics.journal])
    refused = []
    app.wait(lambda: refused.append(stranger.poll(0.1)) or any(m and m.error() for m in refused), 60, "the refusal")
    stranger.close()
    errors = {m.error().code() for m in refused if m is not None and m.error() is not None}
    assert errors == {KafkaError.INCONSISTENT_GROUP_PROTOCOL}
    stream(app, given[200:])
    decided(app, 400)
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()


def test_row_4_a_worker_that_finds_another_assignor_in_its_group_says_so(application: Make) -> None:
    """Where strangers hold the group with an eager assignor, the worker is refused: it ends, and logs the reason."""
    app = application()
    stranger = Consumer(
        {
            "bootstrap.servers": app.settings.kafka.bootstrap_servers,
            "group.id": f"{app.topics.journal}-workers",
            # As a member of the same application: another one would be refused before it joins.
            "client.id": f"stranger@{app.settings.worker.application}",
            "partition.assignment.strategy": "range",
        }
    )
    stranger.subscribe([app.topics.journal])
    app.wait(lambda: stranger.poll(0.1) or stranger.assignment(), 60, "the stranger to hold the group")
    worker = app.start("a")
    app.wait(lambda: stranger.poll(0.1) or worker.poll() is not None, 60, "the worker to end")
    assert worker.code == 1, worker.log_end()
    assert "another assignor" in worker.log_end()
    del app.workers["a"]
    stranger.close()
    app.start("b")
    app.pay(payments(44, 50))
    app.finish(supervised=False)
    app.check()


def test_row_5_a_worker_that_does_not_poll_in_time_loses_its_shard_and_joins_again(application: Make) -> None:
    """Standing still for longer than max.poll.interval it leaves the group, commits nothing meanwhile, drops its
    state, joins again by itself, and the outcome is equal."""
    app = application(standby_shards_max=0, max_poll_interval_ms=SESSION_MS)
    # The main thread alone stands still: the shard's own goes on deciding, which is what must come to nothing. At turn
    # 300, after 15 s: "b" is a member by then, and payments still come.
    worker = app.start("a", f"main_loop:300:sleep={SESSION_MS / 1000 + 1.5}")
    app.ready("a")
    given = payments(45, 750)
    other = app.start("b")
    app.ready("b")
    stream(app, given, rate=30)
    decided(app, 750)
    app.wait(lambda: "shard.deciding" in other.log.read_text(), 60, "the other worker to take over")
    app.wait(lambda: "shard.lost" in worker.log.read_text(), 60, "the worker to learn of it")
    app.ready("a")
    app.kill("b", signal.SIGTERM)
    assert app.workers.pop("b").wait(60) == 0
    app.pay(payments(46, 100))
    decided(app, 850)  # by the worker that had stood still, which is a member as before
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()
