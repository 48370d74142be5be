"""Alembic's environment, on the connection that `audit_database.migrate` hands over: no ini file and no URL here."""

from __future__ import annotations

from alembic import context

from scorer.trail.audit_tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through audit_database.migrate(url), which `fraud-scorer setup` calls")

# One transaction for all steps: a migration that fails leaves the database as it was.
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
