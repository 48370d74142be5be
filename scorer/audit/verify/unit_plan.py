"""The units of a verification: days and shards cut into ranges of batches that leave no row out."""

from __future__ import annotations

import re
from datetime import date

import psycopg

from scorer.audit.findings import Finding
from scorer.audit.verify.scope import BIGINT_MAX, Report, Scope
from scorer.audit.verify.unit_check import Unit
from scorer.trail.audit_database import snapshot

UNIT_ROWS, UNIT_BATCHES = 30_000, 2_000
FINDINGS_MAX = 1_000
_Place = tuple[int, date]  # shard and day
_Cuts = list[tuple[int, int]]
_BOUND = re.compile(r"FOR VALUES FROM \('(\d{4}-\d\d-\d\d)'\) TO \('(\d{4}-\d\d-\d\d)'\)")


def plan_units(connection: psycopg.Connection, scope: Scope, report: Report) -> tuple[list[Unit], int]:
    """Units that cover each (day, shard) within the scope, in order of shard and sequence, and the rows they hold."""
    with snapshot(connection):
        places, sizes, total = _sizes(connection, scope, report)
    units = []
    for shard, day in sorted(places):
        bounds = scope.bounds(shard) or (0, BIGINT_MAX)
        low = -BIGINT_MAX - 1 if scope.bounds(shard) == (0, BIGINT_MAX) else bounds[0]
        edges = [last for last, _ in sizes.get((shard, day), [])]
        for number, last in enumerate(edges or [bounds[1]]):
            # The last unit of a day reaches as far as the scope does: rows without a batch are found there.
            upper = bounds[1] if number + 1 >= len(edges) else last
            units.append(Unit(shard, day, low, upper))
            low = upper + 1
    # Chains are joined in order of sequence, which along a shard is the order of days.
    return units, total


def _sizes(
    connection: psycopg.Connection, scope: Scope, report: Report
) -> tuple[set[_Place], dict[_Place, _Cuts], int]:
    """Each (shard, day) with batches or rows, where the batches of each are cut (last sequence, weight), and all rows.

    Of one moment: were the days read after the batches, a day that began in between would seem to follow too early.
    """
    places: set[_Place] = set()
    sizes: dict[_Place, _Cuts] = {}
    total = 0
    with connection.cursor("plan") as cursor:
        cursor.itersize = 50_000
        for shard, text, sequence, decisions in cursor.execute(
            "SELECT shard, day::text, sequence, decisions FROM batches WHERE sequence >= %s "
            "ORDER BY day, shard, sequence",
            (min([scope.first, *scope.since.values()]) if scope.since else scope.first,),
        ):
            bounds = scope.bounds(shard)
            if bounds is None or not bounds[0] <= sequence <= bounds[1]:
                continue
            day = _date(text)
            if day is None:
                if len(report.findings) < FINDINGS_MAX:
                    report.findings.append(Finding(shard, sequence, "batch_edited", f"column day is {text}"))
                continue
            total += decisions
            cuts = sizes.setdefault((shard, day), [])
            # The last cut grows until it holds a unit's rows: (last sequence, rows, batches) without keeping batches.
            if not cuts or cuts[-1][1] >= UNIT_ROWS * UNIT_BATCHES:
                cuts.append((sequence, 0))
            _, weight = cuts[-1]
            cuts[-1] = (sequence, weight + decisions * UNIT_BATCHES + UNIT_ROWS)
    places |= sizes.keys()
    for day in _days(connection, report):
        places |= {(shard, day) for shard in _shards(connection, day) if scope.bounds(shard) is not None}
    return places, sizes, total


def _days(connection: psycopg.Connection, report: Report) -> list[date]:
    """The days that decisions has partitions for."""
    days = []
    for parent, name, bound in connection.execute(
        "SELECT i.inhparent::regclass::text, c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i "
        "JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent IN ('decisions'::regclass, 'batches'::regclass) "
        "ORDER BY 1, 2"
    ):
        match = _BOUND.fullmatch(bound)
        first, end = (None, None) if match is None else (_date(match[1]), _date(match[2]))
        if first is None or end is None or (end - first).days != 1:
            detail = f"it is a partition of {parent} that the sink does not make: {bound}"
            report.findings.append(Finding.at(f"table {name}", "schema_changed", detail))
        elif parent == "decisions":
            days.append(first)
    return days


def _date(text: str) -> date | None:
    """None for days that Python has no date for, such as infinity."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _shards(connection: psycopg.Connection, day: date) -> list[int]:
    """The shards that have rows on a day, by leaps along the index instead of a scan."""
    rows = connection.execute(
        "WITH RECURSIVE leap AS (SELECT (SELECT min(shard) FROM decisions WHERE day = %(day)s) AS shard UNION ALL "
        "SELECT (SELECT min(d.shard) FROM decisions d WHERE d.day = %(day)s AND d.shard > leap.shard) FROM leap "
        "WHERE leap.shard IS NOT NULL) SELECT shard FROM leap WHERE shard IS NOT NULL",
        {"day": day},
    ).fetchall()
    return [row[0] for row in rows]
