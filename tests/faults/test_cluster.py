"""FAULTS.md, rows 13 and 28: nodes of a cluster are restarted in turn, or missing, while payments flow."""

from __future__ import annotations

import threading
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from scorer import kafka
from tests.faults.broker import Cluster, OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream
from tests.integration.running import readiness

TRANSACTION_OUTLASTED_S = 5  # its time-out is 3 s, and the broker looks every half second


def test_row_13_all_three_nodes_of_a_cluster_are_rolled(nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """Replicated three times, two in sync: each node is stopped and started while payments come, the worker goes on
    by itself without ending, and the outcome is equal."""
    with Cluster() as cluster:
        app = Application(cluster, nursery, tmp_path, bundle, replicas_in_sync=2)
        try:
            worker = app.start("a")
            app.ready("a")
            given = payments(61, 9_000)
            for node in cluster.nodes:
                rolled = threading.Thread(target=_roll, args=(node,))
                rolled.start()
                while rolled.is_alive() or not _in_sync(app):
                    stream(app, given[:12], rate=120)
                    del given[:12]
                    assert given, "the node took too long"
                rolled.join()
            decided(app, len(app.sent))
            assert worker.poll() is None, worker.log_end()
            app.finish(supervised=False)
            app.check()
        finally:
            app.close()


def test_row_28_too_few_replicas_in_sync_are_named_and_waited_for(
    nursery: Nursery, bundle: Path, tmp_path: Path
) -> None:
    """With all three replicas wanted and one node away, the worker is not ready and names topic and setting, also when
    the broker has ended its transaction (which fences the producer); when the node is back it goes on by itself, and
    the outcome is equal."""
    with Cluster() as cluster:
        app = Application(cluster, nursery, tmp_path, bundle, replicas_in_sync=3)
        try:
            worker = app.start("a", f"before_commit:2:sleep={TRANSACTION_OUTLASTED_S}")
            app.ready("a")
            app.pay(payments(62, 1))
            decided(app, 1)
            cluster.nodes[2].kill()
            # To a topic that takes them: the payments' own needs all three as well.
            app.wait(
                lambda: len(_replicas_in_sync(app)) > 0 and min(_replicas_in_sync(app)) == 2,
                30,
                "the node to be missed",
            )
            _lower(app, app.topics.payments)
            app.wait(lambda: "min.insync.replicas is 3" in readiness(worker.port), 20, "the setting to be named early")
            app.pay(payments(63, 100))
            app.wait(
                lambda: "took longer than its time-out" in worker.log_end(),
                30,
                "the transaction to be ended by the broker",
            )
            app.wait(lambda: "shard.obstacle" in worker.log_end(), 30, "the shard to wait")
            assert "min.insync.replicas is 3" in readiness(worker.port)
            cluster.nodes[2].start()
            decided(app, 101)
            app.ready("a")
            assert worker.poll() is None, worker.log_end()
            app.finish(supervised=False)
            app.check()
        finally:
            app.close()


def _lower(app: Application, topic: str) -> None:
    resource = ConfigResource(
        ResourceType.TOPIC,
        topic,
        incremental_configs=[ConfigEntry("min.insync.replicas", "1", incremental_operation=AlterConfigOpType.SET)],
    )
    client = kafka.admin(app.settings.kafka)  # its futures end with it
    client.incremental_alter_configs([resource])[resource].result(15)


def _replicas_in_sync(app: Application) -> list[int]:
    """Of each partition of the decisions topic."""
    try:
        topic = kafka.admin(app.settings.kafka).list_topics(timeout=5).topics[app.topics.decisions]
    except (KafkaException, KeyError):
        return []
    return [len(partition.isrs) for partition in topic.partitions.values()]


def _roll(node: OwnBroker) -> None:
    node.stop()
    node.start()


def _in_sync(app: Application) -> bool:
    """Whether every replica of every topic has caught up: only then may the next node go."""
    try:
        topics = kafka.admin(app.settings.kafka).list_topics(timeout=5).topics
    except KafkaException:
        return False
    every = [partition for topic in topics.values() for partition in topic.partitions.values()]
    return bool(every) and all(len(partition.isrs) == 3 for partition in every)
