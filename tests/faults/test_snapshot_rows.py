"""FAULTS.md, snapshots: one that is cut off at any step costs nothing, and a shard that falls idle finishes its own.
Damaged ones: tests/integration/test_snapshots.py."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.schedule import SNAPSHOT_POINTS
from tests.faults.test_rows import EACH_BATCH, decided, pay_until_it_ends, stream
from tests.integration.running import metrics

Make = Callable[..., Application]
WRITTEN = 'fraud_scorer_snapshots_total{shard="0"}'


def test_a_shard_that_falls_idle_finishes_its_snapshot(application: Make) -> None:
    """The last payment makes a snapshot due, and none comes any more: it is written all the same."""
    app = application(standby_shards_max=0, snapshot_every=400)
    worker = app.start("a")
    app.ready("a")
    app.pay(payments(31, 400))
    decided(app, 400)
    app.wait(lambda: metrics(worker.port).get(WRITTEN, 0.0) >= 1, 60, "the snapshot of an idle shard")
    app.kill("a", signal.SIGKILL)
    app.workers.pop("a").wait(90)
    successor = app.start("b")
    app.wait(lambda: "shard.deciding" in successor.log.read_text(), 60, "the successor")
    assert "snapshot.restored" in successor.log.read_text()
    app.finish()
    app.check()


def test_rows_1_and_12_killed_at_each_step_of_a_snapshot(application: Make) -> None:
    """SIGKILL when a snapshot has begun, is copied, is whole, has written a block or its manifest but not renamed it,
    and before older ones are deleted: the successor begins with one that is whole, and the outcome is equal."""
    app = application(standby_shards_max=0, instance_id="a", snapshot_every=40)
    given = payments(32, 2_400)
    for point in SNAPSHOT_POINTS:
        child = app.start("a", f"{point}:2:kill")
        pay_until_it_ends(app, child, given, 6)
        assert child.code == -signal.SIGKILL, (point, child.log_end())
    last = app.start("a")
    app.ready("a")
    assert "snapshot.restored" in last.log.read_text(), last.log_end()
    assert "snapshot.refused" not in last.log.read_text(), last.log_end()  # what was cut off is no snapshot at all
    app.pay(given[:200])
    app.finish()
    app.check()


def test_row_12_a_store_that_hangs_holds_up_neither_a_rebuild_nor_the_end(application: Make) -> None:
    """The snapshot store does not answer when a commit fails: the shard is rebuilt and decides while the writer still
    waits, the worker says so, SIGTERM ends it with 0 in time, and all is equal."""
    app = application(standby_shards_max=0, snapshot_every=40, transaction_timeout_ms=60_000, **EACH_BATCH)
    worker = app.start("a", "snapshot_block:1:sleep=600,before_commit:60:timeout")
    app.ready("a")
    given = payments(33, 2_400)
    while given and "shard.rebuild" not in worker.log.read_text():
        stream(app, [given.pop() for _ in range(20)])
        decided(app, len(app.sent))
    assert "shard.rebuild" in worker.log.read_text(), worker.log_end()
    stream(app, given[:100])
    decided(app, len(app.sent))
    assert "snapshot.not_ended" in worker.log.read_text(), worker.log_end()
    assert worker.poll() is None, worker.log_end()
    app.finish(supervised=False)
    app.check()
