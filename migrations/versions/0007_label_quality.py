"""What labels say of decisions, as counts: for precision and recall, without the right to read a decision or a label.

The sink's role adds rows and reads neither decisions nor labels. So it gets a function that counts with the owner's
rights and returns counts alone. Whoever has that role can add a label, count again and so learn of one payment at a
time how it was decided: deploy/SECURITY.md.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FUNCTIONS = """
CREATE FUNCTION label_quality(days pg_catalog.int4)
RETURNS TABLE (of_bundle pg_catalog.text, of_decision pg_catalog.text, of_fraud pg_catalog.bool,
               payments pg_catalog.int8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- By the index on stream_time, of which a batch's day is the date.
    reached pg_catalog.timestamptz := (SELECT pg_catalog.max(b.stream_time) FROM batches b);
    newest pg_catalog.date := pg_catalog.timezone('UTC', reached)::pg_catalog.date;
    -- The first moment of the first day that counts.
    since pg_catalog.timestamptz := pg_catalog.timezone('UTC', (newest - days + 1)::pg_catalog.timestamp);
BEGIN
    IF days IS NULL OR days NOT BETWEEN 1 AND 3650 THEN
        RAISE EXCEPTION 'days is %, wanted 1 to 3650', days;
    END IF;
    RETURN QUERY
    SELECT d.bundle, d.decision, verdict.fraud, pg_catalog.count(*)
    FROM (
        SELECT DISTINCT ON (l.payment_id) l.payment_id, l.fraud
        FROM labels l WHERE l.known_at >= since AND l.known_at <= reached
        ORDER BY l.payment_id, l.known_at DESC, l."offset" DESC
    ) verdict
    JOIN decisions d ON d.payment_id = verdict.payment_id
    WHERE d.day > newest - days AND d.mode NOT IN ('duplicate', 'refused')
    GROUP BY d.bundle, d.decision, verdict.fraud;
END
$$;
COMMENT ON FUNCTION label_quality(pg_catalog.int4) IS
    'Payments of the last days of stream time whose label is known, by bundle, decision and verdict. A payment counts '
    'by each decision that is no repetition; its verdict is the label known last within these days.';
REVOKE ALL ON FUNCTION label_quality(pg_catalog.int4) FROM PUBLIC;
"""

_RIGHTS = """
DO $$
DECLARE
    home pg_catalog.text := pg_catalog.current_schema();
BEGIN
    EXECUTE pg_catalog.format(
        'ALTER FUNCTION %1$I.label_quality(pg_catalog.int4) SET search_path = pg_catalog, %1$I, pg_temp', home);
END
$$;
GRANT EXECUTE ON FUNCTION label_quality(pg_catalog.int4) TO fraud_scorer_writer;
"""

_DOWN = "DROP FUNCTION label_quality(pg_catalog.int4);"


def upgrade() -> None:
    """Makes the function, for the writer."""
    op.execute(FUNCTIONS)
    op.execute(_RIGHTS)


def downgrade() -> None:
    """Drops it."""
    op.execute(_DOWN)
