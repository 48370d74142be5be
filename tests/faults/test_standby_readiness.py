"""When a worker that follows a shard is ready: what paces a rolling update, and what never holds one up for ever."""

from __future__ import annotations

import signal
from collections.abc import Callable

from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.runtime.settings import PREFIX
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream
from tests.integration.running import metrics, readiness

Make = Callable[..., Application]
WARM_S = f"{PREFIX}WORKER__STANDBY_WARM_S"
SLOW_S = 12.0


def followed(port: int) -> float:
    """Number of the batch that follows what the worker has decided again of shard 0."""
    return metrics(port).get('fraud_scorer_followed_sequence{shard="0"}', 0.0)


def test_a_restarted_worker_is_ready_once_its_standby_is_warm(application: Make) -> None:
    """A rolling update that stops the owner when the restarted worker is ready finds a standby with the state after
    the newest batch: while that one still decides the journal again it is not ready, and says how far it is."""
    app = application()
    owner = app.start("a")
    app.ready("a")
    stream(app, payments(71, 300))
    decided(app, 300)
    standby = app.start("b", f"in_recovery:2:sleep={SLOW_S}")
    app.wait(lambda: "offsets of the journal left" in readiness(standby.port), 40, "the standby to say how far it is")
    assert metrics(standby.port)["fraud_scorer_standby_shards"] == 1.0
    assert metrics(standby.port)["fraud_scorer_warm_standby_shards"] == 0.0
    app.ready("a")
    app.ready("b")
    app.wait(lambda: metrics(standby.port)["fraud_scorer_warm_standby_shards"] == 1.0, 60, "the metric to show it")
    assert followed(standby.port) > metrics(owner.port)['fraud_scorer_journal_sequence{shard="0"}']
    app.kill("a", signal.SIGTERM)
    assert owner.wait(90) == 0
    stream(app, payments(72, 200))
    decided(app, 500)
    app.start("a")
    app.ready("a")
    app.finish(supervised=False)
    app.check()


def test_a_standby_that_cannot_catch_up_holds_a_rolling_update_up_for_a_bounded_time(application: Make) -> None:
    """Payments that the state needs are gone: the worker that would follow is not ready and names them, while the owner
    decides on; after its bound it is ready all the same, with an error, so that the update can go on."""
    app = application()
    app.start("a")
    app.ready("a")
    stream(app, payments(73, 200))
    decided(app, 200)
    client, gone = kafka.admin(app.settings.kafka), TopicPartition(app.topics.payments, 0, 100)
    client.delete_records([gone])[gone].result(15)
    waiting, bounded = app.start("b"), app.start("c", **{WARM_S: "25"})
    for child in (bounded, waiting):  # that one is ready after its bound
        app.wait(lambda port=child.port: "are gone" in readiness(port), 40, "the missing payments to be named")
    stream(app, payments(74, 100))
    decided(app, 300)
    app.ready("c", 90)
    assert metrics(bounded.port)["fraud_scorer_warm_standby_shards"] == 0.0
    app.wait(lambda: "standby.cold" in bounded.log.read_text(), 60, "the error in the log")
    assert "are gone" in readiness(waiting.port)
    assert "standby.cold" not in waiting.log.read_text()
    assert bounded.log.read_text().count("standby.cold") == 1


def test_a_worker_without_a_shard_to_follow_is_ready(application: Make) -> None:
    """With standbys switched off, or nothing decided yet, nothing is waited for; nor where the setting says so."""
    app = application()
    app.start("a")
    app.ready("a")
    app.start("b")
    app.ready("b")
    stream(app, payments(75, 100))
    decided(app, 100)
    slow = "in_recovery:1:sleep=20"
    for name, setting in (("c", "STANDBY_SHARDS_MAX"), ("d", "STANDBY_WARM_S")):
        worker = app.start(name, slow, **{f"{PREFIX}WORKER__{setting}": "0"})
        app.ready(name)
        assert metrics(worker.port).get("fraud_scorer_warm_standby_shards", 0.0) == 0.0
    app.stop()
    app.check()
