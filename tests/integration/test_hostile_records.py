"""Records that no program of ours writes, through the real sinks: each is set aside or kept as what it is."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry

from schemas.audit_record import AuditColumns, AuditHeader, arrow_schema, digest, encode
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.control_record import parse_control
from schemas.dead_letter import dead_letter_record
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from scorer.sink import RecordSink, RecordTopic, SinkMetrics
from scorer.sink.sink_errors import AuditBroken
from scorer.trail import audit_database
from tests.arrow_bombs import compressed, one_column_many_times, one_text_many_times
from tests.integration.audit_batches import CONTEXT, Shard, make_topic, rows
from tests.integration.running import test_settings
from tests.integration.sinks import assert_equal_to, query, running, wait_for

RECORDS = 250
TIMES_MS = (0, 1, 1_767_225_600_000, 253_402_300_799_999, 253_402_300_800_000, 2**53, 2**62, 2**63 - 1)
TEXTS = (
    "", "a", "a\0b", "\0", "\u2028", "é" * 300, "x" * 30_000, "4111111111111111", "null", "\U0010ffff", "' OR 1=1 --",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 10**30)


@pytest.fixture
def place(services: Services, topics_prefix: str, database: str) -> Settings:
    audit_database.migrate(database)
    return test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})


def _url(place: Settings) -> str:
    return place.postgres.url.get_secret_value()


def _topic(place: Settings, name: str) -> str:
    """A topic whose producers choose any timestamp: what a broker without bounds lets pass."""
    topic = f"{place.kafka.topic_prefix}{name}"
    free = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": str(2**63 - 1)}
    admin = AdminClient({"bootstrap.servers": place.kafka.bootstrap_servers})
    for future in admin.create_topics([NewTopic(topic, 1, 1, config=free)]).values():
        future.result(30)
    return topic


def _send(place: Settings, topic: str, records: list[tuple[bytes | None, list[tuple[str, Any]], int]]) -> None:
    producer = Producer({"bootstrap.servers": place.kafka.bootstrap_servers})
    for value, headers, timestamp_ms in records:
        producer.produce(topic, value, headers=headers, timestamp=timestamp_ms)
        producer.poll(0)
    assert producer.flush(30) == 0


@contextmanager
def _sinking(place: Settings, kind: RecordTopic) -> Iterator[RecordSink]:
    sink, stop, errors = RecordSink(place, kind, SinkMetrics(CollectorRegistry())), threading.Event(), []

    def run() -> None:
        try:
            sink.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: errors or sink.drained(), f"the sink of {kind} to drain")
        yield sink
    finally:
        stop.set()
        thread.join(30)
    assert errors == []


def _mixed(seed: int, hostile: Callable[[random.Random], Any], good: Callable[[int], Any]) -> list[Any]:
    chosen = random.Random(seed)
    return [good(n) if n % 10 == 9 else hostile(chosen) for n in range(RECORDS)]


def test_every_dead_letter_gets_a_row(place: Settings) -> None:
    """Partition 2^40, NUL, endless texts, times past year 9999: each is a row, unreadable where its table can't hold
    what it says; the good ones between them stand as they were sent."""

    def letter(n: int) -> tuple[bytes | None, list[tuple[str, Any]], int]:
        error = ContractError(DeadLetterReason.NOT_JSON, "currency", "not a document")
        _, value, headers = dead_letter_record("payments", 3, n, None, b"{", error)
        return value, list(headers), 1_767_225_600_000 + n

    def hostile(chosen: random.Random) -> tuple[bytes | None, list[tuple[str, Any]], int]:
        _, headers, _ = letter(1)
        for _ in range(chosen.randint(0, 3)):
            at = chosen.randrange(len(headers))
            text = chosen.choice([chosen.choice(TEXTS), str(chosen.choice(NUMBERS))])
            raw = chosen.choice([text.encode(), text.encode(), b"\xff\xfe", None])
            headers[at] = (headers[at][0], raw)
        if chosen.random() < 0.1:
            headers = headers[: chosen.randrange(len(headers))]
        return chosen.choice([None, b"", b"\0" * 20]), headers, chosen.choice(TIMES_MS)

    sent = _mixed(1, hostile, letter)
    topic = _topic(place, "dead-letters")
    _send(place, topic, sent)
    with _sinking(place, RecordTopic.DEAD_LETTERS):
        pass
    found = query(_url(place), 'SELECT "offset", origin_offset, reason, message FROM dead_letters ORDER BY 1')
    assert [row[0] for row in found] == list(range(RECORDS))
    assert [row[1:] for row in found[9::10]] == [(n, "not_json", "not a document") for n in range(9, RECORDS, 10)]
    assert {"unreadable", "not_json"} == {row[2] for row in found}
    latest = query(_url(place), "SELECT max(recorded_at) = '9999-12-31 23:59:59.999Z' FROM dead_letters")
    assert latest == [(True,)]


def test_every_control_record_that_the_contract_takes_is_stored(place: Settings) -> None:
    """Labels, lists and activations made of hostile values: what the contract accepts is in its table, and the sink
    goes on after all others."""

    def good(n: int) -> tuple[bytes, list[tuple[str, Any]], int]:
        record = {"type": "label", "payment_id": f"p_{n}", "fraud": True, "known_at": "2026-01-09T08:00:00Z"}
        return json.dumps(record).encode(), [], 1_767_225_600_000

    def hostile(chosen: random.Random) -> tuple[bytes | None, list[tuple[str, Any]], int]:
        record: dict[str, Any] = chosen.choice(
            [
                {"type": "label", "payment_id": "p", "fraud": True, "known_at": 1_767_225_600_000, "source": "s"},
                {"type": "list_add", "list": "blocked", "value": "t_1"},
                {"type": "list_remove", "list": "blocked", "value": "t_1"},
                {"type": "activate", "bundle": "b-1", "location": "/bundles/b-1"},
            ]
        ).copy()
        if chosen.random() < 0.7:
            kinds = [
                chosen.choice(TEXTS),
                chosen.choice(NUMBERS),
                chosen.choice(TIMES_MS),
                "9999-12-31T23:59:59Z",
                [],
                {},
            ]
            record[chosen.choice(list(record))] = chosen.choice(kinds)
        value = json.dumps(record, ensure_ascii=chosen.random() < 0.5).encode()
        raw = chosen.choice([value, value, value, value.replace(b'"p"', b'"\\ud800"'), value[:-1], None])
        return raw, [], chosen.choice(TIMES_MS)

    def accepted(value: bytes | None) -> bool:
        try:
            parse_control(value)
        except ContractError:
            return False
        return True

    sent = _mixed(2, hostile, good)
    topic = _topic(place, "control")
    _send(place, topic, sent)
    with _sinking(place, RecordTopic.CONTROL):
        pass
    tables = " UNION ALL ".join(f'SELECT "offset" FROM {name}' for name in ("labels", "activations", "control_changes"))
    stored = query(_url(place), f'SELECT "offset" FROM ({tables}) t ORDER BY 1')
    expected = [n for n, (value, _, _) in enumerate(sent) if accepted(value)]
    assert [row[0] for row in stored] == expected
    assert len(expected) > RECORDS // 5


def test_a_control_record_that_postgres_refuses_is_set_aside(place: Settings) -> None:
    """Whatever Postgres has against one row: it stands in set_aside with the reason; those beside it are written."""
    with psycopg.connect(_url(place)) as owner:
        owner.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22023'; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON labels FOR EACH ROW WHEN (NEW.payment_id = 'p_1') "
            "EXECUTE FUNCTION refuse()"
        )
    labels = [{"type": "label", "payment_id": f"p_{n}", "fraud": True, "known_at": 1_767_225_600_000} for n in range(3)]
    topic = _topic(place, "control")
    _send(place, topic, [(json.dumps(label).encode(), [], 1_767_225_600_000) for label in labels])
    with _sinking(place, RecordTopic.CONTROL) as sink:
        assert sink._metrics.set_aside.labels("refused")._value.get() == 1
    assert query(_url(place), "SELECT payment_id FROM labels ORDER BY 1") == [("p_0",), ("p_2",)]
    (row,) = query(_url(place), 'SELECT topic, "offset", kind, reason FROM set_aside')
    assert row[:3] == (topic, 1, "refused")
    assert "22023" in row[3]


def _described(value: bytes, **header: object) -> bytes:
    """A chunk with other fields in its header."""
    with pa.ipc.open_stream(value) as stream:
        schema, batch = stream.schema, stream.read_next_batch()
    fields = json.dumps(json.loads(schema.metadata[b"header"]) | header).encode()
    described = schema.with_metadata(schema.metadata | {b"header": fields})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, described) as writer:
        writer.write_batch(batch.cast(described))
    return bytes(sink.getvalue())


def test_hostile_audit_records_cost_no_other_row(place: Settings) -> None:
    """Bombs, numbers that no column holds, NUL in names and in keys of the journal record: all in set_aside, in order;
    the batches before and after are written."""
    topic = f"{place.kafka.topic_prefix}audit"
    make_topic(place.kafka.bootstrap_servers, topic)
    shard = Shard(place.kafka.bootstrap_servers, topic)
    shard.write(rows(1, 10))
    (chunk,), record = shard.chunks(rows(2, 10))
    journal = json.dumps(json.loads(record.to_bytes()) | {"a\0": 1, "4111111111111111": 2})
    names = (*CONTEXT.feature_names[:-1], "a\0b")
    named = CONTEXT.model_copy(update={"feature_names": names, "bundle": "cards-2", "feature_fingerprint": "cd" * 32})
    _, other = shard.chunks(rows(2, 10), bundle="cards-2", digest=digest(rows(2, 10), named))
    header = AuditHeader(**named.model_dump(), shard=0, sequence=other.sequence, journal=other.to_bytes().decode())
    hostile = {
        "unreadable": [
            *(_described(chunk, **change) for change in ({"shard": 2**40}, {"sequence": 2**63}, {"rows": 2**33})),
            one_text_many_times(60_000, 240_000),
            one_column_many_times(100_000, 1),
            compressed(arrow_schema(5, 1).with_metadata({b"journal": b"{}"}), "zstd", 400_000),
        ],
        "incomplete": [_described(chunk, chunk=1, chunks=4096, first_row=2**31 - 11, rows=2**31 - 1)],
        "contradiction": encode(rows(2, 10), header.model_copy(update={"journal": journal})),
        "refused": encode(rows(2, 10), header),
    }
    with psycopg.connect(_url(place)) as owner:  # the last way out: a row of set_aside that is refused itself
        owner.execute("ALTER TABLE set_aside ADD CONSTRAINT none CHECK (value <> 'refused twice'::bytea)")
    kinds = []
    for kind, values in hostile.items():
        shard.send(values)
        kinds += [kind] * len(values)
    shard.send([b"refused twice"])
    shard.sequence, shard.head = other.sequence, other.head
    shard.write(rows(3, 10))
    with running(place.kafka.bootstrap_servers, topic, _url(place)) as sink:
        wait_for(lambda: sink.error or sink.sink.drained(), "the sink to drain")
    assert sink.error is None
    assert_equal_to(_url(place), shard)
    found = query(_url(place), 'SELECT kind, reason, value IS NULL FROM set_aside ORDER BY "offset"')
    assert [row[0] for row in found] == [*kinds, "unreadable"]
    assert [row[2] for row in found] == [*([False] * len(kinds)), True]
    assert not any("4111111111111111" in reason for _, reason, _ in found)


def test_a_forged_batch_that_comes_before_its_turn_costs_no_other_row(place: Settings) -> None:
    """Batches of later numbers that no journal holds, before a gap is allowed and after, and chunks without an end: all
    in set_aside; the worker's batches around them are written, and a gap that is real still stops the sink."""
    topic, journal = (f"{place.kafka.topic_prefix}{name}" for name in ("audit", "journal"))
    for name in (topic, journal):
        make_topic(place.kafka.bootstrap_servers, name)
    shard = Shard(place.kafka.bootstrap_servers, topic)
    write = partial(_with_journal, shard, journal)
    for number in range(5):
        write(rows(number, 10))
    for sequence in (6, 7, 2**62):
        shard.send(shard.chunks(rows(50, 10), sequence=sequence)[0])
    write(rows(6, 10))
    shard.send([b"garbage"])  # after which a later batch may be next: not a forged one
    shard.send(shard.chunks(rows(51, 10), sequence=9)[0])
    (chunk,), _ = shard.chunks(rows(52, 400))
    endless = [_described(chunk, chunk=n, chunks=4096, first_row=n * 400, rows=2**31 - 1) for n in range(12)]
    shard.send(endless)
    write(rows(7, 10))
    good = dict(shard.written), dict(shard.records)
    with running(place.kafka.bootstrap_servers, topic, _url(place), batch_bytes_max=5 * len(chunk)) as sink:
        wait_for(lambda: sink.error or sink.sink.drained(), "the sink to drain")
        assert sink.error is None
        assert_equal_to(_url(place), shard)
        # One of the worker's is missing: it stands in the journal and not on the audit topic.
        _, record = shard.chunks(rows(8, 10))
        _commit(shard, [(journal, record.to_bytes())])
        shard.sequence, shard.head = record.sequence, record.head
        write(rows(9, 10))
        wait_for(lambda: sink.error is not None, "the sink to stop")
    assert isinstance(sink.error, AuditBroken)
    shard.written, shard.records = good
    assert_equal_to(_url(place), shard)
    kinds = [kind for (kind,) in query(_url(place), 'SELECT kind FROM set_aside ORDER BY "offset"')]
    assert kinds == [*["contradiction"] * 3, "unreadable", "contradiction", *["incomplete"] * len(endless)]


def _with_journal(shard: Shard, journal: str, columns: AuditColumns) -> None:
    """The next batch as the worker commits it: audit and journal record in one transaction."""
    chunks, record = shard.chunks(columns)
    _commit(shard, [(shard.topic, chunk) for chunk in chunks] + [(journal, record.to_bytes())])
    shard.sequence, shard.head = record.sequence, record.head
    shard.written[record.sequence], shard.records[record.sequence] = columns, record


def _commit(shard: Shard, records: list[tuple[str, bytes]]) -> None:
    shard.producer.begin_transaction()
    for name, value in records:
        shard.producer.produce(name, value=value, partition=0)
    shard.producer.commit_transaction(30)
