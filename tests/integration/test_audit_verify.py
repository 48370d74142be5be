"""`audit verify` against the database's owner: whatever is changed is found, and the first bad batch is named."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from sqlalchemy.exc import ProgrammingError

from schemas.audit_record import AuditColumns
from scorer.audit.signed.anchors import AnchorFile, anchor
from scorer.audit.signed.signatures import Signer
from scorer.audit.verify.scope import Report, Scope
from scorer.audit.verify.verification import verify
from scorer.demo.demo_processes import own_database
from scorer.errors import UsageError
from scorer.local_services import Services
from scorer.trail import audit_tables
from tests.audit_columns import about_of, columns
from tests.integration.audit_trail import Trail, forge, migrated, sql

DECIDED = [name for name in audit_tables.decisions.columns.keys() if name != "day"]  # noqa: SIM118 - SQLAlchemy's own


TABLES = ("feature_sets", "bundles", "batches", "decisions", "positions")


@pytest.fixture(scope="module")
def kept(services: Services) -> Iterator[str]:
    """A database with two shards over three days, and a copy of its rows beside them."""
    name = f"test_{secrets.token_hex(4)}"
    with own_database(services.postgres.url, name) as url:
        trail = Trail(migrated(url))
        for day in range(3):
            for shard in range(2):
                trail.write(shard, (40, 0, 25, 60), day=day, seed=day)
        sql(url, "CREATE SCHEMA kept", *(f"CREATE TABLE kept.{name} AS SELECT * FROM {name}" for name in TABLES))
        yield url


@pytest.fixture
def trail(kept: str) -> str:
    """The URL of that database, as it was at first: quicker than a database for each test."""
    sql(
        kept,
        f"TRUNCATE {', '.join(TABLES)}",
        *(f"SELECT audit_day('2026-01-0{day}')" for day in (1, 2, 3)),
        *(f"INSERT INTO {name} SELECT * FROM kept.{name}" for name in TABLES),
    )
    return kept


def first(report: Report) -> tuple[int, int, str]:
    finding = report.findings[0]
    return finding.shard, finding.sequence, finding.kind


def test_an_untouched_trail_verifies(trail: str) -> None:
    """Every row and batch is looked at once, over one connection or several, whole or in part."""
    seen: list[tuple[int, int]] = []
    for parallel in (1, 3):
        seen.clear()
        report = verify(trail, parallel=parallel, progress=lambda done, rows: seen.append((done, rows)))
        assert report.findings == []
        assert (report.shards, report.batches, report.decisions) == (2, 24, 750)
        assert seen[-1] == (750, 750)
    part = verify(trail, scope=Scope(shard=1, first=3, last=6))
    assert (part.good, part.batches, part.decisions) == (True, 4, 60 + 40 + 0 + 25)
    assert verify(trail, scope=Scope(since={0: 9, 1: 11})).batches == 2


EDITS = {
    "event_time": "event_time + interval '1 ms'",
    "sequence": "700",
    "shard": "70",
    "row_number": "row_number + 1000",
    "score": "score + 1e-16",
    "margin": "-margin",
    "customer_id": "coalesce(customer_id, '') || 'x'",
    "mcc": "''",
    "decision": "CASE decision WHEN 'flag' THEN 'approve' ELSE 'flag' END",
    "mode": "CASE mode WHEN 'late' THEN 'normal' ELSE 'late' END",
    "features": "array_append(features[:4], 1.5::real)",
    "challenger_margins": "ARRAY[0.25]::real[]",
    "reasons": "reasons || 'X'::text",
    "fired": "ARRAY['a', 'b']",
    "threshold": "0.75",
    "bundle": "'other'",
}


def test_an_edit_of_any_column_is_found(trail: str) -> None:
    """One cell of one row, in each column in turn: the batch is named. Put back, the trail verifies."""
    place = "WHERE shard = 1 AND sequence = 7 AND row_number = 11"
    sql(trail, f"CREATE TABLE one_row AS SELECT * FROM decisions {place}")
    for column in DECIDED:
        changed = EDITS.get(column)
        if changed is None:
            kind = audit_tables.decisions.c[column].type.python_type
            changed = f"{column} + 1" if kind in (int, float) else f"coalesce({column}, '') || 'x'"
        sql(trail, f"UPDATE decisions SET {column} = {changed} {place}")
        assert first(verify(trail))[1] == 7, column
        sql(
            trail,
            "DELETE FROM decisions WHERE (origin_partition, origin_offset) IN (SELECT origin_partition, "
            "origin_offset FROM one_row) OR row_number = 1011 OR sequence = 700 OR shard = 70 "
            "OR (shard = 1 AND sequence = 7 AND payment_id IN (SELECT payment_id FROM one_row))",
            "INSERT INTO decisions SELECT * FROM one_row",
        )
    assert verify(trail).good


OWNER: dict[str, tuple[str, tuple[int, int, str]]] = {
    "row deleted": (
        "DELETE FROM decisions WHERE shard = 1 AND sequence = 4 AND row_number = 3",
        (1, 4, "rows_deleted"),
    ),
    "last row deleted": (
        "DELETE FROM decisions WHERE shard = 1 AND sequence = 4 AND row_number = 39",
        (1, 4, "rows_deleted"),
    ),
    "row inserted": (
        "INSERT INTO decisions SELECT (jsonb_populate_record(d, '{\"row_number\": 40}')).* FROM decisions d "
        "WHERE shard = 1 AND sequence = 4 AND row_number = 3",
        (1, 4, "rows_inserted"),
    ),
    "rows of no batch": (
        "INSERT INTO decisions SELECT (jsonb_populate_record(d, '{\"sequence\": 400}')).* FROM decisions d "
        "WHERE shard = 1 AND sequence = 4",
        (1, 400, "rows_inserted"),
    ),
    "rows of no shard": (
        "INSERT INTO decisions SELECT (jsonb_populate_record(d, '{\"shard\": 9}')).* FROM decisions d "
        "WHERE shard = 1 AND sequence = 4",
        (9, 4, "rows_inserted"),
    ),
    "rows swapped": (
        "CREATE TABLE two_rows AS SELECT min(row_number) AS a, max(row_number) AS b FROM decisions "
        "WHERE shard = 0 AND sequence = 4 AND origin_partition = 0; "
        "UPDATE decisions SET row_number = 1000 + a + b - row_number FROM two_rows "
        "WHERE shard = 0 AND sequence = 4 AND row_number IN (a, b); "
        "UPDATE decisions SET row_number = row_number - 1000 WHERE shard = 0 AND sequence = 4 AND row_number > 999",
        (0, 4, "rows_reordered"),
    ),
    "batches swapped": (
        "UPDATE decisions SET sequence = CASE sequence WHEN 4 THEN 1006 ELSE 1004 END "
        "WHERE shard = 0 AND sequence IN (4, 6); "
        "UPDATE decisions SET sequence = sequence - 1000 WHERE shard = 0 AND sequence > 999",
        (0, 4, "rows_deleted"),
    ),
    "row moved to another day": (
        "UPDATE decisions SET day = '2026-01-01' WHERE shard = 0 AND sequence = 4 AND row_number = 39",
        (0, 4, "rows_deleted"),
    ),
    "batch deleted with its rows": (
        "DELETE FROM decisions WHERE shard = 0 AND sequence = 5; "
        "DELETE FROM batches WHERE shard = 0 AND sequence = 5; "
        "DELETE FROM decisions WHERE shard = 0 AND sequence = 6; "
        "DELETE FROM batches WHERE shard = 0 AND sequence = 6",
        (0, 5, "batch_missing"),
    ),
    "first batch deleted": (
        "DELETE FROM decisions WHERE shard = 1 AND sequence = 0; DELETE FROM batches WHERE shard = 1 AND sequence = 0",
        (1, 0, "day_dropped"),
    ),
    "tail cut": (
        "DELETE FROM decisions WHERE shard = 1 AND sequence > 9; DELETE FROM batches WHERE shard = 1 AND sequence > 9",
        (1, 10, "tail_cut"),
    ),
    "position gone": ("DELETE FROM positions WHERE partition = 1", (1, 12, "tail_cut")),
    "tail cut, position without a batch": (
        "DELETE FROM decisions WHERE shard = 1 AND sequence > 9; DELETE FROM batches WHERE shard = 1 AND sequence > 9; "
        "UPDATE positions SET shard = NULL, sequence = NULL, head = NULL WHERE partition = 1",
        (1, 10, "tail_cut"),
    ),
    "day dropped": ("DROP TABLE decisions_20260102; DROP TABLE batches_20260102", (0, 4, "day_dropped")),
    "day of rows dropped": ("DROP TABLE decisions_20260102", (0, 4, "rows_deleted")),
    "first day dropped": ("DROP TABLE decisions_20260101; DROP TABLE batches_20260101", (0, 0, "day_dropped")),
    "last day dropped": ("DROP TABLE decisions_20260103; DROP TABLE batches_20260103", (0, 8, "tail_cut")),
    **{
        f"{column} = {value}": (
            f"UPDATE decisions SET {column} = {value} WHERE shard = 1 AND sequence = 6 AND row_number = 3",
            (1, 6, "row_edited"),
        )
        for column, value in (
            ("event_time", "'infinity'"),
            ("event_time", "'-infinity'"),
            ("features", "('[0:' || cardinality(features) - 1 || ']=' || features::text)::real[]"),
            ("fired", "'[0:0]={a}'"),
        )
    },
    "feature renamed": ("UPDATE feature_sets SET feature_names[2] = 'other'", (0, 0, "row_edited")),
    **{
        f"batches.{column} = {value}": (
            f"UPDATE batches SET {column} = {value} WHERE shard = 1 AND sequence = 6",
            (1, 6, kind),
        )
        for column, value, kind in (
            ("digest", "repeat('0', 64)", "batch_edited"),
            ("previous", "repeat('0', 64)", "batch_edited"),
            ("head", "repeat('0', 64)", "batch_edited"),
            ("journal", "jsonb_set(journal, '{dead_letters}', '5')", "batch_edited"),
            ("journal", "'{}'", "batch_edited"),
            ("salt", "NULL", "batch_edited"),
            ("salt", "decode(repeat('ab', 32), 'hex')", "row_edited"),
            ("stream_time", "stream_time + interval '1 us'", "batch_edited"),
            ("stream_time", "'infinity'", "batch_edited"),
            ("event_time_min", "'-infinity'", "batch_edited"),
            ("event_time_max", "'infinity'", "batch_edited"),
            ("event_time_min", "event_time_min - interval '1 s'", "batch_edited"),
            ("event_time_max", "NULL", "batch_edited"),
            ("dead_letters", "1", "batch_edited"),
            ("refused", "1", "batch_edited"),
            ("flagged", "flagged - 1", "batch_edited"),
            ("late", "late + 1", "batch_edited"),
            ("duplicates", "0", "batch_edited"),
            ("degraded", "degraded + 1", "batch_edited"),
            ("bundle", "'other'", "batch_edited"),
            ("threshold", "0.6", "row_edited"),
            ("challengers", "ARRAY['other']", "row_edited"),
            ("origin_topic", "'other'", "batch_edited"),
            ("audit_topic", "'other'", "batch_edited"),
            ("audit_partition", "7", "batch_edited"),
            ("audit_offset", "audit_offset + 1000", "batch_edited"),
            ("audit_offset", "0", "batch_edited"),
            ("audit_offset", "-5", "batch_edited"),
            ("challengers", "'[0:0]={other}'", "batch_edited"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("change", OWNER)
def test_what_the_owner_does_is_found(trail: str, change: str) -> None:
    """Rows, batches and days deleted, added, moved: the first bad batch and the kind of change."""
    statements, expected = OWNER[change]
    sql(trail, *statements.split("; "))
    report = verify(trail)
    assert expected in [(f.shard, f.sequence, f.kind) for f in report.findings]
    assert first(report)[:2] == expected[:2]


def test_a_forged_batch_breaks_the_chain(trail: str) -> None:
    """A batch with its digest made again no longer fits the next one."""
    forge(trail, 0, 5 + 1, onwards=False)
    assert first(verify(trail)) == (0, 6, "chain_broken")


@pytest.fixture(params=["signed", "unsigned"])
def signer(request: pytest.FixtureRequest) -> Signer | None:
    return Signer.generate() if request.param == "signed" else None


def test_a_chain_forged_to_its_end_differs_from_the_anchor(trail: str, tmp_path: Path, signer: Signer | None) -> None:
    """With every later link made again the rows agree with themselves; the anchor outside does not."""
    file = AnchorFile(str(tmp_path / "anchors.jsonl"))
    verifier = signer.verifier if signer else None
    assert len(anchor(trail, file, signer)) == 2
    assert anchor(trail, file, signer) == []
    assert verify(trail, anchors=file, verifier=verifier).heads_anchored == 2
    forge(trail, 0, 6, onwards=True)
    assert verify(trail).good, "the forgery is perfect as far as Postgres goes"
    report = verify(trail, anchors=file, verifier=verifier)
    assert first(report) == (0, 11, "forged")


def test_a_tail_cut_with_its_position_is_before_the_anchor(trail: str, tmp_path: Path) -> None:
    """Who cuts the tail and sets the position back leaves a consistent database, shorter than the anchor shows."""
    file = AnchorFile(str(tmp_path / "anchors.jsonl"))
    anchor(trail, file, None)
    sql(
        trail,
        "DELETE FROM decisions WHERE shard = 1 AND sequence > 9",
        "DELETE FROM batches WHERE shard = 1 AND sequence > 9",
        "UPDATE positions p SET sequence = b.sequence, next_offset = b.audit_offset + 1, head = b.head FROM batches b "
        "WHERE p.shard = 1 AND b.shard = 1 AND b.sequence = 9",
    )
    assert verify(trail).good
    assert first(verify(trail, anchors=file)) == (1, 10, "tail_cut")


@pytest.mark.parametrize("change", ["edited", "removed", "resigned", "cut", "gone"])
def test_changed_anchors_are_found(trail: str, tmp_path: Path, change: str) -> None:
    """A line edited, taken out of the middle, or signed by another key; an end or the whole file gone: a note is in
    the database."""
    path = tmp_path / "anchors.jsonl"
    file, signer = AnchorFile(str(path)), Signer.generate()
    anchor(trail, file, signer)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text({
        "edited": lines[0].replace('"sequence":11', '"sequence":10') + lines[1],
        "removed": lines[1],
        "resigned": Signer.generate().sign({"kind": "anchor", "line": 0, "line_before": "0" * 64, "shard": 0,
                                            "sequence": 11, "head": "0" * 64}) + "\n" + lines[1],
        "cut": lines[0],
        "gone": "",
    }[change])  # fmt: skip
    if change == "gone":
        path.unlink()
    report = verify(trail, anchors=file, verifier=signer.verifier)
    assert {finding.kind for finding in report.findings} == {"anchor_forged"}
    sql(trail, "TRUNCATE anchors")


def test_rows_of_table_anchors_that_the_file_has_are_missed(trail: str, tmp_path: Path) -> None:
    """A note deleted from the database is found by the file's line; `audit anchor` notes it again."""
    file = AnchorFile(str(tmp_path / "anchors.jsonl"))
    anchor(trail, file, None)
    sql(trail, "DELETE FROM anchors WHERE shard = 1")
    assert [(f.place, f.kind) for f in verify(trail, anchors=file).findings] == [("table anchors", "anchor_deleted")]
    assert anchor(trail, file, None) == []
    assert verify(trail, anchors=file).good
    sql(trail, "TRUNCATE anchors")


