"""What an Arrow IPC stream says about its own size, checked before Arrow reads it.

Arrow trusts its input: a compressed buffer names the size that it wants to have, a description can name one text or one
column ten thousand times over, and a dictionary is read before anybody asks for it. So the envelopes are looked at here
first, which allocates nothing: one description of bounded width, one record batch of uncompressed buffers that lie in
its own body, and the end. What passes takes a small multiple of its own bytes in memory.

    FramingError    the bytes are no such stream
"""

from __future__ import annotations

import struct
from typing import Final

METADATA_MAX: Final = 8  # entries; an audit record has three
_CONTINUATION: Final = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3  # Message.header_type
# Places of the fields in Arrow's format/Message.fbs and Schema.fbs.
_HEADER_TYPE, _HEADER, _BODY_LENGTH, _MESSAGE_METADATA = 1, 2, 3, 4
_FIELDS, _SCHEMA_METADATA = 1, 2
_DICTIONARY, _CHILDREN, _FIELD_METADATA = 4, 5, 6
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3

_u16, _u32, _i32, _i64 = (struct.Struct(code) for code in ("<H", "<I", "<i", "<q"))
_buffer = struct.Struct("<qq")  # offset and length


class FramingError(ValueError):
    """Bytes that are no Arrow stream of one uncompressed record batch. Names what is wrong, never a value."""


def check_stream(value: bytes, *, columns_max: int) -> None:
    """Checks all of `value`. Raises FramingError."""
    try:
        place = check_description(value, columns_max=columns_max)
        kind, message, header, body, end = _message(value, place)
        if kind != _RECORD_BATCH:
            raise FramingError("the second message is no record batch")
        _check_batch(message, header, end - body)
        if end < len(value) and _i32.unpack_from(value, end + 4)[0] != 0:
            raise FramingError("more follows after the record batch")
    except (struct.error, IndexError) as error:
        raise FramingError("a message ends before its content") from error


def check_description(value: bytes, *, columns_max: int) -> int:
    """Checks the first message alone; returns where the next one begins. Raises FramingError."""
    try:
        kind, message, header, body, end = _message(value, 0)
        if kind != _SCHEMA or end != body:
            raise FramingError("the first message describes no columns")
        _check_columns(message, header, columns_max)
    except (struct.error, IndexError) as error:
        raise FramingError("a message ends before its content") from error
    return end


def _message(value: bytes, place: int) -> tuple[int, memoryview, int, int, int]:
    """Kind, envelope, place of the header in it, and where the body begins and ends in `value`."""
    mark, size = _u32.unpack_from(value, place)[0], _i32.unpack_from(value, place + 4)[0]
    body = place + 8 + size
    if mark != _CONTINUATION or size <= 0 or body > len(value):
        raise FramingError("it does not begin as a message does, or ends inside it")
    message = memoryview(value)[place + 8 : body]
    root = _u32.unpack_from(message, 0)[0]
    _none(_vector(message, root, _MESSAGE_METADATA), "metadata of a message")
    kind_at, header_at, length_at = (_at(message, root, n) for n in (_HEADER_TYPE, _HEADER, _BODY_LENGTH))
    if not kind_at or not header_at:
        raise FramingError("a message without content")
    length = _i64.unpack_from(message, length_at)[0] if length_at else 0
    if not 0 <= length <= len(value) - body:
        raise FramingError(f"a body of {length} bytes where {len(value) - body} follow")
    return message[kind_at], message, _follow(message, header_at), body, body + length


def _check_columns(message: memoryview, schema: int, columns_max: int) -> None:
    metadata = _vector(message, schema, _SCHEMA_METADATA)
    if metadata[1] > METADATA_MAX:
        raise FramingError(f"{metadata[1]} entries of metadata, the most is {METADATA_MAX}")
    fields = _tables(message, _vector(message, schema, _FIELDS), columns_max)
    children = [child for field in fields for child in _tables(message, _vector(message, field, _CHILDREN), 1)]
    for child in children:
        _none(_vector(message, child, _CHILDREN), "columns in columns of a column")
    for field in (*fields, *children):
        _none(_vector(message, field, _FIELD_METADATA), "metadata of a column")
        if _at(message, field, _DICTIONARY):
            raise FramingError("a column with a dictionary")


def _check_batch(message: memoryview, batch: int, body_bytes: int) -> None:
    if _at(message, batch, _COMPRESSION):
        raise FramingError("its buffers are compressed")
    length_at = _at(message, batch, _LENGTH)
    rows = _i64.unpack_from(message, length_at)[0] if length_at else 0
    if not 0 <= rows <= body_bytes:
        raise FramingError(f"{rows} rows in {body_bytes} bytes")
    start, count = _vector(message, batch, _BUFFERS)
    total = 0
    for offset, length in _buffer.iter_unpack(message[start : start + count * _buffer.size]):
        if offset < 0 or length < 0 or offset + length > body_bytes:
            raise FramingError("a buffer lies outside of the body")
        total += length
    if total > body_bytes or start + count * _buffer.size > len(message):
        raise FramingError(f"buffers of {total} bytes in a body of {body_bytes}")


def _at(message: memoryview, table: int, number: int) -> int:
    """Where field `number` of the flatbuffer table at `table` is; 0 when it is absent."""
    types = table - _i32.unpack_from(message, _inside(message, table))[0]
    if 4 + 2 * number >= _u16.unpack_from(message, _inside(message, types))[0]:
        return 0
    offset = _u16.unpack_from(message, types + 4 + 2 * number)[0]
    return _inside(message, table + offset) if offset else 0


def _follow(message: memoryview, place: int) -> int:
    return _inside(message, place + _u32.unpack_from(message, place)[0])


def _vector(message: memoryview, table: int, number: int) -> tuple[int, int]:
    """Where the elements of a vector begin, and how many it says that it has; none when it is absent."""
    place = _at(message, table, number)
    if not place:
        return 0, 0
    start = _follow(message, place)
    return start + 4, int(_u32.unpack_from(message, start)[0])


def _tables(message: memoryview, vector: tuple[int, int], count_max: int) -> list[int]:
    start, count = vector
    if count > count_max:
        raise FramingError(f"{count} columns where at most {count_max} may be")
    return [_follow(message, start + 4 * n) for n in range(count)]


def _none(vector: tuple[int, int], what: str) -> None:
    if vector[1]:
        raise FramingError(f"{what}: an audit record has none")


def _inside(message: memoryview, place: int) -> int:
    # A negative place would count from the end.
    if not 0 <= place < len(message):
        raise FramingError("a message points outside of itself")
    return place
