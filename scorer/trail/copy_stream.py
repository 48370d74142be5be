"""A whole COPY stream out of a connection, without holding the GIL.

Postgres sends each row as a message of its own, and some ten of them at a time. Through psycopg each message is an
object of Python's; here a kernel takes them from libpq and waits for more: from psycopg's own copy of libpq, found
through the module that is linked to it. Where it cannot be found so (psycopg without its C module), psycopg's calls
read the same.
"""

from __future__ import annotations

import ctypes
import select
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import pq, sql

from features.raw_memory import call, entry, peek64
from schemas.byte_copy import move

_WAIT_MS = 100  # a bound, since over TLS what came may lie in OpenSSL already, where the socket does not show it
_BUFFER_BYTES = 1 << 20  # at first; doubled where a stream is larger
_SPARE_BYTES = 64  # behind the stream: kernels may load a word past its end
# Places of the kernel's state: bytes so far, messages so far, a message that had no room: its address and length.
_BYTES, _MESSAGES, _HELD, _HELD_BYTES = range(4)
_MORE_ROOM = 2
_FAILED = -2  # as PQgetCopyData says it
_LOWER_HALF, _POSITIVE_MAX = 0xFFFF_FFFF, 0x7FFF_FFFF  # of a word that holds an int

Bytes = npt.NDArray[np.uint8]


class Functions(NamedTuple):
    """Addresses of functions of libpq, and of C's poll."""

    get_copy_data: int
    free: int
    consume_input: int
    poll: int


@lru_cache(maxsize=1)
def native_functions() -> Functions | None:
    """Those of the libpq that psycopg itself uses; None where there is no way to them."""
    path = getattr(sys.modules[pq.PGconn.__module__], "__file__", None)
    try:
        library = ctypes.CDLL(path)  # symbols are looked for in what it is linked to, too
        if library.PQlibVersion() != pq.version():
            return None
        names = (library.PQgetCopyData, library.PQfreemem, library.PQconsumeInput, ctypes.CDLL(None).poll)
    except (OSError, AttributeError, TypeError):
        return None
    return Functions(*(ctypes.cast(name, ctypes.c_void_p).value or 0 for name in names))


def read_stream(connection: psycopg.Connection, statement: sql.Composed) -> tuple[Bytes, int]:
    """Runs COPY ... TO STDOUT and gives its bytes, and the most rows that can be in them. Raises psycopg.Error.

    Each row is a message of its own; the header comes with the first and the trailer as one more.
    """
    raw = connection.pgconn
    _check(raw.exec_(statement.as_bytes(connection)), pq.ExecStatus.COPY_OUT, raw)
    functions = native_functions()
    found = _plain(raw) if functions is None else _native(raw, functions)
    results = []
    while (result := raw.get_result()) is not None:
        results.append(result)  # all of them, so that the connection can be used again after an error
    for result in results:
        _check(result, pq.ExecStatus.COMMAND_OK, raw)
    return found


def _native(raw: pq.abc.PGconn, functions: Functions) -> tuple[Bytes, int]:
    out = np.empty(_BUFFER_BYTES, np.uint8)
    state = np.zeros(4, np.int64)
    # A message's address; struct pollfd: the socket and, behind it, POLLIN.
    places = np.array([0, raw.socket | select.POLLIN << 32], np.int64)
    pointer: int | None = getattr(raw, "pgconn_ptr", None)  # all of psycopg's connections have it, their protocol not
    if pointer is None:
        raise psycopg.OperationalError("reading decisions failed: the connection is closed")
    try:
        while (status := take_messages(*functions, pointer, places, out, _SPARE_BYTES, state)) >= 0:
            if status == _MORE_ROOM:
                larger = np.empty(max(2 * len(out), int(state[_BYTES] + state[_HELD_BYTES]) + _SPARE_BYTES), np.uint8)
                larger[: state[_BYTES]] = out[: state[_BYTES]]
                out = larger
    finally:
        if state[_HELD]:
            release(functions.free, int(state[_HELD]))
    if status == _FAILED:
        raise psycopg.OperationalError(f"reading decisions failed: {raw.get_error_message().strip()}")
    return out[: state[_BYTES]], int(state[_MESSAGES])


def _plain(raw: pq.abc.PGconn) -> tuple[Bytes, int]:
    """The same by a call of psycopg's for each message."""
    blocks: list[bytes] = []
    while True:
        size, block = raw.get_copy_data(1)
        if size < 0:
            break
        if size == 0:
            # Waited for here, since libpq's own waiting would hold the GIL, and with it the other connections' threads.
            select.select([raw.socket], [], [], _WAIT_MS / 1000)
            raw.consume_input()
        else:
            blocks.append(bytes(block))
    joined = np.frombuffer(b"".join([*blocks, bytes(_SPARE_BYTES)]), np.uint8)
    return joined[:-_SPARE_BYTES], len(blocks)


def _check(result: pq.abc.PGresult, wanted: pq.ExecStatus, raw: pq.abc.PGconn) -> None:
    if result.status != wanted:
        text = result.get_error_message() or raw.get_error_message()
        raise psycopg.OperationalError(f"reading decisions failed: {text.strip()}")


@entry
def take_messages(
    get_copy_data: int,
    free: int,
    consume_input: int,
    poll: int,
    connection: int,
    places: Any,
    out: Any,
    spare_bytes: int,
    state: Any,
) -> int:
    """Appends messages to `out` until none is left, and waits for more: 2 when `out` is full, 0 when nothing came for
    a while, -1 at the end of the stream, -2 when libpq has an error.

    `places` int64 [2]: where libpq puts a message's address; a pollfd.
    """
    room = len(out) - spare_bytes
    while True:
        if state[_HELD] == 0:
            size = call(get_copy_data, connection, places.ctypes.data, 1, 0, 0) & _LOWER_HALF
            if size == 0:
                ready = call(poll, places.ctypes.data + 8, 1, _WAIT_MS, 0, 0) & _LOWER_HALF
                if call(consume_input, connection, 0, 0, 0, 0) & _LOWER_HALF == 0:
                    return _FAILED
                if ready == 0:
                    return 0
                continue
            if size > _POSITIVE_MAX:
                ended: int = size - (1 << 32)
                return ended
            state[_HELD], state[_HELD_BYTES] = peek64(places.ctypes.data), size
        if state[_BYTES] + state[_HELD_BYTES] > room:
            return _MORE_ROOM
        move(out.ctypes.data + state[_BYTES], state[_HELD], state[_HELD_BYTES])
        call(free, state[_HELD], 0, 0, 0, 0)
        state[_HELD] = 0
        state[_BYTES] += state[_HELD_BYTES]
        state[_MESSAGES] += 1


@entry
def release(free: int, address: int) -> None:
    """Gives a message back to libpq."""
    call(free, address, 0, 0, 0, 0)
