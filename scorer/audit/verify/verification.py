"""`audit verify`: every digest recomputed from the rows alone, every link of the chain followed, every head compared
with what is stored outside Postgres.

    1. plan        days and shards cut into units of some 30,000 rows that leave no row out (unit_plan)
    2. check       each unit over one of several connections (unit_check)
    3. chain       the units' ends joined, from the tombstones on; what is missing, and whether quarantine explains it
                   (chain_links)
    4. outside     heads with the journal topic and the anchors (head_comparison); positions with the newest batch
                   (sink_positions), each batch's place with the audit topic (audit_topic_comparison); labels, dead
                   letters and changes of lists with their topics (record_comparison)
    5. structure   views, functions and rights with what the migrations make (database_structure); bundles with their
                   batches (bundle_register)
    6. rows        the first bad batches with the audit topic's own chunks, where those are still there (row_comparison)

Memory is bounded by the units in flight and FINDINGS_MAX; rows are never kept.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import psycopg

from scorer.audit.findings import Finding, in_order
from scorer.audit.signed.amendments import read_amendments
from scorer.audit.signed.anchors import AnchorFile, must_exist
from scorer.audit.signed.signatures import SignatureBroken, Verifier, body_of
from scorer.audit.verify.audit_topic_comparison import compare_audit_topic
from scorer.audit.verify.bundle_register import compare_bundles
from scorer.audit.verify.chain_links import ChainLinks
from scorer.audit.verify.database_structure import missing_columns, structure
from scorer.audit.verify.head_comparison import compare_anchors, compare_journal
from scorer.audit.verify.record_comparison import compare_records
from scorer.audit.verify.row_comparison import compare_rows
from scorer.audit.verify.scope import Evidence, Report, Scope, Start
from scorer.audit.verify.sink_positions import check_origins, check_positions
from scorer.audit.verify.unit_check import Checked, Unit, check
from scorer.audit.verify.unit_plan import FINDINGS_MAX, plan_units
from scorer.errors import FraudScorerError, UsageError
from scorer.runtime.settings import Settings
from scorer.trail.audit_database import connect_text

_ROWS_COMPARED_MAX = 5
_IN_FLIGHT = 4  # units for each connection: results are small, and a slow unit must not hold up the others

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
    and the database names others, and when nothing lies in the scope; FraudScorerError when there are findings and
    retention or an erasure ran meanwhile, which may be their cause; KafkaFailure, psycopg.Error.
    """
    scope = scope or Scope()
    report = Report()
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        report.findings += missing_columns(connection)
        if report.findings:
            return report  # without them nothing else can be read
        if anchors is not None:
            must_exist(connection, anchors)
        signed = _signed(connection)
        starts = _tombstones(connection, verifier, report)
        _erasures_need_key(connection, verifier)
        units, total = plan_units(connection, scope, report)
        checked = _check_all(url, units, verifier, parallel, lambda done: progress(done, total))
        links = ChainLinks(connection, scope, starts, report)
        for result in checked:
            report.batches += result.batches
            report.decisions += result.decisions
            report.erased += result.erased
            report.findings += result.findings
            links.add(result)
            del report.findings[FINDINGS_MAX:]
        ends = links.finish()
        report.shards = len(ends)
        report.set_aside = connection.execute("SELECT count(*) FROM set_aside").fetchone()[0]  # type: ignore[index]
        check_positions(connection, scope, ends, report)
        check_origins(connection, scope, kafka_settings, report)
        amendments, forged = read_amendments(connection, verifier)
        report.findings += forged
        if scope.shard is None:
            changed, report.views_compared = structure(connection)
            report.findings += changed
        if scope.whole:
            report.findings += compare_bundles(connection, starts)
        if anchors is not None:
            compare_anchors(connection, scope, anchors, verifier, ends, starts, report)
        if kafka_settings is not None:
            evidence = Evidence(connection, kafka_settings, amendments, report)
            compare_journal(connection, scope, kafka_settings, ends, starts, report)
            compare_audit_topic(evidence, scope)
            if scope.whole:
                compare_records(evidence)
        report.findings = in_order(report.findings)
        if kafka_settings is not None:
            report.findings = in_order(compare_rows(connection, kafka_settings, report.findings, _ROWS_COMPARED_MAX))
        if not report.batches and not report.findings:
            _not_empty(connection, scope)
        if report.findings and _signed(connection) != signed:
            raise FraudScorerError(
                "retention or an erasure ran while the trail was verified, which may be the cause of "
                f"{report.findings[0].sentence}; verify again once it has ended"
            )
    return report


def _signed(connection: psycopg.Connection) -> tuple[Any, ...] | None:
    """How many records of retention and erasure there are."""
    return connection.execute(
        "SELECT (SELECT count(*) FROM tombstones), (SELECT count(*) FROM erasures), (SELECT count(*) FROM amendments)"
    ).fetchone()


def _not_empty(connection: psycopg.Connection, scope: Scope) -> None:
    """A scope without any batch proves nothing. Raises UsageError.

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
