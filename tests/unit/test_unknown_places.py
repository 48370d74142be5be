"""A committed record whose offset the broker does not know any more: one that was sent again, late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from scorer import kafka
from scorer.runtime.settings import load
from scorer.runtime.threads import SYSTEM
from scorer.worker.ports import Ports
from scorer.worker.publisher import _Reports
from scorer.worker.snapshotter import Snapshotter
from tests.refusing_cluster import PRODUCE, RefusingCluster, held_by_each_client


def test_a_report_without_an_offset_is_no_failure() -> None:
    """The broker has the record and says that it has it twice: the transaction is committed."""
    settings = held_by_each_client()
    producer: Any = kafka.RealClients(settings).log_producer()
    cluster = RefusingCluster(producer, settings.kafka.client_id)
    cluster.create("journal")
    reports = _Reports()
    producer.produce("journal", b"a", partition=0, on_delivery=reports.on_journal)
    assert producer.flush(20) == 0
    assert reports.journal_offset == 0
    cluster.refuse(PRODUCE, [KafkaError.DUPLICATE_SEQUENCE_NUMBER])
    reports = _Reports()
    producer.produce("journal", b"b", partition=0, on_delivery=reports.on_journal)
    assert producer.flush(20) == 0
    assert reports.journal_offset == -1


class _Capture:
    """A snapshot that is taken in one step."""

    stepping = False

    def copy(self) -> None:
        return

    def again(self) -> bool:
        return True

    def finish(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("known", [True, False])
def test_no_snapshot_is_written_that_does_not_say_where_its_batch_stands(known: bool) -> None:
    """The record of the journal that it ends with could not be found; a later batch has a snapshot again."""
    written: list[int] = []

    def write(sequence: int, known: Any, parts: Any) -> Any:
        written.append(known["journal_offset"])
        return SimpleNamespace(digest="a" * 64, sequence=sequence, bytes=1, bytes_uploaded=1)

    store = SimpleNamespace(write=write, prune=lambda keep: 0)
    states = SimpleNamespace(capture=lambda pipeline: _Capture(), facts=lambda pipeline: {})
    settings = load(snapshots={"every_payments": 1})
    snapshotter = Snapshotter(settings, 0, store, lambda bundle: "", Ports(None, SYSTEM, states))  # type: ignore[arg-type]
    buffer = SimpleNamespace(position=0)
    inputs: Any = SimpleNamespace(buffers={}, last_records={}, control=buffer, labels=buffer, sources=None, places={})

    def ended() -> None:
        if (thread := snapshotter.running) is not None:
            thread.join()

    def batch(sequence: int, journal_offset: int) -> None:
        """One is decided, captured, and committed."""
        pipeline: Any = SimpleNamespace(sequence=sequence + 1, bundle=SimpleNamespace(id="b"))
        snapshotter.between_batches(pipeline, inputs, 1)
        ended()
        snapshotter.between_batches(pipeline, inputs, 0)
        snapshotter.committed(sequence, journal_offset)
        ended()

    batch(0, 40 if known else -1)
    assert written == ([40] if known else [])
    if not known:
        snapshotter._not_before = 0.0  # the pause is over
        batch(1, 42)
        assert written == [42]
