"""Tables without digests compared with the topics they came from: labels, activations, changes of lists, dead letters.

Their topics are the origin: each row is made again from its record, as the sink made it. A row whose record the topic
no longer has (retention) cannot be compared, and is counted as such. What retention or erasure did here is known from
signed amendments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import sqlalchemy as sa
from confluent_kafka import Message
from psycopg import sql
from psycopg.rows import dict_row

from scorer import kafka
from scorer.audit.findings import Finding
from scorer.audit.topic_history import messages, range_of
from scorer.audit.verify.scope import BIGINT_MAX, Evidence, Report
from scorer.audit.verify.unit_check import MomentLoader
from scorer.runtime.settings import Settings
from scorer.sink.record_rows import Row, control_row, dead_letter_row, label_row
from scorer.sink.topic_reader import Record
from scorer.trail import audit_tables

_CONTROL = (audit_tables.labels, audit_tables.activations, audit_tables.control_changes)
_LABELS = (audit_tables.labels,)
_PAGE = 5_000
_FINDINGS_MAX = 100  # for each table: of one that was emptied the first rows are enough


def compare_records(evidence: Evidence) -> None:
    """Compares every row of these tables whose record its topic still has. Raises KafkaFailure."""
    settings, report = evidence.settings, evidence.report
    topics, client = kafka.Topics.of(settings.kafka), kafka.admin(settings.kafka)
    report.records = 0
    for topic, tables in (
        (topics.control, _CONTROL),
        (topics.labels, _LABELS),
        (topics.dead_letters, (audit_tables.dead_letters,)),
    ):
        count = kafka.partition_count(client, topic)
        for table in tables:
            # Labels stand on two topics: those of before they had one of their own are on control.
            if tables is not _LABELS:
                also = (topics.labels,) if table is audit_tables.labels else ()
                find_foreign_rows(evidence.connection, table, topic, count, report, also=also)
        for partition in range(count):
            position = _position(evidence, topic, partition, tables)
            if position is not None:
                _partition(evidence, topic, partition, position, tables)
            report.behind += _behind(settings, topic, partition, position or 0, tables)


def _partition(evidence: Evidence, topic: str, partition: int, position: int, tables: tuple[sa.Table, ...]) -> None:
    """Rows and records of one partition up to the sink's position, next to each other."""
    first, _ = range_of(evidence.settings, topic, partition)
    rows = {table.name: _Rows(evidence, table, topic, partition, (first, position)) for table in tables}
    row_of = _row_of(tables)
    for message in messages(evidence.settings, topic, partition, first, position):
        record = _record(message)
        expected = row_of(topic, record)
        for name, table_rows in rows.items():
            table_rows.next(record.offset, expected[1] if expected and expected[0].name == name else None)
    for table_rows in rows.values():
        table_rows.finish()


def _row_of(tables: tuple[sa.Table, ...]) -> Callable[[str, Record], Row | None]:
    return label_row if tables is _LABELS else control_row if tables is _CONTROL else dead_letter_row


def _behind(settings: Settings, topic: str, partition: int, position: int, tables: tuple[sa.Table, ...]) -> int:
    """Records at and past the sink's position that will make a row: it has yet to come there, or was set back."""
    row_of = _row_of(tables)
    return sum(
        row_of(topic, _record(message)) is not None for message in messages(settings, topic, partition, position)
    )


def _record(message: Message) -> Record:
    offset = kafka.present(message.offset(), "offset")
    return Record(kafka.present(message.partition(), "partition"), offset, message.value(), message)


def find_foreign_rows(
    connection: psycopg.Connection,
    table: sa.Table,
    topic: str,
    partitions: int,
    report: Report,
    *,
    also: tuple[str, ...] = (),
) -> None:
    """Rows that name another topic (`also` aside), or a partition that it does not have."""
    other = sql.SQL("topic <> %s") if "partition" not in table.c else sql.SQL(
        "topic <> %s OR partition < 0 OR partition >= {}"
    ).format(sql.Literal(partitions))  # fmt: skip
    found = connection.execute(
        sql.SQL('SELECT count(*), min(topic), min("offset") FROM {} WHERE ({}) AND topic <> ALL (%s)').format(
            sql.Identifier(table.name), other
        ),
        (topic, list(also)),
    ).fetchone()
    if found is not None and found[0]:
        detail = f"{found[0]} rows do not name {topic}, such as {found[1]} offset {found[2]}"
        report.findings.append(Finding.at(table.name, "record_inserted", detail))


