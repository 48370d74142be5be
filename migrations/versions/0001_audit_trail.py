"""The audit trail: decisions and batches by day, what explains them, positions of the sink, roles, views for people.

A row's day is the UTC day of the shard's stream time after its batch. So a batch never spans two days, a late payment
goes with the batch that decided it, days follow each other along every shard's chain, and dropping the oldest days
removes a prefix of each chain: what is left still verifies from the tombstone on.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# VIEWS and FUNCTIONS are read by `audit verify` too, which compares the database's own definitions with them; a later
# migration that replaces one has its text under the same name.
# Fixed-width columns first, widest first: no padding between them in a table that will hold billions of rows.
_DECISIONS = """
CREATE TABLE decisions (
    event_time timestamptz NOT NULL,
    sequence bigint NOT NULL,
    origin_offset bigint NOT NULL,
    amount_minor bigint NOT NULL,
    score double precision NOT NULL,
    threshold double precision NOT NULL,
    day date NOT NULL,
    shard integer NOT NULL,
    row_number integer NOT NULL,
    origin_partition integer NOT NULL,
    margin real NOT NULL,
    payment_id text NOT NULL,
    currency text NOT NULL,
    customer_id text,
    account_id text,
    merchant_id text,
    terminal_id text,
    mcc text,
    channel text,
    country text,
    decision text NOT NULL,
    mode text NOT NULL,
    bundle text NOT NULL,
    reasons text[] NOT NULL,
    fired text[] NOT NULL,
    features real[] NOT NULL,
    challenger_margins real[] NOT NULL,
    CONSTRAINT decisions_pkey PRIMARY KEY (shard, sequence, row_number, day)
) PARTITION BY RANGE (day);
CREATE INDEX decisions_payment ON decisions (payment_id);
CREATE INDEX decisions_customer_time ON decisions (customer_id, event_time) WHERE customer_id IS NOT NULL;
CREATE INDEX decisions_time ON decisions USING brin (event_time) WITH (autosummarize = on);
CREATE INDEX decisions_flagged ON decisions (event_time) WHERE decision = 'flag';
CREATE INDEX decisions_reasons ON decisions USING gin (reasons) WHERE cardinality(reasons) > 0;

COMMENT ON TABLE decisions IS
    'One row for each decision, with all that explains it. The audit sink writes it; rows of a batch appear together.';
COMMENT ON COLUMN decisions.event_time IS 'When the payment happened, as it says itself; to the millisecond.';
COMMENT ON COLUMN decisions.sequence IS 'Number of the micro-batch in the journal of the shard; see batches.';
COMMENT ON COLUMN decisions.origin_offset IS
    'Offset of the payment in its partition of the payments topic, which batches.origin_topic names.';
COMMENT ON COLUMN decisions.amount_minor IS 'Amount in minor units (cents) of currency.';
COMMENT ON COLUMN decisions.score IS 'Probability of fraud that the model gave.';
COMMENT ON COLUMN decisions.threshold IS 'Score from which this bundle flags a payment.';
COMMENT ON COLUMN decisions.day IS
    'UTC day of the shard''s stream time after the batch: the partition. Never before the day of event_time.';
COMMENT ON COLUMN decisions.shard IS 'Shard that decided.';
COMMENT ON COLUMN decisions.row_number IS 'Place in the micro-batch, from 0, in the order of deciding.';
COMMENT ON COLUMN decisions.origin_partition IS 'Partition of the payments topic that held the payment.';
COMMENT ON COLUMN decisions.margin IS 'Raw output of the model, the float32 it computed; score is its sigmoid.';
COMMENT ON COLUMN decisions.payment_id IS
    'The id the payment came with; twice for a payment that came twice (mode duplicate).';
