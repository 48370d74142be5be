"""Each batch's place, and every quarantined record, compared with the audit topic: no digest covers `audit_offset`.

The topic is read once, from the scope's first batch on, and only the headers of its records are decoded. What the topic
no longer has cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from schemas.audit_record import AuditError, AuditHeader, decode_header
from scorer import kafka
from scorer.audit.findings import Finding
from scorer.audit.topic_history import messages, range_of
from scorer.audit.verify.record_comparison import find_foreign_rows
from scorer.audit.verify.scope import BIGINT_MAX, Evidence, Report, Scope
from scorer.sink.assembler import KINDS
from scorer.sink.batch_rows import masked_value
from scorer.trail import audit_tables

_PAGE = 5_000
_QUARANTINE_PAGE = 200  # these rows have whole records
_FINDINGS_MAX = 100  # for each shard


def compare_audit_topic(evidence: Evidence, scope: Scope) -> None:
    """Compares every batch's offset, and everything in quarantine, with the topic. Raises KafkaFailure."""
    settings = evidence.settings
    topics = kafka.Topics.of(settings.kafka)
    topic = topics.audit
    count = kafka.partition_count(kafka.admin(settings.kafka), topic)
    if scope.whole:
        also = (topics.control, topics.labels, topics.dead_letters)
        find_foreign_rows(evidence.connection, audit_tables.set_aside, topic, count, evidence.report, also=also)
    # Of a shard without batches records may be in quarantine.
    for shard in range(count):
        bounds = scope.bounds(shard)
        if bounds is not None:
            _shard(evidence, topic, shard, bounds)


def _shard(evidence: Evidence, topic: str, shard: int, bounds: tuple[int, int]) -> None:
    connection, report = evidence.connection, evidence.report
    # In this order, so that a sink at work is no finding: position, quarantine, batches, end of the topic.
    position = connection.execute(
        "SELECT next_offset FROM positions WHERE topic = %s AND partition = %s", (topic, shard)
    ).fetchone()
    passed = 0 if position is None else int(position[0])
    quarantine = _Quarantine(evidence, topic, shard, whole=not bounds[0])
    newest = connection.execute("SELECT max(sequence) FROM batches WHERE shard = %s", (shard,)).fetchone()
    written = -1 if newest is None or newest[0] is None else int(newest[0])
    first, end = range_of(evidence.settings, topic, shard)
    if passed > end:
        _position(topic, shard, f"it is {passed}, and the topic ends at {end}", report)
        passed = end
    start = _start(connection, shard, bounds[0], (first, end))
    offsets = _Offsets(connection, shard, bounds, (first, end), report)
    quarantine.begin(start)
    skipped = False
    for message in messages(evidence.settings, topic, shard, start, end):
        offset, value = kafka.present(message.offset(), "offset"), message.value()
        try:
            header = decode_header(value or b"")
        except AuditError:
            if not quarantine.next(offset, value, None) and offset < passed:
                quarantine.gone(offset, "no batch can be read there")
            continue
        there = quarantine.next(offset, value, header)
        if not there and offset < passed and header.shard == shard:
            if header.sequence <= offsets.last:
                quarantine.gone(offset, f"batch {shard}/{header.sequence} stands before it")
            elif header.sequence > written and not skipped:
                skipped = True
                detail = f"it is {passed}, and batch {shard}/{header.sequence} at {offset} is in no table"
                _position(topic, shard, detail, report)
        if header.sequence > bounds[1]:
            break
        if header.shard == shard and header.chunk + 1 == header.chunks and header.sequence >= bounds[0]:
            offsets.next(header.sequence, offset)
    else:
        quarantine.finish()
    offsets.finish()


def _start(connection: psycopg.Connection, shard: int, first_sequence: int, held: tuple[int, int]) -> int:
    """The offset to read from: that of the batch before the scope, where the topic (`held`: first offset, end) has it.

    Were the place of that batch changed, it would be found when its own turn comes.
    """
    if not first_sequence:
        return held[0]
    before = connection.execute(
        "SELECT audit_offset FROM batches WHERE shard = %s AND sequence < %s ORDER BY sequence DESC LIMIT 1",
        (shard, first_sequence),
    ).fetchone()
    return held[0] if before is None or not held[0] <= before[0] < held[1] else int(before[0])


def _position(topic: str, partition: int, detail: str, report: Report) -> None:
    report.findings.append(Finding.at(f"position on {topic}/{partition}", "position_edited", detail))


class _Offsets:
    """A shard's batches in order, next to the last chunks on the topic. A number may come twice there: one of the two
    is in quarantine, and either offset will do."""

    def __init__(
        self,
        connection: psycopg.Connection,
        shard: int,
        bounds: tuple[int, int],
        held: tuple[int, int],
        report: Report,
    ) -> None:
        self._shard, self._held, self._report, self._found = shard, held, report, 0
        self._rows = _batches(connection, shard, bounds)
        self._have = next(self._rows, None)
        self._seen: int | None = None  # an offset of the batch at hand
        self.last = -1  # the newest batch whose place is the database's

    def next(self, sequence: int, offset: int) -> None:
        while self._have is not None and self._have.sequence < sequence:
            self._done()
        if self._have is not None and self._have.sequence == sequence and self._seen != self._have.audit_offset:
            self._seen = offset
            if offset == self._have.audit_offset:
                self.last = sequence

    def finish(self) -> None:
        while self._have is not None:
            self._done()

    def _done(self) -> None:
        row, self._have = self._have, next(self._rows, None)
        seen, self._seen = self._seen, None
        if row is None or row.audit_offset == seen:
            return
        if seen is None and row.audit_offset < self._held[0]:
            return  # its records are no longer on the topic
        if seen is None and row.audit_offset >= self._held[1]:
            return  # written while this was read; had it been moved there, the position would not fit
        self._found += 1
        if self._found <= _FINDINGS_MAX:
            detail = (
                f"column audit_offset is {row.audit_offset}, and the topic has it at {seen}"
                if seen is not None
                else f"column audit_offset is {row.audit_offset}, and the topic does not have it there"
            )
            self._report.findings.append(Finding(self._shard, row.sequence, "batch_edited", detail, str(row.day)))


