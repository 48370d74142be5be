"""Postgres: reachable, migrated, what the migrations made, the sink's rights, its positions, and what was set aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import psycopg

from schemas.card_fields import CardFields, CardRule
from schemas.contract_error import DeadLetterReason
from scorer import kafka
from scorer.audit.verify.database_structure import missing_columns, structure
from scorer.errors import UsageError
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.runtime.settings import PREFIX, Settings
from scorer.trail import audit_database

SKEW_S_MAX: Final = 5.0
# Of refused payments in a day: fewer may be one sender's mistake.
REFUSED_MIN: Final = 10
_WRITTEN: Final = (
    "decisions", "batches", "feature_sets", "bundles", "positions", "set_aside", "dead_letters", "labels",
    "activations", "control_changes",
)  # fmt: skip
_Row = tuple[Any, ...]


def check_trail(
    found: Diagnosis,
    settings: Settings,
    facts: Mapping[str, kafka.TopicFacts] | None,
    cards: CardFields | None,
    *,
    epoch_s: Callable[[], float],
) -> None:
    """All that the sink needs of Postgres. `cards`: the bundle's declarations, compared with what was refused."""
    found.checked.append("postgres")
    try:
        with psycopg.connect(audit_database.connect_text(settings.postgres_url), autocommit=True) as connection:
            _check_server(found, connection, epoch_s=epoch_s)
            if not _check_revision(found, connection):
                return
            _check_tables(found, connection)
            _check_rights(found, connection)
            _check_positions(found, connection, facts)
            _check_contents(found, connection, cards)
    except UsageError:
        return  # the address itself; reported with the settings
    except psycopg.Error as exc:
        reason = " ".join(str(exc).split())
        found.error("postgres", f"{type(exc).__name__}: {reason}", f"start Postgres, or correct {PREFIX}POSTGRES__URL")


def _check_server(found: Diagnosis, connection: psycopg.Connection, *, epoch_s: Callable[[], float]) -> None:
    encoding, standby, server_s = _one(
        connection,
        "SELECT current_setting('server_encoding'), pg_is_in_recovery() OR "
        "current_setting('default_transaction_read_only')::boolean, extract(epoch FROM clock_timestamp())::float8",
    )
    if encoding != "UTF8":
        found.error("postgres", f"the database's encoding is {encoding}", "make one with ENCODING 'UTF8'")
    if standby:
        found.error(
            "postgres",
            "the server takes no rows: it is a standby, or read only",
            "give the primary's address, or all with target_session_attrs=read-write",
        )
    skew_s = epoch_s() - server_s
    if abs(skew_s) > SKEW_S_MAX:
        found.warning(
            "clock",
            f"this machine's clock is {'ahead of' if skew_s > 0 else 'behind'} Postgres' by {abs(skew_s):.0f} s",
            "run an NTP client (chrony) on both machines",
        )


def _check_revision(found: Diagnosis, connection: psycopg.Connection) -> bool:
    """Whether the database is at this version's migration."""
    revision = None
    if _one(connection, "SELECT to_regclass('alembic_version')")[0] is not None:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            revision = None if row is None else row[0]
        except psycopg.errors.InsufficientPrivilege:
            user = connection.info.user
            found.error("postgres", f"{user} may not read table alembic_version", _grant(user))
            return False
    if revision != audit_database.REVISION:
        newer = revision is not None and revision > audit_database.REVISION
        found.error(
            "postgres",
            f"the database is at migration {revision or 'none'}, this version needs {audit_database.REVISION}",
            "run the newer version of fraud-scorer" if newer else "run `fraud-scorer setup` as the owner of the tables",
        )
        return False
    return True


def _check_tables(found: Diagnosis, connection: psycopg.Connection) -> None:
    gone = missing_columns(connection)
    for finding in gone:
        found.error(
            "postgres", finding.sentence, "restore the database; `fraud-scorer audit verify` shows what is left"
        )
    if gone:
        return
    roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'fraud_scorer_%'")}
    for role in ("fraud_scorer_writer", "fraud_scorer_reader"):
        if role not in roles:
            found.error("postgres", f"role {role} does not exist", f"an administrator runs: CREATE ROLE {role} NOLOGIN")
    changed, compared = structure(connection)
    for finding in changed:
        found.error(
            "postgres",
            finding.sentence,
            "find out who changed it; `fraud-scorer audit verify` compares all of the trail",
        )
    if not compared:
        found.skip("postgres views", "this role may make no temporary tables, which comparing takes")


