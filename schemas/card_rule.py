"""The rule for card numbers hidden in a text: between letters, behind other separators, in other scripts' digits.

It stands beside the plain rule of `schemas.card_numbers` (a text that is nothing but 13 to 19 digits). Digits are those
of any script (Unicode's decimal digits). A run is digits, and whatever is neither letter nor digit nor colon between
them; the digits that touch make a group. A stretch of groups is a card number when it has 14 to 19 digits, begins as
an issuer's numbers of that length do (`ISSUERS`), passes the Luhn check, and is one of

    a group     x4111111111111111y. Not one in a hexadecimal word of 24 characters or more (ObjectId, digests), and
                not the decimals of a number (0.4111111111111111).
    a run       4111.1111.1111.1111, 4 1 1 1 ...: all of it, groups of at most six digits with the same separator
                throughout, touching none of the letters a to f
    its ends    4111 1111 1111 1111 12/27: groups as on a card (4-4-4-4, 4-4-4-4-3, 4-6-5, 4-6-4) with the same
                separator, where a run begins or ends

What it spares was weighed: a UUID's groups of eight and twelve are too long, and whatever is shorter touches a letter
from a to f; IPv6 addresses have colons; coordinates, times and IBANs mix separators or begin otherwise. What stays: an
id of 14 to 19 digits in a row that begins as a card number does is refused one time in ten, prefix or not. So ids
should not be long numbers (`tests/unit/test_cards.py` measures ids of several kinds).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.byte_codes import (
    ASCII_END,
    COLON,
    NINE,
    POINT,
    ZERO,
    Integer,
    is_alphanumeric,
    is_digit,
    is_hex_letter,
)
from schemas.kernel_decorators import part

Bytes = npt.NDArray[np.uint8]
Digits = npt.NDArray[np.int64]

HIDDEN_MIN: Final = 14  # numbers of 13 digits are no longer issued, and EAN-13 codes look like them
HIDDEN_MAX: Final = 19
GROUP_MAX: Final = 6
HEX_WORD_MIN: Final = 24

# First and last beginning (four digits), fewest and most digits.
ISSUERS: Final = np.array(
    [
        (4000, 4999, 16, 19),  # Visa
        (5100, 5599, 16, 16),  # Mastercard
        (2221, 2720, 16, 16),
        (3400, 3499, 15, 15),  # American Express
        (3700, 3799, 15, 15),
        (3000, 3059, 14, 14),  # Diners Club
        (3095, 3095, 14, 14),
        (3600, 3699, 14, 14),
        (3800, 3999, 14, 14),
        (6011, 6011, 16, 19),  # Discover
        (6440, 6599, 16, 19),  # and RuPay
        (6200, 6299, 16, 19),  # UnionPay
        (8100, 8171, 16, 19),
        (3528, 3589, 16, 19),  # JCB
        (2200, 2204, 16, 19),  # Mir
        (5018, 5018, 16, 19),  # Maestro
        (5020, 5020, 16, 19),
        (5038, 5038, 16, 19),
        (5893, 5893, 16, 19),
        (6304, 6304, 16, 19),
        (6759, 6759, 16, 19),
        (6761, 6763, 16, 19),
        (5060, 5089, 16, 19),  # Verve, Elo, RuPay
        (9792, 9792, 16, 16),  # Troy
    ],
    dtype=np.int64,
)
_ZEROS = np.array(
    [c for c in range(sys.maxunicode + 1) if unicodedata.decimal(chr(c), None) == 0], dtype=np.int64
)  # each script's, its other nine digits behind it
_DIGIT = np.array([ZERO <= b <= NINE for b in range(256)], dtype=np.int64)
# All bits, and none where a run ends: letters and the colon.
_KEEP = np.array(
    [0 if b == COLON or (chr(b).isascii() and chr(b).isalpha()) else -1 for b in range(256)], dtype=np.int64
)
PRINTED: Final = ((4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4))

_RUN = re.compile(r"\d+(?:(?:[^\w:]|_)+\d+)*")
_GROUP = re.compile(r"\d+")
_HEX_LETTERS = frozenset("abcdefABCDEF")
_HEX = frozenset("0123456789abcdefABCDEF")

Span = tuple[int, int]


def luhn(digits: str) -> bool:
    """The Luhn check (ISO/IEC 7812-1) over digits of any script."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) << (place & 1)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def hidden_spans(text: str) -> Iterator[Span]:
    """Where card numbers hide in `text` by the rule above, first and behind the last character.

    Pure Python: the reference of the kernel.
    """
    if len(text) < HIDDEN_MIN:
        return
    for run in _RUN.finditer(text):
        groups = [found.span() for found in _GROUP.finditer(text, *run.span())]
        for first, end in groups:
            if _is_number(text[first:end]) and not _is_hex_word(text, first, end) and not _is_decimals(text, first):
                yield first, end
        if len(groups) > 1:
            yield from _spans_of_several(text, groups)


