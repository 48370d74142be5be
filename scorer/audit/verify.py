"""`audit verify`: every digest recomputed from the rows alone, every link of the chain, every head held against what
stands outside Postgres.

    1. plan     days and shards cut into units of some 30,000 rows that leave no row out
    2. check    each unit over one of several connections (scorer.audit.check)
    3. chain    the units' ends joined, from the tombstones on; what is missing, and whether set_aside explains it
    4. outside  heads against the journal topic and the anchors; positions against the newest batch
    5. look     the first bad batches against the audit topic's own chunks, where those are still there

Memory is bounded by the units in flight and FINDINGS_MAX; rows are never kept.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from schemas.journal import FIRST_PREVIOUS
from scorer.audit.anchor import AnchorFile, not_in_file, read_anchors
from scorer.audit.check import Checked, Unit, chain_finding, check
from scorer.audit.findings import Finding, in_order
from scorer.audit.look import look
from scorer.audit.signing import SignatureBroken, Verifier, body_of
from scorer.audit.topics import journal_heads, journal_shards, next_sequence
from scorer.errors import UsageError
from scorer.kafka import Topics
from scorer.settings import Settings
from scorer.sink.schema import connect_text

UNIT_ROWS, UNIT_BATCHES = 30_000, 2_000
FINDINGS_MAX = 1_000
_LOOKED_AT_MAX = 5
_IN_FLIGHT = 4  # units for each connection: results are small, and a slow unit must not hold up the others
_BIGINT = 2**63 - 1
_BOUND = re.compile(r"FOR VALUES FROM \('(\d{4}-\d\d-\d\d)'\) TO \('(\d{4}-\d\d-\d\d)'\)")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scope:
    """What to verify: all of it by default. `since`: shard → sequence after which everything is looked at."""

    shard: int | None = None
    first: int = 0
    last: int | None = None
    since: dict[int, int] | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.shard is None and self.first == 0 and self.last is None and self.since is None

    def bounds(self, shard: int) -> tuple[int, int] | None:
        """First and last sequence to look at in a shard; None for none."""
        if self.shard is not None and shard != self.shard:
            return None
        first = max(self.first, self.since.get(shard, -1) + 1 if self.since is not None else 0)
        return first, _BIGINT if self.last is None else self.last


@dataclass
class Report:
    """What was looked at, and what was found, the first bad batch first."""

    batches: int = 0
    decisions: int = 0
    erased: int = 0
    tombstones: int = 0
    shards: int = 0
    heads_journal: int | None = None  # None: the journal topic was not asked
    heads_anchored: int | None = None
    set_aside: int = 0
    behind: int = 0  # batches on the journal topic that the sink has not written yet
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


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

    Raises UsageError when there are signed documents and no public key to check them by; KafkaFailure, psycopg.Error.
    """
    scope = scope or Scope()
    report = Report()
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
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
        _positions(connection, scope, ends, report)
        _origins(connection, scope, kafka_settings, report)
        if anchors is not None:
            _anchored(connection, scope, anchors, verifier, ends, starts, report)
        if kafka_settings is not None:
            _journal(connection, scope, kafka_settings, ends, starts, report)
        report.findings = in_order(report.findings)
        if kafka_settings is not None:
            report.findings = in_order(look(connection, kafka_settings, report.findings, _LOOKED_AT_MAX))
    return report


@dataclass
class _Start:
    """Where a shard's chain goes on after what retention removed."""

    sequence: int = 0
    previous: str = FIRST_PREVIOUS
    heads: dict[int, str] = field(default_factory=dict)  # last sequence of each day removed → its head


def _tombstones(connection: psycopg.Connection, verifier: Verifier | None, report: Report) -> dict[int, _Start]:
    starts: dict[int, _Start] = {}
    rows = connection.execute("SELECT shard, document FROM tombstones ORDER BY shard, first_sequence").fetchall()
    if rows and verifier is None:
        raise UsageError(
            "there are tombstones of days that retention removed, and no public key to check them by: set "
            "FRAUD_SCORER_AUDIT__PUBLIC_KEY_FILE (or the signing key)"
        )
    for shard, document in rows:
        start = starts.setdefault(shard, _Start())
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
    if verifier is None and connection.execute("SELECT 1 FROM erasures LIMIT 1").fetchone() is not None:
        raise UsageError(
            "there are records of erasures, and no public key to check them by: set "
            "FRAUD_SCORER_AUDIT__PUBLIC_KEY_FILE (or the signing key)"
        )


