"""FAULTS.md row 26, of the topics that every shard reads from a place of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal.journal_reader import journal_records
from scorer.operate.loss_acceptance import Loss, Recovery, by_shard
from tests.faults.payments import payments
from tests.faults.run import Application

Make = Callable[..., Application]
SHARDS = range(2)
TRIES = 8


def test_row_26_what_shards_lack_of_a_topic_that_all_read_is_accepted_range_by_range(
    application: Make, bundle: Path
) -> None:
    """Two shards stand at different places of topic control, and records beyond both are gone. Each lacks a range of
    its own; both are accepted, whichever comes first, and the shards go on. A range that no shard lacks is refused."""
    app = application(shards=2, partitions=2, standby_shards_max=0, fast_decisions=False)
    given = payments(61, TRIES + 200)
    app.start("a")
    app.ready("a")
    _control(app, 1)
    app.wait(lambda: _positions(app) == [1, 1], 60, "both shards to read the first record")
    app.stop()
    while len(set(_positions(app))) == 1:  # until the worker is killed when one of them alone has committed the next
        assert len(given) > 200
        child = app.start("a", "after_commit:1:kill")
        app.ready("a")
        _control(app, 1)
        time.sleep(0.3)
        app.pay([given.pop()])
        app.wait(lambda child=child: child.poll() is not None, 60, "the worker to end")
        assert child.code == -signal.SIGKILL, child.log_end()
    del app.workers["a"]
    lower, upper = sorted(_positions(app))
    _control(app, 3)
    place = TopicPartition(app.topics.control, 0)
    client = kafka.admin(app.settings.kafka)
    place.offset = kafka.ends(client, [place])[0] - 1
    client.delete_records([place])[place].result(15)
    refused = app.beside("a")
    assert refused.wait(60) == 1, refused.log_end()
    assert "are gone" in refused.log_end()

    with pytest.raises(UsageError, match=f"{lower}-{place.offset} and {upper}-{place.offset} is missing"):
        by_shard([Loss(app.topics.control, 0, 0, place.offset)], app.settings)
    for start in (lower, upper):
        losses = by_shard([Loss(app.topics.control, 0, start, place.offset)], app.settings)
        assert len(losses) == 1
        for shard, of_shard in losses.items():
            Recovery(app.settings, shard).accept_loss(Bundle.load(bundle), of_shard, "deleted by mistake")
    assert [finding for shard in SHARDS for finding in Recovery(app.settings, shard).lost_of_all()] == []
    app.start("a")
    app.pay(given[:200])
    app.wait(lambda: app.decisions.fill() >= len(app.sent), 60, "all payments to be decided")
    app.stop()


def _control(app: Application, count: int) -> None:
    """Records on topic control, which every shard reads and refuses."""
    producer = kafka.plain_producer(app.settings.kafka)
    for _ in range(count):
        producer.produce(app.topics.control, b"no control record", partition=0)
    assert producer.flush(30) == 0


def _positions(app: Application) -> list[int]:
    """Up to where the journals say that topic control was read, by shard."""
    clients, patience_s = kafka.RealClients(app.settings), app.settings.worker.no_progress_s
    journals = (journal_records(app.settings.kafka, clients, shard, no_progress_s=patience_s) for shard in SHARDS)
    return [max((record.control.end for _, record in journal), default=0) for journal in journals]
