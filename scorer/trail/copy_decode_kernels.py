"""Numba loops over rows as Postgres sends them in binary COPY: where the fields stand, then one column after the other.

Whole words are loaded, wherever they stand: behind `data` a few more bytes must be readable. The format stands in
`copy_format`.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from features.raw_memory import peek32, peek64, poke32, swap32, swap64
from schemas.byte_copy import move
from scorer.trail.copy_format import ARRAY_HEADER_BYTES, EMPTY_ARRAY_BYTES, FLOAT_ELEMENT_BYTES

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Integer = int | np.int64  # numba has one integer, numpy's stubs have two
MALFORMED = -2  # a count for what cannot be a value that the sink wrote


@nb.njit(inline="always")
def _int32(data: Bytes, at: Integer) -> Integer:
    return np.int64(np.int32(swap32(peek32(data.ctypes.data + at))))


@nb.njit(cache=True, nogil=True)
def find_fields(data: Bytes, at: Integer, starts: Places, lengths: Places) -> int:
    """Fills starts and lengths, int64 [F, at least n], of the n rows from `at` to the trailer.

    Returns n; -1 when a row has not F fields.
    """
    n = 0
    while True:
        fields = np.int64(data[at]) << 8 | np.int64(data[at + 1])
        if fields == 0xFFFF:
            return n
        if fields != starts.shape[0] or n == starts.shape[1]:
            return -1
        at += 2
        for j in range(fields):
            length: Integer = _int32(data, at)
            at += 4
            starts[j, n] = at
            lengths[j, n] = length
            at += max(length, 0)
        n += 1


@nb.njit(cache=True, nogil=True)
def take_numbers(data: Bytes, starts: Places, width: int, out: npt.NDArray[np.uint64]) -> None:
    """The big-endian numbers of `width` bytes, 8 or 4, at `starts`, as their bits."""
    for i in range(len(starts)):
        where = data.ctypes.data + starts[i]
        out[i] = np.uint64(swap64(peek64(where))) if width == 8 else np.uint64(swap32(peek32(where)))


@nb.njit(cache=True, nogil=True)
def take_texts(data: Bytes, starts: Places, lengths: Places, out: Bytes) -> None:
    """The texts of a column one after the other; a null (length -1) has none."""
    at = 0
    for i in range(len(starts)):
        if lengths[i] > 0:
            move(out.ctypes.data + at, data.ctypes.data + starts[i], lengths[i])
            at += lengths[i]


@nb.njit(cache=True, nogil=True)
def take_codes(
    data: Bytes, starts: Places, lengths: Places, names: Bytes, ends: npt.NDArray[np.int64], out: Bytes
) -> None:
    """The place of each text among `names` (one after the other, ending at `ends`); 255 for one that is not there."""
    for i in range(len(starts)):
        out[i] = 255
        begin = 0
        for code in range(len(ends)):
            if ends[code] - begin == lengths[i]:
                same = True
                for j in range(lengths[i]):
                    same = same and data[starts[i] + j] == names[begin + j]
                if same:
                    out[i] = code
            begin = ends[code]


@nb.njit(cache=True, nogil=True)
def take_floats(
    data: Bytes, starts: Places, lengths: Places, out: npt.NDArray[np.uint32], malformed: npt.NDArray[np.bool_]
) -> None:
    """real[] fields as bits, uint32 [n, k]; rows whose array is not of k values without nulls are `malformed`."""
    width = out.shape[1]
    for i in range(len(starts)):
        at = starts[i]
        if width == 0:
            good = lengths[i] == EMPTY_ARRAY_BYTES and _int32(data, at) == 0
        else:
            good = (
                lengths[i] == ARRAY_HEADER_BYTES + FLOAT_ELEMENT_BYTES * width
                and _int32(data, at) == 1
                and _int32(data, at + 4) == 0
            )
            good = good and _int32(data, at + 12) == width and _int32(data, at + 16) == 1
        if not good:
            malformed[i] = True
            continue
        at += ARRAY_HEADER_BYTES
        source, target = data.ctypes.data + at + 4, out.ctypes.data + 4 * width * i
        for j in range(width):
            # Before it its length, 4: the whole length leaves room for nothing else.
            poke32(target + 4 * j, swap32(peek32(source + FLOAT_ELEMENT_BYTES * j)))


@nb.njit(cache=True, nogil=True)
def take_lists(
    data: Bytes,
    starts: Places,
    lengths: Places,
    counts: npt.NDArray[np.int32],
    element_lengths: npt.NDArray[np.int32],
    text: Bytes,
    text_ends: npt.NDArray[np.int64],
    element_ends: npt.NDArray[np.int64],
    malformed: npt.NDArray[np.bool_],
) -> None:
    """text[] fields: elements a row, byte lengths of all elements, their texts; where those of row i end."""
    elements = 0
    filled: Integer = 0
    for i in range(len(starts)):
        at: Integer = starts[i]
        dimensions = _int32(data, at) if lengths[i] >= EMPTY_ARRAY_BYTES else MALFORMED
        counts[i] = 0
        if dimensions == 1 and _int32(data, at + 4) == 0:
            count: Integer = _int32(data, at + 12)
            counts[i] = count
            malformed[i] |= _int32(data, at + 16) != 1  # the lower bound, which readers of features[1] go by
            at += ARRAY_HEADER_BYTES
            for _ in range(count):
                length = max(_int32(data, at), 0)
                at += 4
                element_lengths[elements] = length
                elements += 1
                move(text.ctypes.data + filled, data.ctypes.data + at, length)
                filled += length
                at += length
        elif dimensions != 0:
            malformed[i] = True
        element_ends[i] = elements
        text_ends[i] = filled
