"""The audit tables as SQLAlchemy Core knows them.

The migrations under migrations/ are the truth (comments, partitions, indexes); a test compares them with this metadata.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from schemas.audit_record import NULLABLE

metadata = sa.MetaData()

_time = sa.TIMESTAMP(timezone=True)


def _text_columns(*names: str, nullable: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=nullable) for name in names]


def _record_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
    ]


def _control_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
    ]


def _batch_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    ]


decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("event_time", _time, nullable=False),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("origin_offset", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row_number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("origin_partition", sa.Integer, nullable=False),
    sa.Column("margin", sa.REAL, nullable=False),
    *_text_columns("payment_id", "currency"),
    *_text_columns(*NULLABLE, nullable=True),
    *_text_columns("decision", "mode", "bundle"),
    sa.Column("reasons", ARRAY(sa.Text), nullable=False),
    sa.Column("fired", ARRAY(sa.Text), nullable=False),
    sa.Column("features", ARRAY(sa.REAL), nullable=False),
    sa.Column("challenger_margins", ARRAY(sa.REAL), nullable=False),
    postgresql_partition_by="RANGE (day)",
)
sa.Index("decisions_payment", decisions.c.payment_id)
sa.Index(
    "decisions_customer_time",
    decisions.c.customer_id,
    decisions.c.event_time,
    postgresql_where=decisions.c.customer_id.is_not(None),
)
sa.Index("decisions_time", decisions.c.event_time, postgresql_using="brin", postgresql_with={"autosummarize": True})
sa.Index("decisions_flagged", decisions.c.event_time, postgresql_where=sa.text("decision = 'flag'"))
sa.Index(
    "decisions_reasons",
    decisions.c.reasons,
    postgresql_using="gin",
    postgresql_where=sa.text("cardinality(reasons) > 0"),
)

feature_sets = sa.Table(
    "feature_sets",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("feature_names", ARRAY(sa.Text), nullable=False),
)

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("bundle", sa.Text, primary_key=True),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("feature_fingerprint", sa.Text, sa.ForeignKey("feature_sets.fingerprint"), nullable=False),
    sa.Column("first_shard", sa.Integer, nullable=False),
    sa.Column("first_sequence", sa.BigInteger, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("audit_offset", sa.BigInteger, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("stream_time", _time),
    sa.Column("event_time_min", _time),
    sa.Column("event_time_max", _time),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("audit_partition", sa.Integer, nullable=False),
    *(
        sa.Column(name, sa.Integer, nullable=False)
        for name in ("decisions", "flagged", "duplicates", "late", "degraded", "dead_letters")
    ),
    *_text_columns("audit_topic", "origin_topic", "bundle"),
    sa.Column("feature_fingerprint", sa.Text, sa.ForeignKey("feature_sets.fingerprint"), nullable=False),
    sa.Column("challengers", ARRAY(sa.Text), nullable=False),
    *_text_columns("digest", "previous", "head"),
    sa.Column("journal", JSONB, nullable=False),
    sa.Column("salt", sa.LargeBinary),
    sa.Column("refused", sa.Integer),
    postgresql_partition_by="RANGE (day)",
)
sa.Index(
    "batches_time",
    batches.c.stream_time,
    postgresql_include=["decisions", "flagged", "duplicates", "late", "degraded", "dead_letters"],
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
    sa.Column("gap", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("topic_id", sa.Text),
)

set_aside = sa.Table(
    "set_aside",
    metadata,
    *_record_key(),
    *_text_columns("kind", "reason"),
    sa.Column("shard", sa.Integer),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("value", sa.LargeBinary),
    sa.Column("value_sha256", sa.Text),
    sa.Column("masked", sa.Boolean, nullable=False),
    sa.Column("at", _time, nullable=False, server_default=sa.func.now()),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    *_record_key(),
    sa.Column("origin_topic", sa.Text, nullable=False),
    sa.Column("origin_partition", sa.Integer, nullable=False),
    sa.Column("origin_offset", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("field", sa.Text),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("value_bytes", sa.BigInteger, nullable=False),
    sa.Column("masked", sa.Boolean, nullable=False),
    sa.Column("recorded_at", _time, nullable=False),
    sa.Index("dead_letters_reason_time", "reason", "recorded_at"),
    sa.Index("dead_letters_origin", "origin_topic", "origin_partition", "origin_offset"),
)

labels = sa.Table(
    "labels",
    metadata,
    *_control_key(),
    sa.Column("payment_id", sa.Text, nullable=False),
    sa.Column("fraud", sa.Boolean, nullable=False),
    sa.Column("known_at", _time, nullable=False),
    sa.Column("event_time", _time),
    sa.Column("source", sa.Text),
    sa.Column("analyst", sa.Text),
    sa.Column("recorded_at", _time, nullable=False),
    sa.Index("labels_payment", "payment_id", "known_at"),
    sa.Index("labels_known", "known_at"),
)

activations = sa.Table(
    "activations",
    metadata,
    *_control_key(),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("record", JSONB, nullable=False),
    sa.Column("recorded_at", _time, nullable=False),
)

control_changes = sa.Table(
    "control_changes",
    metadata,
    *_control_key(),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("record", JSONB, nullable=False),
    sa.Column("recorded_at", _time, nullable=False),
)

anchors = sa.Table(
    "anchors",
    metadata,
    *_batch_key(),
    sa.Column("head", sa.Text, primary_key=True),
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", _time, nullable=False, server_default=sa.func.now()),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("first_sequence", sa.BigInteger, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

erasures = sa.Table(
    "erasures",
    metadata,
    *_batch_key(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),
)

amendments = sa.Table(
    "amendments",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),
)