def _spans_of_several(text: str, groups: list[Span]) -> Iterator[Span]:
    sizes = [end - first for first, end in groups]
    begins_free = groups[0][0] == 0 or text[groups[0][0] - 1] not in _HEX_LETTERS
    ends_free = groups[-1][1] == len(text) or text[groups[-1][1]] not in _HEX_LETTERS
    if begins_free and ends_free and max(sizes) <= GROUP_MAX and _is_stretch(text, groups):
        yield groups[0][0], groups[-1][1]
    for printed in PRINTED:
        n = len(printed)
        alone = n == len(groups)
        if begins_free and (ends_free or not alone) and tuple(sizes[:n]) == printed and _is_stretch(text, groups[:n]):
            yield groups[0][0], groups[n - 1][1]
        if ends_free and not alone and tuple(sizes[-n:]) == printed and _is_stretch(text, groups[-n:]):
            yield groups[-n][0], groups[-1][1]


def _is_stretch(text: str, groups: list[Span]) -> bool:
    separators = {text[before[1] : after[0]] for before, after in pairwise(groups)}
    return len(separators) == 1 and _is_number("".join(text[first:end] for first, end in groups))


def _is_number(digits: str) -> bool:
    if not HIDDEN_MIN <= len(digits) <= HIDDEN_MAX:
        return False
    beginning = int(digits[:4])
    issued = any(low <= beginning <= high and least <= len(digits) <= most for low, high, least, most in _ISSUERS)
    return issued and luhn(digits)


_ISSUERS = [tuple(map(int, row)) for row in ISSUERS]


def _is_hex_word(text: str, first: int, end: int) -> bool:
    while first > 0 and text[first - 1].isascii() and text[first - 1].isalnum():
        first -= 1
    while end < len(text) and text[end].isascii() and text[end].isalnum():
        end += 1
    return end - first >= HEX_WORD_MIN and _HEX.issuperset(text[first:end])


def _is_decimals(text: str, first: int) -> bool:
    return first >= 2 and text[first - 1] == "." and text[first - 2].isdecimal()


@part
def may_hide(data: Bytes, start: Integer, end: Integer) -> bool:
    """Whether data[start:end], UTF-8, has to be looked at by `hidden_spans`: for ASCII texts its very answer; for
    others whether there are digits enough, those of other scripts included."""
    digits = np.int64(0)
    most = np.int64(0)
    every = np.int64(0)
    p = start
    while p < end:  # without a branch: in random ids each would be a guess
        b = np.int64(data[p])
        every |= b
        digits = (digits + _DIGIT[b]) & _KEEP[b]
        most = max(most, digits)
        p += 1
    if every >= ASCII_END:
        return _digits_enough(data, start, end)
    return bool(most >= HIDDEN_MIN and _ascii_hides(data, start, end))


@part
def _digits_enough(data: Bytes, start: Integer, end: Integer) -> bool:
    total: Integer = 0
    p = start
    while p < end:
        b = np.int64(data[p])
        if b < ASCII_END:
            total += is_digit(b)
            p += 1
            continue
        size = 2 if b < 0xE0 else 3 if b < 0xF0 else 4
        point = b & (0xFF >> (size + 1))
        for k in range(p + 1, min(p + size, end)):
            point = (point << 6) | (np.int64(data[k]) & 63)
        place = np.searchsorted(_ZEROS, point, side="right") - 1
        total += place >= 0 and point - _ZEROS[place] < 10
        p += size
    return bool(total >= HIDDEN_MIN)


