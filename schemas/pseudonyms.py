"""Keyed pseudonyms: what stands for a card number, or for another text that must not be known here."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

PREFIX: Final = "tk_"
# 160 of 256 bits, which is 32 characters of base32: two of 2^60 texts share one with a chance below 2^-40.
_BYTES: Final = 20
KEY_BYTES_MIN: Final = 16


def pseudonym(key: bytes, text: str) -> str:
    """The pseudonym of `text`: HMAC-SHA-256 under `key`, as "tk_" and 32 letters and digits.

    A number written in groups (4111 1111-1111 1111) has the pseudonym of its digits alone. Raises ValueError for a key
    of less than 16 bytes.
    """
    if len(key) < KEY_BYTES_MIN:
        raise ValueError(f"a key of {len(key)} bytes; at least {KEY_BYTES_MIN} are needed")
    digits = text.translate(_SEPARATORS)
    written = digits if digits.isascii() and digits.isdigit() else text
    mac = hmac.new(key, written.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return PREFIX + base64.b32encode(mac[:_BYTES]).decode("ascii").lower()


_SEPARATORS: Final = {ord(separator): None for separator in " -\u00a0\t"}