def _plan(connection: psycopg.Connection, scope: Scope, report: Report) -> tuple[list[Unit], int]:
    """Units that cover each (day, shard) within the scope, in order of shard and sequence, and the rows they hold."""
    places: set[tuple[int, date]] = set()
    sizes: dict[tuple[int, date], list[tuple[int, int]]] = {}
    total = 0
    with connection.transaction(), connection.cursor("plan") as cursor:
        cursor.itersize = 50_000
        for shard, day, sequence, decisions in cursor.execute(
            "SELECT shard, day, sequence, decisions FROM batches ORDER BY day, shard, sequence"
        ):
            bounds = scope.bounds(shard)
            if bounds is None or not bounds[0] <= sequence <= bounds[1]:
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
        bounds = scope.bounds(shard) or (0, _BIGINT)
        low = -_BIGINT - 1 if scope.bounds(shard) == (0, _BIGINT) else bounds[0]
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
    for name, bound in connection.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'decisions'::regclass ORDER BY 1"
    ):
        match = _BOUND.fullmatch(bound)
        if match is None:
            report.findings.append(
                Finding(
                    -1, 0, "rows_inserted", f"partition {name} of decisions is not one that the sink makes: {bound}"
                )
            )
        else:
            days.append(date.fromisoformat(match[1]))
    return days


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


@dataclass(frozen=True)
class _End:
    """The newest batch of a shard."""

    sequence: int
    head: str


class _Chains:
    """Joins the units of each shard, in order, and says what is missing between them."""

    def __init__(self, connection: psycopg.Connection, scope: Scope, starts: dict[int, _Start], report: Report) -> None:
        self._connection, self._scope, self._starts, self._report = connection, scope, starts, report
        self._ends: dict[int, _End] = {}
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
        self._ends[shard] = _End(result.last_sequence, result.head)
        self._day[shard] = result.unit.day
        self._edited[shard] = result.edited

    def finish(self) -> dict[int, _End]:
        """The newest batch looked at in each shard."""
        for shard, start in self._starts.items():
            if shard not in self._ends and self._scope.bounds(shard) is not None and start.sequence:
                self._ends[shard] = _End(start.sequence - 1, start.previous)
        return self._ends

    def _before_first(self, shard: int, first: int) -> _End | None:
        """What the first batch of the scope must follow."""
        bounds = self._scope.bounds(shard)
        start = self._starts.get(shard, _Start())
        if bounds is None or bounds[0] <= start.sequence:
            return _End(start.sequence - 1, start.previous)
        found = self._connection.execute(
            "SELECT sequence, head FROM batches WHERE shard = %s AND sequence < %s ORDER BY sequence DESC LIMIT 1",
            (shard, first),
        ).fetchone()
        return _End(bounds[0] - 1, "") if found is None else _End(found[0], found[1])

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


def _positions(connection: psycopg.Connection, scope: Scope, ends: dict[int, _End], report: Report) -> None:
    """Positions move with the rows: the newest batch is the one they name."""
    if scope.last is not None:
        return
    _unnamed(connection, scope, ends, report)
    rows = connection.execute("SELECT topic, partition, shard, sequence FROM positions WHERE shard IS NOT NULL")
    for topic, partition, shard, sequence in rows.fetchall():
        if sequence is None or scope.bounds(shard) is None:
            continue
        newest = connection.execute("SELECT max(sequence) FROM batches WHERE shard = %s", (shard,)).fetchone()
        have = ends[shard].sequence if shard in ends else -1 if newest is None or newest[0] is None else newest[0]
        if have < sequence:
            aside = connection.execute(
                "SELECT max(sequence) FROM set_aside WHERE topic = %s AND partition = %s", (topic, partition)
            ).fetchone()
            kind = "set_aside" if aside is not None and aside[0] == sequence == have + 1 else "tail_cut"
            detail = f"the sink wrote up to {sequence}, the newest batch is {have}"
            report.findings.append(Finding(shard, have + 1, kind, detail, None, sequence))
        elif have > sequence:
            detail = f"the sink wrote up to {sequence}"
            report.findings.append(Finding(shard, sequence + 1, "batch_inserted", detail, None, have))


def _origins(connection: psycopg.Connection, scope: Scope, settings: Settings | None, report: Report) -> None:
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
            "most": _BIGINT,
            "limit": FINDINGS_MAX,
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


