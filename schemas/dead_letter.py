"""Dead letters: the record that keeps a refused one, with its reason and its origin, for people to look at.

A dead letter is the refused value itself (card numbers masked, cut at 256 KiB) under the refused record's key (masked
too, cut at 4 KiB); everything about it is in headers, named as Kafka Connect names them where Connect has a name, so
that tools for those read these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.card_fields import ATTRIBUTE, UNDECLARED, CardFields, CardRule
from schemas.card_mask import mask_card_numbers, mask_digits
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.pseudonym import is_pseudonym
from schemas.verification_names import names_verification

VALUE_BYTES_MAX: Final = (
    262_144  # 256 KiB: a quarter of what a broker takes by default, and enough to see what was wrong
)
KEY_BYTES_MAX: Final = 4_096  # part of the contract: a longer key is refused, for a decision has its payment's key
_BEYOND_CUT: Final = (
    16_384  # a number or name that begins before the cut, in whatever disguise, ends within so many bytes
)
REDRIVEN: Final = "fraud_scorer.redriven"  # header of a note on the same topic: that a letter was sent again

# Fixed on the topic: it stays as it is wherever the class moves.
ERROR_CLASS: Final = "schemas.errors.ContractError"

Headers = list[tuple[str, bytes]]


class DeadLetter(BaseModel):
    """What a dead letter's headers say. The value beside them is the refused value, masked and perhaps cut."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    topic: str = Field(description="Topic the refused record was read from.", examples=["payments"])
    partition: int = Field(ge=0, description="Its partition there.", examples=[3])
    offset: int = Field(ge=0, description="Its offset there.", examples=[918_273])
    reason: DeadLetterReason = Field(description="Why it was refused.", examples=["not_json"])
    field: str | None = Field(
        description="The contract's field that was wrong; null when it was the record as a whole.",
        examples=["currency"],
    )
    message: str = Field(description="For people: the field and the shape of its value, never the value.")
    timestamp_ms: int | None = Field(
        description="The broker's timestamp of the refused record, epoch ms.", examples=[1_767_225_600_000]
    )
    value_bytes: int = Field(ge=-1, description="Size of the refused value; -1 when it was null.", examples=[271])
    masked: bool = Field(
        description="Whether digits of the key or value were replaced because they formed a card number; pseudonyms of "
        "token fields do not count: with those it can be sent again."
    )
    truncated: bool = Field(description="Whether the key or the value was cut to its limit.")

    def to_headers(self) -> Headers:
        """As Kafka headers; absent fields have no header."""
        texts = {
            "__connect.errors.topic": self.topic,
            "__connect.errors.partition": str(self.partition),
            "__connect.errors.offset": str(self.offset),
            "__connect.errors.stage": "KEY_CONVERTER" if self.field == "key" else "VALUE_CONVERTER",
            "__connect.errors.exception.class.name": ERROR_CLASS,
            "__connect.errors.exception.message": self.message,
            "fraud_scorer.reason": self.reason.value,
            "fraud_scorer.field": self.field,
            "fraud_scorer.timestamp_ms": None if self.timestamp_ms is None else str(self.timestamp_ms),
            "fraud_scorer.value_bytes": str(self.value_bytes),
            "fraud_scorer.masked": "true" if self.masked else "false",
            "fraud_scorer.truncated": "true" if self.truncated else "false",
        }
        return [(name, text.encode()) for name, text in texts.items() if text is not None]

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes | None]] | None) -> DeadLetter:
        """Back from a record's headers; other headers are passed over.

        Raises ValueError for a record that is no dead letter.
        """
        texts = {
            name: value.decode()
            for name, value in headers or ()
            if value is not None and name.startswith(("__connect.errors.", "fraud_scorer."))
        }
        try:
            timestamp = texts.get("fraud_scorer.timestamp_ms")
            return cls(
                topic=texts["__connect.errors.topic"],
                partition=int(texts["__connect.errors.partition"]),
                offset=int(texts["__connect.errors.offset"]),
                reason=DeadLetterReason(texts["fraud_scorer.reason"]),  # type: ignore[call-arg]  # by value: Enum.__call__
                field=texts.get("fraud_scorer.field"),
                message=texts["__connect.errors.exception.message"],
                timestamp_ms=None if timestamp is None else int(timestamp),
                value_bytes=int(texts["fraud_scorer.value_bytes"]),
                masked=texts["fraud_scorer.masked"] == "true",
                truncated=texts["fraud_scorer.truncated"] == "true",
            )
        except KeyError as exc:
            raise ValueError(f"not a dead letter of fraud-scorer: it lacks the header {exc.args[0]}") from None


