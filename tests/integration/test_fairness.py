"""No partition starves another: garbage, old payments or silence on one leave the payments of the others flowing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.journal.partition_buffers import ShardInputs
from scorer.local_services import Services
from scorer.operate.setup import create_topics
from scorer.runtime.settings import Settings
from scorer.runtime.threads import SYSTEM
from scorer.worker.batcher import Batcher
from tests.integration.running import TopicReader, process, test_settings, wait_for

pytestmark = pytest.mark.usefixtures("one_decision_each")

DAY_MS = 86_400_000
LIVE = 20
BATCH = 512


class Log:
    """A test's topics: sends records to partitions, and finds in which batch each was decided."""

    def __init__(self, services: Services, prefix: str) -> None:
        self.settings: Settings = test_settings(
            services.kafka.bootstrap_servers,
            prefix,
            topics={"payments_partitions": 2},
            worker={"batch_payments_max": BATCH},
        )
        create_topics(self.settings)
        self.topics = kafka.Topics.of(self.settings.kafka)
        self._producer = kafka.plain_producer(self.settings.kafka, **{"queue.buffering.max.messages": 200_000})
        self.decisions = TopicReader(self.settings, self.topics.decisions)
        self.letters = TopicReader(self.settings, self.topics.dead_letters)
        self.journal = TopicReader(self.settings, self.topics.journal)

    def send(self, partition: int, values: Sequence[bytes]) -> None:
        for value in values:
            self._producer.produce(self.topics.payments, value, partition=partition)
        assert self._producer.flush(60) == 0

    def ends_with(self, partition: int, offset: int) -> dict[int, int]:
        """How far each partition was decided by the end of the batch that holds this record."""
        self.journal.fill()
        reached = {0: 0, 1: 0}
        for message in self.journal.messages:
            record = JournalRecord.from_bytes(message.value())
            reached |= {r.partition: r.end for r in record.inputs}
            if reached[partition] > offset:
                return reached
        raise AssertionError(f"partition {partition} was decided to {reached[partition]} only")

    def close(self) -> None:
        for reader in (self.decisions, self.letters, self.journal):
            reader.close()


def payments(name: str, times: Sequence[int]) -> list[bytes]:
    common: dict[str, Any] = {"amount_minor": 500, "currency": "EUR", "customer_id": "c1", "terminal_id": "t1"}
    return [json.dumps({"payment_id": f"{name}-{i}", "event_time": t, **common}).encode() for i, t in enumerate(times)]


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def log(services: Services, topics_prefix: str) -> Any:
    found = Log(services, topics_prefix)
    yield found
    found.close()


def drained(log: Log, bundle: Path, path: Path, decisions: int, letters: int) -> None:
    """Run a worker until so much is committed."""
    with process("run", ["--bundle", str(bundle)], log.settings, path) as worker:
        wait_for(lambda: log.decisions.fill() >= decisions and log.letters.fill() >= letters, 120, "everything")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    assert (len(log.decisions.messages), len(log.letters.messages)) == (decisions, letters)


def test_garbage_on_one_partition_leaves_the_payments_of_another_flowing(
    log: Log, bundle: Path, tmp_path: Path
) -> None:
    """Behind 60,000 garbage records of one partition, none of which can be decided, the payments of another are decided
    before a quarter of them is through; nothing is lost, and none of them is late."""
    garbage = [b"garbage %d" % i if i % 3 else b'{"event_time": "never", "n": %d}' % i for i in range(60_000)]
    log.send(0, garbage)
    log.send(1, payments("live", [now_ms() + i for i in range(LIVE)]))
    drained(log, bundle, tmp_path / "worker.log", LIVE, len(garbage))
    reached = log.ends_with(1, LIVE - 1)
    assert reached[0] < len(garbage) // 4, reached
    assert {decided["mode"] for decided in log.decisions.json()} == {"normal"}


