"""How many refused records of each batch were answered, which its journal record has already."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE batches ADD COLUMN refused integer;
COMMENT ON COLUMN batches.refused IS
    'How many of the dead letters are answered as well, being records that name their payment; null in batches of '
    'releases before 0.2, which answered none.';
UPDATE batches SET refused = (journal ->> 'refused')::integer WHERE journal ? 'refused';
"""

_DOWN = "ALTER TABLE batches DROP COLUMN refused;"


def upgrade() -> None:
    """Adds the column, and fills it from the journal records."""
    op.execute(_UP)


def downgrade() -> None:
    """Drops the column; the journal records keep the number."""
    op.execute(_DOWN)
