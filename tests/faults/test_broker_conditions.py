"""What the broker must promise for a fast decision to stand: each condition on a real cluster, under each setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from scorer import kafka
from scorer.runtime.settings import PREFIX
from tests.faults.broker import Cluster
from tests.faults.nursery import Child, Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream

Make = Callable[..., Application]
SETTING, SWITCH = f"{PREFIX}WORKER__FAST_ON_ONE_BROKER", f"{PREFIX}WORKER__FAST_DECISIONS"
IN_SYNC, UNCLEAN = "min.insync.replicas", "unclean.leader.election.enable"
# The topic, what is set on it, and what the worker says then.
CONDITIONS = [
    ("order", IN_SYNC, "1", "1 of 3 replicas"),
    ("order", UNCLEAN, "true", f"{UNCLEAN}=true"),
    ("decisions_fast", IN_SYNC, "1", "1 of 3 replicas"),
    ("payments", UNCLEAN, "true", f"{UNCLEAN}=true"),
    ("labels", IN_SYNC, "1", "1 of 3 replicas"),
    ("control", UNCLEAN, "true", f"{UNCLEAN}=true"),
]


@contextmanager
def altered(app: Application, topic: str, name: str, value: str) -> Iterator[None]:
    """A topic with another setting of its own."""
    client, resource = kafka.admin(app.settings.kafka), ConfigResource(ResourceType.TOPIC, topic)
    before = client.describe_configs([resource])[resource].result(15)[name].value

    def write(text: str) -> None:
        entry = ConfigEntry(name, text, incremental_operation=AlterConfigOpType.SET)
        change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        client.incremental_alter_configs([change])[change].result(15)
        shown = lambda: client.describe_configs([resource])[resource].result(15)[name].value == text  # noqa: E731
        app.wait(shown, 90, f"{name} of {topic} to be {text}")

    write(value)
    try:
        yield
    finally:
        write(before)


def ended(app: Application, name: str, **more: str) -> Child:
    """A worker that is started and ends by itself."""
    app.start(name, **more)
    child = app.workers.pop(name)
    child.wait(90)
    return child


def left(app: Application, name: str) -> str:
    """The log of a worker that is ready, and is asked to end."""
    child = app.ready(name)
    app.stop()
    del app.workers[name]
    return child.log.read_text()


def test_each_condition_is_warned_of_or_refused(nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """On a cluster that keeps what it acknowledges `refuse` lets a worker decide, without a warning. Each condition
    that lets a topic lose records makes it end with 2 and name topic, cause and both ways out; with `warn` the worker
    logs the same and decides; without fast decisions nothing is asked for."""
    with Cluster() as cluster:
        app = Application(
            cluster, nursery, tmp_path, bundle, replicas_in_sync=2, fast_on_one_broker="refuse", standby_shards_max=0
        )
        try:
            app.start("a")
            app.ready("a")
            stream(app, payments(91, 100))
            decided(app, 100)
            assert "order.forgettable" not in left(app, "a")
            for n, (topic, name, value, says) in enumerate(CONDITIONS):
                full = getattr(app.topics, topic)
                with altered(app, full, name, value):
                    refused = ended(app, "refused")
                    assert refused.code == 2, refused.log_end()
                    for words in (f"{full}: ", says, f"{SETTING}=warn", f"{SWITCH}=false"):
                        assert words in refused.log_end(), (topic, name, words)
                    if n < 2:  # the same for all topics
                        app.start("warned", **{SETTING: "warn"})
                        log = left(app, "warned")
                        assert log.count("order.forgettable") == 1
                        assert says in log
            with altered(app, app.topics.order, IN_SYNC, "1"):
                app.start("slow", **{SWITCH: "false"})
                assert "order.forgettable" not in left(app, "slow")
            app.start("a")
            stream(app, payments(92, 100))
            app.finish(supervised=False)
            app.check()
        finally:
            app.close()


def test_one_broker_is_enough_for_trials_alone(application: Make) -> None:
    """On a single node `refuse` ends the worker, and says how many replicas there are; by default it is warned of,
    once, and everything is decided."""
    app = application(standby_shards_max=0)
    refused = ended(app, "refused", **{SETTING: "refuse"})
    assert refused.code == 2, refused.log_end()
    assert "1 of 1 replicas" in refused.log_end()
    child = app.start("a")
    app.ready("a")
    stream(app, payments(93, 100))
    app.finish(supervised=False)
    assert child.log.read_text().count("order.forgettable") == 1
    app.check()
