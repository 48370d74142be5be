"""What the audit commands share: errors of Postgres as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scorer.errors import FraudScorerError


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Errors of Postgres as one line."""
    import psycopg  # noqa: PLC0415
    import sqlalchemy as sa  # noqa: PLC0415

    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as exc:
        cause = getattr(exc, "orig", None) or exc
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise FraudScorerError(f"Postgres: {reason}") from exc