def _position(evidence: Evidence, topic: str, partition: int, tables: tuple[sa.Table, ...]) -> int | None:
    """How far the sink has come on a partition; None when it has not begun.

    In this order, so that a sink at work is no finding: newest row, position, end of the topic.
    """
    connection, amendments = evidence.connection, evidence.amendments
    newest = -1
    for table in tables:
        where = sql.SQL("AND partition = {}").format(sql.Literal(partition)) if "partition" in table.c else sql.SQL("")
        row = connection.execute(
            sql.SQL('SELECT max("offset") FROM {} WHERE topic = %s {}').format(sql.Identifier(table.name), where),
            (topic,),
        ).fetchone()
        newest = max(newest, -1 if row is None or row[0] is None else row[0])
    found = connection.execute(
        "SELECT next_offset FROM positions WHERE topic = %s AND partition = %s", (topic, partition)
    ).fetchone()
    _, end = range_of(evidence.settings, topic, partition)
    removed = max(amendments.before(table.name, topic, partition) for table in tables)
    if found is None and newest < 0 and not removed:
        return None
    wrong = None
    if found is None and newest < 0:
        wrong = f"it is gone, and retention removed rows before offset {removed}"
    elif found is None:
        wrong = f"it is gone, and there is a row of offset {newest}"
    elif found[0] > end:
        wrong = f"it is {found[0]}, and the topic ends at {end}"
    elif found[0] <= newest:
        wrong = f"it is {found[0]}, and there is a row of offset {newest}"
    elif found[0] < removed:
        wrong = f"it is {found[0]}, and retention removed rows before offset {removed}"
    if wrong is None:
        return None if found is None else int(found[0])
    evidence.report.findings.append(Finding.at(f"position on {topic}/{partition}", "position_edited", wrong))
    return max(end, newest + 1)


class _Rows:
    """The rows of one table and partition in order of offset, next to the records of their topic."""

    def __init__(
        self, evidence: Evidence, table: sa.Table, topic: str, partition: int, bounds: tuple[int, int]
    ) -> None:
        """`bounds`: the first offset that the topic still has, and how far the sink had come."""
        self._table, self._topic, self._partition = table.name, topic, partition
        self._report, self._found = evidence.report, 0
        self._erased = evidence.amendments.erased.get(table.name, {})
        self._removed = evidence.amendments.before(table.name, topic, partition)
        self._rows = _select(evidence.connection, table, topic, partition, bounds[1])
        self._have = next(self._rows, None)
        while self._have is not None and self._have["offset"] < bounds[0]:
            if self._have["offset"] < max(self._removed, 0):
                self._find(self._have["offset"], "record_inserted", "retention had removed it")
            else:
                self._report.records_older += 1
            self._have = next(self._rows, None)

    def next(self, offset: int, expected: dict[str, Any] | None) -> None:
        """The record at `offset`, and the row that it made in this table; None when it made none here."""
        self._pass(offset)
        have = self._have if self._have is not None and self._have["offset"] == offset else None
        if have is not None:
            self._have = next(self._rows, None)
        if offset < self._removed:
            if have is not None:
                self._find(offset, "record_inserted", "retention had removed it")
            return
        if expected is None:
            if have is not None:
                self._find(offset, "record_inserted", "the record there makes no such row")
            return
        if have is None:
            self._find(offset, "record_deleted", "its topic has it")
            return
        self._report.records = (self._report.records or 0) + 1
        wanted = self._expected(offset, expected)
        changed = [name for name, value in wanted.items() if have[name] != value]
        if changed:
            self._find(offset, "record_edited", f"column {', '.join(changed)} differs from its record on the topic")

    def finish(self) -> None:
        """No record is left on the topic."""
        self._pass(None)

    def _expected(self, offset: int, row: dict[str, Any]) -> dict[str, Any]:
        """What stands there since an erasure."""
        value = self._erased.get((self._topic, self._partition, offset))
        if value is None:
            return row
        if self._table == audit_tables.labels.name:
            return row | {"payment_id": value}
        return row | {"record": row["record"] | {"value": value}} if "record" in row else row

    def _pass(self, offset: int | None) -> None:
        """Rows before `offset` that no record explains."""
        while self._have is not None and (offset is None or self._have["offset"] < offset):
            self._find(self._have["offset"], "record_inserted", "its topic has no such record")
            self._have = next(self._rows, None)

    def _find(self, offset: int, kind: str, detail: str) -> None:
        self._found += 1
        if self._found <= _FINDINGS_MAX:
            place = f"{self._table}, {self._topic}/{self._partition} offset {offset}"
            self._report.findings.append(Finding.at(place, kind, detail, max(offset, 0)))


def _select(
    connection: psycopg.Connection, table: sa.Table, topic: str, partition: int, before: int
) -> Iterator[dict[str, Any]]:
    """By pages along the primary key: no cursor, and so no transaction, lasts as long as the reading of a topic."""
    where = sql.SQL("AND partition = {}").format(sql.Literal(partition)) if "partition" in table.c else sql.SQL("")
    statement = sql.SQL(
        'SELECT * FROM {} WHERE topic = %s {} AND "offset" > %s AND "offset" < %s ORDER BY "offset" LIMIT {}'
    ).format(sql.Identifier(table.name), where, sql.Literal(_PAGE))
    last = -BIGINT_MAX - 1
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("timestamptz", MomentLoader)
        while page := cursor.execute(statement, (topic, last, before)).fetchall():
            yield from page
            last = page[-1]["offset"]