def _unnamed(connection: psycopg.Connection, scope: Scope, ends: dict[int, _End], report: Report) -> None:
    """Shards whose newest batch no position names, and shards that end where retention did."""
    removed = {row[0] for row in connection.execute("SELECT DISTINCT shard FROM tombstones")}
    for shard in sorted(removed | ends.keys()):
        if scope.bounds(shard) is None:
            continue
        newest = connection.execute(
            "SELECT sequence, audit_topic, audit_offset FROM batches WHERE shard = %s ORDER BY sequence DESC LIMIT 1",
            (shard,),
        ).fetchone()
        if newest is None:
            if shard in removed:
                detail = "retention keeps the newest batch of every shard, and this one has none"
                first = ends[shard].sequence + 1 if shard in ends else 0
                report.findings.append(Finding(shard, first, "tail_cut", detail))
            continue
        position = connection.execute(
            "SELECT next_offset, sequence FROM positions WHERE topic = %s AND partition = %s", (newest[1], shard)
        ).fetchone()
        if position is None:
            detail = f"the sink's position on {newest[1]}/{shard} is gone"
            report.findings.append(Finding(shard, newest[0] + 1, "tail_cut", detail))
        elif position[1] is None and position[0] > newest[2] + 1:
            detail = (
                f"the position on {newest[1]}/{shard} is past batch {newest[0]} and names none: batches were passed "
                "over, or an operator moved it and nothing was written since"
            )
            report.findings.append(Finding(shard, newest[0] + 1, "tail_cut", detail))


def _anchored(
    connection: psycopg.Connection,
    scope: Scope,
    file: AnchorFile,
    verifier: Verifier | None,
    ends: dict[int, _End],
    starts: dict[int, _Start],
    report: Report,
) -> None:
    bodies, findings = read_anchors(file, verifier)
    report.findings += findings + not_in_file(connection, file)
    report.heads_anchored = 0
    removed = {(b["shard"], b["day"]) for b in bodies if b["kind"] == "tombstone"}
    held = connection.execute("SELECT shard, day::text FROM tombstones").fetchall()
    for shard, day in set(removed) - {tuple(row) for row in held}:
        report.findings.append(
            Finding(shard, 0, "tombstone_forged", f"the anchors name a tombstone of {day}, the database has none", day)
        )
    for body in bodies:
        if body["kind"] != "anchor" or scope.bounds(body["shard"]) is None:
            continue
        shard, sequence, head = body["shard"], body["sequence"], body["head"]
        start = starts.get(shard, _Start())
        if sequence < start.sequence:
            if sequence in start.heads and start.heads[sequence] != head:
                report.findings.append(Finding(shard, sequence, "tombstone_forged", "an anchor names another head"))
            continue
        end = ends.get(shard)
        found = connection.execute(
            "SELECT head FROM batches WHERE shard = %s AND sequence = %s", (shard, sequence)
        ).fetchone()
        report.heads_anchored += 1
        if found is not None and found[0] != head:
            report.findings.append(
                Finding(shard, sequence, "forged", f"an anchor of {body['at']} names another head", body.get("day"))
            )
        elif found is None and (end is None or sequence > end.sequence):
            first = 0 if end is None else end.sequence + 1
            detail = f"an anchor of {body['at']} names batch {sequence}"
            report.findings.append(Finding(shard, first, "tail_cut", detail, None, sequence))


def _journal(
    connection: psycopg.Connection,
    scope: Scope,
    settings: Settings,
    ends: dict[int, _End],
    starts: dict[int, _Start],
    report: Report,
) -> None:
    report.heads_journal = 0
    # The journal says which shards there are: who empties every table leaves no shard to ask for.
    for shard in sorted({*journal_shards(settings)} | ends.keys() | starts.keys()):
        bounds = scope.bounds(shard)
        if bounds is not None:
            _journal_of_shard(connection, settings, shard, bounds, starts.get(shard, _Start()), report)


