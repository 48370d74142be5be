"""Names of what may never be stored once a payment is authorised (PCI DSS 4, 3.3.1): the card verification code, under
all the names that card schemes and payment systems give it, the tracks of a magnetic stripe, and PIN blocks.

Names, because three digits say nothing of themselves. What a check of the code came to (cvv_result, cvc_match,
card_verification_status) is no secret and good for a model: such names are taken.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np

from schemas.kernel_decorators import inlined_reader

FORBIDDEN: Final = (
    "a card verification code, magnetic stripe or PIN block by its name, which may not be kept after authorisation; "
    "leave it out (the result of its check, such as cvv_result, is taken)"
)

_CARD = "(?:card|cc|credit|debit|amex)"
_BEFORE = (
    f"(?:{_CARD}|payment|pan|customer|user|holder|raw|plain|clear|input|entered|given|full|encrypted|hashed|my|the)*"
)
_AFTER = (
    "(?:code|number|num|nr|no|value|val|digits|data|raw|plain|clear|text|hash|hashed|encrypted|enc|id|field|input)*"
)
_LAST = "(?:code|value|number|num|digits|data|val)"
# Of a name in small letters without anything else in it.
_VERIFICATION = re.compile(
    f"{_BEFORE}(?:[id]?cv[vcnd]|csc|cav)+{_AFTER}|"  # CVV, CVC, CVN, CVD, iCVV, dCVV, CSC, CAV; cvv2cvc2
    f"{_CARD}*cid(?:number|code|value|digits)?|"  # a column of that name is a customer's: below
    f"{_BEFORE}security{_LAST}|"
    f"{_BEFORE}{_CARD}(?:verification|validation|authentication|identification){_LAST}|"
    f"{_BEFORE}{_CARD}verification|verificationvalue|"
    f"{_BEFORE}(?:magstripe|magneticstripe)(?:data)?|{_BEFORE}pinblock(?:data)?|cardpin"
)
_TRACK = re.compile("(?:card|mag|magstripe|full|raw)*track(?:[123](?:data)?|data|2?equivalent(?:data)?)")
_OTHER = re.compile("[^a-z]")
_PUNCTUATION = re.compile("[^a-z0-9]")
_NAME_CHARACTERS_MAX = 128
# In a record that is refused, of whatever form: names in JSON, form fields and XML. First whether a look pays at all.
_LIKELY = re.compile(
    r"c[\W_]?(?:v|s[\W_]?c|a[\W_]?v|i[\W_]?d)|securi|rifica|idation|ication|track|strip|pin[\W_]?bl|d[\W_]?pin"
    r"|\\|[^\0-\x7f]",
    re.IGNORECASE,
)
# Each part is read once: a long text without a name must not cost its square, nor what comes back to it.
_END = r"""\s"':=,;&{}<>\[\]"""
_NAME = re.compile(
    rf"""["']((?:[^"'\\]|\\.){{1,256}}+)["']\s*+[:=]|(?<![^{_END}])([^{_END}]++)\s*+[:=]|<\s*+(?=([^\s<>/]{{1,128}}+))"""
)


def is_verification_name(name: str) -> bool:
    """Whether a field or attribute of this name is a card verification code, a track or a PIN block."""
    return len(name) <= _NAME_CHARACTERS_MAX and _is_verification_name(name)


@lru_cache(maxsize=4096)
def _is_verification_name(name: str) -> bool:
    plain = unicodedata.normalize("NFKD", name).lower()
    letters = _OTHER.sub("", plain)
    return _VERIFICATION.fullmatch(letters) is not None or _TRACK.fullmatch(_PUNCTUATION.sub("", plain)) is not None


def is_verification_column(name: str) -> bool:
    """The same of a column of a file, where `cid` is most often a customer's id."""
    return is_verification_name(name) and _OTHER.sub("", name.lower()) != "cid"


def verification_names(names: Iterable[str]) -> list[str]:
    """Those of the names that are refused."""
    return [name for name in names if is_verification_name(name)]


def names_verification(raw: bytes) -> bool:
    """Whether a record, JSON or not, has something under such a name; escapes in the name are read."""
    text = raw.decode("utf-8", "surrogateescape").replace("\0", "")  # UTF-16 text
    if _LIKELY.search(text) is None:
        return False
    # A name in quotes may be longer before its escapes are read.
    found = (each[1] or each[3] or each[2][-_NAME_CHARACTERS_MAX:] for each in _NAME.finditer(text))
    return any(is_verification_name(_unescaped(part)) for name in found for part in {name, name.rpartition("/")[2]})


def _unescaped(name: str) -> str:
    if "\\" not in name:
        return name
    try:
        read = json.loads(f'"{name}"', strict=False)
    except ValueError:
        return name
    return read if isinstance(read, str) else name


def _word(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(text.encode(), "big"))


# For kernels, which read a name letter by letter: `window` has its last eight letters, small, the last one lowest.
_2, _3, _5, _7 = (np.uint64(2 ** (8 * count) - 1) for count in (2, 3, 5, 7))
_CV, _CSC, _CAV, _CID, _TRACK_5, _CARDPIN = (_word(text) for text in ("cv", "csc", "cav", "cid", "track", "cardpin"))
_GSTRIPE, _CSTRIPE, _RIFICAT, _PINBLOCK = (_word(text) for text in ("gstripe", "cstripe", "rificat", "pinblock"))
# Before code, value, number, digits and data.
_SECURITY, _ICATION, _IDATION = (_word(text) for text in ("ecurity", "ication", "idation"))
_BYTE = np.uint64(8)
_C, _D, _E, _K, _N, _T, _V = (_word(letter) for letter in "cdekntv")


@inlined_reader
def may_end_verification(window: np.uint64) -> bool:
    """Whether the letters so far end like a part of a forbidden name. A name without such a place in it certainly is
    none: a test compares this with `is_verification_name`."""
    last = window & np.uint64(0xFF)
    if last in (_V, _C, _N, _D):
        before = (window >> _BYTE) & _7
        if before in (_SECURITY, _ICATION, _IDATION):
            return True
    if last == _V:
        return bool((window & _2) == _CV or (window & _3) == _CAV)
    if last == _C:
        return bool((window & _3) == _CSC)
    if last == _D:
        return bool((window & _3) == _CID)
    if last == _N:
        return bool((window & _7) == _CARDPIN)
    if last == _K:
        return bool((window & _5) == _TRACK_5 or window == _PINBLOCK)
    if last == _E:
        return bool((window & _7) == _GSTRIPE or (window & _7) == _CSTRIPE)
    return bool(last == _T and (window & _7) == _RIFICAT)
