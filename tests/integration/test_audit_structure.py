"""`audit verify` against an owner who leaves the rows: views, functions, rights, bundles, positions, days."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from scorer.audit.signed.signatures import Signer
from scorer.audit.verify.database_structure import made
from scorer.audit.verify.verification import verify
from scorer.demo.demo_processes import own_database
from scorer.local_services import Services
from scorer.trail import audit_tables
from tests.integration.audit_trail import Trail, migrated, sql


@pytest.fixture(scope="module")
def trail(services: Services) -> Iterator[str]:
    """Two shards over two days; every test puts back what it changed."""
    name = f"test_{secrets.token_hex(4)}"
    with own_database(services.postgres.url, name) as url:
        trail = Trail(migrated(url))
        for day in range(2):
            for shard in range(2):
                trail.write(shard, (30, 0, 20), day=day, seed=day)
        yield url


# Change, the way back, kind, place.
OWNER: dict[str, tuple[str, str, str, str]] = {
    "view with a condition": (
        "CREATE OR REPLACE VIEW flagged AS SELECT * FROM decided WHERE decision = 'flag' AND amount_minor < 1000",
        "CREATE OR REPLACE VIEW flagged AS SELECT * FROM decided WHERE decision = 'flag'",
        "schema_changed", "view flagged",
    ),
    "view of other rows": (
        "ALTER VIEW flag_rate_daily RENAME TO kept; CREATE VIEW flag_rate_daily AS SELECT * FROM kept WHERE false",
        "DROP VIEW flag_rate_daily; ALTER VIEW kept RENAME TO flag_rate_daily",
        "schema_changed", "view flag_rate_daily",
    ),
    "view as a table": (
        "ALTER VIEW labels_current RENAME TO kept; CREATE TABLE labels_current AS SELECT * FROM kept",
        "DROP TABLE labels_current; ALTER VIEW kept RENAME TO labels_current",
        "schema_changed", "view labels_current",
    ),
    "view with an option": (
        "ALTER VIEW outcomes SET (security_invoker = true)", "ALTER VIEW outcomes RESET (security_invoker)",
        "schema_changed", "view outcomes",
    ),
    "function": (
        "ALTER FUNCTION audit_day(date) SECURITY INVOKER", "ALTER FUNCTION audit_day(date) SECURITY DEFINER",
        "schema_changed", "function audit_day",
    ),
    "function's body": (
        "ALTER FUNCTION audit_day(date) RENAME TO kept; CREATE FUNCTION audit_day(wanted date) RETURNS void "
        "LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN END'",
        "DROP FUNCTION audit_day(date); ALTER FUNCTION kept(date) RENAME TO audit_day",
        "schema_changed", "function audit_day",
    ),
    "function's search_path": (
        "ALTER FUNCTION audit_day(date) SET search_path = public, pg_catalog",
        "ALTER FUNCTION audit_day(date) SET search_path = pg_catalog, public, pg_temp",
        "schema_changed", "function audit_day",
    ),
    "another function of the owner": (
        "CREATE FUNCTION helper() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM decisions'",
        "DROP FUNCTION helper()",
        "schema_changed", "function helper",
    ),
    "trigger": (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER hide BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION nothing()",
        "DROP TRIGGER hide ON labels; DROP FUNCTION nothing()",
        "schema_changed", "table labels",
    ),
    "trigger on one day": (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER hide BEFORE INSERT ON decisions_20260102 FOR EACH ROW EXECUTE FUNCTION nothing()",
        "DROP TRIGGER hide ON decisions_20260102; DROP FUNCTION nothing()",
        "schema_changed", "table decisions_20260102",
    ),
    "rule": (
        "CREATE RULE hide AS ON INSERT TO dead_letters DO INSTEAD NOTHING", "DROP RULE hide ON dead_letters",
        "schema_changed", "table dead_letters",
    ),
    "row security": (
        "ALTER TABLE labels ENABLE ROW LEVEL SECURITY", "ALTER TABLE labels DISABLE ROW LEVEL SECURITY",
        "schema_changed", "table labels",
    ),
    "partition of other days": (
        "CREATE TABLE batches_rest PARTITION OF batches DEFAULT", "DROP TABLE batches_rest",
        "schema_changed", "table batches_rest",
    ),
    **{
        f"{role} may {what}": (
            f"GRANT {what} ON decisions TO {role}", f"REVOKE {what} ON decisions FROM {role}",
            "rights_widened", "table decisions",
        )
        for role, what in (
            ("fraud_scorer_writer", "DELETE"), ("fraud_scorer_writer", "UPDATE (score)"),
            ("fraud_scorer_reader", "TRUNCATE"), ("PUBLIC", "UPDATE"),
        )
    },
    "column gone": (
        "ALTER TABLE labels RENAME COLUMN analyst TO other", "ALTER TABLE labels RENAME COLUMN other TO analyst",
        "schema_changed", "table labels",
    ),
    "table gone": (
        "ALTER TABLE set_aside RENAME TO other", "ALTER TABLE other RENAME TO set_aside",
        "schema_changed", "table set_aside",
    ),
    "bundle's threshold": (
        "UPDATE bundles SET threshold = 0.6", "UPDATE bundles SET threshold = 0.5",
        "bundle_edited", "bundle cards-0123456789ab",
    ),
    "bundle's features": (
        "INSERT INTO feature_sets VALUES ('x', '{a}'); UPDATE bundles SET feature_fingerprint = 'x'",
        "UPDATE bundles SET feature_fingerprint = repeat('ab', 32); DELETE FROM feature_sets WHERE fingerprint = 'x'",
        "bundle_edited", "bundle cards-0123456789ab",
    ),
    "bundle's first batch": (
        "UPDATE bundles SET first_sequence = 1", "UPDATE bundles SET first_sequence = 0",
        "bundle_edited", "bundle cards-0123456789ab",
    ),
    "bundle deleted": (
        "CREATE TABLE kept AS SELECT * FROM bundles; DELETE FROM bundles",
        "INSERT INTO bundles SELECT * FROM kept; DROP TABLE kept",
        "bundle_edited", "bundle cards-0123456789ab",
    ),
    "bundle inserted": (
        "INSERT INTO bundles SELECT 'other', threshold, feature_fingerprint, first_shard, first_sequence FROM bundles",
        "DELETE FROM bundles WHERE bundle = 'other'",
        "bundle_edited", "bundle other",
    ),
    "features inserted": (
        "INSERT INTO feature_sets VALUES ('x', '{a}')", "DELETE FROM feature_sets WHERE fingerprint = 'x'",
        "bundle_edited", "feature set x",
    ),
    **{
        f"position's {change}": (
            f"CREATE TABLE kept AS SELECT * FROM positions; UPDATE positions SET {change} WHERE partition = 1",
            "DELETE FROM positions; INSERT INTO positions SELECT * FROM kept; DROP TABLE kept",
            "position_edited", "position on audit/1",
        )
        for change in ("next_offset = 2", "head = repeat('0', 64)", "head = NULL", "gap = true", "shard = 0")
    },
    "unsigned amendment": (
        """INSERT INTO amendments VALUES (1, '{"body": {}}')""", "DELETE FROM amendments",
        "amendment_forged", "amendment 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", OWNER)
def test_what_the_owner_does_around_the_rows_is_found(trail: str, change: str) -> None:
    """A definition, a right, a bundle or a position changed: the finding names it; put back, the trail verifies."""
    key = Signer.generate().verifier  # amendments are not believed without
    there, back, kind, place = OWNER[change]
    sql(trail, there)
    try:
        findings = verify(trail, verifier=key).findings
    finally:
        sql(trail, back)
    assert (kind, place) in {(finding.kind, finding.place) for finding in findings}
    assert verify(trail, verifier=key).findings == []


@pytest.mark.parametrize("day", ["infinity", "-infinity", "12000-01-01"])
def test_a_batch_of_no_day_is_found(trail: str, day: str) -> None:
    """A day that no calendar has: the batch is named."""
    place = "WHERE shard = 1 AND sequence = 4"
    sql(trail, "CREATE TABLE batches_rest PARTITION OF batches DEFAULT", f"UPDATE batches SET day = '{day}' {place}")
    try:
        finding = verify(trail).findings[0]
    finally:
        sql(trail, f"UPDATE batches SET day = '2026-01-02' {place}", "DROP TABLE batches_rest")
    assert (finding.shard, finding.sequence) == (1, 4)
    assert verify(trail).good


def test_a_reader_verifies_all_of_it(trail: str) -> None:
    """The read-only role is enough, views included; where it may not make temporary tables, the report shows it."""
    name, database = f"test_{secrets.token_hex(4)}", conninfo_to_dict(trail)["dbname"]
    url = make_conninfo(trail, user=name, password="test")
    with psycopg.connect(trail, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'")
        admin.execute(f"GRANT fraud_scorer_reader TO {name}")
        try:
            report = verify(url, parallel=2)
            assert (report.good, report.views_compared) == (True, True)
            admin.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM fraud_scorer_reader")
            report = verify(url)
            assert (report.good, report.views_compared) == (True, False)
        finally:
            admin.execute(f"GRANT TEMPORARY ON DATABASE {database} TO fraud_scorer_reader")
            admin.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")


def test_every_table_and_view_is_known_to_the_check(trail: str) -> None:
    """The migrations' own text names every view that the database has: none is left out."""
    views, functions = made()
    with psycopg.connect(trail) as connection:
        there = {
            row[0]
            for row in connection.execute(
                "SELECT viewname FROM pg_views WHERE schemaname = 'public' UNION ALL SELECT proname FROM pg_proc "
                "WHERE pronamespace = 'public'::regnamespace"
            )
        }
        tables = {
            row[0]
            for row in connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
                "AND relnamespace = 'public'::regnamespace"
            )
        }
    assert there == {*views, *functions}
    assert tables == {*audit_tables.metadata.tables, "alembic_version"}
