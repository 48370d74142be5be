"""Small Arrow streams that make Arrow take gigabytes: what a hostile writer of the audit topic could send."""

from __future__ import annotations

import struct

import pyarrow as pa

_CONTINUATION = b"\xff\xff\xff\xff"
END = _CONTINUATION + bytes(4)


def framed(message: bytes) -> bytes:
    """A message of an IPC stream without a body."""
    message += bytes(-len(message) % 8)
    return _CONTINUATION + struct.pack("<i", len(message)) + message


def _table(*fields: tuple[int, bytes]) -> tuple[bytes, dict[int, int]]:
    """A flatbuffer table with its vtable before it: (number, bytes) of each field; and where each lies in it."""
    places, body = {}, b""
    for number, data in fields:
        body += bytes(-(4 + len(body)) % len(data))
        places[number] = 4 + len(body)
        body += data
    slots = [places.get(n, 0) for n in range(max(places) + 1)]
    vtable = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), 4 + len(body), *slots)
    vtable = bytes(-len(vtable) % 8) + vtable  # the table itself is aligned
    size = 4 + 2 * len(slots)
    return vtable + struct.pack("<i", size) + body, {n: len(vtable) + place for n, place in places.items()}


class _Buffer:
    """Laid from front to back; references are filled in when their target is there."""

    def __init__(self) -> None:
        self.data = bytearray(8)
        self._fill(0, 0)

    def add(self, content: bytes, *, align: int = 8) -> int:
        self.data += bytes(-len(self.data) % align)
        self.data += content
        return len(self.data) - len(content)

    def table(self, *fields: tuple[int, bytes]) -> tuple[int, dict[int, int]]:
        content, places = _table(*fields)
        start = self.add(content)
        vtable = content[: min(places.values()) - 4]
        return start + len(vtable), {n: start + place for n, place in places.items()}

    def refer(self, place: int, target: int) -> None:
        self._fill(place, target - place)

    def text(self, content: bytes) -> int:
        return self.add(struct.pack("<I", len(content)) + content + b"\0")

    def references(self, count: int) -> tuple[int, list[int]]:
        start = self.add(struct.pack("<I", count) + bytes(4 * count))
        return start, [start + 4 + 4 * n for n in range(count)]

    def _fill(self, place: int, value: int) -> None:
        self.data[place : place + 4] = struct.pack("<I", value)


def _description(schema_fields: int) -> tuple[_Buffer, int]:
    """A description message whose schema has one vector, not yet filled; and the place of the reference to it."""
    buffer = _Buffer()
    message, places = buffer.table((0, struct.pack("<h", 4)), (1, b"\1"), (2, bytes(4)))
    buffer.refer(0, message)
    schema, held = buffer.table((1, bytes(4)), (2, bytes(4)))
    buffer.refer(places[2], schema)
    other = 3 - schema_fields
    buffer.refer(held[other], buffer.references(0)[0])
    return buffer, held[schema_fields]


def one_text_many_times(entries: int, text_bytes: int) -> bytes:
    """Metadata of `entries` entries that are all the same text: its size times `entries` in memory."""
    buffer, place = _description(2)
    vector, references = buffer.references(entries)
    buffer.refer(place, vector)
    entry, places = buffer.table((0, bytes(4)), (1, bytes(4)))
    for reference in references:
        buffer.refer(reference, entry)
    buffer.refer(places[0], buffer.text(b"k"))
    buffer.refer(places[1], buffer.text(b"x" * text_bytes))
    return framed(bytes(buffer.data)) + END


def one_column_many_times(columns: int, depth: int) -> bytes:
    """A description in which columns hold `columns` times the same column, `depth` levels deep."""
    buffer, place = _description(1)
    name_of: list[int] = []
    for _ in range(depth):
        vector, references = buffer.references(columns)
        buffer.refer(place, vector)
        # name, type_type 13 (struct), type, children
        column, places = buffer.table((0, bytes(4)), (2, b"\x0d"), (3, bytes(4)), (5, bytes(4)))
        for reference in references:
            buffer.refer(reference, column)
        name_of.append(places[0])
        kind, _ = buffer.table((0, b"\0"))
        buffer.refer(places[3], kind)
        place = places[5]
    buffer.refer(place, buffer.references(0)[0])
    name = buffer.text(b"c")
    for reference in name_of:
        buffer.refer(reference, name)
    return framed(bytes(buffer.data)) + END


def compressed(chunk_schema: pa.Schema, codec: str, rows: int) -> bytes:
    """A chunk's columns with `rows` rows of zeros and of one letter, compressed."""
    arrays = []
    for field in chunk_schema:
        if pa.types.is_string(field.type):
            text = pa.py_buffer(b"x" * rows)
            offsets = pa.py_buffer(memoryview(bytes(4 * (rows + 1))))
            arrays.append(pa.StringArray.from_buffers(rows, offsets, text))
        else:
            arrays.append(_zeros(field.type, rows))
    batch = pa.RecordBatch.from_arrays(arrays, schema=chunk_schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk_schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _zeros(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_zeros(kind.value_type, rows * kind.list_size), type=kind)
    if pa.types.is_list(kind):
        offsets = pa.py_buffer(memoryview(bytes(4 * (rows + 1))))
        empty = pa.array([], kind.value_type)
        return pa.ListArray.from_buffers(kind, rows, [None, offsets], children=[empty])
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(memoryview(bytes(rows * kind.bit_width // 8)))])


def with_dictionary(rows: int) -> bytes:
    """A stream whose one column is a dictionary."""
    sink = pa.BufferOutputStream()
    schema = pa.schema([pa.field("payment_id", pa.dictionary(pa.int32(), pa.utf8()))])
    with pa.ipc.new_stream(sink, schema) as writer:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 1000]))
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))
    return bytes(sink.getvalue())
