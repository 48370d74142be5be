"""The audit tables as SQLAlchemy Core knows them, and how they come into a database: `migrate(url)`, `downgrade(url)`.

The migrations under migrations/ are the truth (comments, partitions, indexes); a test compares them with this metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from scorer import assets

REVISION = "0001"  # the newest migration: what this version of the code reads and writes

# Two `setup` commands at once: the second waits for the first. Any fixed number serves; this one reads "fraud".
_MIGRATION_LOCK = 0x6672617564

metadata = sa.MetaData()

_time = sa.TIMESTAMP(timezone=True)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("event_time", _time, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("origin_offset", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("row_number", sa.Integer, primary_key=True),
    sa.Column("origin_partition", sa.Integer, nullable=False),
    sa.Column("margin", sa.REAL, nullable=False),
    sa.Column("payment_id", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("customer_id", sa.Text),
    sa.Column("merchant_id", sa.Text),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("reasons", ARRAY(sa.Text), nullable=False),
    sa.Column("fired", ARRAY(sa.Text), nullable=False),
    sa.Column("features", ARRAY(sa.REAL), nullable=False),
    sa.Index("decisions_payment", "payment_id"),
    sa.Index("decisions_customer_time", "customer_id", "event_time"),
    postgresql_partition_by="RANGE (event_time)",
)

feature_sets = sa.Table(
    "feature_sets",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("feature_names", ARRAY(sa.Text), nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("audit_topic", sa.Text, nullable=False),
    sa.Column("audit_partition", sa.Integer, nullable=False),
    sa.Column("audit_offset", sa.BigInteger, nullable=False),
    sa.Column("stream_time", _time),
    sa.Column("event_time_min", _time),
    sa.Column("event_time_max", _time),
    sa.Column("decisions", sa.Integer, nullable=False),
    sa.Column("dead_letters", sa.Integer, nullable=False),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("feature_fingerprint", sa.Text, sa.ForeignKey("feature_sets.fingerprint"), nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("head", sa.Text, nullable=False),
    sa.Column("journal", JSONB, nullable=False),
    sa.Index("batches_head", "head", unique=True),
)

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("shard", sa.Integer),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("head", sa.Text),
)


def engine(url: str) -> sa.Engine:
    """An engine for a plain `postgresql://…` URL, without a pool and without values in its error texts."""
    target = sa.make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(
        target,
        poolclass=sa.NullPool,
        hide_parameters=True,
        # A dead server or network is noticed in about 5 + 3 x 5 = 20 s instead of the kernel's hours.
        connect_args={
            "application_name": "fraud-scorer",
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )


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
