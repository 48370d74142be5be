"""FAULTS.md, membership: what a worker makes of a group that changes, and of its own silence."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.broker import OwnBroker
from tests.faults.payments import payments
from tests.faults.run import SESSION_MS, Application
from tests.faults.test_rows import decided

Make = Callable[..., Application]


def test_a_long_warm_up_is_no_freeze(application: Make, broker: OwnBroker) -> None:
    """Compiling for longer than the session, and then losing the shard to the network: the worker joins again by
    itself, for it never stood still."""
    app = application(standby_shards_max=0)
    worker = app.start("a", f"after_warm_up:1:sleep={SESSION_MS / 1000 + 0.5}")
    app.wait(lambda: "shard.deciding" in worker.said(), 40, "the shard to be decided")
    broker.proxy.hang()
    app.wait(lambda: "shard.lost" in worker.said(), 20, "the shard to be lost")
    broker.proxy.heal()
    app.pay(payments(41, 200))
    decided(app, 200)
    assert worker.poll() is None, worker.said()
    app.finish(supervised=False)
    app.check()
