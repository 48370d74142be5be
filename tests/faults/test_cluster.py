"""FAULTS.md, rows 13, 24 and 28: nodes of a cluster are restarted in turn, missing, or lost while payments flow."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from scorer import kafka
from scorer.bundle import Bundle
from scorer.operate.loss_acceptance import Recovery
from scorer.operate.setup import APPEND_TIME, create_topics
from scorer.runtime.settings import load
from tests.faults.broker import Cluster, OwnBroker
from tests.faults.nursery import Child, Nursery
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_rows import decided, stream
from tests.integration.running import metrics, readiness

TRANSACTION_MS, TRANSACTION_OUTLASTED_S = 3_000, 5  # the broker looks every half second
FROZEN_S = 4.0  # below the nine seconds after which a broker of the cluster counts as dead


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
                    stream(app, given[:4], rate=40)
                    del given[:4]
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
        app = Application(cluster, nursery, tmp_path, bundle, replicas_in_sync=3, transaction_timeout_ms=TRANSACTION_MS)
        try:
            worker = app.start("a", f"before_commit:2:sleep={TRANSACTION_OUTLASTED_S}")
            app.ready("a")
            app.pay(payments(62, 1))
            decided(app, 1)
            cluster.nodes[2].kill()
            # To a topic that takes them: the payments' own needs all three as well.
            app.wait(
                lambda: len(_replicas_in_sync(app)) > 0 and min(_replicas_in_sync(app)) == 2,
                90,
                "the node to be missed",
            )
            _lower(app, app.topics.payments)
            app.wait(lambda: "min.insync.replicas is 3" in readiness(worker.port), 60, "the setting to be named early")
            app.pay(payments(63, 100))
            # The broker has ended the transaction by then: the producer is fenced, and the shard waits.
            time.sleep(TRANSACTION_OUTLASTED_S + 1)
            app.wait(lambda: "min.insync.replicas is 3" in readiness(worker.port), 60, "the setting to be named still")
            cluster.nodes[2].start()
            decided(app, 101)
            app.ready("a")
            assert worker.poll() is None, worker.log_end()
            app.finish(supervised=False)
            app.check()
        finally:
            app.close()


def test_row_24_a_log_that_an_unclean_election_has_cut(nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """The only node with the newest payments is lost and one that lacks them leads: the worker stops and names topic,
    positions and epochs. It does so again, from snapshot and from journal, when the log is longer again than it was.
    `recover` finds where it was cut, and after `--new-journal` every payment from there on is decided once."""
    with Cluster() as cluster:
        app = Application(cluster, nursery, tmp_path, bundle, snapshot_every=20, standby_shards_max=0)
        try:
            place = f"{app.topics.payments}/0"
            _on_two_nodes(app, app.topics.payments)
            worker = app.start("a")
            app.ready("a")
            app.pay(payments(64, 100))
            decided(app, 100)
            cluster.nodes[1].kill()
            app.wait(lambda: _in_sync_of(app, app.topics.payments) == [1], 60, "the node to be missed")
            app.pay(payments(65, 60))
            decided(app, 160)
            _idle(app, worker)  # with a transaction under way it would first have to be ended, without a quorum
            cluster.nodes[0].kill()
            cluster.nodes[1].start()
            worker = _ended(app, worker)
            assert "was cut" in worker.log_end()
            # Met by the client while it reads, or by comparing the ends where the shard was taken up anew before that.
            assert all(part in worker.log_end() for part in (place, "offset 160", "leader epoch")), worker.log_end()
            cluster.nodes[0].start()
            later = payments(66, 150)
            app.reconnect()
            app.pay(later)
            app.wait(app.flushed, 60, "the payments to be there")
            for kept in (True, False):
                if not kept:
                    rmtree(app.snapshots)
                again = _ended(app, app.start("a"))
                assert "was cut" in again.log_end(), again.log_end()
                assert place.partition("/")[0] in again.log_end()
            found = {finding.place: finding for finding in Recovery(app.settings, 0).survey()}
            assert (found[place].trouble, found[place].command) == ("cut", "--new-journal")
            assert "from 100 on" in found[place].broker
            app.check_answers()  # what is decided anew below is another life of the journal
            accepted = Recovery(app.settings, 0).new_state(Bundle.load(bundle), "an unclean election")
            assert accepted.inputs[0].end == 100
            app.start("a")
            decided(app, 160 + len(later))
            app.finish(supervised=False)
            app.decisions.read_to_end()
            app.dead_letters.read_to_end()
            assert app.decided() == 160 + len(later)
            assert all(finding.trouble == "ok" for finding in Recovery(app.settings, 0).survey())
        finally:
            app.close()


def test_row_24_a_marker_of_a_later_leader_is_taken_for_no_cut(nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """Payments of a transaction are written under one leader and committed under the next, which has all of them: a
    worker that starts from a snapshot of behind the marker goes on, also when what stands before it was removed, and
    `recover` finds nothing."""
    with Cluster() as cluster:
        app = Application(cluster, nursery, tmp_path, bundle, partitions=2, snapshot_every=20, standby_shards_max=0)
        try:
            topic, client = app.topics.payments, kafka.admin(app.settings.kafka)
            _on_two_nodes(app, topic, partitions=2)
            worker = app.start("a")
            app.ready("a")
            payer = Producer(
                {
                    "bootstrap.servers": cluster.bootstrap_servers,
                    "transactional.id": f"{topic}-payer",
                    "transaction.timeout.ms": 300_000,  # longer than a node takes to be rolled
                    "linger.ms": 0,
                }
            )
            payer.init_transactions(60)
            payer.begin_transaction()
            app.sent += (given := payments(67, 30))
            for key, value in given:
                payer.produce(topic, value, key=key, partition=0)
            assert payer.flush(30) == 0
            _roll(cluster.nodes[0])
            payer.commit_transaction(60)
            decided(app, 30)
            _idle(app, worker)  # the journal is behind the marker
            app.sent += (later := payments(68, 60))
            for n in range(0, len(later), 20):
                payer.begin_transaction()
                for key, value in later[n : n + 20]:
                    payer.produce(topic, value, key=key, partition=1)
                payer.commit_transaction(60)
                decided(app, 30 + n + 20)
                _idle(app, worker)
            for removed in (False, True):
                app.kill("a")
                worker.wait(90)
                if removed:  # what was decided, and the last record before the marker with it
                    (behind,) = kafka.ends(client, [TopicPartition(topic, 0)])
                    place = TopicPartition(topic, 0, behind)
                    client.delete_records([place])[place].result(30)
                worker = app.start("a")
                app.ready("a")
                assert "snapshot.restored" in worker.log.read_text(), worker.log_end()
                assert all(finding.trouble == "ok" for finding in Recovery(app.settings, 0).survey())
            app.pay(payments(69, 40))
            app.finish(supervised=False)
            app.decisions.read_to_end()
            assert app.decided() == len(app.sent)
        finally:
            app.close()


def test_setup_ends_when_every_broker_knows_the_topics(nursery: Nursery, bundle: Path, tmp_path: Path) -> None:
    """One node hears of nothing for a while: `setup` goes on only when that one, too, shows every partition, so that
    the next command does not meet a topic that does not exist yet."""
    with Cluster() as cluster:
        slow = cluster.nodes[2]
        settings = load(
            kafka={"bootstrap_servers": cluster.nodes[0].bootstrap_servers, "topic_prefix": "slow-"},
            topics={"payments_partitions": 4, "replication_factor": 2},
        )
        with ThreadPoolExecutor(1) as thread:
            slow.signal(signal.SIGSTOP)
            try:
                made = thread.submit(create_topics, settings)
                time.sleep(FROZEN_S)
                assert not made.done(), made.exception()
            finally:
                slow.signal(signal.SIGCONT)
            made.result(60)
        asked = kafka.admin(settings.kafka.model_copy(update={"bootstrap_servers": slow.bootstrap_servers}))
        assert kafka.partition_count(asked, kafka.Topics.of(settings.kafka).payments) == 4


def _idle(app: Application, worker: Child) -> None:
    """Wait until the worker commits nothing more, neither a batch nor the name of a snapshot."""
    seen: dict[float, float] = {}

    def calm() -> bool:
        sequence = metrics(worker.port).get('fraud_scorer_journal_sequence{shard="0"}')
        if sequence is None:  # it has given the shard up for a moment, as after a node of the cluster has gone
            return False
        return time.monotonic() - seen.setdefault(sequence, time.monotonic()) > 3.0

    app.wait(calm, 60, "the worker to be idle")


def _ended(app: Application, worker: Child) -> Child:
    """The worker "a" once it has ended with 1. One that this machine kept still, or that asked while no node led the
    cluster, is started again, as a supervisor does."""
    assert worker.wait(90) == 1, worker.log_end()
    while any(passing in worker.log_end() for passing in ("stood still", "Kafka does not answer")):
        worker = app.start("a")
        assert worker.wait(90) == 1, worker.log_end()
    return worker


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


def _on_two_nodes(app: Application, topic: str, partitions: int = 1) -> None:
    """Make a topic anew, led by the first node and copied by the second, which may lead without being in sync."""
    client = kafka.admin(app.settings.kafka)  # its futures end with it
    client.delete_topics([topic])[topic].result(30)
    app.wait(lambda: topic not in client.list_topics(timeout=5).topics, 30, "the topic to be gone")
    config = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"} | APPEND_TIME
    client.create_topics(
        [NewTopic(topic, replica_assignment=[[1, 2]] * partitions, num_partitions=partitions, config=config)]
    )[topic].result(30)
    kafka.wait_until_visible(app.settings.kafka, {topic: partitions}, timeout_s=30)


def _in_sync_of(app: Application, topic: str) -> list[int]:
    """The nodes that have all of the topic's only partition."""
    try:
        return sorted(kafka.admin(app.settings.kafka).list_topics(timeout=5).topics[topic].partitions[0].isrs)
    except (KafkaException, KeyError):
        return []


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
