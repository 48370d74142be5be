"""Anchors: heads stored outside Postgres, one line each, in a file or object that is only ever appended to.

    {"body":{"kind":"anchor","line":3,"line_before":"sha256 of the line before","shard":0,"sequence":41,"head":"…",
     "day":"2026-01-02","at":"2026-01-02T03:04:05Z"},"key":"…","signature":"…"}

Lines are chained (`line`, `line_before`) so that one taken out of the middle is missed; signed when a key is set.
Tombstones and erasures are noted there too, with their own `kind`. Whoever holds a copy of the last line alone can tell
whether anything before it was changed. A local file is opened for appending; elsewhere (fsspec) it is read and written
anew, so give the bucket object lock or versioning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from scorer.audit.findings import Finding
from scorer.audit.signed.signatures import SignatureBroken, Signer, Verifier, body_of, canonical, unsigned
from scorer.errors import UsageError
from scorer.runtime.secret_text import holds_secret, shown_address
from scorer.trail import audit_database, audit_tables

FIRST = "0" * 64
_ADDED = frozenset({"line", "line_before", "at"})  # to a body, when it becomes a line


class AnchorFile:
    """The lines at a path or fsspec URL."""

    def __init__(self, place: str, *, given: bool = False) -> None:
        """`given`: a person named it just now, so it is to be there when it is to be read.

        Raises UsageError for a URL with credentials: the place is stored in Postgres and in signed documents.
        """
        if holds_secret(place):
            raise UsageError(
                f"anchors {shown_address(place)}: give a URL without credentials and query, for it is written into the "
                "audit trail; fsspec reads them from FSSPEC_<PROTOCOL>_<NAME> variables or its own configuration"
            )
        self.place, self.given = place, given

    def lines(self) -> list[str]:
        """All lines, in order; none where there is no file yet. Raises UsageError."""
        try:
            with fsspec.open(self.place, "rt", encoding="utf-8") as file:
                return [line.rstrip("\n") for line in file if line.strip()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, ImportError) as exc:
            raise UsageError(f"anchors {self.place} cannot be read: {exc}") from exc

    def append(self, bodies: list[dict[str, Any]], signer: Signer | None) -> list[str]:
        """Adds a line for each body, chained to those there. Returns the new lines."""
        known = self.lines()
        new = self._made(known, bodies, signer)
        self._write(known, new)
        return new

    def append_noted(
        self, bodies: list[dict[str, Any]], signer: Signer | None, note: Callable[[list[str]], None]
    ) -> None:
        """`append`, once `note` has taken the new lines: where it raises, nothing is written."""
        known = self.lines()
        new = self._made(known, bodies, signer)
        note(new)
        self._write(known, new)

    def _made(self, known: list[str], bodies: list[dict[str, Any]], signer: Signer | None) -> list[str]:
        previous = hashlib.sha256(known[-1].encode()).hexdigest() if known else FIRST
        new: list[str] = []
        for body in bodies:
            full = {**body, "line": len(known) + len(new), "line_before": previous, "at": _now()}
            new.append(signer.sign(full) if signer is not None else unsigned(full))
            previous = hashlib.sha256(new[-1].encode()).hexdigest()
        return new

    def _write(self, known: list[str], new: list[str]) -> None:
        text = "".join(line + "\n" for line in new)
        if "://" not in self.place:
            path = Path(self.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            # O_APPEND: nothing that stands there can be overwritten through this descriptor.
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        else:
            with fsspec.open(self.place, "wt", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in known) + text)


def must_exist(connection: psycopg.Connection, file: AnchorFile) -> None:
    """Raises UsageError for anchors that are not there, unless none were ever written, or they were written there.

    In the latter case they were taken away, and `not_in_file` finds it.
    """
    if file.lines():
        return
    places = [row[0] for row in connection.execute("SELECT DISTINCT place FROM anchors ORDER BY 1")]
    if file.place in places or not (places or file.given):
        return
    others = f"; the database names {', '.join(places[:3])}" if places else ""
    raise UsageError(f"anchors {file.place}: no such file, or it is empty{others}. Name the file to compare heads with")


def not_in_table(connection: psycopg.Connection, file: AnchorFile, bodies: list[dict[str, Any]]) -> list[Finding]:
    """Anchors of the file that the database no longer notes."""
    noted = {*connection.execute("SELECT shard, sequence, head FROM anchors")}
    gone = [body for body in bodies if body["kind"] == "anchor" and _key(body) not in noted]
    if not gone:
        return []
    detail = (
        f"{len(gone)} rows that {file.place} has lines of are gone, the first of batch {gone[0]['shard']}/"
        f"{gone[0]['sequence']}; `fraud-scorer audit anchor` notes them again (after a restore, for example)"
    )
    return [Finding.at("table anchors", "anchor_deleted", detail)]


def _key(body: dict[str, Any]) -> tuple[Any, ...]:
    return body["shard"], body["sequence"], body["head"]


def not_in_file(connection: psycopg.Connection, file: AnchorFile) -> list[Finding]:
    """What the database notes as written to this very place and the place lacks: the file is gone, or was cut."""
    # The database before the file: what is anchored meanwhile gets its line first, and is committed then.
    noted = connection.execute("SELECT document FROM anchors WHERE place = %s", (file.place,)).fetchall()
    kept = connection.execute(
        "SELECT document FROM tombstones UNION ALL SELECT document FROM erasures UNION ALL "
        "SELECT document FROM amendments"
    ).fetchall()
    lines = file.lines()
    there = {*lines, *(_without_place_in_file(line) for line in lines)}
    lacking = sum(document not in there for (document,) in noted)
    for (document,) in kept:
        try:
            body = body_of(document, None)
        except SignatureBroken:
            continue  # found where it is used
        lacking += body.get("anchors") == file.place and canonical(body).decode() not in there
    if not lacking:
        return []
    detail = f"{file.place} has {len(lines)} lines and lacks {lacking} that the database has as written to it"
    return [Finding.at(f"anchors {file.place}", "anchor_forged", detail, len(lines))]


def _without_place_in_file(line: str) -> str:
    """The body of a line as it was before it got its place among the lines."""
    try:
        body = body_of(line, None)
    except SignatureBroken:
        return line
    return canonical({name: value for name, value in body.items() if name not in _ADDED}).decode()


def read_anchors(file: AnchorFile, verifier: Verifier | None) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The bodies, and what is wrong with the lines themselves."""
    bodies, findings, previous = [], [], FIRST
    for number, line in enumerate(file.lines()):
        try:
            body = body_of(line, verifier)
            if body.get("line") != number or body.get("line_before") != previous:
                raise SignatureBroken("it does not follow the line before it")
            bodies.append(body)
        except SignatureBroken as exc:
            findings.append(Finding.at(f"line {number + 1} of anchors {file.place}", "anchor_forged", str(exc), number))
        previous = hashlib.sha256(line.encode()).hexdigest()
    return bodies, findings


