"""The one function that runs with the owner's rights finds only Postgres' names and ours; the writer makes no objects.

`audit_day` resolved its types by the caller's temporary schema first: a domain named `text` there ran code of the
writer as owner. Its names are qualified now, its search_path is fixed with pg_temp last, and the right to make
temporary objects, which every role has by default, is taken from all but the reader: `audit verify` compares views by
it, and the reader may call no such function. (And `set_aside` holds control records, too: its comments say so.)
"""

from __future__ import annotations

from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FUNCTIONS = """
CREATE OR REPLACE FUNCTION audit_day(wanted date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- The search_path of this function is pg_catalog, the schema of the tables, pg_temp.
    home pg_catalog.text := (pg_catalog.current_schemas(false))[2];
    parent pg_catalog.text;
    child pg_catalog.text;
BEGIN
    IF wanted < '1970-01-01'::pg_catalog.date OR wanted > '9999-12-31'::pg_catalog.date THEN
        RAISE EXCEPTION 'a day of decisions lies between 1970-01-01 and 9999-12-31';
    END IF;
    -- Two sinks that meet a new day at once: the second waits here and finds it made.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('fraud-scorer audit_day', 0));
    FOREACH parent IN ARRAY ARRAY['decisions', 'batches'] LOOP
        child := pg_catalog.format('%s_%s', parent, pg_catalog.to_char(wanted, 'YYYYMMDD'));
        IF pg_catalog.to_regclass(pg_catalog.format('%I.%I', home, child)) IS NULL THEN
            -- Made apart and attached: that lock lets rows be read and written meanwhile, unlike PARTITION OF.
            EXECUTE pg_catalog.format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING DEFAULTS)',
                                      home, child, parent);
            EXECUTE pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT day CHECK (day >= %L AND day < %L)',
                                      home, child, wanted, wanted + 1);
            EXECUTE pg_catalog.format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I '
                                      'FOR VALUES FROM (%4$L) TO (%5$L)',
                                      home, parent, child, wanted, wanted + 1);
            EXECUTE pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT day', home, child);
        END IF;
    END LOOP;
END
$$;
"""

_RIGHTS = """
DO $$
DECLARE
    home pg_catalog.text := pg_catalog.current_schema();
    here pg_catalog.text := pg_catalog.current_database();
BEGIN
    EXECUTE pg_catalog.format('ALTER FUNCTION %1$I.audit_day(date) SET search_path = pg_catalog, %1$I, pg_temp', home);
    -- Who may make objects beside the tables could make a partition's name, or a function that fits a call better.
    EXECUTE pg_catalog.format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, fraud_scorer_writer, fraud_scorer_reader', home);
    EXECUTE pg_catalog.format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, fraud_scorer_writer', here);
    EXECUTE pg_catalog.format('GRANT TEMPORARY ON DATABASE %I TO fraud_scorer_reader', here);
    IF pg_catalog.has_database_privilege('fraud_scorer_writer', here, 'TEMPORARY') THEN
        RAISE WARNING 'fraud_scorer_writer may make temporary objects'
            USING HINT = pg_catalog.format('The owner of the database runs once: '
                                           'REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', here);
    END IF;
END
$$;
"""

_COMMENTS = """
COMMENT ON TABLE set_aside IS
    'Records of the audit topic that could not be written as decisions, and those of the control topic whose row '
    'Postgres refused. Every row here is an alert until settled.';
COMMENT ON COLUMN set_aside.topic IS 'Audit or control topic.';
"""

_DOWN = """
DROP FUNCTION audit_day(date);
DO $$
DECLARE
    here pg_catalog.text := pg_catalog.current_database();
BEGIN
    EXECUTE pg_catalog.format('REVOKE TEMPORARY ON DATABASE %I FROM fraud_scorer_reader', here);
    EXECUTE pg_catalog.format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC', here);
END
$$;
"""


def upgrade() -> None:
    """Replaces the function and takes rights away. What a role that owns neither schema nor database can't take from
    others stays: Postgres warns, and `audit verify` reports it."""
    op.execute(FUNCTIONS)
    op.execute(_RIGHTS)
    op.execute(_COMMENTS)


def downgrade() -> None:
    """Brings back the function of 0001 and the default right to temporary objects."""
    op.execute(_DOWN)
    op.execute(context.script.get_revision("0001").module.FUNCTIONS)
    op.execute("GRANT EXECUTE ON FUNCTION audit_day(date) TO fraud_scorer_writer")
