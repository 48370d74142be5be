"""The writer of the audit trail stays a writer: nothing that it makes runs with the owner's rights."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import psycopg
import pytest

from scorer.audit.verify.verification import verify
from scorer.trail import audit_database

# What a writer could leave in its temporary schema for a function of the owner: a type's check, a table's name.
_GRANT = "IF current_user <> session_user THEN GRANT DELETE ON public.decisions TO fraud_scorer_writer; END IF"
ATTACKS = {
    "type": (
        f"CREATE FUNCTION pg_temp.check_it(v pg_catalog.text) RETURNS boolean LANGUAGE plpgsql AS "
        f"$$ BEGIN {_GRANT}; RETURN true; END $$",
        "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.check_it(VALUE))",
    ),
    "table": ("CREATE TEMP TABLE decisions_20260301 (a int)", "CREATE TEMP TABLE batches (day date)"),
}


@pytest.fixture
def writer(database: str) -> Iterator[str]:
    """A login with the writer's role alone, in a database at the migration before."""
    audit_database.migrate(database, "0002")
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test' IN ROLE fraud_scorer_writer")
        yield f"postgresql://{name}:test@{database.partition('@')[2]}"
        admin.execute(f"DROP OWNED BY {name} CASCADE")
        admin.execute(f"DROP ROLE {name}")


def _attack(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (*statements, "SELECT audit_day('2026-03-01')"):
            connection.execute(statement)


def _one(url: str, question: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(question).fetchone()
    return None if row is None else row[0]


_MAY_DELETE = "SELECT has_table_privilege('fraud_scorer_writer', 'decisions', 'DELETE')"


def test_the_writer_does_not_become_owner(writer: str, database: str) -> None:
    """A domain named like a type in the writer's temporary schema ran as owner; now it can't be made, nor be found."""
    with psycopg.connect(writer, autocommit=True) as before:
        for statement in (*ATTACKS["type"], "SELECT audit_day('2026-03-01')"):
            before.execute(statement)
    assert _one(database, _MAY_DELETE) is True  # the attack is a real one
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("REVOKE DELETE ON decisions FROM fraud_scorer_writer; DROP TABLE decisions_20260301")

        audit_database.migrate(database)
        for statements in ATTACKS.values():
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="temporary"):
                _attack(writer, *statements)
        assert verify(database).good

        # An administrator gives the right back: reported, and the function alone withstands.
        admin.execute(f"GRANT TEMPORARY ON DATABASE {admin.info.dbname} TO PUBLIC")
        (finding,) = verify(database).findings
        assert (finding.kind, finding.place) == ("rights_widened", f"database {admin.info.dbname}")
        for statements in ATTACKS.values():
            _attack(writer, *statements)
    assert _one(database, _MAY_DELETE) is False
    made = "SELECT count(*) FROM pg_inherits WHERE inhrelid = to_regclass('public.decisions_20260301')"
    assert _one(database, made) == 1


def test_every_function_finds_only_names_of_postgres_and_ours(writer: str, database: str) -> None:
    """No function of the migrated database resolves a name where a caller could have put one."""
    audit_database.migrate(database)
    with psycopg.connect(database) as connection:
        functions = connection.execute(
            "SELECT proname, prosecdef, proconfig, prosrc, has_function_privilege('fraud_scorer_reader', p.oid, "
            "'EXECUTE') FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace "
            "WHERE nspname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
    assert sorted(name for name, *_ in functions) == ["audit_day", "label_quality"]
    for name, definer, configured, body, by_reader in functions:
        assert configured == ["search_path=pg_catalog, public, pg_temp"], name
        assert not (definer and by_reader), f"{name}: the reader may make temporary objects"
        code = re.sub(r"--[^\n]*|'(?:[^']|'')*'", "", body)
        assert re.findall(r"(?<![.\w])[a-z_]+\(", code) == [], f"{name} calls a function without naming its schema"
        assert re.findall(r"(?<![.\w])(?:text|date|integer|bigint|regclass)\b", code) == [], name


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE public.mine (a int)", "SELECT audit_day('infinity')", "SELECT audit_day('20000-01-01')"]
)
def test_the_writer_makes_days_alone(writer: str, database: str, statement: str) -> None:
    """Neither tables of its own beside ours, nor partitions of days that no payment can have."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")  # as servers before release 15 have it
    audit_database.migrate(database)
    with psycopg.connect(writer) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute(statement)
    assert refused.value.sqlstate in {"42501", "P0001"}


def test_the_migration_goes_back(writer: str, database: str) -> None:
    """Down to the release before and up again: the writer makes days in each."""
    for revision in (audit_database.REVISION, "0002", audit_database.REVISION):
        (audit_database.downgrade if revision == "0002" else audit_database.migrate)(database, revision)
        assert _one(writer, "SELECT audit_day('2026-03-02')::text") == ""
    assert verify(database).good
