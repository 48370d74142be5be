"""The id of the topic that a position is of: a topic made anew under the same name has another one."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE positions ADD COLUMN topic_id text;
COMMENT ON COLUMN positions.topic_id IS
    'Id of the topic that was read, as Kafka prints it; null before a sink has read it, or after an operator moved the '
    'position.';
GRANT UPDATE (topic_id) ON positions TO fraud_scorer_writer;
"""


def upgrade() -> None:
    """Positions of earlier releases get the id of the topic that the next sink finds."""
    op.execute(_UP)


def downgrade() -> None:
    """Forgets the ids."""
    op.execute("ALTER TABLE positions DROP COLUMN topic_id")
