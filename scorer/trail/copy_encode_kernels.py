"""The loop that lays decision rows, one after the other, into a COPY stream.

It reads the Arrow buffers of a chunk through a table of addresses (`copy_encode` fills it and keeps the memory alive):
25 arrays as arguments would cost more than a small batch does. The format stands in `copy_format`.

    table       places of the head (HEAD_*), then NUMBERS, the MATRICES, the texts, the codes, the lists; in this order
    number      address of the first value, byte offset in the head, WIDE (8 bytes) or narrow (4)
    matrix      address of the first value, byte offset of the first element in the head, elements a row
    text        addresses of offsets int32 [n + 1], texts, validity bitmap (0: no nulls); first bit of the bitmap
    code        addresses of the codes uint8 [n], of offsets and of texts of the words
    list        addresses of list offsets int32 [n + 1], element offsets, texts
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from features.raw_memory import entry, peek8, peek32, peek64, poke32, poke64, swap32, swap64
from schemas.byte_copy import move
from scorer.trail.copy_format import OID_TEXT

# The head is all of a row up to its last field of fixed width; most of it is the same in all rows.
HEAD_ADDRESS: Final = 0
HEAD_BYTES: Final = 1
HEAD_ROW_NUMBER: Final = 2  # byte offset of the row number
FIRST_ROW: Final = 3
COUNTS: Final = 4  # how many numbers, matrices, texts, codes, lists
ENTRIES: Final = 9

NUMBER_ENTRY: Final = 3
MATRIX_ENTRY: Final = 3
TEXT_ENTRY: Final = 4
CODE_ENTRY: Final = 3
LIST_ENTRY: Final = 3

_FLOAT_LENGTH: Final = 4 << 24  # the int32 4, big endian, before each element of a real[]
_OID_TEXT_SWAPPED: Final = int.from_bytes(OID_TEXT.to_bytes(4, "big"), "little")
_ONE_SWAPPED: Final = 1 << 24
_NULL_LENGTH_BITS: Final = 0xFFFF_FFFF


@entry
def put_rows(table: Any, n: int, out: int) -> int:
    """Writes `n` rows to the address `out`; where the last one ends. `table` int64, as above."""
    numbers, matrices, texts = table[COUNTS], table[COUNTS + 1], table[COUNTS + 2]
    codes, lists = table[COUNTS + 3], table[COUNTS + 4]
    for i in range(n):
        move(out, table[HEAD_ADDRESS], table[HEAD_BYTES])
        poke32(out + table[HEAD_ROW_NUMBER], swap32(table[FIRST_ROW] + i))
        entry = ENTRIES
        for _ in range(numbers):
            if table[entry + 2]:
                poke64(out + table[entry + 1], swap64(peek64(table[entry] + 8 * i)))
            else:
                poke32(out + table[entry + 1], swap32(peek32(table[entry] + 4 * i)))
            entry += NUMBER_ENTRY
        for _ in range(matrices):
            width = table[entry + 2]
            source, target = table[entry] + 4 * width * i, out + table[entry + 1]
            for j in range(width):
                poke64(target + 8 * j, (np.int64(swap32(peek32(source + 4 * j))) << 32) | _FLOAT_LENGTH)
            entry += MATRIX_ENTRY
        at = out + table[HEAD_BYTES]
        for _ in range(texts):
            bit = table[entry + 3] + i
            if table[entry + 2] and not (np.int64(peek8(table[entry + 2] + (bit >> 3))) >> (bit & 7)) & 1:
                poke32(at, _NULL_LENGTH_BITS)
                at += 4
            else:
                first = np.int64(peek32(table[entry] + 4 * i))
                length = np.int64(peek32(table[entry] + 4 * i + 4)) - first
                poke32(at, swap32(length))
                move(at + 4, table[entry + 1] + first, length)
                at += 4 + length
            entry += TEXT_ENTRY
        for _ in range(codes):
            word = table[entry + 1] + 4 * np.int64(peek8(table[entry] + i))
            first = np.int64(peek32(word))
            length = np.int64(peek32(word + 4)) - first
            poke32(at, swap32(length))
            move(at + 4, table[entry + 2] + first, length)
            at += 4 + length
            entry += CODE_ENTRY
        for _ in range(lists):
            first = np.int64(peek32(table[entry] + 4 * i))
            count = np.int64(peek32(table[entry] + 4 * i + 4)) - first
            start = at
            poke32(at + 4, _ONE_SWAPPED if count else 0)
            poke32(at + 8, 0)
            poke32(at + 12, _OID_TEXT_SWAPPED)
            at += 16
            if count:
                poke32(at, swap32(count))
                poke32(at + 4, _ONE_SWAPPED)
                at += 8
            for element in range(first, first + count):
                begin = np.int64(peek32(table[entry + 1] + 4 * element))
                length = np.int64(peek32(table[entry + 1] + 4 * element + 4)) - begin
                poke32(at, swap32(length))
                move(at + 4, table[entry + 2] + begin, length)
                at += 4 + length
            poke32(start, swap32(at - start - 4))
            entry += LIST_ENTRY
        out = at
    return out
