"""The salt of each batch's digest, which erasure destroys; and no hash of a record of which digits were masked.

A digest of few rows without a salt gives the person back: whoever has the other columns tries every customer. The same
holds for the hash of a quarantined record whose card number is masked, or whose value was erased.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE batches ADD COLUMN salt bytea;
COMMENT ON COLUMN batches.salt IS
    'Key of the digest over payment_id, customer_id and account_id, 32 random bytes; another one after erasure. Null '
    'in batches of releases before 0.2, whose digest has none.';
UPDATE set_aside SET value_sha256 = NULL WHERE masked OR value IS NULL;
COMMENT ON COLUMN set_aside.value_sha256 IS
    'SHA-256 of the bytes as they stand on the topic; null where digits were masked, and after erasure.';
"""

_DOWN = """
ALTER TABLE batches DROP COLUMN salt;
COMMENT ON COLUMN set_aside.value_sha256 IS 'SHA-256 of the bytes as they stand on the topic.';
"""


def upgrade() -> None:
    """Adds the column, and removes hashes that could be guessed."""
    op.execute(_UP)


def downgrade() -> None:
    """Drops the salts: batches that have one can not be verified any more."""
    op.execute(_DOWN)
