"""The connection to the audit database, and the migrations that make it: `migrate(url)`, `downgrade(url)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from psycopg.conninfo import make_conninfo

from scorer.runtime import assets

REVISION = "0007"  # the newest migration: what this version of the code reads and writes

# Two `setup` commands at once: the second waits for the first. Any fixed number serves; this one reads "fraud".
_MIGRATION_LOCK = 0x6672617564


def connect_text(url: str) -> str:
    """`url` for libpq, which takes a URL, several hosts in it, or `name=value` pairs, with our time-outs.

    The rest goes to libpq as it is, so that TLS (sslmode, sslrootcert, sslcert, sslkey) and failover (several hosts
    with target_session_attrs=read-write) have the meaning of its manual.
    """
    options: dict[str, Any] = {
        "application_name": "fraud-scorer",
        # A dead server or network is noticed in about 5 + 3 x 5 = 20 s instead of the kernel's hours.
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    return make_conninfo(url, **options)


def engine(url: str) -> sa.Engine:
    """An engine for what `connect_text` takes, without a pool and without values in its error texts.

    No statement is prepared: behind a pooler that gives each transaction another server connection (PgBouncer) it
    would be unknown there.
    """
    return sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(connect_text(url), prepare_threshold=None),
        poolclass=sa.NullPool,
        hide_parameters=True,
    )


@contextmanager
def snapshot(connection: psycopg.Connection) -> Iterator[None]:
    """Everything read inside is of one moment, however much the sink commits meanwhile.

    `connection` is in autocommit, and not inside a transaction. Nothing can be written inside.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def migrate(url: str, revision: str = "head") -> None:
    """Brings the database at `url` up to `revision`. Does nothing when it is there; safe when two do it at once."""
    with _alembic(url) as config:
        command.upgrade(config, revision)


def downgrade(url: str, revision: str = "base") -> None:
    """Takes the database back to `revision`; "base" drops every table with everything in it."""
    with _alembic(url) as config:
        command.downgrade(config, revision)


def current_revision(connection: sa.Connection) -> str | None:
    """The migration the database is at; None for one that was never migrated."""
    if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


@contextmanager
def _alembic(url: str) -> Iterator[Config]:
    config = Config()
    config.set_main_option("script_location", str(assets.path("migrations")).replace("%", "%%"))
    with engine(url).begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        yield config