def _journal_of_shard(
    connection: psycopg.Connection,
    settings: Settings,
    shard: int,
    bounds: tuple[int, int],
    start: _Start,
    report: Report,
) -> None:
    """Both in order of sequence, side by side."""
    behind: list[int] = []
    absent: dict[str, list[int]] = {}
    with connection.transaction(), connection.cursor(f"heads_{shard}", row_factory=namedtuple_row) as cursor:
        cursor.itersize = 20_000
        rows: Iterator[Any] = cursor.execute(
            "SELECT sequence, head, day FROM batches WHERE shard = %s AND sequence BETWEEN %s AND %s ORDER BY sequence",
            (shard, *bounds),
        )
        have = next(rows, None)
        differs = False
        for said in journal_heads(settings, shard):
            if said.sequence > bounds[1]:
                break
            if said.sequence in start.heads and start.heads[said.sequence] != said.head:
                report.findings.append(
                    Finding(shard, said.sequence, "tombstone_forged", "the journal names another head")
                )
            if said.sequence < max(bounds[0], start.sequence):
                continue
            while have is not None and have.sequence < said.sequence:
                have = next(rows, None)
            if have is None or have.sequence > said.sequence:
                if have is None:
                    behind.append(said.sequence)
                else:
                    absent.setdefault(said.day, []).append(said.sequence)
                continue
            report.heads_journal = (report.heads_journal or 0) + 1
            if have.head != said.head and not differs:
                differs = True  # every later one differs too: the first is the one
                report.findings.append(
                    Finding(shard, have.sequence, "forged", "the journal topic names another head", str(have.day))
                )
    _whole_days(connection, shard, absent, report)
    if behind:
        _behind(connection, settings, shard, behind, start, report)


def _behind(
    connection: psycopg.Connection, settings: Settings, shard: int, behind: list[int], start: _Start, report: Report
) -> None:
    """Batches on the journal topic past those in the database: has the sink yet to write them, or are they gone?

    It has when the audit topic's next batch at the sink's position is the first of them. `audit_offset` of the newest
    batch is not asked: the owner can write there what suits.
    """
    # In this order: a sink at work only makes the newest batch newer than the position that was read before.
    audit = Topics.of(settings.kafka).audit
    position = connection.execute(
        "SELECT next_offset FROM positions WHERE topic = %s AND partition = %s", (audit, shard)
    ).fetchone()
    newest = connection.execute("SELECT max(sequence) FROM batches WHERE shard = %s", (shard,)).fetchone()
    end = -1 if newest is None or newest[0] is None else int(newest[0])
    if end >= behind[0]:
        here = connection.execute(
            "SELECT sequence FROM batches WHERE shard = %s AND sequence BETWEEN %s AND %s", (shard, behind[0], end)
        )
        gone = sorted({sequence for sequence in behind if sequence <= end} - {row[0] for row in here})
        if gone:
            kind, detail = _aside(connection, shard, gone) or ("batch_missing", "the journal topic has it")
            report.findings.append(Finding(shard, gone[0], kind, detail, None, gone[-1]))
        behind = [sequence for sequence in behind if sequence > end]
    if not behind:
        return
    aside = _aside(connection, shard, behind)
    if end < 0 and not start.sequence:
        kind, detail = aside or (
            "trail_missing",
            f"the journal topic has batches {behind[0]} to {behind[-1]}. A sink that has not begun looks the same: "
            "start it, and verify again when it has caught up",
        )
        report.findings.append(Finding(shard, behind[0], kind, detail, None, behind[-1]))
        return
    following = None if position is None else next_sequence(settings, shard, start=position[0])
    if following is None or following > behind[0]:
        last = behind[-1] if following is None else min(behind[-1], following - 1)
        kind, detail = aside or ("tail_cut", "the journal topic has them, and the sink's position is past them")
        report.findings.append(Finding(shard, behind[0], kind, detail, None, last))
    report.behind += sum(1 for sequence in behind if following is not None and sequence >= following)


def _aside(connection: psycopg.Connection, shard: int, sequences: list[int]) -> tuple[str, str] | None:
    """Whether records of the first of these batches stand in set_aside."""
    found = connection.execute(
        "SELECT count(*), min(kind) FROM set_aside WHERE shard = %s AND sequence = %s", (shard, sequences[0])
    ).fetchone()
    return (
        None if found is None or not found[0] else ("set_aside", f"{found[0]} records stand in set_aside ({found[1]})")
    )


def _whole_days(connection: psycopg.Connection, shard: int, absent: dict[str, list[int]], report: Report) -> None:
    """Batches that the journal knows and the database lacks: are they all of a day?"""
    for day, sequences in absent.items():
        left = connection.execute(
            "SELECT 1 FROM batches WHERE day = %s AND shard = %s LIMIT 1", (day, shard)
        ).fetchone()
        if left is None:
            for number, finding in enumerate(report.findings):
                covers = finding.last_sequence is not None and finding.sequence <= sequences[0] <= finding.last_sequence
                if finding.shard == shard and finding.kind == "batch_missing" and covers:
                    detail = f"no batch of {day} is left, and no tombstone was written"
                    report.findings[number] = Finding(
                        shard, finding.sequence, "day_dropped", detail, day, finding.last_sequence
                    )
