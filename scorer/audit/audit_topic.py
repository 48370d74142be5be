"""Where each batch stands on the audit topic, and what was set aside there: `audit_offset` is covered by no digest.

The topic is read once, from the scope's first batch on, and only the headers of its records are looked at. What the
topic no longer has cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from schemas.audit import AuditError, decode_header
from scorer import kafka
from scorer.audit.amendments import Amendments
from scorer.audit.findings import Finding
from scorer.audit.scope import Report, Scope
from scorer.audit.topics import messages, range_of
from scorer.settings import Settings

_PAGE = 5_000
_FINDINGS_MAX = 100  # for each shard


def audit_topic(
    connection: psycopg.Connection,
    scope: Scope,
    settings: Settings,
    shards: set[int],
    amendments: Amendments,
    report: Report,
) -> None:
    """Holds every batch's offset, and everything set aside, against the topic. Raises KafkaFailure."""
    topic = kafka.Topics.of(settings.kafka).audit
    count = kafka.partition_count(kafka.admin(settings.kafka), topic)
    for shard in sorted(shards & {*range(count)}):
        bounds = scope.bounds(shard)
        if bounds is not None:
            _shard(connection, settings, topic, shard, bounds, amendments, report)


def _shard(
    connection: psycopg.Connection,
    settings: Settings,
    topic: str,
    shard: int,
    bounds: tuple[int, int],
    amendments: Amendments,
    report: Report,
) -> None:
    first, end = range_of(settings, topic, shard)
    start, stop = first, end
    if bounds[0]:  # the batch before says where to begin; were it changed, it would be found when its turn comes
        before = connection.execute(
            "SELECT audit_offset FROM batches WHERE shard = %s AND sequence < %s ORDER BY sequence DESC LIMIT 1",
            (shard, bounds[0]),
        ).fetchone()
        start = first if before is None or not first <= before[0] < end else before[0]
    offsets = _Offsets(connection, shard, bounds, (first, end), report)
    aside = _Aside(connection, topic, shard, (start, end), amendments, report)
    for message in messages(settings, topic, shard, start, stop):
        offset, value = kafka.present(message.offset(), "offset"), message.value()
        aside.next(offset, value)
        try:
            header = decode_header(value or b"")
        except AuditError:
            continue
        if header.sequence > bounds[1]:
            aside.stop()
            break
        if header.shard == shard and header.chunk + 1 == header.chunks and header.sequence >= bounds[0]:
            offsets.next(header.sequence, offset)
    offsets.finish()
    aside.finish()


class _Offsets:
    """A shard's batches in order, next to the last chunks on the topic. A number may come twice there: one of the two
    was set aside, and either offset will do."""

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

    def next(self, sequence: int, offset: int) -> None:
        while self._have is not None and self._have.sequence < sequence:
            self._done()
        if self._have is not None and self._have.sequence == sequence and self._seen != self._have.audit_offset:
            self._seen = offset

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


class _Aside:
    """What was set aside of a partition, next to the topic's records."""

    def __init__(
        self,
        connection: psycopg.Connection,
        topic: str,
        partition: int,
        held: tuple[int, int],
        amendments: Amendments,
        report: Report,
    ) -> None:
        self._place, self._report = f"{topic}/{partition}", report
        erased = amendments.erased.get("set_aside", {})
        self._rows = {
            row[0]: (row[1], row[2], row[3], (topic, partition, row[0]) in erased)
            for row in connection.execute(
                'SELECT "offset", value_sha256, value, masked FROM set_aside WHERE topic = %s AND partition = %s '
                'AND "offset" BETWEEN %s AND %s ORDER BY 1 LIMIT %s',
                (topic, partition, held[0], held[1] - 1, _PAGE),
            )
        }

    def next(self, offset: int, value: bytes | None) -> None:
        row = self._rows.pop(offset, None)
        if row is None:
            return
        digest, kept, masked, erased = row
        if digest != (None if value is None else hashlib.sha256(value).hexdigest()):
            self._find(offset, "record_edited", "column value_sha256 is not that of its record")
        elif kept is None and value is not None and not erased:
            self._find(offset, "record_edited", "column value is gone")
        elif kept is not None and not masked and kept != value:
            self._find(offset, "record_edited", "column value is not its record")

    def stop(self) -> None:
        """The rest was not asked for."""
        self._rows = {}

    def finish(self) -> None:
        """No record is left."""
        for offset in sorted(self._rows):
            self._find(offset, "record_inserted", "its topic has no such record")

    def _find(self, offset: int, kind: str, detail: str) -> None:
        place = f"set_aside, {self._place} offset {offset}"
        self._report.findings.append(Finding.at(place, kind, detail, max(offset, 0)))
