"""Errors of Postgres as the sink's, classified once by SQLSTATE: wait, quarantine the rows, or stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from scorer.errors import UsageError
from scorer.runtime.settings import Settings, with_secrets_read_again
from scorer.sink.sink_errors import RowsRefused, StatementTooLong, StoreRefused, StoreUnavailable

# SQLSTATEs that time cures: connection, transaction rollback, resources, operator intervention, system error; a lock
# not to be had, and a server that is read only (25006: a standby during a failover).
_TRANSIENT = ("08", "40", "53", "57", "58", "55P03", "25006", "25P03")
_STATEMENT_ENDED = "57014"  # by statement_timeout, or by an operator
# Those that lie in the rows themselves: data exception, integrity constraint, limits exceeded.
_ROWS = ("22", "23", "54")


_REASON_MAX = 300


def _reason(origin: BaseException) -> str:
    """The reason that the server or libpq gave, in one line; of an error that no row takes part in.

    Errors about rows give theirs with values in it: those are never asked for it.
    """
    given = getattr(getattr(origin, "diag", None), "message_primary", None) or str(origin)
    line = " ".join(str(given).split()).removeprefix("connection failed: ")
    return line[:_REASON_MAX] or "no reason given"


def postgres_url_now(settings: Settings) -> str:
    """The address with a password that may have been rotated since the start. Raises StoreUnavailable when its file
    cannot be read now: it may just be being replaced."""
    try:
        return with_secrets_read_again(settings).postgres_url
    except UsageError as exc:
        raise StoreUnavailable(str(exc)) from exc


@contextmanager
def postgres_errors() -> Iterator[None]:
    """The one place where errors of Postgres become ours. Messages carry its reason, or for errors about rows only
    codes and names: never a value of a row."""
    try:
        yield
    except (sa.exc.DBAPIError, psycopg.Error) as exc:
        origin: BaseException = (exc.orig or exc) if isinstance(exc, sa.exc.DBAPIError) else exc
        state = getattr(origin, "sqlstate", None)
        name = type(origin).__name__
        if state is None and isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError):
            reason = _reason(origin)
            verb = "refuses the connection" if "FATAL" in reason else "does not answer"
            raise StoreUnavailable(f"Postgres {verb} ({name}): {reason}") from exc
        if state == _STATEMENT_ENDED:
            raise StatementTooLong(f"Postgres ended a statement ({state}): {_reason(origin)}") from exc
        if state is not None and state.startswith(_TRANSIENT):
            raise StoreUnavailable(
                f"Postgres cannot take rows now ({name}, SQLSTATE {state}): {_reason(origin)}"
            ) from exc
        if state is not None and state.startswith("28"):
            # Credentials are rotated while processes run: the file they come from may be right again in a moment.
            raise StoreUnavailable(f"Postgres refuses the login ({name}, SQLSTATE {state}): {_reason(origin)}") from exc
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