def dead_letter_record(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    error: ContractError,
    *,
    timestamp_ms: int | None = None,
    value_bytes_max: int = VALUE_BYTES_MAX,
    cards: CardFields = UNDECLARED,
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the dead letter for the record (topic, partition, offset), refused with `error`.

    `value_bytes_max`: where the topic takes less than usual. `cards`: what may hold a card number: opaque values stay,
    and pseudonyms stand for those of tokens, so that a letter can be sent again.
    A null value stays null: the dead-letter topic is kept by time, not compacted, so a null deletes nothing there.
    """
    # Mask first, cut after: a number that lies across the cut must not survive in part. What lies far behind the cut is
    # not looked at: a look takes time, and nothing of it is kept.
    whole_key, whole_value = key, value
    key, value = _beginning(key, KEY_BYTES_MAX), _beginning(value, value_bytes_max)
    mask = _mask(value, error)
    key_masked, value_masked = key, value
    masked = False
    if value is not None:
        value_masked = mask(value)
        masked = value_masked != value
        if mask is mask_card_numbers and (masked or cards.need_key):
            value_masked, masked = _declared_kept(value, cards)
    if key is not None:
        key_masked = _masked_key(key, whole_value, error, cards, mask)
        masked |= key_masked != key and not is_pseudonym(key_masked.decode("utf-8", "replace"))
    # As DeadLetter(...).to_headers() writes them, without the checks of a model: a burst of refused records must cost
    # little, and every field here is the worker's own. A test compares the two.
    headers = [
        ("__connect.errors.topic", topic.encode()),
        ("__connect.errors.partition", b"%d" % partition),
        ("__connect.errors.offset", b"%d" % offset),
        _KEY_STAGE if error.field == "key" else _VALUE_STAGE,
        _EXCEPTION,
        ("__connect.errors.exception.message", error.message.encode()),
        ("fraud_scorer.reason", error.reason.encode()),
    ]
    if error.field is not None:
        headers.append(("fraud_scorer.field", error.field.encode()))
    if timestamp_ms is not None:
        headers.append(("fraud_scorer.timestamp_ms", b"%d" % timestamp_ms))
    headers += [
        ("fraud_scorer.value_bytes", b"-1" if whole_value is None else b"%d" % len(whole_value)),
        ("fraud_scorer.masked", _truth(masked)),
        ("fraud_scorer.truncated", _truth(_longer(whole_key, KEY_BYTES_MAX) or _longer(whole_value, value_bytes_max))),
    ]
    return (
        None if key_masked is None else key_masked[:KEY_BYTES_MAX],
        None if value_masked is None else value_masked[:value_bytes_max],
        headers,
    )


def _declared_kept(value: bytes, cards: CardFields) -> tuple[bytes, bool]:
    """`value` masked, but for what is declared: texts of opaque fields as they are, pseudonyms for those of tokens; and
    whether anything of the rest was masked.

    Only a text that stands in the JSON plainly, without escapes, is found; all else is masked.
    """
    kept: list[bytes] = []
    last, masked = 0, False
    for found in _TEXT.finditer(value):
        rule, text = _rule(found[1].decode(), cards), found[2]
        if rule is CardRule.REFUSE:
            continue
        shown = text if rule is CardRule.OPAQUE else cards.replaced(_decoded(text)).encode()
        before = value[last : found.start(2)]
        kept += [mask_card_numbers(before), shown]
        masked |= kept[-2] != before
        last = found.end(2)
    rest = mask_card_numbers(value[last:])
    return b"".join([*kept, rest]), masked or rest != value[last:]


def _mask(value: bytes | None, error: ContractError) -> Callable[[bytes], bytes]:
    """What masks a record refused with `error`."""
    # A verification code is not to be known from other digits, and may stand in a record refused for something else.
    all_digits = error.reason in _ALL_DIGITS or (value is not None and names_verification(value))
    return mask_digits if all_digits else mask_card_numbers


def answer_key(key: bytes | None, value: bytes | None, error: ContractError, cards: CardFields) -> bytes | None:
    """The key of the answer to a refused record: as its dead letter's; none where the key itself was refused."""
    if key is None or error.field == "key":
        return None
    return _masked_key(key, value, error, cards, _mask(_beginning(value, VALUE_BYTES_MAX), error))


def _beginning(text: bytes | None, kept: int) -> bytes | None:
    """As much of `text` as decides how its first `kept` bytes are masked."""
    return text if text is None or len(text) <= kept + _BEYOND_CUT else text[: kept + _BEYOND_CUT]


def _longer(text: bytes | None, kept: int) -> bool:
    return text is not None and len(text) > kept


def _masked_key(
    key: bytes, value: bytes | None, error: ContractError, cards: CardFields, mask: Callable[[bytes], bytes]
) -> bytes:
    masked = mask(key)
    if error.field != "key" and (masked != key or cards.need_key):
        return _key_as_declared(key, value, cards, masked)
    return masked


def _key_as_declared(key: bytes, value: bytes | None, cards: CardFields, masked: bytes) -> bytes:
    text = key.strip(b' \t\r\n"')
    if cards.key_rule is not None:
        rules = {cards.key_rule}
    else:
        named = [(_rule(found[1].decode(), cards), found[2]) for found in _TEXT.finditer(value or b"")]
        rules = {rule for rule, other in named if cards.is_value(_decoded(text), _decoded(other), rule)}
    if CardRule.TOKEN in rules:
        return cards.replaced(_decoded(text)).encode()
    return key if CardRule.OPAQUE in rules else masked


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _rule(name: str, cards: CardFields) -> CardRule:
    """What a name in a record is, be it a field or an attribute."""
    rule = cards.rule(name)
    return cards.rule(f"{ATTRIBUTE}{name}") if rule is CardRule.REFUSE else rule


# A name and its text, where JSON writes both without an escape.
_TEXT: Final = re.compile(rb'"([A-Za-z_][A-Za-z0-9_.]{0,63})"[ \t\r\n]*:[ \t\r\n]*"([^"\\\x00-\x1f]*)"')
_ALL_DIGITS: Final = frozenset({DeadLetterReason.CARD_NUMBER, DeadLetterReason.CARD_VERIFICATION})
_KEY_STAGE: Final = ("__connect.errors.stage", b"KEY_CONVERTER")
_VALUE_STAGE: Final = ("__connect.errors.stage", b"VALUE_CONVERTER")
_EXCEPTION: Final = ("__connect.errors.exception.class.name", b"schemas.errors.ContractError")


def _truth(value: bool) -> bytes:
    return b"true" if value else b"false"
