"""The binary COPY stream: read back field by field, it holds the columns it was made of."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from test_audit import header

from schemas.audit_record import NULLABLE, AuditColumns, decode_chunk, encode
from schemas.decision import DECISIONS, MODES
from scorer.trail import copy_encode, copy_format
from tests.audit_columns import columns


def fields(stream: bytes) -> Iterator[dict[str, bytes | None]]:
    """Rows of a COPY stream without header and trailer, by the format's description alone."""
    at = 0
    while at < len(stream):
        (count,) = struct.unpack_from(">h", stream, at)
        at += 2
        assert count == len(copy_format.COLUMNS)
        row: dict[str, bytes | None] = {}
        for name in copy_format.COLUMNS:
            (length,) = struct.unpack_from(">i", stream, at)
            at += 4
            row[name] = None if length < 0 else stream[at : at + length]
            at += max(length, 0)
        yield row
    assert at == len(stream)


def array(raw: bytes, oid: int) -> list[bytes]:
    """The elements of a one-dimensional array without nulls."""
    dimensions, nulls, element = struct.unpack_from(">iii", raw)
    assert (nulls, element) == (0, oid)
    if dimensions == 0:
        assert len(raw) == 12
        return []
    count, lower = struct.unpack_from(">ii", raw, 12)
    assert (dimensions, lower) == (1, 1)
    at, elements = 20, []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", raw, at)
        elements.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(raw)
    return elements


@given(columns())
@settings(max_examples=150, deadline=None)  # the first example compiles the kernels
def test_stream_holds_the_columns(given: AuditColumns) -> None:
    """Every cell stands in the stream where Postgres looks for it, sliced batches included."""
    k, c = given.features.shape[1], given.challenger_margins.shape[1]
    about, batch = decode_chunk(encode(given, header(k, c))[0])
    half = batch.num_rows // 2
    later = about.model_copy(update={"first_row": half})
    parts = [
        copy_encode.rows_bytes(about, batch.slice(0, half), 20_454),
        copy_encode.rows_bytes(later, batch.slice(half), 20_454),
    ]
    rows = list(fields(b"".join(part.tobytes() for part in parts)))
    assert len(rows) == len(given)
    for i, row in enumerate(rows):
        microseconds = (int(given.event_time_ms[i]) - 946_684_800_000) * 1000
        assert row["event_time"] == struct.pack(">q", microseconds)
        assert row["sequence"] == struct.pack(">q", about.sequence)
        assert row["origin_offset"] == struct.pack(">q", given.offset[i])
        assert row["amount_minor"] == struct.pack(">q", given.amount_minor[i])
        score = float(given.score[i])
        assert row["score"] == struct.pack(">d", float("nan") if math.isnan(score) else score)
        assert row["threshold"] == struct.pack(">d", about.threshold)
        assert row["shard"] == struct.pack(">i", about.shard)
        assert row["row_number"] == struct.pack(">i", i)
        assert row["origin_partition"] == struct.pack(">i", given.partition[i])
        assert row["day"] == struct.pack(">i", 20_454 - 10_957)  # 2026-01-01, counted from 2000-01-01
        assert row["margin"] == struct.pack(">I", canonical_bits(given.margin[i]))
        assert row["bundle"] == about.bundle.encode()
        assert row["decision"] == DECISIONS[given.decision[i]].encode()
        assert row["mode"] == MODES[given.mode[i]].encode()
        for name in ("payment_id", "currency", *NULLABLE):
            value = getattr(given, name)[i]
            assert row[name] == (None if value is None else value.encode())
        for name in ("reasons", "fired"):
            assert array(row[name], 25) == [element.encode() for element in getattr(given, name)[i]]
        for name in ("features", "challenger_margins"):
            matrix = getattr(given, name)
            assert array(row[name], 700) == [struct.pack(">I", canonical_bits(value)) for value in matrix[i]]


def canonical_bits(value: np.float32) -> int:
    return 0x7FC00000 if np.isnan(value) else int(value.view(np.uint32))
