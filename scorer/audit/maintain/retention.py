"""`audit retain`: whole days leave, a signed tombstone for each shard stays, and the rest still verifies.

A day's partitions hold whole batches of each chain's oldest part (see migrations), so a tombstone needs only the ends:
the head before the day's first batch and the head of its last. What is removed is verified first: a tombstone must not
cover up a change. The newest batch of every shard stays, however old: the chain goes on from it.

Labels and dead letters have no days: `retain_records` removes those at the beginning of their topic that are older, and
a signed amendment names the offset they reach up to, so that `verify` does not miss them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql

from scorer.audit.signed.amendments import amend
from scorer.audit.signed.anchors import AnchorFile
from scorer.audit.signed.signatures import Signer
from scorer.audit.verify.scope import Scope
from scorer.audit.verify.verification import verify
from scorer.errors import PromiseBroken, UsageError
from scorer.trail.audit_database import connect_text

_LOCK_TIMEOUT = "5s"  # dropping needs every reader and writer gone for a moment; better to fail than to make them wait


@dataclass
class Retained:
    """What `retain` removed."""

    days: list[date] = field(default_factory=list)
    batches: int = 0
    decisions: int = 0


def retain(url: str, *, before: date, signer: Signer, anchors: AnchorFile | None = None, parallel: int = 1) -> Retained:
    """Removes the days before `before`. Needs the owner's login. Raises PromiseBroken when they do not verify."""
    result = Retained()
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
        days = _removable(connection, before)
        if not days:
            return result
        ends = connection.execute(
            "SELECT shard, max(sequence) FROM batches WHERE day <= %s GROUP BY shard", (days[-1],)
        ).fetchall()
        for shard, last in ends:
            report = verify(url, scope=Scope(shard=shard, last=last), verifier=signer.verifier, parallel=parallel)
            if not report.good:
                raise PromiseBroken(
                    f"nothing was removed: {report.findings[0].sentence}. Days that do not verify are evidence"
                )
        for day in days:
            _remove(connection, day, signer, anchors, result)
    return result


RECORDS = ("labels", "dead_letters")


def retain_records(url: str, *, table: str, before: datetime, signer: Signer, anchors: AnchorFile | None = None) -> int:
    """Removes the rows of `table` recorded before `before`, up to the first of their partition that is not.

    By the timestamps of their topic. Needs the owner's login. Returns how many are gone. Raises UsageError for another
    table.
    """
    if table not in RECORDS:
        raise UsageError(f"{table} is not kept by age; there are {', '.join(RECORDS)}")
    name = sql.Identifier(table)
    partition = sql.SQL("partition") if table == "dead_letters" else sql.SQL("0")
    count = 0
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
        places = connection.execute(
            sql.SQL(
                'SELECT topic, {0}, coalesce(min("offset") FILTER (WHERE recorded_at >= %s), max("offset") + 1), '
                'min("offset") FROM {1} GROUP BY 1, 2 ORDER BY 1, 2'
            ).format(partition, name),
            (before,),
        ).fetchall()
        for topic, number, keep_from, first in places:
            if first >= keep_from:
                continue
            with connection.transaction():
                gone = connection.execute(
                    sql.SQL('DELETE FROM {} WHERE topic = %s AND {} = %s AND "offset" < %s').format(name, partition),
                    (topic, number, keep_from),
                ).rowcount
                body = {
                    "kind": "records_removed",
                    "table": table,
                    "topic": topic,
                    "partition": number,
                    "before_offset": keep_from,
                    "rows": gone,
                }
                amend(connection, body, signer, anchors)
            count += gone
    return count


def _removable(connection: psycopg.Connection, before: date) -> list[date]:
    """Days before `before`, oldest first, up to the first that holds the newest batch of a shard."""
    days = [
        row[0] for row in connection.execute("SELECT DISTINCT day FROM batches WHERE day < %s ORDER BY 1", (before,))
    ]
    newest = connection.execute(
        "SELECT min(day) FROM (SELECT max(day) AS day FROM batches GROUP BY shard) newest"
    ).fetchone()
    last_kept = None if newest is None else newest[0]
    return [day for day in days if last_kept is None or day < last_kept]


def _remove(
    connection: psycopg.Connection, day: date, signer: Signer, anchors: AnchorFile | None, result: Retained
) -> None:
    with connection.transaction():
        bodies: list[dict[str, Any]] = []
        for shard, first, last, batches, decisions in connection.execute(
            "SELECT shard, min(sequence), max(sequence), count(*), sum(decisions)::bigint FROM batches WHERE day = %s "
            "GROUP BY shard ORDER BY shard",
            (day,),
        ).fetchall():
            previous = _one(connection, "previous", day, shard, first)
            head = _one(connection, "head", day, shard, last)
            bodies.append(
                {
                    "kind": "tombstone",
                    "shard": shard,
                    "day": day.isoformat(),
                    "first_sequence": first,
                    "last_sequence": last,
                    "batches": batches,
                    "decisions": decisions,
                    "previous": previous,
                    "head": head,
                    **({} if anchors is None else {"anchors": anchors.place}),
                }
            )
        for body in bodies:
            connection.execute(
                "INSERT INTO tombstones (shard, day, first_sequence, last_sequence, document) "
                "VALUES (%s, %s, %s, %s, %s)",
                (body["shard"], day, body["first_sequence"], body["last_sequence"], signer.sign(body)),
            )
            result.batches += body["batches"]
            result.decisions += body["decisions"]
        for parent in ("decisions", "batches"):
            child = sql.Identifier(f"{parent}_{day:%Y%m%d}")
            connection.execute(sql.SQL("DROP TABLE {}").format(child))
        # Last, before the commit: a note of a tombstone that then fails to commit is found by verify, and harmless.
        if anchors is not None:
            anchors.append(bodies, signer)
    result.days.append(day)


def _one(connection: psycopg.Connection, column: str, day: date, shard: int, sequence: int) -> str:
    row = connection.execute(
        sql.SQL("SELECT {} FROM batches WHERE day = %s AND shard = %s AND sequence = %s").format(
            sql.Identifier(column)
        ),
        (day, shard, sequence),
    ).fetchone()
    if row is None:
        raise PromiseBroken(f"batch {shard}/{sequence} went away while its day was removed")
    return str(row[0])
