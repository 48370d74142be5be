"""Pseudonyms: what stands for a value that may be a card number, the same wherever that value comes in.

A pseudonym is keyed (PCI DSS 4, 3.5.1.1): without the key an issuer's card numbers cannot be tried one by one. It has
no digit, so that no rule takes it for a card number again, and replacing one gives the same one: what was replaced
already can be read again.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

PREFIX: Final = "tk_"
KEY_BYTES_MIN: Final = 32
_LETTERS: Final = 32  # 128 bits
_FORM: Final = re.compile(rf"{PREFIX}[a-p]{{{_LETTERS}}}")
_LETTER: Final = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_GROUPED: Final = re.compile(r"[0-9][0-9 -]*[0-9]")
_KEY_ID: Final = b"fraud-scorer: id of a pseudonym key"


def pseudonym(key: bytes, text: str) -> str:
    """What stands for `text`: HMAC-SHA-256, 128 bits of it as letters. A pseudonym stands for itself.

    Digits in groups (4111 1111 …, 4111-1111-…) are the number without its groups.
    """
    if is_pseudonym(text):
        return text
    digest = hmac.digest(key, ungrouped(text).encode("utf-8", "surrogatepass"), "sha256").hex()
    return PREFIX + digest[:_LETTERS].translate(_LETTER)


def ungrouped(text: str) -> str:
    """Digits in groups as one number; any other text as it is."""
    return text.replace(" ", "").replace("-", "") if _GROUPED.fullmatch(text) is not None else text


def is_pseudonym(text: str) -> bool:
    """Whether `text` has the form of a pseudonym."""
    return _FORM.fullmatch(text) is not None


class PseudonymKeyError(ValueError):
    """There is no key where one is needed, or not the one that was used. Never shows a key."""


@dataclass(frozen=True)
class PseudonymKeys:
    """The keys that a deployment knows: the first one for what comes in now, the others for what was read with them."""

    keys: Sequence[bytes] = field(default=(), repr=False)

    @classmethod
    def from_text(cls, text: str) -> PseudonymKeys:
        """One key a line, each of 64 hexadecimal digits or more. Raises PseudonymKeyError."""
        keys = []
        for number, word in enumerate(text.split(), start=1):
            try:
                key = bytes.fromhex(word)
            except ValueError:
                key = b""
            if len(key) < KEY_BYTES_MIN:
                raise PseudonymKeyError(
                    f"key {number} is text of {len(word)} characters; a key has {2 * KEY_BYTES_MIN} hexadecimal digits "
                    "or more: `openssl rand -hex 32` makes one"
                )
            keys.append(key)
        return cls(tuple(keys))

    def current(self) -> bytes:
        """The key for what comes in now. Raises PseudonymKeyError when there is none."""
        if not self.keys:
            raise PseudonymKeyError(
                "a field is declared as token, and there is no key to replace its values with: set "
                "FRAUD_SCORER_CARDS__KEYS_FILE to a file with one (`openssl rand -hex 32` makes it)"
            )
        return self.keys[0]

    def named(self, key_id: str) -> bytes:
        """The key of that id. Raises PseudonymKeyError when it is not known here."""
        for key in self.keys:
            if id_of_key(key) == key_id:
                return key
        raise PseudonymKeyError(
            f"payments were read with the pseudonym key {key_id}, and it is none of the {len(self.keys)} keys of "
            "FRAUD_SCORER_CARDS__KEYS: add it behind the others"
        )


def id_of_key(key: bytes) -> str:
    """What names a key and does not give it away: 16 hexadecimal digits."""
    return hashlib.sha256(_KEY_ID + hmac.digest(key, _KEY_ID, "sha256")).hexdigest()[:16]
