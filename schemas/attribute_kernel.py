"""Numbers of one attribute, read where the screening kernel has found the objects of attributes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.byte_codes import CLOSE_BRACE, COMMA, LOWER_F, LOWER_N, LOWER_T, QUOTE, SPACE
from schemas.kernel_decorators import reader
from schemas.screened import LENGTH_MASK, PLACE_BITS
from schemas.text_kernels import Bytes, decimal_number, skip_space

Words = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
_ANY: Final = 1e300  # what the screening kernel takes has 12 digits before the point


@reader
def attribute_numbers(data: Bytes, places: Words, name: Bytes, found: Numbers, unread: npt.NDArray[np.bool_]) -> None:
    """The attribute `name` of each payment as a number: a truth value is 0 or 1, NaN stands for a text and for none.

    places: of objects that schemas.payment_screen is certain of, int64 [n] · unread: bool [n], numbers that the reader
    of decimals leaves to others
    """
    for i in range(len(places)):
        found[i] = np.nan
        unread[i] = False
        if places[i] < 0:
            continue
        start = int(places[i] >> PLACE_BITS)
        end = start + int(places[i] & LENGTH_MASK)
        p = _value_of(data, start, end, name)
        if p < 0:
            continue
        b = data[p]
        if b == LOWER_T:
            found[i] = 1.0
        elif b == LOWER_F:
            found[i] = 0.0
        elif b not in (QUOTE, LOWER_N):
            found[i], after = decimal_number(data, p, end, _ANY)
            unread[i] = after < 0


@reader
def _value_of(data: Bytes, start: int, end: int, name: Bytes) -> int:
    """Where the value of the attribute begins, -1 when the object has none of that name."""
    p = skip_space(data, start + 1, end)
    while data[p] != CLOSE_BRACE:
        p += 1  # its name's quote
        same = p + len(name) < end and data[p + len(name)] == QUOTE
        if same:
            for k in range(len(name)):
                if data[p + k] != name[k]:
                    same = False
                    break
        while data[p] != QUOTE:
            p += 1
        p = skip_space(data, skip_space(data, p + 1, end) + 1, end)  # past the colon
        if same:
            return p
        if data[p] == QUOTE:
            p += 1
            while data[p] != QUOTE:
                p += 1
            p += 1
        else:
            while data[p] != COMMA and data[p] != CLOSE_BRACE and data[p] > SPACE:
                p += 1
        p = skip_space(data, p, end)
        if data[p] == COMMA:
            p = skip_space(data, p + 1, end)
    return -1
