"""The sink's positions, and the columns of batches that no digest covers, checked within the database."""

from __future__ import annotations

import psycopg

from scorer.audit.findings import Finding
from scorer.audit.verify.scope import BIGINT_MAX, End, Report, Scope
from scorer.kafka import Topics
from scorer.runtime.settings import Settings

_FINDINGS_MAX = 1_000


def check_positions(connection: psycopg.Connection, scope: Scope, ends: dict[int, End], report: Report) -> None:
    """Positions move with the rows: the newest batch is the one they name.

    Each is compared with the batches in one statement, so of one moment: `ends`, what was verified, is older, and the
    sink goes on meanwhile. It counts for shards of which retention alone has left a trace.
    """
    if scope.last is not None:
        return
    _unnamed_batches(connection, scope, ends, report)
    _audit_positions(connection, scope, report)
    rows = connection.execute(
        "SELECT p.shard, p.sequence, (SELECT max(b.sequence) FROM batches b WHERE b.shard = p.shard), "
        "(SELECT max(s.sequence) FROM set_aside s WHERE s.topic = p.topic AND s.partition = p.partition) "
        "FROM positions p WHERE p.shard IS NOT NULL AND p.sequence IS NOT NULL ORDER BY p.topic, p.partition"
    ).fetchall()
    for shard, sequence, newest, quarantined in rows:
        if scope.bounds(shard) is None:
            continue
        have = newest if newest is not None else ends[shard].sequence if shard in ends else -1
        if have < sequence:
            kind = "set_aside" if quarantined == sequence == have + 1 else "tail_cut"
            detail = f"the sink wrote up to {sequence}, the newest batch is {have}"
            report.findings.append(Finding(shard, have + 1, kind, detail, None, sequence))
        elif have > sequence:
            detail = f"the sink wrote up to {sequence}"
            report.findings.append(Finding(shard, sequence + 1, "batch_inserted", detail, None, have))


def _audit_positions(connection: psycopg.Connection, scope: Scope, report: Report) -> None:
    """Positions on audit topics are as the sink left them: behind the newest batch, whose head they hold, and with a
    gap only where something went to quarantine."""
    rows = connection.execute(
        "SELECT p.topic, p.partition, p.next_offset, p.shard, p.sequence, p.head, p.gap, b.sequence, b.head, "
        "b.audit_offset, EXISTS (SELECT 1 FROM set_aside s WHERE s.topic = p.topic AND s.partition = p.partition "
        """AND s."offset" > b.audit_offset AND s."offset" < p.next_offset) """
        "FROM positions p JOIN LATERAL (SELECT * FROM batches b WHERE b.shard = p.partition "
        "ORDER BY sequence DESC LIMIT 1) b ON b.audit_topic = p.topic ORDER BY 1, 2"
    ).fetchall()
    for topic, partition, next_offset, shard, sequence, head, gap, newest, newest_head, offset, quarantined in rows:
        if scope.bounds(partition) is None:
            continue
        wrong = None
        if shard is not None and shard != partition:
            wrong = f"column shard is {shard}"
        elif next_offset <= offset:
            wrong = f"column next_offset is {next_offset}, and the newest batch stands at {offset}"
        elif sequence is not None and head is None:
            wrong = f"column head is gone, and the position names batch {partition}/{sequence}"
        elif sequence == newest and head is not None and head != newest_head and not quarantined:
            wrong = f"column head is not that of batch {partition}/{newest}"
        elif gap and not quarantined:
            wrong = f"column gap is set, and nothing after batch {partition}/{newest} went to quarantine"
        if wrong is not None:
            report.findings.append(Finding.at(f"position on {topic}/{partition}", "position_edited", wrong))


