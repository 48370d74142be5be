"""What was decided live, as the audit trail in Postgres holds it. Reads only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.rows import dict_row, namedtuple_row

from schemas.audit_digest import Digests, context_bytes, digests_of
from schemas.journal_record import JournalError, JournalRecord
from scorer.audit.verify.unit_check import MomentLoader
from scorer.trail.audit_database import connect_text, snapshot
from scorer.trail.copy_decode import read_rows

# Read by one query: rows, about 250 MB where batches hold 4,096 payments, and batches, each with its journal record.
ROWS_PER_READ = 65_536
BATCHES_PER_READ = 100
LABELS_PER_PAGE = 20_000

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlace:
    """Which batch, and the features that its rows hold (none are known of a batch that is gone)."""

    shard: int
    sequence: int
    feature_names: tuple[str, ...]


@dataclass(frozen=True)
class LiveBatch(BatchPlace):
    """A batch as the trail has it. `digests`: of its rows as they are now; None where they cannot be read. `record`:
    its own journal record; None where that does not have the head that the chain names. `erased`: something of it was.
    """

    day: date
    bundle: str
    feature_fingerprint: str
    control_end: int
    labels_end: int  # 0 before labels had a topic
    erased: bool
    salt: bytes | None
    digests: Digests | None
    record: JournalRecord | None = None

    @property
    def digest(self) -> str | None:
        return None if self.digests is None else self.digests.digest

    @property
    def holds(self) -> bool:
        """Whether its rows are those of its journal record; after an erasure what was decided alone, where the record
        tells it apart."""
        if self.record is None or self.digests is None:
            return self.erased
        if self.erased:
            return self.record.decided in (None, self.digests.decided)
        return self.digests.digest == self.record.digest


def _journal_record(batch: Any) -> JournalRecord | None:
    text = json.dumps(batch.journal, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    try:
        record = JournalRecord.from_bytes(text)
    except JournalError:
        return None
    return record if record.head == batch.head else None


class Trail:
    """A connection to the audit trail, read only."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(connect_text(url), autocommit=True)
        self._connection.adapters.register_loader("timestamptz", MomentLoader)

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._connection.close()

    def bounds(self, shard: int) -> tuple[int, int]:
        """First and last batch of a shard that the trail has; (0, -1) without any."""
        row = self._connection.execute("SELECT min(sequence), max(sequence) FROM batches WHERE shard = %s", (shard,))
        first, last = row.fetchone() or (None, None)
        return (0, -1) if first is None else (first, last)

    def dropped_to(self, shard: int) -> int:
        """Last batch of the days that were dropped under a tombstone; -1 without one."""
        row = self._connection.execute(
            "SELECT max(last_sequence) FROM tombstones WHERE shard = %s", (shard,)
        ).fetchone()
        return -1 if row is None or row[0] is None else int(row[0])

    def batches(self, shard: int, first: int, last: int) -> dict[int, LiveBatch]:
        """The trail's batches `first` to `last` of a shard, by sequence, all as they were at one moment."""
        with snapshot(self._connection):
            return self._batches(shard, first, last)

    def _batches(self, shard: int, first: int, last: int) -> dict[int, LiveBatch]:
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            found: list[Any] = cursor.execute(
                "SELECT b.*, s.feature_names, EXISTS (SELECT 1 FROM erasures e WHERE e.shard = b.shard AND "
                "e.sequence = b.sequence) AS erased FROM batches b JOIN feature_sets s ON s.fingerprint = "
                "b.feature_fingerprint WHERE b.shard = %s AND b.sequence BETWEEN %s AND %s ORDER BY b.sequence",
                (shard, first, last),
            ).fetchall()
        result: dict[int, LiveBatch] = {}
        for key, group in groupby(found, key=lambda b: (b.day, len(b.feature_names), len(b.challengers))):
            result |= self._digested(key, list(group))
        return result

    def _digested(self, key: tuple[date, int, int], found: Sequence[Any]) -> dict[int, LiveBatch]:
        day, *widths = key
        shard = found[0].shard
        rows = read_rows(
            self._connection, day=day, shard=shard, first=found[0].sequence, last=found[-1].sequence, widths=widths
        )
        sequences = np.array([batch.sequence for batch in found], np.int64)
        begins = np.searchsorted(rows.sequence, sequences, side="left").tolist()
        ends = np.searchsorted(rows.sequence, sequences, side="right").tolist()
        result = {}
        for batch, begin, end in zip(found, begins, ends, strict=True):
            numbered = (rows.row_number[begin:end] == np.arange(end - begin)).all()
            digests = None
            if numbered and not rows.malformed[begin:end].any():
                context = context_bytes(
                    bundle=batch.bundle,
                    threshold=batch.threshold,
                    feature_fingerprint=batch.feature_fingerprint,
                    feature_names=batch.feature_names,
                    challengers=batch.challengers,
                )
                digests = digests_of([rows.parts(begin, end)], end - begin, context, batch.salt)
            result[batch.sequence] = LiveBatch(
                shard=shard,
                sequence=batch.sequence,
                day=day,
                bundle=batch.bundle,
                feature_fingerprint=batch.feature_fingerprint,
                feature_names=tuple(batch.feature_names),
                control_end=int(batch.journal["control"]["end"]),
                labels_end=int((batch.journal.get("labels") or {"end": 0})["end"]),
                erased=batch.erased,
                salt=batch.salt,
                digests=digests,
                record=_journal_record(batch),
            )
        return result

    def batch(self, shard: int, sequence: int) -> LiveBatch | None:
        """One batch of the trail."""
        return self.batches(shard, sequence, sequence).get(sequence)

    def batch_and_rows(self, shard: int, sequence: int) -> tuple[LiveBatch, list[dict[str, Any]]] | None:
        """One batch and its rows in order, of one moment; None when the trail does not have it."""
        with snapshot(self._connection), self._connection.cursor(row_factory=dict_row) as cursor:
            batch = self._batches(shard, sequence, sequence).get(sequence)
            if batch is None:
                return None
            rows = cursor.execute(
                "SELECT * FROM decisions WHERE day = %s AND shard = %s AND sequence = %s ORDER BY row_number",
                (batch.day, batch.shard, batch.sequence),
            ).fetchall()
            return batch, rows

    def of_payments(self, payment_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The first decisions (not those of repeated payments) on each payment, in order."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(
                "SELECT * FROM decisions WHERE payment_id = ANY(%s) AND mode NOT IN ('duplicate', 'refused') "
                "ORDER BY shard, sequence, row_number",
                (list(payment_ids),),
            ).fetchall()
        result: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            result.setdefault(row["payment_id"], []).append(row)
        return result

    def audit_place(self, batch: LiveBatch) -> tuple[str, int, int, int]:
        """Where the audit topic holds a batch: topic, partition, first offset, the one after the last."""
        row: Any = self._connection.execute(
            "SELECT audit_topic, audit_partition, audit_offset, (SELECT max(audit_offset) FROM batches o WHERE "
            "o.shard = b.shard AND o.audit_topic = b.audit_topic AND o.audit_partition = b.audit_partition AND "
            "o.sequence < b.sequence) FROM batches b WHERE shard = %s AND sequence = %s AND day = %s",
            (batch.shard, batch.sequence, batch.day),
        ).fetchone()
        topic, partition, offset, before = row
        return topic, partition, 0 if before is None else before + 1, offset + 1

    def label_times(self, topic: Literal["control", "labels"]) -> tuple[Int64s, Int64s]:
        """Of every label on a topic (its name without the prefix): its offset there, rising, and its `known_at`, epoch
        ms; both int64 [labels]. They are read by pages: 16 bytes a label are all that grows with them."""
        parts = [np.empty((0, 2), np.int64)]
        with self._connection.transaction(), self._connection.cursor("label_times") as cursor:
            cursor.execute(
                'SELECT "offset", (extract(epoch FROM known_at) * 1000)::bigint FROM labels '
                'WHERE right(topic, length(%(topic)s)) = %(topic)s ORDER BY "offset"',
                {"topic": topic},
            )
            while page := cursor.fetchmany(LABELS_PER_PAGE):
                parts.append(np.array(page, dtype=np.int64))
        offsets = np.concatenate([part[:, 0] for part in parts])
        return offsets, np.concatenate([part[:, 1] for part in parts])
