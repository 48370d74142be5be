"""The group's two protocols, classic and consumer (KIP-848, where the broker assigns): what both must hold. Shards that
move between workers under the second: tests/integration/test_hand_over; faults of chance under both: the schedules."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from scorer import kafka
from scorer.journal.journal_reader import journal_records
from scorer.runtime.settings import PREFIX
from tests.faults.nursery import Child
from tests.faults.payments import payments
from tests.faults.run import Application, was_replaced
from tests.faults.test_rows import EACH_BATCH, decided, stream
from tests.faults.test_standby_readiness import followed

Make = Callable[..., Application]
PROTOCOL = f"{PREFIX}WORKER__GROUP_PROTOCOL"
both_protocols = pytest.mark.parametrize("protocol", ["classic", "consumer"])


def took_over_warm(log: str) -> bool:
    """Whether the worker that wrote `log` took its shard up from what it had followed: nothing of the journal was left
    to be decided again, and nothing was begun anew."""
    events = [json.loads(line) for line in log.splitlines()]
    recovered = [event for event in events if event["event"] == "shard.recovered"]
    anew = {"standby.restarted", "shard.rebuild"} & {event["event"] for event in events}
    return len(recovered) == 1 and recovered[0]["batches"] == 0 and not anew


def catches_up(app: Application, standby: Child) -> None:
    """Wait until the standby has decided again all that the journal holds."""
    records = journal_records(app.settings.kafka, kafka.RealClients(app.settings), 0, no_progress_s=30.0)
    newest = max(record.sequence for _, record in records)
    app.wait(lambda: followed(standby.port) > newest, 60, "the standby to be as far as the journal")


@both_protocols
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_standby_takes_over_warm(application: Make, protocol: str, how: signal.Signals) -> None:
    """Whoever assigns: the standby goes on from its own state when the owner drains or is killed, the owner comes back
    as a standby, and the outcome is equal on both topics of decisions."""
    app = application(group_protocol=protocol)
    given = payments(81, 600)
    owner = app.start("a")
    app.ready("a")
    stream(app, given[:200])
    standby = app.start("b")
    app.ready("b")
    decided(app, 200)
    catches_up(app, standby)
    app.kill("a", how)
    assert owner.wait(90) == (0 if how == signal.SIGTERM else -how)
    del app.workers["a"]
    stream(app, given[200:400])
    decided(app, 400)
    assert took_over_warm(standby.log.read_text())
    app.start("a")
    app.ready("a")
    stream(app, given[400:])
    app.finish(supervised=False)
    app.check()


@both_protocols
def test_a_frozen_owner_is_fenced(application: Make, protocol: str) -> None:
    """Rows 3 and 8 whoever assigns: frozen in a transaction past the session timeout, the owner is replaced; awakened,
    it commits nothing, says that another one owns its shard, and ends with 1."""
    app = application(group_protocol=protocol, **EACH_BATCH)
    frozen = app.start("a", "before_commit:3:stop")
    app.ready("a")
    app.start("b")
    app.ready("b")
    given = payments(82, 600)
    stream(app, given[:300])
    decided(app, 300)
    frozen.signal(signal.SIGCONT)
    assert frozen.wait(90) == 1, frozen.log_end()
    assert was_replaced(frozen.log_end()), frozen.log_end()
    del app.workers["a"]
    stream(app, given[300:])
    app.finish(supervised=False)
    app.check()


@both_protocols
def test_another_application_is_refused(application: Make, protocol: str) -> None:
    """Row 27 whoever assigns: a worker of another application name on the same topics is refused, names the one that
    decides, and that one goes on."""
    app = application(group_protocol=protocol)
    app.start("a")
    app.ready("a")
    given = payments(83, 200)
    stream(app, given[:100])
    other = app.beside("other", **{f"{PREFIX}WORKER__APPLICATION": "another"})
    assert other.wait(90) == 2, other.log_end()
    assert "decide these payments already" in other.log_end()
    stream(app, given[100:])
    app.finish(supervised=False)
    app.check()


@both_protocols
def test_the_same_static_member_id_twice_ends_one_loudly(application: Make, protocol: str) -> None:
    """Row 6 whoever assigns: one of the two ends with an error that names the id; the other decides everything."""
    app = application(group_protocol=protocol, instance_id="blue-1")
    first = app.start("a")
    app.ready("a")
    stream(app, payments(84, 100))
    second = app.start("b")
    app.wait(lambda: first.poll() is not None or second.poll() is not None, 90, "one of them to end")
    ended = "a" if first.poll() is not None else "b"
    child = app.workers.pop(ended)
    assert child.code == 1, child.log_end()
    assert "blue-1" in child.log_end()
    stream(app, payments(85, 100))
    app.finish(supervised=False)
    app.check()


@pytest.mark.parametrize(("before", "after"), [("classic", "consumer"), ("consumer", "classic")])
def test_the_protocol_is_changed_one_worker_after_the_other(application: Make, before: str, after: str) -> None:
    """In a rolling restart the group holds members of both protocols: the restarted worker follows warm, takes over
    when the owner ends, and the outcome is equal."""
    app = application()
    owner = app.start("a", **{PROTOCOL: before})
    app.ready("a")
    stream(app, payments(86, 200))
    standby = app.start("b", **{PROTOCOL: after})
    app.ready("b")
    decided(app, 200)
    catches_up(app, standby)
    app.kill("a", signal.SIGTERM)
    assert owner.wait(90) == 0
    del app.workers["a"]
    stream(app, payments(87, 200))
    decided(app, 400)
    assert took_over_warm(standby.log.read_text())
    app.start("a", **{PROTOCOL: after})
    app.ready("a")
    app.finish(supervised=False)
    app.check()