def test_anchors_that_are_not_there_prove_nothing(trail: str, tmp_path: Path) -> None:
    """A file that is missing is refused where a person names it or the database names another; a trail that was never
    anchored verifies with the setting's file still to come."""
    missing = str(tmp_path / "missing.jsonl")
    sql(trail, "TRUNCATE anchors")
    assert verify(trail, anchors=AnchorFile(missing)).good
    with pytest.raises(UsageError, match="no such file"):
        verify(trail, anchors=AnchorFile(missing, given=True))
    anchor(trail, AnchorFile(str(tmp_path / "anchors.jsonl")), None)
    with pytest.raises(UsageError, match=r"the database names .*anchors\.jsonl"):
        verify(trail, anchors=AnchorFile(missing))
    sql(trail, "TRUNCATE anchors")


@pytest.mark.parametrize("scope", [Scope(shard=5), Scope(first=99_999), Scope(shard=1, first=12, last=20)])
def test_a_scope_with_nothing_in_it_is_no_proof(trail: str, scope: Scope) -> None:
    """A shard that there is not, and batches that are not there, are refused instead of verified."""
    with pytest.raises(UsageError, match="has no batch"):
        verify(trail, scope=scope)
    assert verify(trail, scope=Scope(since={0: 11, 1: 11})).batches == 0  # nothing new since the anchors


