"""The verdict of the kernels on a text: one function for every input, be it a JSON string or a cell of a file.

A text that is certain here is accepted by the reference (schemas.field_types) as it stands, and holds no card number,
plain or hidden. Whatever else it is, the reference decides.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.byte_codes import (
    ASCII_END,
    BACKSLASH,
    DASH,
    DELETE,
    QUOTE,
    SPACE,
    UNDERSCORE,
    UPPER_A,
    Integer,
    is_digit,
    is_lower,
    is_upper,
)
from schemas.card_numbers import DIGITS_MIN, may_hold_card_number
from schemas.field_kinds import Kind
from schemas.field_types import ATTRIBUTE_CHARACTERS_MAX, CHANNEL_BYTES_MAX, IDENTIFIER_CHARACTERS_MAX
from schemas.kernel_decorators import inlined_reader
from schemas.text_kernels import Bytes, is_ip

SUM_BITS: Final = 21
TEXT_BYTES_MAX: Final = (1 << SUM_BITS) - 1  # of `certain_text_end`: its sums have 21 bits
_SUM_MASK = TEXT_BYTES_MAX

# Numba freezes plain integers into compiled code.
_IDENTIFIER, _CURRENCY, _IP, _MCC = int(Kind.IDENTIFIER), int(Kind.CURRENCY), int(Kind.IP), int(Kind.MCC)
_CHANNEL, _COUNTRY, _ATTRIBUTES = int(Kind.CHANNEL), int(Kind.COUNTRY), int(Kind.ATTRIBUTES)


def byte_weights() -> npt.NDArray[np.int64]:
    """int64 [256]: what each byte of a text adds to the sums of `certain_text_end`; 0 for bytes that end it.

    Bits 0-20 count characters (bytes that are no UTF-8 continuation), 21-41 digits, 42-62 bytes other than digit,
    space, dash: each sum holds for texts up to 2 MiB. Continuation bytes are "other" too, so no byte of a text weighs
    0. Quote, backslash and control characters end a text.
    """
    weight = np.zeros(256, dtype=np.int64)
    for b in range(SPACE, 256):
        if b in (QUOTE, BACKSLASH, DELETE):
            continue
        digit = chr(b) in "0123456789"
        other = not digit and b not in (SPACE, DASH)
        weight[b] = ((b & 0xC0) != ASCII_END) + (int(digit) << SUM_BITS) + (int(other) << 2 * SUM_BITS)
    return weight


@inlined_reader
def certain_text_end(
    data: Bytes,
    start: int,
    end: int,
    kind: Integer,
    weight: npt.NDArray[np.int64],
    currency: npt.NDArray[np.bool_],
    tested: bool,
) -> int:
    """The position after the text that begins at `start`, when a field of this kind certainly takes it; else -1.

    A text ends before a quote, a backslash, a control character or `end`: the caller checks which of these it is.
    kind ATTRIBUTES: the text is an attribute's value. tested: whether it must be no card number (else its field is
    opaque or token). At most TEXT_BYTES_MAX bytes. One table load and one addition a byte.
    """
    sums = np.int64(0)
    p = start
    while p < end:
        w = weight[data[p]]
        if w == 0:
            break
        sums += w
        p += 1
    characters = sums & _SUM_MASK
    digits = (sums >> SUM_BITS) & _SUM_MASK
    bare = (sums >> 2 * SUM_BITS) == 0  # only digits, spaces and dashes
    if not _has_form(data, start, p, kind, characters, currency):
        return -1
    # Digits of other scripts have one continuation byte at least: with fewer than 13 of both there is no card number.
    continuation = p - start - characters
    if tested and digits + continuation >= DIGITS_MIN and may_hold_card_number(data, start, p, digits, bare):
        return -1
    return p


@inlined_reader
def _has_form(
    data: Bytes, start: int, end: int, kind: Integer, characters: Integer, currency: npt.NDArray[np.bool_]
) -> bool:
    """Whether a text has the form and length that its field takes; card numbers aside."""
    length = end - start
    if kind == _IDENTIFIER:
        return bool(1 <= characters <= IDENTIFIER_CHARACTERS_MAX)
    if kind == _ATTRIBUTES:
        return bool(characters <= ATTRIBUTE_CHARACTERS_MAX)
    if kind == _IP:
        return is_ip(data, start, end)
    if kind == _CURRENCY:
        return length == 3 and _all_upper(data, start, end) and bool(currency[_base26(data, start, end)])
    if kind == _COUNTRY:
        return length == 2 and _all_upper(data, start, end)
    if kind == _MCC:
        return length == 4 and _all_digits(data, start, end)
    if kind == _CHANNEL:
        return 1 <= length <= CHANNEL_BYTES_MAX and _all_channel(data, start, end)
    return False


@inlined_reader
def _base26(data: Bytes, start: int, end: int) -> Integer:
    """Capital letters as a number, as schemas.currencies.currency_index."""
    index: Integer = 0
    for p in range(start, end):
        index = index * 26 + np.int64(data[p]) - UPPER_A
    return index


@inlined_reader
def _all_upper(data: Bytes, start: int, end: int) -> bool:
    for p in range(start, end):  # noqa: SIM110 - numba has no generators
        if not is_upper(data[p]):
            return False
    return True


@inlined_reader
def _all_digits(data: Bytes, start: int, end: int) -> bool:
    for p in range(start, end):  # noqa: SIM110 - as above
        if not is_digit(data[p]):
            return False
    return True


@inlined_reader
def _all_channel(data: Bytes, start: int, end: int) -> bool:
    for p in range(start, end):
        b = data[p]
        if not (is_lower(b) or is_digit(b) or b == UNDERSCORE):
            return False
    return True
