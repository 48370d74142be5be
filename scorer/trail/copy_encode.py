"""Audit rows as a Postgres binary COPY stream, laid row by row from the Arrow buffers they arrived in.

    COPY_IN        HEADER + rows_bytes(...) + rows_bytes(...) + TRAILER        (all of `copy_format`)

All of a row up to its last field of fixed width is its head, feature array and bundle's id included: made once for a
chunk, copied for each row, and filled with the row's numbers by `copy_encode_kernels`. Pure: no connection here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.audit_record import AuditHeader
from scorer.trail import copy_encode_kernels
from scorer.trail.copy_format import (
    CODES,
    COLUMNS,
    FIXED,
    LISTS,
    MATRICES,
    POSTGRES_EPOCH_DAY,
    POSTGRES_EPOCH_MS,
    TEXTS,
    fixed_bytes,
    float_array_bytes,
    float_array_header,
)

# Of the chunk's columns, as they stand in Arrow: the field of the head that each fills.
_NUMBERS = {
    "event_time": "event_time",  # not as it stands: Postgres counts otherwise
    "origin_offset": "offset",
    "amount_minor": "amount_minor",
    "score": "score",
    "origin_partition": "partition",
    "margin": "margin",
}
_TEXTS = TEXTS[1:]  # the bundle is in the head
_WORDS = {name: pa.array(words) for name, words in CODES.items()}
_LENGTH_BYTES = 4
_LIST_BYTES = 24  # of a list without its elements: its length and five words of array header
_WORD_BYTES_MAX = {name: max(map(len, words)) for name, words in CODES.items()}


def rows_bytes(header: AuditHeader, batch: pa.RecordBatch, day: int) -> npt.NDArray[np.uint8]:
    """The rows of a chunk that `schemas.audit_record.decode_chunk` validated, as COPY bytes without header and trailer.

    `day` is that of the batch, in days since 1970-01-01. 0.2 µs a row at 44 features.
    """
    n = batch.num_rows
    if n == 0:
        return np.empty(0, np.uint8)
    head = _head(header, day)
    places: Mapping[str, Any] = head.dtype.fields or {}
    times = (batch.column("event_time_ms").to_numpy(zero_copy_only=True) - POSTGRES_EPOCH_MS) * 1000
    numbers: list[int] = []
    for name, source in _NUMBERS.items():
        address = times.ctypes.data if name == "event_time" else _address(batch.column(source), fixed_bytes(name))
        numbers += [address, places[name][1], int(fixed_bytes(name) == 8)]
    matrices: list[int] = []
    for name, width in zip(MATRICES, (len(header.feature_names), len(header.challengers)), strict=True):
        if width:
            column = batch.column(name)
            values = column.values
            matrices += [_address(values, 4) + 4 * width * column.offset, places[name][1], width]
    room = n * (head.dtype.itemsize + _LENGTH_BYTES * len(_TEXTS))
    texts: list[int] = []
    for name in _TEXTS:
        entry, size = _text_entry(batch.column(name))
        texts += entry
        room += size
    codes: list[int] = []
    for name, words in _WORDS.items():
        codes += [_address(batch.column(name), 1), words.buffers()[1].address, words.buffers()[2].address]
        room += n * (_LENGTH_BYTES + _WORD_BYTES_MAX[name])
    lists: list[int] = []
    for name in LISTS:
        column = batch.column(name)
        (offsets, text, _, _), size = _text_entry(column.values)
        lists += [column.buffers()[1].address + 4 * column.offset, offsets, text]
        room += n * _LIST_BYTES + _LENGTH_BYTES * len(column.values) + size

    counts = (len(_NUMBERS), len(matrices) // copy_encode_kernels.MATRIX_ENTRY, len(_TEXTS), len(_WORDS), len(LISTS))
    first = [head.ctypes.data, head.dtype.itemsize, places["row_number"][1], header.first_row, *counts]
    table = np.array([*first, *numbers, *matrices, *texts, *codes, *lists], np.int64)
    out = np.empty(room, np.uint8)  # more than enough: pages that stay empty cost nothing
    end = copy_encode_kernels.put_rows(table, n, out.ctypes.data)
    return out[: end - out.ctypes.data]


def _head(header: AuditHeader, day: int) -> npt.NDArray[Any]:
    """The head of a row, one packed record, with everything that is the same in all rows of a chunk."""
    bundle = header.bundle.encode()
    head = _head_template((len(header.feature_names), len(header.challengers)), len(bundle)).copy()
    head["sequence"] = header.sequence
    head["threshold"] = header.threshold
    head["day"] = day - POSTGRES_EPOCH_DAY
    head["shard"] = header.shard
    head["bundle"] = np.frombuffer(bundle, np.uint8)
    return head


@lru_cache(maxsize=16)
def _head_template(widths: tuple[int, int], bundle_length: int) -> npt.NDArray[Any]:
    """The head with every length and array header filled in, and nothing else."""
    fields: list[tuple[Any, ...]] = [("field_count", ">i2")]
    for name, kind in FIXED.items():
        fields += [(f"{name}_length", ">i4"), (name, kind)]
    fields += [("bundle_length", ">i4"), ("bundle", np.uint8, (bundle_length,))]
    for name, width in zip(MATRICES, widths, strict=True):
        fields += [(f"{name}_length", ">i4"), (f"{name}_header", ">i4", (len(float_array_header(width)),))]
        if width:
            fields.append((name, [("length", ">i4"), ("value", ">u4")], (width,)))
    template = np.zeros((), np.dtype(fields))
    template["field_count"] = len(COLUMNS)
    for name in FIXED:
        template[f"{name}_length"] = fixed_bytes(name)
    template["bundle_length"] = bundle_length
    for name, width in zip(MATRICES, widths, strict=True):
        template[f"{name}_length"] = float_array_bytes(width)
        template[f"{name}_header"] = float_array_header(width)
    return template


def _address(column: pa.Array, width: int) -> int:
    """Of the first value of a column of fixed `width` in bytes."""
    address: int = column.buffers()[1].address + width * column.offset
    return address


def _text_entry(column: pa.StringArray) -> tuple[tuple[int, int, int, int], int]:
    """The column's places as the kernel's table has them, and how many bytes of text it may hold at most."""
    validity, offsets, text = column.buffers()
    size = 0 if text is None else text.size
    where = offsets.address + 4 * column.offset if offsets is not None else 0
    nulls = validity.address if validity is not None and column.null_count else 0
    return (where, 0 if text is None else text.address, nulls, column.offset), size
