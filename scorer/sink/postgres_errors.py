"""Errors of Postgres as the sink's, classified once by SQLSTATE: wait, quarantine the rows, or stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from scorer.sink.sink_errors import RowsRefused, StoreRefused, StoreUnavailable

# SQLSTATEs that time cures: connection, transaction rollback, resources, operator intervention, system error; a lock
# not to be had, and a server that is read only (25006: a standby during a failover).
_TRANSIENT = ("08", "40", "53", "57", "58", "55P03", "25006", "25P03")
# Those that lie in the rows themselves: data exception, integrity constraint, limits exceeded.
_ROWS = ("22", "23", "54")


def _tls_trouble(origin: BaseException) -> str:
    """libpq's reason about certificates and TLS, which holds no value of a row; empty for others."""
    lines = [line.strip() for line in str(origin).splitlines() if "SSL" in line or "certificate" in line]
    return f": {lines[0].removeprefix('connection failed: ')}" if lines else ""


@contextmanager
def postgres_errors() -> Iterator[None]:
    """The one place where errors of Postgres become ours. Messages carry codes and names, never a value of a row."""
    try:
        yield
    except (sa.exc.DBAPIError, psycopg.Error) as exc:
        origin = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc
        state = getattr(origin, "sqlstate", None)
        name = type(origin).__name__
        if state is None and isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError):
            raise StoreUnavailable(f"Postgres does not answer ({name}{_tls_trouble(origin)})") from exc
        if state is not None and state.startswith(_TRANSIENT):
            raise StoreUnavailable(f"Postgres cannot take rows now ({name}, SQLSTATE {state})") from exc
        if state is not None and state.startswith("28"):
            # Credentials are rotated while processes run: the file they come from may be right again in a moment.
            raise StoreUnavailable(f"Postgres refuses the login ({name}, SQLSTATE {state})") from exc
        table = getattr(getattr(origin, "diag", None), "table_name", None)
        constraint = getattr(getattr(origin, "diag", None), "constraint_name", None)
        # Without a state: the client refused a value before it sent it, such as a NUL in a text.
        in_rows = isinstance(origin, psycopg.DataError) if state is None else state.startswith(_ROWS)
        refused = (RowsRefused if in_rows else StoreRefused)(
            f"Postgres refuses the audit rows: {name}, SQLSTATE {state}, table {table}, constraint {constraint}"
        )
        if isinstance(refused, RowsRefused):
            refused.key = state is not None and state.startswith("23")
        raise refused from exc