COMMENT ON COLUMN decisions.currency IS 'ISO 4217 code of amount_minor.';
COMMENT ON COLUMN decisions.customer_id IS 'Customer, when the payment names one; a pseudonym after erasure.';
COMMENT ON COLUMN decisions.account_id IS 'Account, when the payment names one; a pseudonym after erasure.';
COMMENT ON COLUMN decisions.merchant_id IS 'Merchant, when the payment names one.';
COMMENT ON COLUMN decisions.terminal_id IS 'Terminal, when the payment names one.';
COMMENT ON COLUMN decisions.mcc IS 'Merchant category code, when given.';
COMMENT ON COLUMN decisions.channel IS 'Channel, such as ecom or pos, when given.';
COMMENT ON COLUMN decisions.country IS 'Country of the payment, when given.';
COMMENT ON COLUMN decisions.decision IS 'approve or flag.';
COMMENT ON COLUMN decisions.mode IS 'How it was decided: normal, degraded, duplicate or late.';
COMMENT ON COLUMN decisions.bundle IS 'Id of the bundle (model, features, policy) that decided.';
COMMENT ON COLUMN decisions.reasons IS 'Reason codes, strongest first.';
COMMENT ON COLUMN decisions.fired IS 'Names of the rules and lists that fired.';
COMMENT ON COLUMN decisions.features IS
    'Feature values as the model saw them, NaN where undefined; names in feature_sets, by batches.feature_fingerprint.';
COMMENT ON COLUMN decisions.challenger_margins IS
    'Margins of the challengers that batches.challengers names, in that order; NaN where one did not score.';
"""

_BATCHES = """
CREATE TABLE feature_sets (
    fingerprint text NOT NULL,
    feature_names text[] NOT NULL,
    CONSTRAINT feature_sets_pkey PRIMARY KEY (fingerprint)
);
COMMENT ON TABLE feature_sets IS 'What the places of decisions.features mean.';
COMMENT ON COLUMN feature_sets.fingerprint IS 'Fingerprint of the feature set.';
COMMENT ON COLUMN feature_sets.feature_names IS 'Names of the features in the order of decisions.features.';

CREATE TABLE bundles (
    bundle text NOT NULL,
    threshold double precision NOT NULL,
    feature_fingerprint text NOT NULL,
    first_shard integer NOT NULL,
    first_sequence bigint NOT NULL,
    CONSTRAINT bundles_pkey PRIMARY KEY (bundle),
    CONSTRAINT bundles_feature_set FOREIGN KEY (feature_fingerprint) REFERENCES feature_sets (fingerprint)
);
COMMENT ON TABLE bundles IS 'Every bundle that has decided, and the batch in which the sink met it first.';
COMMENT ON COLUMN bundles.bundle IS 'Id of the bundle: its name and the first digits of its manifest''s SHA-256.';
COMMENT ON COLUMN bundles.threshold IS 'Score from which it flags a payment.';
COMMENT ON COLUMN bundles.feature_fingerprint IS 'Its feature set; see feature_sets.';
COMMENT ON COLUMN bundles.first_shard IS 'Shard of that batch.';
COMMENT ON COLUMN bundles.first_sequence IS 'Sequence of that batch.';

CREATE TABLE batches (
    sequence bigint NOT NULL,
    audit_offset bigint NOT NULL,
    threshold double precision NOT NULL,
    stream_time timestamptz,
    event_time_min timestamptz,
    event_time_max timestamptz,
    day date NOT NULL,
    shard integer NOT NULL,
    audit_partition integer NOT NULL,
    decisions integer NOT NULL,
    flagged integer NOT NULL,
    duplicates integer NOT NULL,
    late integer NOT NULL,
    degraded integer NOT NULL,
    dead_letters integer NOT NULL,
    audit_topic text NOT NULL,
    origin_topic text NOT NULL,
    bundle text NOT NULL,
    feature_fingerprint text NOT NULL,
    challengers text[] NOT NULL,
    digest text NOT NULL,
    previous text NOT NULL,
    head text NOT NULL,
    journal jsonb NOT NULL,
    CONSTRAINT batches_pkey PRIMARY KEY (shard, sequence, day),
    CONSTRAINT batches_feature_set FOREIGN KEY (feature_fingerprint) REFERENCES feature_sets (fingerprint)
) PARTITION BY RANGE (day);
CREATE INDEX batches_time ON batches (stream_time)
    INCLUDE (decisions, flagged, duplicates, late, degraded, dead_letters);
