"""A journal and a trail that are longer than what replay, prove and explain read of them at a time.

Every payment is a batch of its own, and the reads are made short, so that a few hundred records are a long journal.
"""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.audit.explain.redecision import replay_until
from scorer.bundle import Bundle
from scorer.demo.demo_processes import own_database
from scorer.errors import PromiseBroken, UsageError
from scorer.journal import journal_reader, journal_span
from scorer.local_services import Services
from scorer.operate.loss_acceptance import Recovery
from scorer.operate.setup import setup
from scorer.proof import Differences, live_trail, prove_topic
from scorer.replay import Window, replay_audit, replay_topic, trail_replay
from tests.integration.running import process, test_settings, wait_for
from tests.integration.test_audit_commands import START_MS, Running, payment
from tests.integration.test_prove import write

BATCHES = 300
READ, PART = 20, 15
# What was read last, a part of it with the trail's batches, those of the part before it, and a few in hand.
ALIVE_MAX = READ + 4 * PART + 5
NO_PROGRESS_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(write(folder, "decides", seed=5))


@pytest.fixture(scope="module")
def running(services: Services, bundle: Bundle, folder: Path) -> Iterator[Running]:
    """BATCHES payments on two partitions, each decided in a batch of its own and written to Postgres."""
    name = f"long_{os.getpid()}"
    with own_database(services.postgres.url, name) as url:
        settings = test_settings(
            services.kafka.bootstrap_servers, f"{name}-", postgres={"url": url},
            worker={"batch_payments_max": 1}, topics={"payments_partitions": 2},
        )  # fmt: skip
        setup(settings)
        trail = Running(settings, folder)
        producer = kafka.plain_producer(settings.kafka)
        for number in range(BATCHES):
            producer.produce(kafka.Topics.of(settings.kafka).payments, payment(number), partition=number % 2)
        assert producer.flush(30) == 0
        with (
            process("sink", [], settings, folder / "sink.log"),
            process("run", ["--bundle", str(folder / "decides")], settings, folder / "worker.log"),
        ):
            wait_for(lambda: trail.count("decisions") == BATCHES, 300, "the decisions")
        yield trail


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_reader, "RECORDS_PER_READ", READ)
    monkeypatch.setattr(live_trail, "BATCHES_PER_READ", PART)


class Alive:
    """Objects of a class in memory, counted at every 25th batch that a command reports; without those that were there
    before, which other tests of this process left."""

    def __init__(self, name: str = JournalRecord.__name__) -> None:
        self._name = name
        self.calls = self.most = 0
        gc.collect()
        self._before = self._count()

    def __call__(self, *_: int) -> None:
        self.calls += 1
        if self.calls % 25 == 0:
            self.most = max(self.most, self._count() - self._before)

    def _count(self) -> int:
        return sum(type(item).__name__ == self._name for item in gc.get_objects())


def whole_journal(running: Running) -> list[tuple[int, JournalRecord]]:
    clients = kafka.RealClients(running.settings)
    found = journal_reader.journal_records(running.settings.kafka, clients, 0, no_progress_s=NO_PROGRESS_S)
    return list(found)


def test_a_long_journal_is_replayed_without_being_held(running: Running, bundle: Bundle) -> None:
    """All batches come out again, and at no time are more records in memory than one read gives; a window of offsets
    in the middle gives its own decisions and ends there."""
    alive, output = Alive(), running.folder / "whole.parquet"
    report = replay_topic(bundle, running.settings, output, progress=alive)
    assert (report.decisions, report.batches_checked, alive.calls) == (BATCHES, BATCHES, BATCHES)
    assert 0 < alive.most <= READ + 5
    with psycopg.connect(running.database) as connection:
        live = connection.execute(
            "SELECT payment_id, decision, score FROM decisions ORDER BY shard, sequence, row_number"
        ).fetchall()
    whole = pq.read_table(output)
    again = list(zip(*(whole[name].to_pylist() for name in ("payment_id", "decision", "score")), strict=True))
    assert again == live
    part = running.folder / "part.parquet"
    windowed = replay_topic(bundle, running.settings, part, window=Window(offsets={0: (40, 60), 1: (45, 50)}))
    assert len(set(pq.read_table(part)["payment_id"].to_pylist())) == 25
    last = max(live.index(row) for row in live if row[0] in {f"p_{2 * 59}", f"p_{2 * 49 + 1}"})
    assert windowed.batches_checked == last + 1


def test_a_long_journal_is_proved_without_being_held(running: Running, bundle: Bundle) -> None:
    """Every payment is compared and equal, across the borders of reads and parts."""
    alive, differences = Alive(), Differences(None)
    prove_topic(bundle, running.settings, differences, progress=alive)
    proof = differences.close()
    assert (proof.compared, proof.equal, proof.causes) == (BATCHES, BATCHES, {})
    assert 0 < alive.most <= ALIVE_MAX < BATCHES