def _batches(connection: psycopg.Connection, shard: int, bounds: tuple[int, int]) -> Iterator[Any]:
    last = bounds[0] - 1
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        statement: Any = cursor  # rows have the names of their columns
        while page := statement.execute(
            "SELECT sequence, audit_offset, day::text AS day FROM batches WHERE shard = %s AND sequence > %s "
            "AND sequence <= %s ORDER BY sequence LIMIT %s",
            (shard, last, bounds[1], _PAGE),
        ).fetchall():
            yield from page
            last = page[-1].sequence


def _hash_holds(stored: str | None, value: bytes | None, *, may_lack: bool) -> bool:
    """Whether column value_sha256 is right. Where digits are masked or the value is erased no hash is kept."""
    return (stored is None and may_lack) or stored == (None if value is None else hashlib.sha256(value).hexdigest())


class _Quarantine:
    """The quarantined records of a partition, in order of offset, next to the topic's records."""

    def __init__(self, evidence: Evidence, topic: str, partition: int, *, whole: bool) -> None:
        """What comes into quarantine from now on is not compared. `whole`: the partition, from its first record on."""
        connection = self._connection = evidence.connection
        self._topic, self._partition, self._report = topic, partition, evidence.report
        self._erased, self._found, self._whole = evidence.amendments.erased.get("set_aside", {}), 0, whole
        newest = connection.execute(
            'SELECT max("offset") FROM set_aside WHERE topic = %s AND partition = %s', (topic, partition)
        ).fetchone()
        self._newest = -1 if newest is None or newest[0] is None else int(newest[0])
        self._rows: Iterator[Any] = iter(())
        self._have: Any = None

    def begin(self, start: int) -> None:
        """The first record will be at `start` or past it; what stands before can no longer be compared."""
        low = -BIGINT_MAX - 1 if self._whole else start
        self._rows = self._select(low)
        self._have = next(self._rows, None)
        while self._have is not None and self._have.offset < start:
            if self._have.offset < 0:
                self._find(self._have.offset, "record_inserted", "its topic has no such record")
            self._have = next(self._rows, None)

    def next(self, offset: int, value: bytes | None, header: AuditHeader | None) -> bool:
        """Whether the record at `offset` is in quarantine; its row is compared. `header` None: unreadable."""
        self._pass(offset)
        row = self._have
        if row is None or row.offset != offset:
            return False
        self._have = next(self._rows, None)
        batch = None if header is None else (header.shard, header.sequence)
        # Of a record with a header the rest may be unreadable.
        unreadable = row.kind == "unreadable" and row.shard is None and row.sequence is None
        erased = (self._topic, self._partition, offset) in self._erased
        expected = None if value is None else masked_value(row.kind, value)
        if row.kind not in KINDS or not (unreadable if batch is None else unreadable or row.kind != "unreadable"):
            self._find(offset, "record_edited", f"column kind is {row.kind}, and its record is not that")
        elif not unreadable and (row.shard, row.sequence) != batch:
            self._find(offset, "record_edited", "column shard or sequence is not that of its record")
        elif not _hash_holds(row.value_sha256, value, may_lack=erased or row.masked):
            self._find(offset, "record_edited", "column value_sha256 is not that of its record")
        elif row.masked != (expected != value):
            self._find(offset, "record_edited", f"column masked is {row.masked}".lower())
        elif row.value is None and value is not None and not erased:
            self._find(offset, "record_edited", "column value is gone")
        elif row.value is not None and row.value != expected:
            self._find(offset, "record_edited", "column value is not its record")
        return True

    def gone(self, offset: int, why: str) -> None:
        """The sink has passed the record at `offset`, and could only set it quarantine."""
        self._find(offset, "record_deleted", f"its topic has it: {why}, and the sink has passed it")

    def finish(self) -> None:
        """No record is left."""
        self._pass(None)

    def _pass(self, offset: int | None) -> None:
        while self._have is not None and (offset is None or self._have.offset < offset):
            self._find(self._have.offset, "record_inserted", "its topic has no such record")
            self._have = next(self._rows, None)

    def _select(self, low: int) -> Iterator[Any]:
        last = low - 1 if low > -BIGINT_MAX else low
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            statement: Any = cursor  # rows have the names of their columns
            while page := statement.execute(
                'SELECT "offset", kind, shard, sequence, value_sha256, value, masked FROM set_aside WHERE topic = %s '
                'AND partition = %s AND "offset" > %s AND "offset" <= %s ORDER BY "offset" LIMIT %s',
                (self._topic, self._partition, last, self._newest, _QUARANTINE_PAGE),
            ).fetchall():
                yield from page
                last = page[-1].offset

    def _find(self, offset: int, kind: str, detail: str) -> None:
        self._found += 1
        if self._found <= _FINDINGS_MAX:
            place = f"set_aside, {self._topic}/{self._partition} offset {offset}"
            self._report.findings.append(Finding.at(place, kind, detail, max(offset, 0)))
