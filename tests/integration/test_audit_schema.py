"""Tables for people and roles: plans with a billion rows in mind, rights tried out, no card number anywhere."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql as pg

from schemas.audit_record import NULLABLE, AuditColumns
from scorer.demo.demo_processes import own_database
from scorer.local_services import Services
from scorer.sink.assembler import Assembler, Position, Quarantined
from scorer.sink.store import Store
from scorer.trail import audit_database, audit_tables
from tests.integration.audit_batches import rows
from tests.integration.audit_trail import Trail, in_order, migrated

CARD = "4111111111111111"


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    """A trail of three days, enough rows for plans to be about something."""
    name = f"test_{secrets.token_hex(4)}"
    with own_database(services.postgres.url, name) as url:
        trail = Trail(migrated(url))
        for day in range(3):
            trail.write(0, (4000, 4000), day=day, seed=day)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE")
        yield url


QUESTIONS = {
    "payment": "SELECT * FROM outcomes WHERE payment_id = 'p_0_11' AND day = '2026-01-02'",
    "payment of any day": "SELECT * FROM decisions WHERE payment_id = 'p_0_11'",
    "customer": "SELECT * FROM decided WHERE customer_id = 'c_1' AND day BETWEEN '2026-01-02' AND '2026-01-02' "
    "ORDER BY event_time DESC LIMIT 20",
    "time": "SELECT count(*) FROM decided WHERE day = '2026-01-02' AND event_time "
    "BETWEEN '2026-01-01T00:00Z' AND '2026-01-01T00:10Z'",
    "flagged over time": "SELECT date_trunc('hour', event_time), count(*) FROM flagged WHERE day = '2026-01-02' "
    "AND event_time > '2026-01-10' GROUP BY 1",
    "reason": "SELECT * FROM decided_by_reason WHERE reasons @> ARRAY['VELOCITY'] AND day = '2026-01-02'",
    "flagged rate": "SELECT * FROM flag_rate_hourly WHERE day = '2026-01-02'",
    "features": "SELECT name, value FROM decision_features WHERE payment_id = 'p_0_11' AND day = '2026-01-02'",
    "batch": "SELECT * FROM decisions WHERE shard = 0 AND sequence = 3 AND day = '2026-01-02' ORDER BY row_number",
    "labels": "SELECT * FROM labels_current WHERE payment_id = 'p_0_11'",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered_by_indexes(url: str, question: str) -> None:
    """No plan looks at a day that was not asked for, and none at every row of a decisions partition."""
    with psycopg.connect(url) as connection:
        # The tables of a test are small, where reading all is quicker; a plan that has another way takes it now.
        connection.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {QUESTIONS[question]}").fetchall())
    assert not re.search(r"Seq Scan on (decisions|batches|labels)", plan), plan
    days = set(re.findall(r"(?:decisions|batches)_(\d{8})", plan))
    assert days == (
        {"20260101", "20260102", "20260103"}
        if "any day" in question
        else set()
        if question == "labels"
        else {"20260102"}
    ), plan


def test_views_say_what_the_rows_say(url: str) -> None:
    """Rates and reasons by day equal sums over the rows; features come by name."""
    with psycopg.connect(url) as connection:
        rate = connection.execute("SELECT day, decisions, flagged FROM flag_rate_daily ORDER BY 1").fetchall()
        by_row = connection.execute(
            "SELECT day, count(*), count(*) FILTER (WHERE decision = 'flag') FROM decisions GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert rate == by_row
        reasons = connection.execute("SELECT sum(decisions) FROM reasons_daily WHERE reason = 'VELOCITY'").fetchone()
        assert reasons == (sum(flagged for _, _, flagged in rate),)
        names = connection.execute(
            "SELECT array_agg(name ORDER BY place) FROM decision_features WHERE payment_id = 'p_0_11'"
        ).fetchone()
        assert names is not None
        assert names[0][:2] == ["amount", "customer_count_1h"]


@pytest.fixture
def logins(services: Services, database: str) -> Iterator[dict[str, str]]:
    """A migrator that owns nothing but its database's schema, and a writer and a reader; each a login of its own."""
    stem = f"test_{secrets.token_hex(4)}"
    names = {role: f"{stem}_{role}" for role in ("migrator", "writer", "reader")}
    with psycopg.connect(database, autocommit=True) as admin:
        for role in ("writer", "reader"):  # as an administrator does once on a server
            if admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (f"fraud_scorer_{role}",)).fetchone() is None:
                admin.execute(f"CREATE ROLE fraud_scorer_{role} NOLOGIN")
        for name in names.values():
            admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'")
        admin.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {names['migrator']} WITH GRANT OPTION")
        for role in ("writer", "reader"):
            admin.execute(f"GRANT fraud_scorer_{role} TO {names[role]}")
        _, _, rest = database.partition("@")
        yield {role: f"postgresql://{name}:test@{rest}" for role, name in names.items()}
        for name in names.values():
            admin.execute(f"DROP OWNED BY {name} CASCADE")
            admin.execute(f"DROP ROLE {name}")