COMMENT ON TABLE batches IS
    'One row for each committed micro-batch: its journal record, which chains the digests of the decisions.';
COMMENT ON COLUMN batches.shard IS 'Shard that decided.';
COMMENT ON COLUMN batches.sequence IS 'Number of the micro-batch in the journal of the shard, without gaps.';
COMMENT ON COLUMN batches.audit_topic IS 'Audit topic it was read from; the sink''s note, not part of the digest.';
COMMENT ON COLUMN batches.audit_partition IS 'Partition of the audit topic it was read from; the sink''s note.';
COMMENT ON COLUMN batches.audit_offset IS 'Offset of its last chunk there; the sink''s note.';
COMMENT ON COLUMN batches.origin_topic IS 'Topic that decisions.origin_partition and origin_offset point into.';
COMMENT ON COLUMN batches.day IS 'UTC day of stream_time: the partition; 1970-01-01 before the first payment.';
COMMENT ON COLUMN batches.stream_time IS
    'Largest event time accepted so far by the shard, after this batch; null before the first payment.';
COMMENT ON COLUMN batches.event_time_min IS 'Smallest event time among its decisions; null when it has none.';
COMMENT ON COLUMN batches.event_time_max IS 'Largest event time among its decisions; null when it has none.';
COMMENT ON COLUMN batches.decisions IS 'Number of its rows in table decisions.';
COMMENT ON COLUMN batches.flagged IS 'How many of them were flagged.';
COMMENT ON COLUMN batches.duplicates IS 'How many of them were in mode duplicate.';
COMMENT ON COLUMN batches.late IS 'How many of them were in mode late.';
COMMENT ON COLUMN batches.degraded IS 'How many of them were in mode degraded.';
COMMENT ON COLUMN batches.dead_letters IS 'Number of records that could not be decoded.';
COMMENT ON COLUMN batches.bundle IS 'Id of the bundle that decided.';
COMMENT ON COLUMN batches.threshold IS 'Score from which this bundle flags a payment.';
COMMENT ON COLUMN batches.feature_fingerprint IS 'Feature set that decisions.features belong to; see feature_sets.';
COMMENT ON COLUMN batches.challengers IS 'Ids of the bundles that scored beside it; see decisions.challenger_margins.';
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
    gap boolean NOT NULL DEFAULT false,
    CONSTRAINT positions_pkey PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE positions IS 'How far the audit sink has come; changed only together with the rows it has written.';
COMMENT ON COLUMN positions.topic IS 'Topic: audit, control or dead letters.';
COMMENT ON COLUMN positions.partition IS 'Partition of it.';
COMMENT ON COLUMN positions.next_offset IS 'Everything before this offset is in the tables.';
COMMENT ON COLUMN positions.shard IS 'Shard of the last batch written; null before the first.';
COMMENT ON COLUMN positions.sequence IS
    'Sequence of the last batch written; null before the first and after an operator moved the position.';
COMMENT ON COLUMN positions.head IS
    'Head that the next batch must name as previous; null when any is accepted (an operator moved the position).';
COMMENT ON COLUMN positions.gap IS
    'Whether records were set aside since the last batch, so that the next one may be a later one.';

CREATE TABLE set_aside (
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    shard integer,
    sequence bigint,
    value bytea,
    value_sha256 text,
    masked boolean NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT set_aside_pkey PRIMARY KEY (topic, partition, "offset")
);
COMMENT ON TABLE set_aside IS
    'Records of the audit topic that could not be written as decisions. Every row here is an alert until settled.';