def test_an_anchor_that_the_database_refuses_is_not_written(trail: str, tmp_path: Path) -> None:
    """Without the right to note it, the file gets no line."""
    name, path = f"test_{secrets.token_hex(4)}", tmp_path / "anchors.jsonl"
    with psycopg.connect(trail, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'")
        admin.execute(f"GRANT fraud_scorer_reader TO {name}")
        try:
            url = make_conninfo(trail, user=name, password="test")
            with pytest.raises(ProgrammingError, match="permission denied"):
                anchor(url, AnchorFile(str(path)), None)
        finally:
            admin.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")
    assert not path.exists()


def test_every_batch_is_one_that_any_owner_may_pick(trail: str) -> None:
    """An edit in each batch in turn is found in that batch."""
    where = "WHERE shard = 0 AND row_number = 0 AND sequence ="
    for sequence in (0, 2, 3, 8, 11):
        sql(trail, f"UPDATE decisions SET amount_minor = amount_minor + 1 {where} {sequence}")
        assert first(verify(trail)) == (0, sequence, "row_edited")
        sql(trail, f"UPDATE decisions SET amount_minor = amount_minor - 1 {where} {sequence}")
    assert verify(trail).good


@given(batches=st.lists(columns(), min_size=1, max_size=6), day=st.integers(0, 2))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_columns_verify(kept: str, batches: list[AuditColumns], day: int) -> None:
    """Whatever a worker may digest (any text, NaN, infinities, -0.0, bundles with other features in one day) comes back
    out of Postgres with the digest it went in with; and one changed bit of one offset does not."""
    sql(
        kept,
        f"TRUNCATE {', '.join(TABLES)}",
        *(f"SELECT audit_day('2026-01-0{day}')" for day in (1, 2, 3)),
    )
    trail = Trail(kept)
    for number, made in enumerate(batches):
        about = about_of(made).model_copy(update={"bundle": f"b{number}", "feature_fingerprint": f"f{number}"})
        # Of amounts the door lets twelve digits pass: a tenth of longer ones look like card numbers.
        trail.write_columns(3, [replace(made, amount_minor=made.amount_minor % 10**12)], day=day, context=about)
    report = verify(kept)
    assert report.findings == []
    assert (report.batches, report.decisions) == (len(batches), sum(map(len, batches)))
    bad = [number for number, made in enumerate(batches) if len(made)]
    if bad:
        sql(
            kept,
            f"UPDATE decisions SET origin_offset = origin_offset # 1 WHERE sequence = {bad[-1]} AND row_number = 0",
        )
        assert [f.sequence for f in verify(kept).findings] == [bad[-1]]
