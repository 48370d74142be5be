"""The audit trail: decisions, batches, feature sets, positions of the sink."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Fixed-width columns first, widest first: no padding between them in a table that will hold billions of rows.
_UP = """
CREATE TABLE decisions (
    event_time timestamptz NOT NULL,
    sequence bigint NOT NULL,
    origin_offset bigint NOT NULL,
    amount_minor bigint NOT NULL,
    score double precision NOT NULL,
    threshold double precision NOT NULL,
    shard integer NOT NULL,
    row_number integer NOT NULL,
    origin_partition integer NOT NULL,
    margin real NOT NULL,
    payment_id text NOT NULL,
    currency text NOT NULL,
    customer_id text,
    merchant_id text,
    decision text NOT NULL,
    mode text NOT NULL,
    bundle text NOT NULL,
    reasons text[] NOT NULL,
    fired text[] NOT NULL,
    features real[] NOT NULL,
    CONSTRAINT decisions_pkey PRIMARY KEY (shard, sequence, row_number, event_time)
) PARTITION BY RANGE (event_time);
CREATE TABLE decisions_default PARTITION OF decisions DEFAULT;
CREATE INDEX decisions_payment ON decisions (payment_id);
CREATE INDEX decisions_customer_time ON decisions (customer_id, event_time);

COMMENT ON TABLE decisions IS
    'One row for each decision, with all that explains it. The audit sink writes it; rows of a batch appear together.';
COMMENT ON COLUMN decisions.event_time IS 'When the payment happened, as it says itself; to the millisecond.';
COMMENT ON COLUMN decisions.sequence IS 'Number of the micro-batch in the journal of the shard; see batches.';
COMMENT ON COLUMN decisions.origin_offset IS 'Offset of the payment in its partition of the payments topic.';
COMMENT ON COLUMN decisions.amount_minor IS 'Amount in minor units (cents) of currency.';
COMMENT ON COLUMN decisions.score IS 'Probability of fraud that the model gave.';
COMMENT ON COLUMN decisions.threshold IS 'Score from which this bundle flags a payment.';
COMMENT ON COLUMN decisions.shard IS 'Shard that decided.';
COMMENT ON COLUMN decisions.row_number IS 'Place in the micro-batch, from 0, in the order of deciding.';
COMMENT ON COLUMN decisions.origin_partition IS 'Partition of the payments topic that held the payment.';
COMMENT ON COLUMN decisions.margin IS 'Raw output of the model, the float32 it computed; score is its sigmoid.';
COMMENT ON COLUMN decisions.payment_id IS
    'The id the payment came with; twice for a payment that came twice (mode duplicate).';
COMMENT ON COLUMN decisions.currency IS 'ISO 4217 code of amount_minor.';
COMMENT ON COLUMN decisions.customer_id IS 'Customer, when the payment names one.';
COMMENT ON COLUMN decisions.merchant_id IS 'Merchant, when the payment names one.';
COMMENT ON COLUMN decisions.decision IS 'approve or flag.';
COMMENT ON COLUMN decisions.mode IS 'How it was decided: normal, degraded, duplicate or late.';
COMMENT ON COLUMN decisions.bundle IS 'Id of the bundle (model, features, policy) that decided.';
COMMENT ON COLUMN decisions.reasons IS 'Reason codes, strongest first.';
COMMENT ON COLUMN decisions.fired IS 'Names of the rules and lists that fired.';
COMMENT ON COLUMN decisions.features IS
    'Feature values as the model saw them, NaN where undefined; names in feature_sets, by batches.feature_fingerprint.';
COMMENT ON TABLE decisions_default IS 'Decisions of days that have no partition of their own.';

CREATE TABLE feature_sets (
    fingerprint text NOT NULL,
    feature_names text[] NOT NULL,
    CONSTRAINT feature_sets_pkey PRIMARY KEY (fingerprint)
);
COMMENT ON TABLE feature_sets IS 'What the places of decisions.features mean.';
COMMENT ON COLUMN feature_sets.fingerprint IS 'Fingerprint of the feature set.';
COMMENT ON COLUMN feature_sets.feature_names IS 'Names of the features in the order of decisions.features.';