COMMENT ON COLUMN set_aside.topic IS 'Audit topic.';
COMMENT ON COLUMN set_aside.partition IS 'Its partition.';
COMMENT ON COLUMN set_aside."offset" IS 'Its offset.';
COMMENT ON COLUMN set_aside.kind IS 'unreadable, incomplete, contradiction, card_number or refused.';
COMMENT ON COLUMN set_aside.reason IS 'Why, for people; never a value of a row.';
COMMENT ON COLUMN set_aside.shard IS 'Shard that it says it is of, when that can be read.';
COMMENT ON COLUMN set_aside.sequence IS 'Batch that it says it is of, when that can be read.';
COMMENT ON COLUMN set_aside.value IS
    'The bytes, without whatever may be a card number; null for a null value, and after erasure.';
COMMENT ON COLUMN set_aside.value_sha256 IS 'SHA-256 of the bytes as they stand on the topic.';
COMMENT ON COLUMN set_aside.masked IS 'Whether digits were masked.';
COMMENT ON COLUMN set_aside.at IS 'When it was set aside.';
"""

_AROUND = """
CREATE TABLE dead_letters (
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    origin_topic text NOT NULL,
    origin_partition integer NOT NULL,
    origin_offset bigint NOT NULL,
    reason text NOT NULL,
    field text,
    message text NOT NULL,
    value_bytes bigint NOT NULL,
    masked boolean NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (topic, partition, "offset")
);
CREATE INDEX dead_letters_reason_time ON dead_letters (reason, recorded_at);
CREATE INDEX dead_letters_origin ON dead_letters (origin_topic, origin_partition, origin_offset);
COMMENT ON TABLE dead_letters IS
    'What could not be decided, and why. The refused values stay on the dead-letter topic.';
COMMENT ON COLUMN dead_letters.topic IS 'Dead-letter topic.';
COMMENT ON COLUMN dead_letters.partition IS 'Its partition.';
COMMENT ON COLUMN dead_letters."offset" IS 'Its offset.';
COMMENT ON COLUMN dead_letters.origin_topic IS 'Topic that the refused record was read from.';
COMMENT ON COLUMN dead_letters.origin_partition IS 'Its partition there.';
COMMENT ON COLUMN dead_letters.origin_offset IS 'Its offset there.';
COMMENT ON COLUMN dead_letters.reason IS 'Reason code; unreadable for a record that is no dead letter of ours.';
COMMENT ON COLUMN dead_letters.field IS 'The field that was wrong; null when it was the record as a whole.';
COMMENT ON COLUMN dead_letters.message IS 'For people: the field and the shape of its value, never the value.';
COMMENT ON COLUMN dead_letters.value_bytes IS 'Size of the refused value; -1 when it was null.';
COMMENT ON COLUMN dead_letters.masked IS 'Whether digits of a card number were masked in it.';
COMMENT ON COLUMN dead_letters.recorded_at IS 'Timestamp of the dead letter on its topic.';

CREATE TABLE labels (
    topic text NOT NULL,
    "offset" bigint NOT NULL,
    payment_id text NOT NULL,
    fraud boolean NOT NULL,
    known_at timestamptz NOT NULL,
    event_time timestamptz,
    source text,
    analyst text,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT labels_pkey PRIMARY KEY (topic, "offset")
);
CREATE INDEX labels_payment ON labels (payment_id, known_at);
CREATE INDEX labels_known ON labels (known_at);
COMMENT ON TABLE labels IS 'Every verdict on a payment ever given, in the order of the control topic: the history.';
COMMENT ON COLUMN labels.topic IS 'Control topic.';
COMMENT ON COLUMN labels."offset" IS 'Offset there; of two verdicts with one known_at the later offset holds.';
COMMENT ON COLUMN labels.payment_id IS 'The payment judged.';
COMMENT ON COLUMN labels.fraud IS 'True for fraud, false for genuine.';
COMMENT ON COLUMN labels.known_at IS 'When the verdict became known, on the scale of event time.';
COMMENT ON COLUMN labels.event_time IS 'Event time of the payment, when the label names it.';
COMMENT ON COLUMN labels.source IS 'Where it comes from, such as chargeback or analyst.';
COMMENT ON COLUMN labels.analyst IS 'Who gave it, when a person did.';
COMMENT ON COLUMN labels.recorded_at IS 'Timestamp of the label on the control topic.';

