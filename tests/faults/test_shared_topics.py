"""FAULTS.md row 26, of the topics that every shard reads from a place of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from pydantic import SecretStr

from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal.journal_reader import journal_records
from scorer.operate.loss_acceptance import Loss, Recoveries, by_shard
from scorer.runtime.settings import SnapshotSettings
from tests.faults.payments import Payment, payments
from tests.faults.run import Application

Make = Callable[..., Application]
SHARDS = range(2)
SESSION_MS = 20_000  # so long the shard of a worker that was killed has no owner


def test_row_26_what_shards_lack_of_a_topic_that_all_read_is_accepted_range_by_range(
    application: Make, bundle: Path
) -> None:
    """Two shards stand at different places of topic control, and records beyond both are gone. Each lacks a range of
    its own; both are accepted, whichever comes first, and the shards go on. A range that no shard lacks is refused."""
    app = application(
        shards=2, partitions=2, standby_shards_max=0, fast_decisions=False, snapshot_every=1,
        session_timeout_ms=SESSION_MS,
    )  # fmt: skip
    given = payments(61, 3_000)
    for name in ("a", "b"):
        app.start(name)
        app.ready(name, 90)
    _control(app, 1)
    _pay_until(app, given, lambda: _kept(app) == [1, 1], "both shards to keep the first record")
    app.kill("b", signal.SIGKILL)
    _control(app, 1)
    _pay_until(app, given, lambda: 2 in _kept(app), "the other shard to keep the next one")
    app.kill("a", signal.SIGKILL)
    app.workers.clear()
    assert sorted(_kept(app)) == [1, 2]
    _control(app, 3)
    place = TopicPartition(app.topics.control, 0)
    client = kafka.admin(app.settings.kafka)
    place.offset = kafka.ends(client, [place])[0] - 1
    client.delete_records([place])[place].result(15)
    refused = app.beside("a")
    assert refused.wait(90) == 1, refused.log_end()
    assert "are gone" in refused.log_end()

    with (
        closing(Recoveries(app.settings)) as recoveries,
        pytest.raises(UsageError, match=f"1-{place.offset} and 2-{place.offset} is missing"),
    ):
        by_shard([Loss(app.topics.control, 0, 0, place.offset)], recoveries)
    snapshots = SnapshotSettings(url=SecretStr(app.snapshots.as_uri()))
    settings = app.settings.model_copy(update={"snapshots": snapshots})
    for start in (1, 2):
        with closing(Recoveries(settings)) as recoveries:
            losses = by_shard([Loss(app.topics.control, 0, start, place.offset)], recoveries)
            assert len(losses) == 1
            for shard, of_shard in losses.items():
                recoveries.of(shard).accept_loss(Bundle.load(bundle), of_shard, "deleted by mistake")
    with closing(Recoveries(app.settings)) as recoveries:
        assert [loss for shard in SHARDS for loss in recoveries.of(shard).lost_of_all()] == []
    app.start("a")
    app.pay(given[:200])
    app.wait(lambda: app.decided() >= len(app.sent), 90, "all payments to be decided")
    app.stop()


def _control(app: Application, count: int) -> None:
    """Records on topic control, which every shard reads and refuses."""
    producer = kafka.plain_producer(app.settings.kafka)
    for _ in range(count):
        producer.produce(app.topics.control, b"no control record", partition=0)
    assert producer.flush(30) == 0


def _pay_until(app: Application, given: list[Payment], condition: Callable[[], bool], what: str) -> None:
    """Pay a few again and again, so that snapshots are due."""

    def paid() -> bool:
        app.pay([given.pop() for _ in range(4)])
        return condition()

    app.wait(paid, 60, what)


def _kept(app: Application) -> list[int]:
    """By shard, up to where topic control was read before the newest snapshot that the journal names."""
    clients, patience_s = kafka.RealClients(app.settings), app.settings.worker.no_progress_s
    found = []
    for shard in SHARDS:
        ends, kept = [0], 0
        for _, record in journal_records(app.settings.kafka, clients, shard, no_progress_s=patience_s):
            ends.append(record.control.end)
            if record.snapshot is not None:
                kept = ends[record.snapshot.sequence]
        found.append(kept)
    return found
