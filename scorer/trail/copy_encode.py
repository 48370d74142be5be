"""Audit rows as a Postgres binary COPY stream, built column by column from the Arrow buffers they arrived in.

    COPY_IN        HEADER + rows_bytes(...) + rows_bytes(...) + TRAILER        (all of `copy_format`)

All fixed-width fields of a row, the feature array and the bundle's id included, are one numpy record; the texts and
text arrays are laid behind it by the loops in `copy_encode_kernels`. Pure: no connection here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.audit_record import AuditHeader
from scorer.trail.copy_encode_kernels import put_blocks, put_text_arrays, put_texts
from scorer.trail.copy_format import (
    CODES,
    COLUMNS,
    FIXED,
    LISTS,
    MATRICES,
    OID_TEXT,
    POSTGRES_EPOCH_DAY,
    POSTGRES_EPOCH_MS,
    TEXTS,
    fixed_bytes,
    float_array_bytes,
    float_array_header,
)

_NO_NULLS = np.empty(0, np.bool_)
_WORDS = {name: pa.array(words) for name, words in CODES.items()}


def rows_bytes(header: AuditHeader, batch: pa.RecordBatch, day: int) -> npt.NDArray[np.uint8]:
    """The rows of a chunk that `schemas.audit_record.decode_chunk` validated, as COPY bytes without header and trailer.

    `day` is that of the batch, in days since 1970-01-01.
    """
    n = batch.num_rows
    if n == 0:
        return np.empty(0, np.uint8)
    blocks = _blocks(header, batch, day)
    texts = [_text_buffers(batch.column(name)) for name in TEXTS[1:]]  # the bundle is in the blocks
    texts += [_text_buffers(words.take(batch.column(name))) for name, words in _WORDS.items()]
    lists = [_list_buffers(batch.column(name)) for name in LISTS]

    sizes = np.full(n, blocks.shape[1] + 4 * len(texts), np.int64)
    for offsets, _, _ in texts:
        sizes += np.diff(offsets)  # nulls own no bytes
    for list_offsets, offsets, _ in lists:
        counts = np.diff(list_offsets)
        # Length and three words of array header; two words of dimension unless empty; length and bytes of each element.
        sizes += 16 + 8 * (counts > 0) + 4 * counts + (offsets[list_offsets[1:]] - offsets[list_offsets[:-1]])

    ends = np.cumsum(sizes)
    out = np.empty(ends[-1], np.uint8)
    cursors = ends - sizes
    put_blocks(out, cursors, blocks)
    for offsets, text, null in texts:
        put_texts(out, cursors, offsets, text, null)
    for list_offsets, offsets, text in lists:
        put_text_arrays(out, cursors, list_offsets, offsets, text, OID_TEXT)
    return out


def _blocks(header: AuditHeader, batch: pa.RecordBatch, day: int) -> npt.NDArray[np.uint8]:
    """Everything of fixed width, uint8[n, width]."""
    bundle = header.bundle.encode()
    kind, template = _block_dtype((len(header.feature_names), len(header.challengers)), len(bundle))
    block = np.empty(batch.num_rows, kind)
    block[:] = template

    def column(name: str) -> npt.NDArray[Any]:
        return batch.column(name).to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]

    block["event_time"] = (column("event_time_ms") - POSTGRES_EPOCH_MS) * 1000
    block["sequence"] = header.sequence
    block["origin_offset"] = column("offset")
    block["amount_minor"] = column("amount_minor")
    block["score"] = column("score")
    block["threshold"] = header.threshold
    block["day"] = day - POSTGRES_EPOCH_DAY
    block["shard"] = header.shard
    block["row_number"] = np.arange(header.first_row, header.first_row + batch.num_rows)
    block["origin_partition"] = column("partition")
    block["margin"] = column("margin")
    block["bundle"] = np.frombuffer(bundle, np.uint8)
    for name, width in zip(MATRICES, (len(header.feature_names), len(header.challengers)), strict=True):
        if width:
            # As integers: byte-swapping a float32 through the float unit could quieten a NaN; bits are what is kept.
            values = batch.column(name).flatten().to_numpy(zero_copy_only=True).view(np.uint32)
            block[name]["value"] = values.reshape(batch.num_rows, width)
    return block.view(np.uint8).reshape(batch.num_rows, kind.itemsize)


@lru_cache(maxsize=16)
def _block_dtype(widths: tuple[int, int], bundle_length: int) -> tuple[np.dtype[Any], npt.NDArray[Any]]:
    """The record of the fixed-width fields, packed, and one with every length and array header filled in."""
    fields: list[tuple[Any, ...]] = [("field_count", ">i2")]
    for name, kind in FIXED.items():
        fields += [(f"{name}_length", ">i4"), (name, kind)]
    fields += [("bundle_length", ">i4"), ("bundle", np.uint8, (bundle_length,))]
    for name, width in zip(MATRICES, widths, strict=True):
        fields += [(f"{name}_length", ">i4"), (f"{name}_header", ">i4", (len(float_array_header(width)),))]
        if width:
            fields.append((name, [("length", ">i4"), ("value", ">u4")], (width,)))
    record = np.dtype(fields)
    template = np.zeros((), record)
    template["field_count"] = len(COLUMNS)
    for name in FIXED:
        template[f"{name}_length"] = fixed_bytes(name)
    template["bundle_length"] = bundle_length
    for name, width in zip(MATRICES, widths, strict=True):
        template[f"{name}_length"] = float_array_bytes(width)
        template[f"{name}_header"] = float_array_header(width)
        if width:
            template[name]["length"] = 4
    return record, template


def _text_buffers(column: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    _, offsets_buffer, text = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, count=len(column) + 1, offset=4 * column.offset)
    null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else _NO_NULLS
    return offsets, np.frombuffer(text or b"", np.uint8), null


def _list_buffers(column: pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    list_offsets = np.frombuffer(column.buffers()[1], np.int32, count=len(column) + 1, offset=4 * column.offset)
    elements = column.values
    if len(elements) == 0:
        return list_offsets, np.zeros(1, np.int32), np.empty(0, np.uint8)
    offsets, text, _ = _text_buffers(elements)
    return list_offsets, offsets, text