CREATE TABLE activations (
    topic text NOT NULL,
    "offset" bigint NOT NULL,
    bundle text NOT NULL,
    record jsonb NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT activations_pkey PRIMARY KEY (topic, "offset")
);
COMMENT ON TABLE activations IS 'Every demand to decide with another bundle; batches.bundle says which one decided.';
COMMENT ON COLUMN activations.topic IS 'Control topic.';
COMMENT ON COLUMN activations."offset" IS 'Offset there.';
COMMENT ON COLUMN activations.bundle IS 'Id of the bundle.';
COMMENT ON COLUMN activations.record IS 'The control record as it stands.';
COMMENT ON COLUMN activations.recorded_at IS 'Timestamp of the record on the control topic.';

CREATE TABLE control_changes (
    topic text NOT NULL,
    "offset" bigint NOT NULL,
    type text NOT NULL,
    record jsonb NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT control_changes_pkey PRIMARY KEY (topic, "offset")
);
COMMENT ON TABLE control_changes IS 'Control records that are neither labels nor activations: changes of lists.';
COMMENT ON COLUMN control_changes.topic IS 'Control topic.';
COMMENT ON COLUMN control_changes."offset" IS 'Offset there.';
COMMENT ON COLUMN control_changes.type IS 'Kind of record, such as list_add.';
COMMENT ON COLUMN control_changes.record IS 'The control record as it stands.';
COMMENT ON COLUMN control_changes.recorded_at IS 'Timestamp of the record on the control topic.';

CREATE TABLE anchors (
    shard integer NOT NULL,
    sequence bigint NOT NULL,
    head text NOT NULL,
    place text NOT NULL,
    document text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT anchors_pkey PRIMARY KEY (shard, sequence, head, place)
);
COMMENT ON TABLE anchors IS 'A note of what was anchored outside; the proof is the file or object that place names.';
COMMENT ON COLUMN anchors.shard IS 'Shard.';
COMMENT ON COLUMN anchors.sequence IS 'Last batch that the anchor covers.';
COMMENT ON COLUMN anchors.head IS 'Its head.';
COMMENT ON COLUMN anchors.place IS 'File or object-store URL that the line was appended to.';
COMMENT ON COLUMN anchors.document IS 'The line.';
COMMENT ON COLUMN anchors.at IS 'When.';

CREATE TABLE tombstones (
    shard integer NOT NULL,
    day date NOT NULL,
    first_sequence bigint NOT NULL,
    last_sequence bigint NOT NULL,
    document text NOT NULL,
    CONSTRAINT tombstones_pkey PRIMARY KEY (shard, day)
);
COMMENT ON TABLE tombstones IS 'What stood in the days that retention removed: enough to verify what follows.';
COMMENT ON COLUMN tombstones.shard IS 'Shard.';
COMMENT ON COLUMN tombstones.day IS 'The day removed.';
COMMENT ON COLUMN tombstones.first_sequence IS 'First batch of that day.';
COMMENT ON COLUMN tombstones.last_sequence IS 'Last batch of that day.';
COMMENT ON COLUMN tombstones.document IS
    'Signed JSON: shard, day, batches, decisions, previous head of the first batch, head of the last.';

CREATE TABLE erasures (
    shard integer NOT NULL,
    sequence bigint NOT NULL,
    number integer NOT NULL,
    document text NOT NULL,
    CONSTRAINT erasures_pkey PRIMARY KEY (shard, sequence, number)
);
COMMENT ON TABLE erasures IS
    'Batches in which a person''s identifiers were replaced by pseudonyms: the digest their rows have since.';
