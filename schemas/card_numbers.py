"""Card numbers: what a text, a number or a record's key must not be. One rule for every input.

A text is a card number when, without its spaces and dashes, it is 13 to 19 ASCII digits that pass the Luhn check
(ISO/IEC 7812-1). One in ten numeric ids of that length passes by chance; that is why ids should not be bare digits.
A text holds a card number, too, when one hides in it: between letters, behind other separators, in digits of another
script. That rule is `schemas.card_rule`'s, which asks for an issuer's beginning as well.
"""

from __future__ import annotations

import re
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.byte_codes import CARRIAGE_RETURN, DASH, LINE_FEED, QUOTE, SPACE, TAB, ZERO, Integer, is_digit
from schemas.card_rule import hidden_spans, luhn, may_hide
from schemas.kernel_decorators import array_maker

Bytes = npt.NDArray[np.uint8]

_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")
# fmt: off
IBAN_LENGTHS: Final = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}
# fmt: on

DIGITS_MIN: Final = 13
DIGITS_MAX: Final = 19
SAFE_DIGITS_MAX: Final = DIGITS_MIN - 1  # a number of so few digits is no card number


def is_card_number(text: str) -> bool:
    """Whether `text` is a card number as a whole, spaces and dashes aside.

    Pure Python: the reference of the kernels.
    """
    if len(text) < DIGITS_MIN:
        return False
    digits = text.replace(" ", "").replace("-", "")
    if not (DIGITS_MIN <= len(digits) <= DIGITS_MAX and digits.isascii() and digits.isdigit()):
        return False
    return luhn(digits)


def holds_card_number(text: str, *, ibans_spared: bool = True) -> bool:
    """Whether `text` is a card number, or one hides in it. The rule for every input; releases before 0.2 spared no
    IBANs."""
    if len(text) < DIGITS_MIN or (text.isascii() and _ascii_digits(text) < DIGITS_MIN):
        return False  # by far the most texts: too few digits for either rule
    if is_card_number(text):
        return True
    return next(hidden_spans(text), None) is not None and not (ibans_spared and is_iban(text))


def is_iban(text: str) -> bool:
    """Whether `text` certainly is an account number: country and length of the IBAN registry (ISO 13616), and the check
    over all of it (mod 97). A random text of that form passes one time in 97."""
    compact = text.replace(" ", "")
    if _IBAN.fullmatch(compact) is None or IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _ascii_digits(text: str) -> int:
    return len(text) - len(text.encode("ascii").translate(None, b"0123456789"))


def number_is_card_number(value: float) -> bool:
    """Whether a JSON number, its sign aside, is a whole number that is a card number."""
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 10**DIGITS_MAX:
            return False
        value = int(value)
    return is_card_number(str(abs(value)))


def key_is_card_number(key: bytes, *, ibans_spared: bool = True) -> bool:
    """Whether a record's key holds a card number, also as a JSON string with its quotes."""
    if len(key) < DIGITS_MIN:
        return False
    return holds_card_number(key.strip(b' \t\r\n"').decode("utf-8", "replace"), ibans_spared=ibans_spared)


@nb.njit(cache=True, nogil=True)
def luhn_valid(data: Bytes, start: int, end: int) -> bool:
    """The Luhn check over the digits in data[start:end]; other bytes are passed over."""
    total: Integer = 0
    odd = False
    for p in range(end - 1, start - 1, -1):
        digit = np.int64(data[p]) - ZERO
        if 0 <= digit <= 9:
            if odd:
                digit *= 2
                if digit > 9:
                    digit -= 9
            total += digit
            odd = not odd
    return total % 10 == 0


@nb.njit(cache=True, nogil=True)
def key_candidates(data: Bytes, offsets: npt.NDArray[np.int64], out: npt.NDArray[np.bool_]) -> None:
    """Mark the keys that `key_is_card_number` has to look at: 13-19 digits and else only spaces, dashes, quotes; and
    those in which a number may hide."""
    for i in range(len(out)):
        digits = 0
        possible = offsets[i + 1] - offsets[i] >= DIGITS_MIN
        if possible:
            for p in range(offsets[i], offsets[i + 1]):
                b = data[p]
                if is_digit(b):
                    digits += 1
                elif b not in (SPACE, DASH, QUOTE, TAB, LINE_FEED, CARRIAGE_RETURN):
                    possible = False
                    break
        plain = possible and DIGITS_MIN <= digits <= DIGITS_MAX and luhn_valid(data, offsets[i], offsets[i + 1])
        long = offsets[i + 1] - offsets[i] >= DIGITS_MIN
        out[i] = plain or (long and may_hide(data, offsets[i], offsets[i + 1]))


@array_maker
def may_hold_card_number(data: Bytes, start: int, end: int, digits: Integer, bare: bool) -> bool:
    """Whether the reference has to say if the text data[start:end] is or holds a card number.

    digits: how many ASCII digits are in it · bare: whether there are only digits, spaces and dashes
    """
    if bare and DIGITS_MIN <= digits <= DIGITS_MAX and luhn_valid(data, start, end):
        return True
    return may_hide(data, start, end)