def anchor(url: str, file: AnchorFile, signer: Signer | None) -> list[dict[str, Any]]:
    """Anchors the newest head of every shard that has moved since its last anchor. Returns the bodies written.

    The database is asked first: where it refuses the note, the file gets no line. Raises UsageError, and
    sqlalchemy's errors.
    """
    bodies, findings = read_anchors(file, signer.verifier if signer else None)
    if findings:
        raise UsageError(f"anchors {file.place} are broken: {findings[0].sentence}; keep the file and begin a new one")
    last = {body["shard"]: body for body in bodies if body["kind"] == "anchor"}
    with audit_database.engine(url).connect() as connection:
        new = [
            {"kind": "anchor", "shard": shard, "sequence": row.sequence, "head": row.head, "day": str(row.day)}
            for shard, row in newest(connection).items()
            if last.get(shard, {}).get("sequence") != row.sequence
        ]
        table = audit_tables.anchors
        noted = {tuple(row) for row in connection.execute(sa.select(table.c.shard, table.c.sequence, table.c.head))}
        lines = file.lines()
        again = [body for body in bodies if body["kind"] == "anchor" and _key(body) not in noted]

        def note(added: list[str]) -> None:
            # A line stands at its number; what the table lost (a restore, a crash between the two) is noted again.
            pairs = [*((body, lines[body["line"]]) for body in again), *zip(new, added, strict=True)]
            rows = [
                {name: body[name] for name in ("shard", "sequence", "head")} | {"place": file.place, "document": line}
                for body, line in pairs
            ]
            connection.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)

        if new:
            file.append_noted(new, signer, note)
        elif again:
            note([])
        connection.commit()
    return new


def newest(connection: sa.Connection) -> dict[int, Any]:
    """The last batch of each shard: sequence, head, day."""
    table = audit_tables.batches
    result = {}
    shards = connection.scalars(
        sa.select(audit_tables.positions.c.shard).where(audit_tables.positions.c.shard.is_not(None))
    ).all()
    for shard in sorted({*shards}):
        row = connection.execute(
            sa.select(table.c.sequence, table.c.head, table.c.day)
            .where(table.c.shard == shard)
            .order_by(table.c.sequence.desc())
            .limit(1)
        ).one_or_none()
        if row is not None:
            result[shard] = row
    return result


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