@part
def _ascii_hides(data: Bytes, start: Integer, end: Integer) -> bool:
    n = end - start
    digit = np.empty(n, dtype=np.int64)
    begin = np.empty(n // 2 + 1, dtype=np.int64)  # of each group in data, of the current run
    size = np.empty(n // 2 + 1, dtype=np.int64)
    p = start
    while p < end:
        if not is_digit(data[p]):
            p += 1
            continue
        groups = 0
        count = 0
        while True:
            begin[groups] = p
            while p < end and is_digit(data[p]):
                digit[count] = np.int64(data[p]) - ZERO
                count += 1
                p += 1
            size[groups] = p - begin[groups]
            if _number(digit, count - size[groups], count) and not _spared(data, start, end, begin[groups], p):
                return True
            groups += 1
            q = p
            while q < end and not (is_alphanumeric(data[q]) or data[q] == COLON):
                q += 1
            if q in (end, p) or not is_digit(data[q]):
                break
            p = q
        if groups > 1 and _several(data, start, end, digit, begin, size, groups, count):
            return True
    return False


@part
def _several(
    data: Bytes,
    start: Integer,
    end: Integer,
    digit: Digits,
    begin: Digits,
    size: Digits,
    groups: int,
    count: int,
) -> bool:
    begins_free = begin[0] == start or not is_hex_letter(data[begin[0] - 1])
    last = begin[groups - 1] + size[groups - 1]
    ends_free = last == end or not is_hex_letter(data[last])
    short = begins_free and ends_free and size[:groups].max() <= GROUP_MAX
    if short and _same(data, begin, size, 0, groups) and _number(digit, 0, count):
        return True
    for n in (3, 4, 5):
        if n > groups:
            break
        for at in (0, groups - n):
            free = begins_free if at == 0 else ends_free
            if at == 0 and n == groups:
                free = begins_free and ends_free
            if not free or not _printed(size, at, n) or not _same(data, begin, size, at, n):
                continue
            length = size[at : at + n].sum()
            first = 0 if at == 0 else count - length
            if _number(digit, first, first + length):
                return True
    return False


@part
def _printed(size: Digits, at: int, n: int) -> bool:
    if size[at] != 4:
        return False
    if n == 3:
        return bool(size[at + 1] == 6 and (size[at + 2] == 5 or size[at + 2] == 4))
    four = size[at + 1] == 4 and size[at + 2] == 4 and size[at + 3] == 4
    return bool(four and (n == 4 or size[at + 4] == 3))


@part
def _same(data: Bytes, begin: Digits, size: Digits, at: int, n: int) -> bool:
    """Whether the same separator stands between all of n groups."""
    first = begin[at] + size[at]
    length = begin[at + 1] - first
    for k in range(at + 1, at + n - 1):
        here = begin[k] + size[k]
        if begin[k + 1] - here != length:
            return False
        for j in range(length):
            if data[first + j] != data[here + j]:
                return False
    return True


@part
def luhn_holds(digit: Digits, first: Integer, end: Integer) -> bool:
    """`luhn` for kernels, over the values digit[first:end]."""
    total: Integer = 0
    for k in range(first, end):
        value = digit[k]
        if (end - 1 - k) & 1:
            value *= 2
            if value > 9:
                value -= 9
        total += value
    return bool(total % 10 == 0)


@part
def _number(digit: Digits, first: int, end: int) -> bool:
    length = end - first
    if not HIDDEN_MIN <= length <= HIDDEN_MAX:
        return False
    beginning = digit[first] * 1000 + digit[first + 1] * 100 + digit[first + 2] * 10 + digit[first + 3]
    issued = False
    for row in range(len(ISSUERS)):
        issued |= ISSUERS[row, 0] <= beginning <= ISSUERS[row, 1] and ISSUERS[row, 2] <= length <= ISSUERS[row, 3]
    if not issued:
        return False
    return luhn_holds(digit, first, end)


@part
def _spared(data: Bytes, start: Integer, end: Integer, first: Integer, last: Integer) -> bool:
    """Whether the group data[first:last] is in a hexadecimal word, or the decimals of a number."""
    if first - start >= 2 and data[first - 1] == POINT and is_digit(data[first - 2]):
        return True
    while first > start and is_alphanumeric(data[first - 1]):
        first -= 1
    while last < end and is_alphanumeric(data[last]):
        last += 1
    if last - first < HEX_WORD_MIN:
        return False
    for k in range(first, last):  # noqa: SIM110 - numba has no generators
        if not (is_digit(data[k]) or is_hex_letter(data[k])):
            return False
    return True