def _check_rights(found: Diagnosis, connection: psycopg.Connection) -> None:
    lacking = [
        name
        for (name,) in connection.execute(
            "SELECT t FROM unnest(%s::text[]) t "
            "WHERE to_regclass(t) IS NOT NULL AND NOT has_table_privilege(t, 'INSERT')",
            (list(_WRITTEN),),
        )
    ]
    if lacking:
        user = connection.info.user
        found.error("rights", f"{user} may not write to {', '.join(lacking)} in Postgres", _grant(user))
        return
    moves = _one(
        connection,
        "SELECT has_column_privilege('positions', 'next_offset', 'UPDATE') AND has_table_privilege('positions', "
        "'SELECT') AND has_table_privilege('feature_sets', 'SELECT') "
        "WHERE to_regclass('positions') IS NOT NULL AND to_regclass('feature_sets') IS NOT NULL",
    )
    if moves == (False,):
        user = connection.info.user
        found.error("rights", f"{user} may not read and move the sink's positions in Postgres", _grant(user))


def _grant(user: str) -> str:
    return f"GRANT fraud_scorer_writer TO {user}"


def _check_positions(
    found: Diagnosis,
    connection: psycopg.Connection,
    facts: Mapping[str, kafka.TopicFacts] | None,
) -> None:
    """Whether the sink's positions are of the topics that are there now."""
    rows = _readable(found, connection, "SELECT topic, partition, topic_id FROM positions ORDER BY 1, 2")
    for topic, partition, noted in rows:
        now = facts[topic].id if facts is not None and topic in facts else None
        if now is not None and noted is not None and kafka.NO_ID not in (noted, now) and noted != now:
            found.error(
                "postgres",
                f"the position of {topic}/{partition} is of the topic with id {noted}, the broker has {now}: "
                "it was made anew",
                f"`fraud-scorer audit accept-gap --topic {topic} --partition {partition} --to OFFSET`, or another "
                "database",
            )


def _check_contents(found: Diagnosis, connection: psycopg.Connection, cards: CardFields | None) -> None:
    """What was set aside, and payments refused for a card number in the last day."""
    for kind, count in _readable(found, connection, "SELECT kind, count(*) FROM set_aside GROUP BY 1 ORDER BY 1"):
        found.warning(
            "postgres",
            f"{count} audit records are set aside ({kind})",
            "`fraud-scorer audit set-aside list` shows them",
        )
    if cards is None:
        return
    found.checked.append("cards")
    refused = _readable(
        found,
        connection,
        "SELECT field, count(*) FROM dead_letters WHERE reason = %s AND field IS NOT NULL "
        "AND recorded_at > clock_timestamp() - interval '1 day' GROUP BY 1 HAVING count(*) >= %s ORDER BY 1",
        (DeadLetterReason.CARD_NUMBER.value, REFUSED_MIN),
    )
    for field, count in refused:
        if cards.rule(field) is CardRule.REFUSE:
            found.warning(
                "cards",
                f"{count} records were refused in the last day for a card number in {field}, which is declared refuse",
                f"declare {field} under card_numbers in the feature set: token if it holds card numbers, opaque if it "
                "never does (deploy/CARD_NUMBERS.md)",
            )


def _readable(
    found: Diagnosis, connection: psycopg.Connection, question: str, values: tuple[Any, ...] = ()
) -> list[_Row]:
    """The rows; none where this role may not read the table, which is no fault of a writer."""
    try:
        return connection.execute(question, values or None).fetchall()  # type: ignore[call-overload,no-any-return]
    except psycopg.errors.InsufficientPrivilege as exc:
        found.skip("postgres contents", str(exc).split("\n", maxsplit=1)[0])
        return []


def _one(connection: psycopg.Connection, question: str) -> _Row:
    row = connection.execute(question).fetchone()  # type: ignore[call-overload]
    return () if row is None else tuple(row)