def test_each_role_may_do_its_work_and_no_more(logins: dict[str, str]) -> None:
    """The migrator makes the tables without being a superuser; the writer adds and cannot read, change or remove a
    decision; the reader reads all and writes nothing."""
    audit_database.migrate(logins["migrator"])
    trail = Trail(logins["writer"])
    trail.write(0, (20, 30))
    trail.write(0, (10,), day=1)  # the writer may not create tables, and yet the new day has its partitions

    def refused(role: str, *statements: str) -> None:
        for statement in statements:
            with psycopg.connect(logins[role]) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)

    tables = [name for name in audit_tables.metadata.tables if name not in ("positions", "feature_sets")]
    refused(
        "writer",
        *(
            f"UPDATE {table} SET {next(iter(audit_tables.metadata.tables[table].columns)).name} = NULL"
            for table in tables
            if table != "set_aside"
        ),
    )
    refused("writer", *(f"DELETE FROM {table}" for table in (*tables, "positions", "feature_sets")))
    refused("writer", *(f"TRUNCATE {table}" for table in tables), *(f"SELECT * FROM {table}" for table in tables))
    refused(
        "writer",
        "DROP TABLE decisions_20260101",
        "UPDATE positions SET topic = 'x'",
        "INSERT INTO tombstones DEFAULT VALUES",
    )
    refused(
        "writer",
        "CREATE TABLE mine (a int)",
        "INSERT INTO erasures DEFAULT VALUES",
        "UPDATE decisions_20260101 SET shard = 1",
    )
    refused("reader", *(f"INSERT INTO {table} DEFAULT VALUES" for table in audit_tables.metadata.tables))
    refused(
        "reader", *(f"DELETE FROM {table}" for table in audit_tables.metadata.tables), "SELECT audit_day('2026-01-01')"
    )
    with psycopg.connect(logins["reader"]) as connection:
        for table in (*audit_tables.metadata.tables, "outcomes", "flag_rate_hourly", "decision_features", "flagged"):
            connection.execute(pg.SQL("SELECT * FROM {}").format(pg.Identifier(table)))
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (60,)
    with psycopg.connect(logins["migrator"]) as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (60,)
    audit_database.downgrade(logins["migrator"])


def with_card(columns: AuditColumns, name: str, text: str) -> AuditColumns:
    values = list(getattr(columns, name))
    values[7] = [*values[7], text] if name in ("reasons", "fired") else text
    return replace(columns, **{name: values})


TEXTS = [CARD, "4111-1111 1111-1111", "378282246310005", "4111.1111.1111.1111", "x4111111111111111y",
         "4111_1111_1111_1111", "4111/1111/1111/1111", "4111\u00a01111\u00a01111\u00a01111",
         "".join(chr(0xFF10 + int(digit)) for digit in CARD)]  # fmt: skip


@pytest.mark.parametrize("name", ["payment_id", "currency", *NULLABLE, "reasons", "fired", "amount_minor"])
def test_no_card_number_reaches_a_table(url: str, name: str) -> None:
    """A card number in any field of an audit record, plain or in disguise, should one ever come past the first door:
    the batch is set aside with its digits masked, and no table holds the number."""
    trail = Trail(url, topic=f"cards-{secrets.token_hex(4)}")
    items = []
    for place, text in enumerate(TEXTS):
        columns = in_order(rows(1, 20))
        if name == "amount_minor":
            amounts = columns.amount_minor.copy()
            amounts[7] = int(re.sub(r"\D", "", text))  # digits of any script
            columns = replace(columns, amount_minor=amounts)
        else:
            columns = with_card(columns, name, text)
        (chunk,), _ = trail.chunks(9, columns, day=0)
        items += Assembler(trail.topic, place, Position(), 1 << 28).add(0, chunk)
    assert [type(item) for item in items] == [Quarantined] * len(TEXTS)
    with Store(url, trail.topic) as store:
        store.positions(range(len(TEXTS)))
        store.write(items)
    with psycopg.connect(url) as connection:
        kept = connection.execute(
            "SELECT kind, reason, value, masked FROM set_aside WHERE topic = %s ORDER BY partition", (trail.topic,)
        ).fetchall()
        assert {row[:2] for row in kept} == {("card_number", f"column {name} holds a card number")}
        assert connection.execute("SELECT count(*) FROM decisions WHERE shard = 9").fetchone() == (0,)
        dump = "".join(
            str(connection.execute(f"SELECT {table}::text FROM {table}").fetchall())
            for table in audit_tables.metadata.tables
            if table != "decisions"
        )
    for text, row in zip(TEXTS, kept, strict=True):
        assert text.encode() not in row[2]
        assert text not in dump
