"""`audit verify`: every digest recomputed from the rows alone, every link of the chain, every head held against what
stands outside Postgres.

    1. plan     days and shards cut into units of some 30,000 rows that leave no row out
    2. check    each unit over one of several connections (scorer.audit.verify.unit_check)
    3. chain    the units' ends joined, from the tombstones on; what is missing, and whether set_aside explains it
    4. outside  heads against the journal topic and the anchors; positions against the newest batch, and each batch's
                place against the audit topic; labels, dead letters and the like against their topics
    5. made     views, functions and rights against what the migrations make; bundles against their batches
    6. look     the first bad batches against the audit topic's own chunks, where those are still there

Memory is bounded by the units in flight and FINDINGS_MAX; rows are never kept.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from itertools import islice

import psycopg

from scorer.audit.findings import Finding, in_order
from scorer.audit.signed.amendments import read_amendments
from scorer.audit.signed.anchors import AnchorFile, must_exist
from scorer.audit.signed.signatures import SignatureBroken, Verifier, body_of
from scorer.audit.verify.audit_topic_positions import audit_topic
from scorer.audit.verify.bundle_register import register
from scorer.audit.verify.database_structure import columns, structure
from scorer.audit.verify.external_heads import anchored, journal
from scorer.audit.verify.positions import origins, positions
from scorer.audit.verify.record_origins import beside
from scorer.audit.verify.row_comparison import look
from scorer.audit.verify.scope import BIGINT_MAX, End, Report, Scope, Start
from scorer.audit.verify.unit_check import Checked, Unit, chain_finding, check
from scorer.errors import UsageError
from scorer.runtime.settings import Settings
from scorer.trail.audit_database import connect_text

UNIT_ROWS, UNIT_BATCHES = 30_000, 2_000
FINDINGS_MAX = 1_000
_LOOKED_AT_MAX = 5
_IN_FLIGHT = 4  # units for each connection: results are small, and a slow unit must not hold up the others
_BOUND = re.compile(r"FOR VALUES FROM \('(\d{4}-\d\d-\d\d)'\) TO \('(\d{4}-\d\d-\d\d)'\)")

Progress = Callable[[int, int], None]


def verify(
    url: str,
    *,
    scope: Scope | None = None,
    verifier: Verifier | None = None,
    anchors: AnchorFile | None = None,
    kafka_settings: Settings | None = None,
    parallel: int = 1,
    progress: Progress = lambda _done, _all: None,
) -> Report:
    """Verify the audit trail at `url`. `kafka_settings` None: without the journal and audit topics.

    Raises UsageError when there are signed documents and no public key to check them by, when `anchors` is not there
    and the database names others, and when nothing lies in the scope; KafkaFailure, psycopg.Error.
    """
    scope = scope or Scope()
    report = Report()
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        report.findings += columns(connection)
        if report.findings:
            return report  # without them nothing else can be read
        if anchors is not None:
            must_exist(connection, anchors)
        starts = _tombstones(connection, verifier, report)
        _erasures_need_key(connection, verifier)
        units, total = _plan(connection, scope, report)
        checked = _check_all(url, units, verifier, parallel, lambda done: progress(done, total))
        chains = _Chains(connection, scope, starts, report)
        for result in checked:
            report.batches += result.batches
            report.decisions += result.decisions
            report.erased += result.erased
            report.findings += result.findings
            chains.add(result)
            del report.findings[FINDINGS_MAX:]
        ends = chains.finish()
        report.shards = len(ends)
        report.set_aside = connection.execute("SELECT count(*) FROM set_aside").fetchone()[0]  # type: ignore[index]
        positions(connection, scope, ends, report)
        origins(connection, scope, kafka_settings, report)
        amendments, forged = read_amendments(connection, verifier)
        report.findings += forged
        if scope.shard is None:
            changed, report.views_compared = structure(connection)
            report.findings += changed
        if scope.whole:
            report.findings += register(connection, starts)
        if anchors is not None:
            anchored(connection, scope, anchors, verifier, ends, starts, report)
        if kafka_settings is not None:
            journal(connection, scope, kafka_settings, ends, starts, report)
            audit_topic(connection, scope, kafka_settings, amendments, report)
            if scope.whole:
                beside(connection, kafka_settings, amendments, report)
        report.findings = in_order(report.findings)
        if kafka_settings is not None:
            report.findings = in_order(look(connection, kafka_settings, report.findings, _LOOKED_AT_MAX))
        if not report.batches and not report.findings:
            _not_empty(connection, scope)
    return report


def _not_empty(connection: psycopg.Connection, scope: Scope) -> None:
    """Nothing to look at is no proof of anything. Raises UsageError.

    A whole trail may be empty, and nothing may have come since the last anchor.
    """
    if scope.shard is not None and scope.shard not in (scope.since or {}):
        if connection.execute("SELECT 1 FROM batches WHERE shard = %s LIMIT 1", (scope.shard,)).fetchone() is None:
            raise UsageError(f"--shard {scope.shard}: the audit trail has no batch of shard {scope.shard}")
    elif scope.since is not None:
        return
    if scope.first or scope.last is not None:
        until = "" if scope.last is None else f" --until {scope.last}"
        raise UsageError(f"--from {scope.first}{until}: the audit trail has no batch there")


def _tombstones(connection: psycopg.Connection, verifier: Verifier | None, report: Report) -> dict[int, Start]:
    starts: dict[int, Start] = {}
    rows = connection.execute("SELECT shard, document FROM tombstones ORDER BY shard, first_sequence").fetchall()
    if rows and verifier is None:
        raise UsageError(
            "there are tombstones of days that retention removed, and no public key to check them by: set "
            "FRAUD_SCORER_AUDIT__PUBLIC_KEY_FILE (or the signing key)"
        )
    for shard, document in rows:
        start = starts.setdefault(shard, Start())
        try:
            body = body_of(document, verifier)
            if (body["kind"], body["shard"], body["first_sequence"], body["previous"]) != (
                "tombstone", shard, start.sequence, start.previous,
            ):  # fmt: skip
                raise SignatureBroken("it does not follow the one before it")
        except (SignatureBroken, KeyError) as exc:
            report.findings.append(Finding(shard, start.sequence, "tombstone_forged", str(exc)))
            continue
        report.tombstones += 1
        start.sequence, start.previous = body["last_sequence"] + 1, body["head"]
        start.heads[body["last_sequence"]] = body["head"]
    return starts


def _erasures_need_key(connection: psycopg.Connection, verifier: Verifier | None) -> None:
    if (
        verifier is None
        and connection.execute("SELECT 1 FROM erasures UNION ALL SELECT 1 FROM amendments LIMIT 1").fetchone()
    ):
        raise UsageError(
            "there are records of erasures or of retention, and no public key to check them by: set "
            "FRAUD_SCORER_AUDIT__PUBLIC_KEY_FILE (or the signing key)"
        )


def _plan(connection: psycopg.Connection, scope: Scope, report: Report) -> tuple[list[Unit], int]:
    """Units that cover each (day, shard) within the scope, in order of shard and sequence, and the rows they hold."""
    places: set[tuple[int, date]] = set()
    sizes: dict[tuple[int, date], list[tuple[int, int]]] = {}
    total = 0
    with connection.transaction(), connection.cursor("plan") as cursor:
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
            last, weight = cuts[-1]
            cuts[-1] = (sequence, weight + decisions * UNIT_BATCHES + UNIT_ROWS)
    places |= sizes.keys()
    for day in _days(connection, report):
        places |= {(shard, day) for shard in _shards(connection, day) if scope.bounds(shard) is not None}
    units = []
    for shard, day in sorted(places):
        bounds = scope.bounds(shard) or (0, BIGINT_MAX)
        low = -BIGINT_MAX - 1 if scope.bounds(shard) == (0, BIGINT_MAX) else bounds[0]
        edges = [last for last, _ in sizes.get((shard, day), [])]
        for number, last in enumerate(edges or [bounds[1]]):
            # The last unit of a day reaches as far as the scope does: rows without a batch must be met by somebody.
            upper = bounds[1] if number + 1 >= len(edges) else last
            units.append(Unit(shard, day, low, upper))
            low = upper + 1
    # Chains are joined in order of sequence, which along a shard is the order of days.
    return units, total


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
    """The shards that have rows on a day, by leaps along the index instead of a look at every row."""
    rows = connection.execute(
        "WITH RECURSIVE leap AS (SELECT (SELECT min(shard) FROM decisions WHERE day = %(day)s) AS shard UNION ALL "
        "SELECT (SELECT min(d.shard) FROM decisions d WHERE d.day = %(day)s AND d.shard > leap.shard) FROM leap "
        "WHERE leap.shard IS NOT NULL) SELECT shard FROM leap WHERE shard IS NOT NULL",
        {"day": day},
    ).fetchall()
    return [row[0] for row in rows]


def _check_all(
    url: str, units: list[Unit], verifier: Verifier | None, parallel: int, progress: Callable[[int], None]
) -> Iterator[Checked]:
    """Results in the order of `units`, with a bounded number in flight.

    Three quarters of the work is Postgres' own, which makes its rows binary on one core for each connection. So several
    connections it is, each read by a thread: reading, kernels and hashing leave the interpreter to others, and a thread
    begins in a millisecond where a process imports for as long as 300,000 rows take.
    """
    here = threading.local()
    connections: list[psycopg.Connection] = []

    def check_one(unit: Unit) -> Checked:
        if not hasattr(here, "connection"):
            here.connection = psycopg.connect(connect_text(url), autocommit=True)
            connections.append(here.connection)
            # Units follow the primary key, which is the order of writing.
            here.connection.execute("SET enable_seqscan = off")
        return check(here.connection, unit, verifier)

    done = 0
    with ThreadPoolExecutor(max(1, min(parallel, len(units))), "verify") as pool:
        try:
            waiting: deque[Future[Checked]] = deque()
            rest = iter(units)
            while True:
                room = _IN_FLIGHT * parallel - len(waiting)
                waiting += [pool.submit(check_one, unit) for unit in islice(rest, room)]
                if not waiting:
                    return
                result = waiting.popleft().result()
                done += result.decisions
                progress(done)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
            for connection in connections:
                connection.close()


class _Chains:
    """Joins the units of each shard, in order, and says what is missing between them."""

    def __init__(self, connection: psycopg.Connection, scope: Scope, starts: dict[int, Start], report: Report) -> None:
        self._connection, self._scope, self._starts, self._report = connection, scope, starts, report
        self._ends: dict[int, End] = {}
        self._day: dict[int, date] = {}
        self._edited: dict[int, set[int]] = {}

    def add(self, result: Checked) -> None:
        shard = result.unit.shard
        for first, last in result.gaps:
            self._missing(shard, first, last, dropped=False)
        if result.first_sequence is None or result.last_sequence is None:
            return
        end = self._ends.get(shard)
        if end is None:
            end = self._before_first(shard, result.first_sequence)
        if end is not None and result.first_sequence <= end.sequence:
            self._report.findings.append(
                Finding(shard, result.first_sequence, "batch_inserted", "its sequence stands in two places",
                        str(result.unit.day))
            )  # fmt: skip
        elif end is not None and result.first_sequence > end.sequence + 1:
            day = self._day.get(shard)
            apart = day is None or (result.unit.day - day).days > 1
            self._missing(shard, end.sequence + 1, result.first_sequence - 1, dropped=apart)
        elif (
            end is not None
            and result.previous != end.head
            and not {result.first_sequence, end.sequence} & (result.edited | self._edited.get(shard, set()))
        ):
            if end.sequence < 0 or shard not in self._ends:
                self._report.findings.append(
                    Finding(shard, result.first_sequence, "chain_broken", "it does not follow what retention removed"
                            if end.sequence >= 0 else "the first batch names a batch before it")
                )  # fmt: skip
            else:
                self._report.findings.append(chain_finding(shard, end.sequence, str(result.unit.day)))
        self._ends[shard] = End(result.last_sequence, result.head)
        self._day[shard] = result.unit.day
        self._edited[shard] = result.edited

    def finish(self) -> dict[int, End]:
        """The newest batch looked at in each shard."""
        for shard, start in self._starts.items():
            if shard not in self._ends and self._scope.bounds(shard) is not None and start.sequence:
                self._ends[shard] = End(start.sequence - 1, start.previous)
        return self._ends

    def _before_first(self, shard: int, first: int) -> End | None:
        """What the first batch of the scope must follow."""
        bounds = self._scope.bounds(shard)
        start = self._starts.get(shard, Start())
        if bounds is None or bounds[0] <= start.sequence:
            return End(start.sequence - 1, start.previous)
        found = self._connection.execute(
            "SELECT sequence, head FROM batches WHERE shard = %s AND sequence < %s ORDER BY sequence DESC LIMIT 1",
            (shard, first),
        ).fetchone()
        return End(bounds[0] - 1, "") if found is None else End(found[0], found[1])

    def _missing(self, shard: int, first: int, last: int, *, dropped: bool) -> None:
        aside = self._connection.execute(
            "SELECT min(sequence), max(sequence), min(kind), count(*) FROM set_aside "
            "WHERE shard = %s AND sequence BETWEEN %s AND %s",
            (shard, first, last),
        ).fetchone()
        if aside is not None and aside[0] is not None:
            kind, detail = "set_aside", f"{aside[3]} records of it stand in set_aside ({aside[2]})"
            unknown = (last - first) - (aside[1] - aside[0])
            if unknown:
                detail += f"; {unknown} more batches of this range are gone"
        elif dropped:
            kind, detail = "day_dropped", "no batch of it is left, and no tombstone was written"
        else:
            kind, detail = "batch_missing", "it is not in the database"
        self._report.findings.append(Finding(shard, first, kind, detail, None, last))
