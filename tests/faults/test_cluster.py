"""FAULTS.md, row 13: all three nodes of a cluster are restarted in turn while payments flow."""

from __future__ import annotations

import threading
from pathlib import Path

from confluent_kafka import KafkaException

from scorer import kafka
from tests.faults.broker import Cluster, OwnBroker
from tests.faults.nursery import Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream


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
