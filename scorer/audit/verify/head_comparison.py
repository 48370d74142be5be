"""Heads in Postgres compared with what is stored outside: the anchors, and the journal topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from scorer.audit.findings import Finding
from scorer.audit.signed.anchors import AnchorFile, not_in_file, not_in_table, read_anchors
from scorer.audit.signed.signatures import Verifier
from scorer.audit.topic_history import journal_heads, journal_shards, next_sequence
from scorer.audit.verify.scope import End, Report, Scope, Start
from scorer.kafka import Topics
from scorer.runtime.settings import Settings


class Runs:
    """Numbers in rising order, as runs of consecutive ones: two numbers for a whole journal without gaps."""

    def __init__(self, runs: Iterable[range] = ()) -> None:
        self._runs = list(runs)

    def add(self, number: int) -> None:
        if self._runs and self._runs[-1].stop == number:
            self._runs[-1] = range(self._runs[-1].start, number + 1)
        else:
            self._runs.append(range(number, number + 1))

    @property
    def first(self) -> int:
        return self._runs[0][0]

    @property
    def last(self) -> int:
        return self._runs[-1][-1]

    def up_to(self, end: int) -> Iterator[int]:
        """Those that are at most `end`."""
        return (number for run in self._runs for number in range(run.start, min(run.stop, end + 1)))

    def beyond(self, end: int) -> Runs:
        """Those that are more than `end`."""
        return Runs(range(max(run.start, end + 1), run.stop) for run in self._runs if run.stop > end + 1)

    def __len__(self) -> int:
        return sum(map(len, self._runs))


def compare_anchors(
    connection: psycopg.Connection,
    scope: Scope,
    file: AnchorFile,
    verifier: Verifier | None,
    ends: dict[int, End],
    starts: dict[int, Start],
    report: Report,
) -> None:
    bodies, findings = read_anchors(file, verifier)
    report.findings += findings + not_in_file(connection, file) + not_in_table(connection, file, bodies)
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
        start = starts.get(shard, Start())
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


def compare_journal(
    connection: psycopg.Connection,
    scope: Scope,
    settings: Settings,
    ends: dict[int, End],
    starts: dict[int, Start],
    report: Report,
) -> None:
    report.heads_journal = 0
    # The journal topic shows which shards there are: where every table was emptied, the database names none.
    shards = {*journal_shards(settings)}
    for shard in sorted(shards):
        bounds = scope.bounds(shard)
        if bounds is not None:
            _journal_of_shard(connection, settings, shard, bounds, starts.get(shard, Start()), report)
    for shard in sorted((ends.keys() | starts.keys()) - shards):
        if scope.bounds(shard) is not None:
            _unknown_shard(connection, shard, len(shards), report)


def _unknown_shard(connection: psycopg.Connection, shard: int, partitions: int, report: Report) -> None:
    """A shard that the journal topic has no partition for: no worker ever wrote it."""
    found = connection.execute("SELECT min(sequence), max(sequence) FROM batches WHERE shard = %s", (shard,)).fetchone()
    detail = f"the journal topic has no partition for shard {shard}: it has {partitions}"
    if found is None or found[0] is None:
        report.findings.append(Finding(shard, 0, "tombstone_forged", detail))
    else:
        report.findings.append(Finding(shard, found[0], "batch_inserted", detail, None, found[1]))


def _journal_of_shard(
    connection: psycopg.Connection,
    settings: Settings,
    shard: int,
    bounds: tuple[int, int],
    start: Start,
    report: Report,
) -> None:
    """Both in order of sequence, side by side."""
    behind = Runs()
    absent: dict[str, int] = {}  # by day the first one
    with connection.transaction(), connection.cursor(f"heads_{shard}", row_factory=namedtuple_row) as cursor:
        cursor.itersize = 20_000
        rows: Iterator[Any] = cursor.execute(
            "SELECT sequence, head, day FROM batches WHERE shard = %s AND sequence BETWEEN %s AND %s ORDER BY sequence",
            (shard, *bounds),
        )
        have = next(rows, None)
        differs = False
        for named in journal_heads(settings, shard):
            if named.sequence > bounds[1]:
                break
            if named.sequence in start.heads and start.heads[named.sequence] != named.head:
                report.findings.append(
                    Finding(shard, named.sequence, "tombstone_forged", "the journal names another head")
                )
            if named.sequence < max(bounds[0], start.sequence):
                continue
            while have is not None and have.sequence < named.sequence:
                have = next(rows, None)
            if have is None or have.sequence > named.sequence:
                if have is None:
                    behind.add(named.sequence)
                else:
                    absent.setdefault(named.day, named.sequence)
                continue
            report.heads_journal = (report.heads_journal or 0) + 1
            if have.head != named.head and not differs:
                differs = True  # every later one differs too: the first is the one
                report.findings.append(
                    Finding(shard, have.sequence, "forged", "the journal topic names another head", str(have.day))
                )
    _whole_days(connection, shard, absent, report)
    if behind:
        _behind(connection, settings, shard, behind, start, report)


def _behind(
    connection: psycopg.Connection, settings: Settings, shard: int, behind: Runs, start: Start, report: Report
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
    if end >= behind.first:
        here = connection.execute(
            "SELECT sequence FROM batches WHERE shard = %s AND sequence BETWEEN %s AND %s", (shard, behind.first, end)
        )
        gone = sorted({*behind.up_to(end)} - {row[0] for row in here})
        if gone:
            kind, detail = _quarantined(connection, shard, gone[0]) or ("batch_missing", "the journal topic has it")
            report.findings.append(Finding(shard, gone[0], kind, detail, None, gone[-1]))
        behind = behind.beyond(end)
    if not behind:
        return
    first, last = behind.first, behind.last
    quarantined = _quarantined(connection, shard, first)
    if end < 0 and not start.sequence:
        kind, detail = quarantined or (
            "trail_missing",
            f"the journal topic has batches {first} to {last}. A sink that has not begun looks the same: "
            "start it, and verify again when it has caught up",
        )
        report.findings.append(Finding(shard, first, kind, detail, None, last))
        return
    following = None if position is None else next_sequence(settings, shard, start=position[0])
    if following is None or following > first:
        until = last if following is None else min(last, following - 1)
        kind, detail = quarantined or ("tail_cut", "the journal topic has them, and the sink's position is past them")
        report.findings.append(Finding(shard, first, kind, detail, None, until))
    if following is not None:
        report.behind += len(behind.beyond(following - 1))


def _quarantined(connection: psycopg.Connection, shard: int, sequence: int) -> tuple[str, str] | None:
    """The finding for batches of which the first, `sequence`, has records in table set_aside; None when it has
    none."""
    found = connection.execute(
        "SELECT count(*), min(kind) FROM set_aside WHERE shard = %s AND sequence = %s", (shard, sequence)
    ).fetchone()
    return (
        None if found is None or not found[0] else ("set_aside", f"{found[0]} records stand in set_aside ({found[1]})")
    )


def _whole_days(connection: psycopg.Connection, shard: int, absent: dict[str, int], report: Report) -> None:
    """Batches that the journal knows and the database lacks, by day the first one: are they all of that day?"""
    for day, sequence in absent.items():
        left = connection.execute(
            "SELECT 1 FROM batches WHERE day = %s AND shard = %s LIMIT 1", (day, shard)
        ).fetchone()
        if left is None:
            for number, finding in enumerate(report.findings):
                covers = finding.last_sequence is not None and finding.sequence <= sequence <= finding.last_sequence
                if finding.shard == shard and finding.kind == "batch_missing" and covers:
                    detail = f"no batch of {day} is left, and no tombstone was written"
                    report.findings[number] = Finding(
                        shard, finding.sequence, "day_dropped", detail, day, finding.last_sequence
                    )
