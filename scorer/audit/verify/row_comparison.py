"""Bad batches compared with the audit topic's own chunks, as long as Kafka keeps them, row by row.

The digest shows that a batch was changed; the chunks show which row and column. Without them the first finding stays.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import dict_row

from schemas.audit_record import AuditColumns
from scorer.audit.findings import Finding
from scorer.audit.topic_history import audit_rows
from scorer.audit.verify.unit_check import MomentLoader
from scorer.kafka import KafkaFailure
from scorer.runtime.settings import Settings

_ABOUT_ROWS = frozenset({"row_edited", "rows_reordered", "rows_inserted", "rows_deleted", "forged"})
_COLUMNS = {"partition": "origin_partition", "offset": "origin_offset"}
_SHOWN_MAX = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def compare_rows(
    connection: psycopg.Connection, settings: Settings, findings: list[Finding], batches_max: int
) -> list[Finding]:
    """`findings` with row and column where the topic shows them, for the first `batches_max` batches alone."""
    result, compared = [], 0
    for finding in findings:
        if finding.kind in _ABOUT_ROWS and compared < batches_max:
            compared += 1
            result.append(_closer(connection, settings, finding))
        else:
            result.append(finding)
    return result


def _closer(connection: psycopg.Connection, settings: Settings, finding: Finding) -> Finding:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("timestamptz", MomentLoader)
        batch = cursor.execute(
            "SELECT audit_topic, audit_partition, audit_offset, day FROM batches WHERE shard = %s AND sequence = %s",
            (finding.shard, finding.sequence),
        ).fetchone()
        if batch is None:
            return finding
        before = cursor.execute(
            "SELECT max(audit_offset) AS offset FROM batches WHERE shard = %s AND audit_topic = %s "
            "AND audit_partition = %s AND sequence < %s",
            (finding.shard, batch["audit_topic"], batch["audit_partition"], finding.sequence),
        ).fetchone()
        start = 0 if before is None or before["offset"] is None else before["offset"] + 1
        try:
            found = audit_rows(
                settings,
                batch["audit_topic"],
                batch["audit_partition"],
                shard=finding.shard,
                sequence=finding.sequence,
                start=start,
                end=batch["audit_offset"] + 1,
            )
        except KafkaFailure:
            return finding
        if found is None:
            return finding
        rows = cursor.execute(
            "SELECT * FROM decisions WHERE day = %s AND shard = %s AND sequence = %s ORDER BY row_number",
            (batch["day"], finding.shard, finding.sequence),
        ).fetchall()
    true = [values for part in found[1] for values in _values(part)]
    return _compare(finding, true, rows)


def _values(columns: AuditColumns) -> list[dict[str, Any]]:
    return [
        {_COLUMNS.get(name, name): value for name, value in columns.row(number).model_dump().items()}
        for number in range(len(columns))
    ]


def _compare(finding: Finding, true: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Finding:
    def origin(row: dict[str, Any]) -> tuple[int, int]:
        return row["origin_partition"], row["origin_offset"]

    wanted, have = [origin(row) for row in true], [origin(row) for row in rows]
    if gone := [place for place in wanted if place not in set(have)]:
        if not [place for place in have if place not in set(wanted)]:
            return replace(finding, kind="rows_deleted", detail=f"{_shown(gone)} gone, by the audit topic's own record")
    elif added := [place for place in have if place not in set(wanted)]:
        return replace(finding, kind="rows_inserted", detail=f"{_shown(added)} added, by the audit topic's own record")
    elif len(have) == len(wanted) and have != wanted:
        row = next(n for n, (a, b) in enumerate(zip(have, wanted, strict=True)) if a != b)
        return replace(finding, kind="rows_reordered", detail=f"from row {row} on, by the audit topic's own record")
    changed = [
        f"row {number} column {name}"
        for number, (row, was) in enumerate(zip(rows, true, strict=False))
        for name in was
        if not _same(name, row, was)
    ]
    if not changed:
        return finding
    kind = "row_edited" if finding.kind != "forged" else "forged"
    more = f" and {len(changed) - _SHOWN_MAX} more" if len(changed) > _SHOWN_MAX else ""
    detail = f"{', '.join(changed[:_SHOWN_MAX])}{more} changed, by the audit topic's own record"
    return replace(finding, kind=kind, detail=detail)


def _same(name: str, row: dict[str, Any], was: dict[str, Any]) -> bool:
    if name == "event_time_ms":
        return bool(row["event_time"] == _EPOCH + timedelta(milliseconds=was[name]))
    ours, theirs = row[name], was[name]
    if name in {"features", "challenger_margins", "margin"}:
        try:
            a, b = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        except (TypeError, ValueError):
            return False
        return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())
    if name == "score":
        return bool(np.float64(ours).view(np.uint64) == np.float64(theirs).view(np.uint64))
    return bool((tuple(ours) if isinstance(theirs, tuple) else ours) == theirs)


def _shown(places: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{partition}/{offset}" for partition, offset in places[:_SHOWN_MAX])
    return f"{len(places)} rows ({shown}{', …' if len(places) > _SHOWN_MAX else ''} of the payments topic)"
