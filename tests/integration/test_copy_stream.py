"""COPY streams read by the kernel and through psycopg: the same bytes, the same errors."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from scorer.trail import copy_stream


def _both(url: str, query: sql.Composed, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    found = []
    with psycopg.connect(url, autocommit=True) as connection:
        for plain in (False, True):
            with monkeypatch.context() as patch:
                if plain:
                    patch.setattr(copy_stream, "native_functions", lambda: None)
                data, messages = copy_stream.read_stream(connection, query)
            found.append((data.tobytes(), messages))
    return found


def test_the_kernel_finds_the_libpq_of_psycopg() -> None:
    """With the wheels that the project installs, rows do not go through Python."""
    assert copy_stream.native_functions() is not None


@given(rows=st.integers(0, 3000), width=st.sampled_from([0, 1, 100, 5_000]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_ways_read_the_same(database: str, monkeypatch: pytest.MonkeyPatch, rows: int, width: int) -> None:
    """Streams from nothing to larger than the first buffer."""
    query = sql.SQL(
        "COPY (SELECT n, repeat('x', {width}) FROM generate_series(1, {rows}) n) TO STDOUT (FORMAT BINARY)"
    ).format(width=sql.Literal(width), rows=sql.Literal(rows))
    native, plain = _both(database, query, monkeypatch)
    assert native == plain
    assert native[1] >= rows


@pytest.mark.parametrize("plain", [False, True])
def test_an_error_inside_the_stream_is_raised(database: str, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Rows came already when Postgres fails: what was read is not taken for the whole."""
    if plain:
        monkeypatch.setattr(copy_stream, "native_functions", lambda: None)
    query = sql.SQL("COPY (SELECT 1 / (5000 - n) FROM generate_series(1, 9000) n) TO STDOUT (FORMAT BINARY)").format()
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(psycopg.OperationalError, match="division by zero"):
            copy_stream.read_stream(connection, query)
        assert connection.execute("SELECT 1").fetchone() == (1,)
