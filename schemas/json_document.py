"""From a record's bytes to one JSON object, carefully: everything that can be wrong before a single field is looked at.

The first of these that holds is the reason, in this order:

    null_value · empty_value · too_large · unknown_schema_id · wrong_magic · not_utf8 · too_deep · not_json ·
    not_an_object · duplicate_key · not_finite
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

from schemas.contract_error import ContractError, DeadLetterReason, shape

VALUE_BYTES_MAX: Final = 65_536
DEPTH_MAX: Final = 16  # contracts need 2; beyond them the exact depth says nothing more

# Confluent's wire format: a zero byte, then a schema id of four bytes.
_WIRE_FORMAT_BYTES_MIN = 5

# Integers longer than this are replaced by a number that is out of every range: int() is quadratic, and refuses 4,300
# digits.
_INTEGER_CHARACTERS_MAX = 40
_HUGE: Final[int] = 10**_INTEGER_CHARACTERS_MAX

# A string, closed or not, or a bracket. Possessive, so that hostile text takes linear time.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]', re.DOTALL)


class _Findings:
    """What JSON's grammar lets through and the contracts do not; collected, so that `not_json` comes first wherever
    it stands."""

    def __init__(self) -> None:
        self.twice: set[str] = set()
        self.not_finite = False

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            self.twice |= {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}
        return document

    def constant(self, _: str) -> float:
        self.not_finite = True
        return 0.0

    def fraction(self, text: str) -> float:
        value = float(text)
        self.not_finite |= value in (float("inf"), float("-inf"))
        return value


def parse_object(raw: bytes | None, value_bytes_max: int = VALUE_BYTES_MAX) -> dict[str, Any]:
    """The JSON object in `raw`. Raises ContractError with one of the reasons above."""
    if raw is None:
        raise _refused(DeadLetterReason.NULL_VALUE, "no value; delete-markers mean nothing on this topic")
    if not raw:
        raise _refused(DeadLetterReason.EMPTY_VALUE, "a value of 0 bytes; send a JSON object")
    if len(raw) > value_bytes_max:
        raise _refused(DeadLetterReason.TOO_LARGE, f"a value of {len(raw)} bytes; at most {value_bytes_max} are taken")
    if raw[0] == 0 and len(raw) >= _WIRE_FORMAT_BYTES_MIN:
        raise _refused(
            DeadLetterReason.UNKNOWN_SCHEMA_ID,
            "Confluent's wire format, but no schema registry is configured; send plain JSON",
        )
    if raw[0] < 0x20 and raw[0] not in b"\t\n\r":
        raise _refused(DeadLetterReason.WRONG_MAGIC, "the first byte is a control character; send plain JSON")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _refused(DeadLetterReason.NOT_UTF8, f"byte {exc.start} of {len(raw)} is not UTF-8") from None
    return _parse(text)


def _parse(text: str) -> dict[str, Any]:
    if _too_deep(text):
        raise _refused(DeadLetterReason.TOO_DEEP, f"nested deeper than {DEPTH_MAX}")
    findings = _Findings()
    decoder = json.JSONDecoder(
        object_pairs_hook=findings.pairs,
        parse_constant=findings.constant,
        parse_float=findings.fraction,
        parse_int=_integer,
    )
    try:
        document = decoder.decode(text)
    except json.JSONDecodeError as exc:
        # One of the json module's own phrases; a few of them go on with ": " and the character they met.
        phrase = exc.msg.partition(": ")[0].removesuffix(" at")
        raise _refused(DeadLetterReason.NOT_JSON, f"{phrase} at character {exc.pos} of {len(text)}") from None
    if not isinstance(document, dict):
        raise _refused(DeadLetterReason.NOT_AN_OBJECT, f"expected an object, found {shape(document)}")
    error: ContractError | None = None
    if findings.twice:
        error = _refused(DeadLetterReason.DUPLICATE_KEY, "a name stands twice in one object")
    elif findings.not_finite:
        error = _refused(
            DeadLetterReason.NOT_FINITE, "a number is NaN, infinite or beyond a double; leave the field out instead"
        )
    if error is not None:
        # What stands twice is not known; the rest is as it would be.
        error.document = {name: value for name, value in document.items() if name not in findings.twice}
        raise error
    return document


def _too_deep(text: str) -> bool:
    if text.count("{") + text.count("[") <= DEPTH_MAX:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in ("{", "["):
            depth += 1
            if depth > DEPTH_MAX:
                return True
        elif match[0] in ("}", "]"):
            depth -= 1
    return False


def _integer(text: str) -> int:
    if len(text) <= _INTEGER_CHARACTERS_MAX:
        return int(text)
    return -_HUGE if text[0] == "-" else _HUGE


def _refused(reason: DeadLetterReason, message: str) -> ContractError:
    return ContractError(reason, None, message)