CREATE TABLE batches (
    shard integer NOT NULL,
    sequence bigint NOT NULL,
    audit_topic text NOT NULL,
    audit_partition integer NOT NULL,
    audit_offset bigint NOT NULL,
    stream_time timestamptz,
    event_time_min timestamptz,
    event_time_max timestamptz,
    decisions integer NOT NULL,
    dead_letters integer NOT NULL,
    bundle text NOT NULL,
    threshold double precision NOT NULL,
    feature_fingerprint text NOT NULL,
    digest text NOT NULL,
    previous text NOT NULL,
    head text NOT NULL,
    journal jsonb NOT NULL,
    CONSTRAINT batches_pkey PRIMARY KEY (shard, sequence),
    CONSTRAINT batches_feature_set FOREIGN KEY (feature_fingerprint) REFERENCES feature_sets (fingerprint)
);
CREATE UNIQUE INDEX batches_head ON batches (head);
COMMENT ON TABLE batches IS
    'One row for each committed micro-batch: its journal record, which chains the digests of the decisions.';
COMMENT ON COLUMN batches.shard IS 'Shard that decided.';
COMMENT ON COLUMN batches.sequence IS 'Number of the micro-batch in the journal of the shard, without gaps.';
COMMENT ON COLUMN batches.audit_topic IS 'Audit topic it was read from.';
COMMENT ON COLUMN batches.audit_partition IS 'Partition of the audit topic it was read from.';
COMMENT ON COLUMN batches.audit_offset IS 'Offset of its last chunk there.';
COMMENT ON COLUMN batches.stream_time IS
    'Largest event time accepted so far by the shard, after this batch; null before the first payment.';
COMMENT ON COLUMN batches.event_time_min IS 'Smallest event time among its decisions; null when it has none.';
COMMENT ON COLUMN batches.event_time_max IS
    'Largest event time among its decisions; null when it has none. With the smallest: which partitions hold them.';
COMMENT ON COLUMN batches.decisions IS 'Number of its rows in table decisions.';
COMMENT ON COLUMN batches.dead_letters IS 'Number of payments that could not be decoded.';
COMMENT ON COLUMN batches.bundle IS 'Id of the bundle that decided.';
COMMENT ON COLUMN batches.threshold IS 'Score from which this bundle flags a payment.';
COMMENT ON COLUMN batches.feature_fingerprint IS 'Feature set that decisions.features belong to; see feature_sets.';
COMMENT ON COLUMN batches.digest IS
    'SHA-256 over the canonical bytes of its decisions, made by the worker, checked by the sink.';
COMMENT ON COLUMN batches.previous IS 'Head of the batch before it in the shard; 64 zeros for the first.';
COMMENT ON COLUMN batches.head IS 'SHA-256 over the whole journal record: what the next batch names as previous.';
COMMENT ON COLUMN batches.journal IS
    'The journal record: inputs with offset ranges, control range, and the fields above.';

CREATE TABLE positions (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    shard integer,
    sequence bigint,
    head text,
    CONSTRAINT positions_pkey PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE positions IS 'How far the audit sink has come; changed only together with the rows it has written.';
COMMENT ON COLUMN positions.topic IS 'Audit topic.';
COMMENT ON COLUMN positions.partition IS 'Partition of it.';
COMMENT ON COLUMN positions.next_offset IS 'Everything before this offset is in the tables.';
COMMENT ON COLUMN positions.shard IS 'Shard of the last batch written; null before the first.';
COMMENT ON COLUMN positions.sequence IS
    'Sequence of the last batch written; null before the first and after an operator moved the position.';
COMMENT ON COLUMN positions.head IS
    'Head that the next batch must name as previous; null when any is accepted (an operator moved the position).';
"""

_DOWN = """
DROP TABLE positions;
DROP TABLE batches;
DROP TABLE feature_sets;
DROP TABLE decisions;
"""


def upgrade() -> None:
    """Creates the four tables."""
    op.execute(_UP)


def downgrade() -> None:
    """Drops them, with everything in them."""
    op.execute(_DOWN)
