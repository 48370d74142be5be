"""Numba loops that lay fields of many rows into one COPY stream: each writes a column of all rows, moving the cursors.

The format stands in `copy_format`.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from scorer.trail.copy_format import NULL_LENGTH

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int32]
Cursors = npt.NDArray[np.int64]


@nb.njit(inline="always")
def _put_int32(out: Bytes, at: int, value: int) -> None:
    out[at] = (value >> 24) & 0xFF
    out[at + 1] = (value >> 16) & 0xFF
    out[at + 2] = (value >> 8) & 0xFF
    out[at + 3] = value & 0xFF


@nb.njit(cache=True, nogil=True)
def put_blocks(out: Bytes, cursors: Cursors, blocks: Bytes) -> None:
    """Copies row i of `blocks` uint8[n, width] to out[cursors[i]:]."""
    width = blocks.shape[1]
    for i in range(blocks.shape[0]):
        at = cursors[i]
        for j in range(width):
            out[at + j] = blocks[i, j]
        cursors[i] = at + width


@nb.njit(cache=True, nogil=True)
def put_texts(out: Bytes, cursors: Cursors, offsets: Offsets, text: Bytes, null: npt.NDArray[np.bool_]) -> None:
    """Writes text field i = text[offsets[i]:offsets[i + 1]], or null where `null` is true (empty: none is null)."""
    for i in range(offsets.shape[0] - 1):
        at = cursors[i]
        if null.shape[0] > 0 and null[i]:
            _put_int32(out, at, NULL_LENGTH)
            cursors[i] = at + 4
            continue
        first = offsets[i]
        length = offsets[i + 1] - first
        _put_int32(out, at, length)
        at += 4
        for j in range(length):
            out[at + j] = text[first + j]
        cursors[i] = at + length


@nb.njit(cache=True, nogil=True)
def put_text_arrays(
    out: Bytes, cursors: Cursors, list_offsets: Offsets, offsets: Offsets, text: Bytes, element_oid: int
) -> None:
    """Writes text[] field i, the elements list_offsets[i]:list_offsets[i + 1] of the strings (offsets, text)."""
    for i in range(list_offsets.shape[0] - 1):
        first = list_offsets[i]
        count = list_offsets[i + 1] - first
        start = cursors[i]
        at = start + 4
        _put_int32(out, at, 1 if count > 0 else 0)
        _put_int32(out, at + 4, 0)
        _put_int32(out, at + 8, element_oid)
        at += 12
        if count > 0:
            _put_int32(out, at, count)
            _put_int32(out, at + 4, 1)
            at += 8
        for element in range(first, first + count):
            begin = offsets[element]
            length = offsets[element + 1] - begin
            _put_int32(out, at, length)
            at += 4
            for j in range(length):
                out[at + j] = text[begin + j]
            at += length
        _put_int32(out, start, at - start - 4)
        cursors[i] = at
