"""Dead letters: the record that keeps a refused one, with its reason and its origin, for people to look at.

A dead letter is the refused value itself (card numbers masked, cut at 256 KiB) under the refused record's key (masked
too, cut at 4 KiB); everything about it is in headers, named as Kafka Connect names them where Connect has a name, so
that tools for those read these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.card_mask import mask_card_numbers, mask_digits
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.verification_names import names_verification

VALUE_BYTES_MAX: Final = (
    262_144  # 256 KiB: a quarter of what a broker takes by default, and enough to see what was wrong
)
KEY_BYTES_MAX: Final = 4_096  # part of the contract: a longer key is refused, for a decision has its payment's key
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
        description="Whether digits of the key or value were replaced because they formed a card number."
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
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the dead letter for the record (topic, partition, offset), refused with `error`.

    `value_bytes_max`: where the topic takes less than usual.
    A null value stays null: the dead-letter topic is kept by time, not compacted, so a null deletes nothing there.
    """
    # Mask first, cut after: a number that lies across the cut must not survive in part.
    # A verification code is not to be known from other digits, and may stand in a record refused for something else.
    all_digits = error.reason in _ALL_DIGITS or (value is not None and names_verification(value))
    mask = mask_digits if all_digits else mask_card_numbers
    key_masked = None if key is None else mask(key)
    value_masked = None if value is None else mask(value)
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
        ("fraud_scorer.value_bytes", b"-1" if value is None else b"%d" % len(value)),
        ("fraud_scorer.masked", _truth(key_masked != key or value_masked != value)),
        ("fraud_scorer.truncated", _truth(len(key or b"") > KEY_BYTES_MAX or len(value or b"") > value_bytes_max)),
    ]
    return (
        None if key_masked is None else key_masked[:KEY_BYTES_MAX],
        None if value_masked is None else value_masked[:value_bytes_max],
        headers,
    )


_ALL_DIGITS: Final = frozenset({DeadLetterReason.CARD_NUMBER, DeadLetterReason.CARD_VERIFICATION})
_KEY_STAGE: Final = ("__connect.errors.stage", b"KEY_CONVERTER")
_VALUE_STAGE: Final = ("__connect.errors.stage", b"VALUE_CONVERTER")
_EXCEPTION: Final = ("__connect.errors.exception.class.name", b"schemas.errors.ContractError")


def _truth(value: bool) -> bytes:
    return b"true" if value else b"false"