def _unnamed_batches(connection: psycopg.Connection, scope: Scope, ends: dict[int, End], report: Report) -> None:
    """Shards whose newest batch no position names, and shards that end where retention did."""
    removed = {row[0] for row in connection.execute("SELECT DISTINCT shard FROM tombstones")}
    for shard in sorted(removed | ends.keys()):
        if scope.bounds(shard) is None:
            continue
        newest = connection.execute(
            "SELECT b.sequence, b.audit_topic, b.audit_offset, p.next_offset, p.sequence FROM (SELECT * FROM batches "
            "WHERE shard = %s ORDER BY sequence DESC LIMIT 1) b LEFT JOIN positions p ON p.topic = b.audit_topic "
            "AND p.partition = b.shard",
            (shard,),
        ).fetchone()
        if newest is None:
            if shard in removed:
                detail = "retention keeps the newest batch of every shard, and this one has none"
                first = ends[shard].sequence + 1 if shard in ends else 0
                report.findings.append(Finding(shard, first, "tail_cut", detail))
            continue
        sequence, topic, offset, next_offset, position = newest
        if next_offset is None:
            detail = f"the sink's position on {topic}/{shard} is gone"
            report.findings.append(Finding(shard, sequence + 1, "tail_cut", detail))
        elif position is None and next_offset > offset + 1:
            detail = (
                f"the position on {topic}/{shard} is past batch {sequence} and names none: batches were passed "
                "over, or an operator moved it and nothing was written since"
            )
            report.findings.append(Finding(shard, sequence + 1, "tail_cut", detail))


def check_origins(connection: psycopg.Connection, scope: Scope, settings: Settings | None, report: Report) -> None:
    """The columns of batches that no digest covers: which topics a batch came from, and where its audit record stood.

    Without settings the topics are those that most of the shard's batches name. Offsets rise along a shard and lie
    before the sink's position; within these bounds one that was changed is not seen.
    """
    topics = None if settings is None else Topics.of(settings.kafka)
    rows = connection.execute(
        "WITH usual AS (SELECT shard, mode() WITHIN GROUP (ORDER BY origin_topic) AS origin, "
        "mode() WITHIN GROUP (ORDER BY audit_topic) AS audit FROM batches GROUP BY shard), "
        "placed AS (SELECT b.shard, b.sequence, b.day::text AS day, "
        "b.origin_topic <> coalesce(%(origin)s, u.origin) AS origin_topic, "
        "b.audit_topic <> coalesce(%(audit)s, u.audit) AS audit_topic, b.audit_partition <> b.shard AS audit_partition,"
        " b.audit_offset AS o, coalesce(lag(b.audit_offset) OVER along, -1) AS before, "
        "coalesce(lead(b.audit_offset) OVER along, p.next_offset, %(most)s) AS after "
        "FROM batches b JOIN usual u ON u.shard = b.shard "
        "LEFT JOIN positions p ON p.topic = coalesce(%(audit)s, u.audit) AND p.partition = b.shard "
        "WINDOW along AS (PARTITION BY b.shard ORDER BY b.sequence)) "
        "SELECT shard, sequence, day, origin_topic, audit_topic, audit_partition FROM placed WHERE origin_topic "
        "OR audit_topic OR audit_partition OR o <= before OR (before < after AND o >= after) "
        "ORDER BY shard, sequence LIMIT %(limit)s",
        {
            "origin": None if topics is None else topics.payments,
            "audit": None if topics is None else topics.audit,
            "most": BIGINT_MAX,
            "limit": _FINDINGS_MAX,
        },
    ).fetchall()
    for shard, sequence, day, *wrong in rows:
        bounds = scope.bounds(shard)
        if bounds is not None and bounds[0] <= sequence <= bounds[1]:
            named = [
                name for name, bad in zip(("origin_topic", "audit_topic", "audit_partition"), wrong, strict=True) if bad
            ]
            detail = (
                f"column {named[0]} is not the shard's" if named else "column audit_offset does not fit its neighbours"
            )
            report.findings.append(Finding(shard, sequence, "batch_edited", detail, day))