def test_a_long_trail_is_replayed_without_being_held(
    running: Running, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trail's rows decide as the topic does, though its batches are read by pages; of those no more are in memory
    than a page and the part of it that is decided."""
    monkeypatch.setattr(trail_replay, "BATCHES_PER_PAGE", PART)
    alive, url = Alive("Row"), running.settings.postgres_url
    by_rows, by_topic = running.folder / "rows.parquet", running.folder / "topic.parquet"
    replay_audit(bundle, url, by_rows, progress=alive)
    assert alive.calls == BATCHES
    assert 0 < alive.most <= 3 * PART + 5
    replay_topic(bundle, running.settings, by_topic)
    names = ["payment_id", "partition", "offset", "decision", "mode", "score", "reasons", "fired", "customer_id"]
    assert pq.read_table(by_rows, columns=names).to_pylist() == pq.read_table(by_topic, columns=names).to_pylist()
    begin, until = running.folder / "begin.parquet", START_MS + 60_000 * (BATCHES - 40)
    report = replay_audit(bundle, url, begin, window=Window(begin_ms=until - 60_000 * 30, until_ms=until))
    assert report.decisions == pq.read_metadata(begin).num_rows == 30


def test_a_decision_in_a_long_journal_is_explained_without_holding_it(running: Running, bundle: Bundle) -> None:
    """A batch is decided again after the ones before it, and nothing that follows is."""
    sequence = BATCHES // 2
    alive = Alive()
    again = replay_until(running.settings, bundle, shard=0, sequence=sequence, progress=alive)
    assert alive.calls == sequence + 1
    assert 0 < alive.most <= READ + 5
    assert again.outcomes.journal == dict(enumerate(record for _, record in whole_journal(running)))[sequence]


def test_the_first_walk_along_a_journal_holds_little_of_it(running: Running, bundle: Bundle) -> None:
    """What `replay` and `prove` read of a journal before they decide takes a part of the memory of its records."""
    tracemalloc.start()
    try:
        records = whole_journal(running)
        held, _ = tracemalloc.get_traced_memory()
        assert len(records) == BATCHES
        del records

        def peak(command: Callable[[Callable[[int], None]], object]) -> int:
            found = list[int]()
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()

            def expected(_: int) -> None:
                found.append(tracemalloc.get_traced_memory()[1] - before)
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                command(expected)
            return found[0]

        settings = running.settings
        assert peak(lambda expect: replay_topic(bundle, settings, None, expect=expect)) < held / 3
        assert peak(lambda expect: prove_topic(bundle, settings, Differences(None), expect=expect)) < held / 3
    finally:
        tracemalloc.stop()


def test_a_journal_that_changes_between_the_walks_is_noticed(running: Running) -> None:
    """The second walk has to end at the record at which the first one did."""
    settings, clients = running.settings, kafka.RealClients(running.settings)
    span = journal_span.span_of(whole_journal(running))
    assert span is not None
    other = json.loads(span.last.to_bytes()) | {"stream_time_ms": span.last.stream_time_ms + 1}
    span.last = JournalRecord.from_bytes(json.dumps(other, sort_keys=True, separators=(",", ":")).encode())
    with closing(journal_span.records_of(span, settings.kafka, clients, no_progress_s=NO_PROGRESS_S)) as records:
        for number in range(span.count - 1):
            assert next(records).sequence == number
        with pytest.raises(PromiseBroken, match="not the one that was read before"):
            next(records)


def test_nothing_before_a_new_state_is_decided_again(running: Running, bundle: Bundle) -> None:
    """Once an operator has let the state begin anew, `explain` refuses the batches before, and replay and prove begin
    there. (The last test: it changes the journal.)"""
    settings = running.settings
    Recovery(settings, 0).new_state(bundle, "a test")
    with pytest.raises(UsageError, match="before an operator let the state begin anew"):
        replay_until(settings, bundle, shard=0, sequence=3, progress=lambda *_: None)
    again = replay_until(settings, bundle, shard=0, sequence=BATCHES, progress=lambda *_: None)
    assert (again.outcomes.journal.sequence, len(again.outcomes.rows)) == (BATCHES, 0)
    with pytest.raises(UsageError, match=f"no batch {BATCHES + 1}"):
        replay_until(settings, bundle, shard=0, sequence=BATCHES + 1, progress=lambda *_: None)
    report = replay_topic(bundle, settings, None)
    assert (report.decisions, report.batches_checked) == (0, 1)
    with pytest.raises(UsageError, match="the journal has decided none of them"):
        replay_topic(bundle, settings, None, window=Window(offsets={0: (40, 60)}))
    differences = Differences(None)
    prove_topic(bundle, settings, differences)
    assert differences.close().compared == 0