COMMENT ON COLUMN erasures.shard IS 'Shard.';
COMMENT ON COLUMN erasures.sequence IS 'Batch.';
COMMENT ON COLUMN erasures.number IS 'Counts the erasures of that batch, from 1; the last one holds.';
COMMENT ON COLUMN erasures.document IS 'Signed JSON: the batch''s head, its digest before and after, how many rows.';
"""

FUNCTIONS = """
CREATE FUNCTION audit_day(wanted date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    parent text;
    child text;
BEGIN
    -- Two sinks that meet a new day at once: the second waits here and finds it made.
    PERFORM pg_advisory_xact_lock(hashtextextended('fraud-scorer audit_day', 0));
    FOREACH parent IN ARRAY ARRAY['decisions', 'batches'] LOOP
        child := format('%s_%s', parent, to_char(wanted, 'YYYYMMDD'));
        IF to_regclass(quote_ident(child)) IS NULL THEN
            -- Made apart and attached: that lock lets rows be read and written meanwhile, unlike PARTITION OF.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS)', child, parent);
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT day CHECK (day >= %L AND day < %L)',
                           child, wanted, wanted + 1);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           parent, child, wanted, wanted + 1);
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT day', child);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION audit_day(date) IS
    'Makes the partitions of a day where they are missing. For the writer, which may not create tables itself.';
REVOKE ALL ON FUNCTION audit_day(date) FROM PUBLIC;
"""

VIEWS = """
CREATE VIEW labels_current AS
    SELECT DISTINCT ON (payment_id) payment_id, fraud, known_at, source, analyst, recorded_at
    FROM labels ORDER BY payment_id, known_at DESC, "offset" DESC;
COMMENT ON VIEW labels_current IS 'The verdict that holds for each payment: the one known last.';

CREATE VIEW decided AS
    SELECT payment_id, event_time, day, decision, score, threshold, amount_minor, currency, customer_id, account_id,
           merchant_id, terminal_id, mcc, channel, country, mode, reasons, fired, bundle, margin, challenger_margins,
           shard, sequence, row_number, origin_partition, origin_offset
    FROM decisions;
COMMENT ON VIEW decided IS
    'Decisions without their features, for people. Name a day, or a range of days, besides a customer or a time: '
    'only those partitions are looked at then.';

CREATE VIEW flagged AS SELECT * FROM decided WHERE decision = 'flag';
COMMENT ON VIEW flagged IS 'Flagged payments alone; quick by event_time.';

CREATE VIEW decided_by_reason AS SELECT * FROM decided WHERE cardinality(reasons) > 0;
COMMENT ON VIEW decided_by_reason IS
    'Decisions that have a reason; quick by reasons @> ARRAY[''VELOCITY''] and a range of days.';

CREATE VIEW flag_rate_hourly AS
    SELECT day, date_trunc('hour', stream_time) AS hour, sum(decisions)::bigint AS decisions,
           sum(flagged)::bigint AS flagged, sum(flagged)::float8 / nullif(sum(decisions), 0) AS flag_rate,
           sum(duplicates)::bigint AS duplicates, sum(late)::bigint AS late, sum(degraded)::bigint AS degraded,
           sum(dead_letters)::bigint AS dead_letters
    FROM batches WHERE stream_time IS NOT NULL GROUP BY day, date_trunc('hour', stream_time);
COMMENT ON VIEW flag_rate_hourly IS 'Flagged rate over time, by hour of stream time, from the sums in batches.';

CREATE VIEW flag_rate_daily AS
    SELECT day, sum(decisions)::bigint AS decisions, sum(flagged)::bigint AS flagged,
           sum(flagged)::float8 / nullif(sum(decisions), 0) AS flag_rate, sum(duplicates)::bigint AS duplicates,
           sum(late)::bigint AS late, sum(degraded)::bigint AS degraded, sum(dead_letters)::bigint AS dead_letters
    FROM batches WHERE stream_time IS NOT NULL GROUP BY day;
