"""The simulated broker answers as Kafka does where the worker's protocol leans on it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from tests.simulation.broker import ABORTED, ABORTING, COMMITTED, OPEN, Broker, Entry, Log, Refused
from tests.simulation.consumers import SimReader
from tests.simulation.network import Network
from tests.simulation.scheduler import Process, Scheduler


class _Bench:
    """A broker and a process that runs one function, without chaos."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(random.Random(1), lambda: None)
        self.random = self.scheduler.random
        self.network = Network(self.scheduler, lambda process, what: None, faults=0.0, throttled=0.0)
        self.broker = Broker(lambda: self.scheduler.now_s, lambda metadata: metadata)
        self.process: Any = Process("w1")
        self.process.open_consumers = []

    def read(self, log_position: int, polls: int, between: Any = None) -> list[tuple[int | None, int | None]]:
        """(error code, offset) of what a reader from `log_position` on gets; `between` happens after the first."""
        found: list[tuple[int | None, int | None]] = []

        def work() -> None:
            reader = SimReader(self, self.process)  # type: ignore[arg-type]
            reader.assign([TopicPartition("payments", 0, log_position)])
            for n in range(polls):
                message = reader.poll(5.0)
                if message is not None:
                    error = message.error()
                    found.append((None if error is None else error.code(), message.offset()))
                if n == 0 and between is not None:
                    between()
            self.scheduler.stop()

        self.scheduler.spawn(self.process, work, "main")
        self.scheduler.run()
        return found


def _payments(bench: _Bench, count: int) -> Log:
    bench.broker.create("payments", 1)
    for _ in range(count):
        bench.broker.append("payments", 0, None, b"1")
    return bench.broker.log("payments", 0)


def test_a_reader_of_committed_records_passes_over_aborted_ones_and_markers_and_stops_at_an_open_transaction() -> None:
    """Offsets of aborted records and markers are skipped; nothing behind the first open record is given."""
    bench = _Bench()
    log = _payments(bench, 1)
    log.append(Entry(None, b"2", OPEN, 0), "a")
    log.mark("a", ABORTED)
    bench.broker.append("payments", 0, None, b"3")
    log.append(Entry(None, b"4", OPEN, 0), "b")
    bench.broker.append("payments", 0, None, b"5")
    assert bench.read(0, 4) == [(None, 0), (None, 3), (KafkaError._PARTITION_EOF, 4)]
    log.mark("b", COMMITTED)
    assert [offset for offset, _ in log.committed(0)] == [0, 3, 4, 5]


def test_a_log_truncated_below_a_readers_position_is_an_error_also_when_it_has_grown_again() -> None:
    """An unclean election takes what was read: the reader's epoch ends before its position, and the reader is given an
    error instead of the records of the new epoch."""
    bench = _Bench()
    log = _payments(bench, 3)

    def election() -> None:
        log.truncate(1)
        for _ in range(5):
            bench.broker.append("payments", 0, None, b"another life")

    found = bench.read(2, 2, election)
    assert found == [(None, 2), (KafkaError._AUTO_OFFSET_RESET, 3)]  # as the real client; the text has the cause


def test_a_position_that_retention_has_passed_is_an_error() -> None:
    """A reader never jumps over records that are gone."""
    bench = _Bench()
    _payments(bench, 3).retain_from(2)
    assert bench.read(0, 1) == [(KafkaError._AUTO_OFFSET_RESET, 0)]


def test_a_topic_made_anew_has_another_id_and_begins_at_zero() -> None:
    """What a name stood for before is not taken for what it stands for now."""
    bench = _Bench()
    _payments(bench, 3)
    before = bench.broker.topics["payments"].id
    bench.broker.create("payments", 2)
    assert bench.broker.topics["payments"].id != before
    assert [log.end for log in bench.broker.topics["payments"].logs] == [0, 0]


def test_a_producer_of_an_older_epoch_is_refused_and_its_open_transaction_is_aborted_first() -> None:
    """InitProducerId of a new owner settles what the former one left open, and the former one can do nothing."""
    bench = _Bench()
    log = _payments(bench, 0)
    old = bench.broker.init("shard-0")
    bench.broker.produce("shard-0", old, log, [Entry(None, b"1", OPEN, 0)])
    with pytest.raises(Refused) as being_settled:
        bench.broker.init("shard-0")
    assert being_settled.value.code == KafkaError.CONCURRENT_TRANSACTIONS
    while not bench.broker.settled:
        bench.broker.write_marker(0.0)
    assert bench.broker.init("shard-0") > old
    for call in (
        lambda: bench.broker.produce("shard-0", old, log, []),
        lambda: bench.broker.end("shard-0", old, ABORTING),
    ):
        with pytest.raises(Refused) as fenced:
            call()
        assert fenced.value.code == KafkaError.INVALID_PRODUCER_EPOCH
    assert list(log.committed(0)) == []