def test_old_payments_on_one_partition_do_not_hold_the_others(log: Log, bundle: Path, tmp_path: Path) -> None:
    """Once stream time is past them, thousands of payments of yesterday and of last month on one partition, the latter
    later than allowed, have their share of every batch, and the live payments of another are decided beside the first
    of them."""
    live = now_ms() - 60_000
    log.send(1, payments("first", [live]))
    drained(log, bundle, tmp_path / "worker.log", 1, 0)
    old, ancient = 6_000, 6_000
    log.send(0, payments("old", [live - DAY_MS + i for i in range(old)]))
    log.send(0, payments("ancient", [live - 30 * DAY_MS + i for i in range(ancient)]))
    log.send(1, payments("live", [live + 1 + i for i in range(LIVE)]))
    drained(log, bundle, tmp_path / "worker.log", 1 + old + ancient + LIVE, 0)
    reached = log.ends_with(1, LIVE)
    assert reached[0] <= old // 2, reached
    modes = {"first": set(), "old": set(), "ancient": set(), "live": set()}  # type: dict[str, set[str]]
    for decided in log.decisions.json():
        modes[decided["payment_id"].split("-")[0]].add(decided["mode"])
    assert modes == {"first": {"normal"}, "old": {"normal"}, "ancient": {"late"}, "live": {"normal"}}


def test_a_paused_partition_holds_the_others_for_the_bounded_wait(log: Log) -> None:
    """While a partition that is behind shows nothing, the others wait once, for the setting's time, which is counted;
    then they are decided without it, and it is read on from where it stood when it comes back."""
    wait_ms = 300
    outcome = {"shard": "4711", "outcome": "silent"}
    log.send(0, payments("paused", [now_ms() + i for i in range(100)]))
    consumer = kafka.reader(log.settings.kafka, group="fairness")
    inputs = ShardInputs(
        kafka.PlainReader(consumer),
        payments=log.topics.payments,
        control=log.topics.control,
        labels=log.topics.labels,
        positions={0: 0, 1: 0},
        control_position=0,
        labels_position=0,
        buffered_max=4096,
    )
    batcher = Batcher(
        inputs,
        SYSTEM,
        shard=4711,
        batch_max=BATCH,
        gather_ms_max=5.0,
        frontier_wait_ms=wait_ms,
        skew_ms=DAY_MS,
        lateness_ms=1_000,
        stream_ms=now_ms,
    )
    taken: list[tuple[int, int]] = []

    def take() -> int:
        batch = batcher.next()
        if batch is not None:
            taken.extend(zip(batch.records.partition.tolist(), batch.records.offset.tolist(), strict=True))
        return len(taken)

    wait_for(lambda: take() >= 100 and inputs.buffers[0].at_end, 30, "the first records and their end")
    paused = inputs.buffers[0].partition
    log.send(0, payments("more", [now_ms() + i for i in range(100)]))
    # The client learns of a partition's end by fetching. What it has fetched, and is not taken, it fetches again
    # after a pause.
    wait_for(lambda: consumer.get_watermark_offsets(paused, cached=True)[1] >= 200, 30, "the client to know of more")
    consumer.pause([paused])
    inputs.buffers[0].at_end = False
    before = REGISTRY.get_sample_value("fraud_scorer_frontier_waits_total", outcome) or 0.0
    for n in range(1, 4):  # the wait comes once, not with every payment
        log.send(1, payments(f"live{n}", [now_ms()]))
        started = time.monotonic()
        wait_for(lambda n=n: take() >= 100 + n, 30, "a payment beside the paused partition")  # type: ignore[misc]
        if n == 1:
            assert time.monotonic() - started >= wait_ms / 1000.0 * 0.9
    assert REGISTRY.get_sample_value("fraud_scorer_frontier_waits_total", outcome) == before + 1
    consumer.resume([paused])
    wait_for(lambda: take() >= 203, 30, "the records of the paused partition")
    assert sorted(taken) == [(0, i) for i in range(200)] + [(1, i) for i in range(3)]
    inputs.close()