COMMENT ON VIEW flag_rate_daily IS 'Flagged rate over time, by day of stream time.';

CREATE VIEW reasons_daily AS
    SELECT day, decision, reason, count(*) AS decisions
    FROM decided_by_reason, unnest(reasons) AS reason GROUP BY day, decision, reason;
COMMENT ON VIEW reasons_daily IS 'How often each reason was given, by day and decision.';

CREATE VIEW decision_features AS
    SELECT d.payment_id, d.day, d.shard, d.sequence, d.row_number, f.place, f.name, f.value
    FROM decisions d
    JOIN batches b ON b.shard = d.shard AND b.sequence = d.sequence AND b.day = d.day
    JOIN feature_sets s ON s.fingerprint = b.feature_fingerprint,
    LATERAL unnest(s.feature_names, d.features) WITH ORDINALITY AS f (name, value, place);
COMMENT ON VIEW decision_features IS 'Feature values by name, one row for each; ask for one payment_id.';

CREATE VIEW outcomes AS
    SELECT d.*, l.fraud, l.known_at, l.source, l.analyst
    FROM decided d LEFT JOIN LATERAL (
        SELECT * FROM labels WHERE labels.payment_id = d.payment_id ORDER BY known_at DESC, "offset" DESC LIMIT 1
    ) l ON true;
COMMENT ON VIEW outcomes IS 'Decisions with the verdict that holds today, null where none is known.';
"""

# Roles belong to the whole server: other databases may use them, so `down` takes their rights here and leaves them.
_ROLES = """
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['fraud_scorer_writer', 'fraud_scorer_reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;  -- made by another setup in this moment
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role % is missing and may not be made by %', wanted, current_user
                        USING HINT = format('An administrator runs once: CREATE ROLE %I NOLOGIN', wanted);
            END;
        END IF;
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA public TO fraud_scorer_writer, fraud_scorer_reader;
GRANT SELECT ON alembic_version TO fraud_scorer_writer, fraud_scorer_reader;
-- The writer adds, and moves its own positions. It reads only what it compares: no decision, no label.
GRANT INSERT ON decisions, batches, feature_sets, bundles, set_aside, dead_letters, labels, activations,
    control_changes, anchors, positions TO fraud_scorer_writer;
GRANT SELECT ON positions, feature_sets TO fraud_scorer_writer;
GRANT UPDATE (next_offset, shard, sequence, head, gap) ON positions TO fraud_scorer_writer;
GRANT EXECUTE ON FUNCTION audit_day(date) TO fraud_scorer_writer;
GRANT SELECT ON decisions, batches, feature_sets, bundles, set_aside, dead_letters, labels, activations,
    control_changes, anchors, tombstones, erasures, positions, labels_current, decided, flagged, decided_by_reason,
    flag_rate_hourly, flag_rate_daily, reasons_daily, decision_features, outcomes TO fraud_scorer_reader;
"""

_DOWN = """
DROP VIEW outcomes, decision_features, reasons_daily, flag_rate_daily, flag_rate_hourly, decided_by_reason, flagged,
    decided, labels_current;
DROP FUNCTION audit_day(date);
DROP TABLE erasures, tombstones, anchors, control_changes, activations, labels, dead_letters, set_aside, positions,
    batches, bundles, feature_sets, decisions;
REVOKE ALL ON alembic_version FROM fraud_scorer_writer, fraud_scorer_reader;
REVOKE USAGE ON SCHEMA public FROM fraud_scorer_writer, fraud_scorer_reader;
"""


def upgrade() -> None:
    """Creates tables, function, views and roles."""
    for part in (_DECISIONS, _BATCHES, _AROUND, FUNCTIONS, VIEWS, _ROLES):
        op.execute(part)


def downgrade() -> None:
    """Drops them, with everything in them; the roles stay, without rights here."""
    op.execute(_DOWN)
