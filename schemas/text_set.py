"""A set of texts that kernels look up by their bytes: categories, filters' values, currencies.

TextSet(["EUR", "USD"]).numbers(data, places)      int64 [n]: 0, 1, or -1 for any other text and for none
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.byte_codes import Integer
from schemas.kernel_decorators import reader
from schemas.screened import LENGTH_MASK, PLACE_BITS

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]

NOT_THERE: Final = -1
_FNV_START = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


class TextSet:
    """Texts by number, in the order given; a repeated one has its first number. They are fixed, and come
    from no payment, so that their hash needs no secret key."""

    def __init__(self, texts: Iterable[str]) -> None:
        raw = [text.encode() for text in dict.fromkeys(texts)]
        self._text = np.frombuffer(b"".join(raw) or b"\0", dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, raw)], dtype=np.int64)
        slots = 4
        while slots < 2 * len(raw):
            slots *= 2
        self._slots = np.full(slots, NOT_THERE, dtype=np.int64)
        _fill(self._text, self._ends, self._slots)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def numbers(self, data: Bytes, places: Words) -> Words:
        """The number of each text, int64 [n]; NOT_THERE for any other, and for none. `places` as in
        schemas.payment_screen."""
        found = np.empty(len(places), dtype=np.int64)
        _look_up(data, places, self._text, self._ends, self._slots, found)
        return found


@reader
def _slot_of(data: Bytes, start: Integer, length: Integer, text: Bytes, ends: Words, slots: Words) -> Integer:
    """The slot that holds the text, or the free one where it belongs."""
    hashed = _FNV_START
    for k in range(length):
        hashed = (hashed ^ np.uint64(data[start + k])) * _FNV_PRIME
    mask = len(slots) - 1
    slot = np.int64((hashed ^ (hashed >> np.uint64(32))) & np.uint64(mask))
    while slots[slot] >= 0:
        first = ends[slots[slot]]
        if ends[slots[slot] + 1] - first == length:
            same = True
            for k in range(length):
                if text[first + k] != data[start + k]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & mask
    return slot


@reader
def _fill(text: Bytes, ends: Words, slots: Words) -> None:
    for number in range(len(ends) - 1):
        slots[_slot_of(text, ends[number], ends[number + 1] - ends[number], text, ends, slots)] = number


@reader
def _look_up(data: Bytes, places: Words, text: Bytes, ends: Words, slots: Words, found: Words) -> None:
    for i in range(len(places)):
        place = places[i]
        if place < 0:
            found[i] = NOT_THERE
        else:
            found[i] = slots[_slot_of(data, place >> PLACE_BITS, place & LENGTH_MASK, text, ends, slots)]
