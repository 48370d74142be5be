"""Records on topic journal that no worker has written: a console producer, a wrong right."""

from __future__ import annotations

import json

import pytest

from scorer import kafka
from scorer.audit import topic_history
from scorer.journal.journal_reader import journal_records
from tests.faults.payments import payments
from tests.faults.run import Application
from tests.faults.test_order_rows import Make
from tests.faults.test_rows import decided, stream

FOREIGN = (b"", b"hello", b'{"shard":0,"sequence":7}', b'{"sequence":1,"stream_time_ms":0}', b"\xff\xfe", b"[]", None)


def write(app: Application, *values: bytes | None) -> None:
    """Give records to the journal of shard 0."""
    producer = kafka.plain_producer(app.settings.kafka)
    for value in values:
        producer.produce(app.topics.journal, value, partition=0)
    assert producer.flush(20) == 0


def test_what_no_worker_has_written_to_the_journal_is_passed_over(
    application: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that follows, a take-over, and a cold start read on behind such records, which are logged; the outcome
    is equal, and `audit verify` finds every head."""
    app = application()
    given = payments(46, 300)
    write(app, *FOREIGN)
    app.start("a")
    app.ready("a")
    app.start("b")
    app.ready("b")
    stream(app, given[:100])
    decided(app, 100)
    write(app, *FOREIGN)
    stream(app, given[100:200])
    decided(app, 200)
    app.kill("a")
    stream(app, given[200:250])
    decided(app, 250)
    app.stop()
    passed_over = app.workers.pop("b").log.read_text()
    assert "journal.foreign_records" in passed_over
    write(app, *FOREIGN)
    app.start("c")
    stream(app, given[250:])
    decided(app, 300)
    app.finish(supervised=False)
    app.check()
    write(app, *FOREIGN)
    monkeypatch.setattr(topic_history, "_NEAR", 1)
    sequences = [head.sequence for head in topic_history.journal_heads(app.settings, 0)]
    assert sequences == list(range(len(sequences)))
    assert len(sequences) > 3
    for begin in sequences:
        assert next(topic_history.journal_heads(app.settings, 0, from_sequence=begin)).sequence == begin


def test_a_journal_record_of_a_later_release_is_not_passed_over(application: Make) -> None:
    """A record that names the head before it and cannot be read ends a start: to go on would be to decide again."""
    app = application()
    app.start("a")
    app.ready("a")
    stream(app, payments(47, 50))
    decided(app, 50)
    app.stop()
    del app.workers["a"]
    clients = kafka.RealClients(app.settings)
    *_, (_, last) = journal_records(app.settings.kafka, clients, 0, no_progress_s=30)
    later = json.loads(last.to_bytes()) | {"sequence": last.sequence + 1, "previous": last.head, "later": 1}
    write(app, json.dumps(later, sort_keys=True, separators=(",", ":")).encode())
    refused = app.start("b")
    assert refused.wait(90) == 3, refused.log_end()
    assert "A later release has written it" in refused.log_end()
    del app.workers["b"]
