"""Signed records of what retention and erasure did to labels, dead letters and changes of lists.

Those tables have no digest chain; `audit verify` compares them with the topics they came from. What was rightly removed
or made a pseudonym differs from its topic, and a signed record says that it was meant.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UP = """
CREATE TABLE amendments (
    number bigint NOT NULL,
    document text NOT NULL,
    CONSTRAINT amendments_pkey PRIMARY KEY (number)
);
COMMENT ON TABLE amendments IS
    'What retention removed and erasure replaced in labels, dead_letters, control_changes and set_aside.';
COMMENT ON COLUMN amendments.number IS 'Counts them, from 1.';
COMMENT ON COLUMN amendments.document IS
    'Signed JSON: of retention the table, topic, partition and the offset before which rows are gone; of an erasure '
    'the records and the values that stand in them since.';
GRANT SELECT ON amendments TO fraud_scorer_reader;
"""


def upgrade() -> None:
    """Creates the table."""
    op.execute(_UP)


def downgrade() -> None:
    """Drops it, with everything in it."""
    op.execute("DROP TABLE amendments")
