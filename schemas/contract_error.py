"""The one error of the contracts, a record that cannot be accepted, and the closed list of its reasons.

    ContractError       an outcome, not a failure: the record becomes a dead letter and the next one is read

A message names the field and the value's shape, never the value: it could be a card number or a secret. Names of
fields that the contract does not know are payload too, and are not repeated either.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class DeadLetterReason(StrEnum):
    """Why a record was refused. Closed: a new reason is a new version of the contract. `sentence` says it to people."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> DeadLetterReason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    NULL_VALUE = "null_value", "The record has a key but no value (a tombstone)."
    EMPTY_VALUE = "empty_value", "The value is zero bytes long."
    TOO_LARGE = "too_large", "The value is longer than the decoder's limit."
    KEY_TOO_LARGE = "key_too_large", "The record's key is longer than 4 KiB: its decision could not carry it."
    WRONG_MAGIC = "wrong_magic", "The value starts with a byte that begins neither JSON nor a known wire format."
    UNKNOWN_SCHEMA_ID = (
        "unknown_schema_id",
        "The value is in Confluent's wire format, and its schema id is not known here.",
    )
    NOT_UTF8 = "not_utf8", "The value is not UTF-8 text."
    TOO_DEEP = "too_deep", "Objects or lists are nested deeper than the decoder follows."
    NOT_JSON = "not_json", "The value is text but not JSON."
    NOT_AN_OBJECT = "not_an_object", "The value is JSON but not an object."
    DUPLICATE_KEY = "duplicate_key", "A name stands twice in one object, so that it is unclear which value is meant."
    NOT_FINITE = "not_finite", "A number is NaN, infinite, or too large for a double."
    CARD_NUMBER = "card_number", "A value is a plain card number; cards must arrive as tokens."
    CARD_VERIFICATION = (
        "card_verification",
        "A name says that the value is a card verification code, a magnetic stripe or a PIN block; it must not arrive.",
    )
    UNKNOWN_FIELD = (
        "unknown_field",
        "The record has a field that the contract does not; further data belongs in `attributes`.",
    )
    MISSING_FIELD = "missing_field", "A required field is absent or null."
    WRONG_TYPE = "wrong_type", "A field has a value of another JSON type than the contract says."
    INVALID_VALUE = (
        "invalid_value",
        "A field's value has the right type but not the form, length or range of the contract.",
    )
    AMOUNT_NEGATIVE = "amount_negative", "The amount is below zero."
    AMOUNT_OVERFLOW = "amount_overflow", "The amount has more than twelve digits."
    AMOUNT_MINOR_UNITS = "amount_minor_units", "The amount has a fraction or exponent; minor units are whole numbers."
    UNKNOWN_CURRENCY = "unknown_currency", "The currency is not an ISO 4217 code that has minor units."
    EVENT_TIME_INVALID = "event_time_invalid", "The time is not RFC 3339 with an offset."
    EVENT_TIME_OUT_OF_RANGE = (
        "event_time_out_of_range",
        "The time is before 2000 or after October 2096, often seconds or microseconds.",
    )
    EVENT_TIME_IN_FUTURE = (
        "event_time_in_future",
        "The time is further ahead of the broker's timestamp than clocks may differ.",
    )
    NO_EXCHANGE_RATE = (
        "no_exchange_rate",
        "The feature set has no rate for the currency, so the amount cannot be compared.",
    )
    INVALID_CONTROL = "invalid_control", "The control record's `type` is missing or is not one that is known."
    NOT_A_LABEL = "not_a_label", "A record on topic labels is no label; lists and activations go to topic control."


class ContractError(Exception):
    """A record that its contract refuses. Two errors are equal when reason, field and message are."""

    def __init__(self, reason: DeadLetterReason, field: str | None, message: str) -> None:
        super().__init__(reason, field, message)  # as args, so that it pickles
        self.reason = reason
        self.field = field
        self.message = message
        # Of a refused payment, where it can be read; and until it is, the document, where there is one.
        self.payment_id: str | None = None
        self.document: dict[str, Any] | None = None

    def __str__(self) -> str:
        return (
            f"{self.reason.value}: {self.message}"
            if self.field is None
            else f"{self.reason.value}: {self.field}: {self.message}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContractError) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


def without_frames(error: ContractError) -> ContractError:
    """The same error without traceback and context, for one that is kept: those hold the frames that it came through,
    their texts and tables, and a batch of refusals then costs the collector seven times what refusing costs."""
    error.__traceback__ = error.__context__ = None
    return error


def shape(value: object) -> str:
    """What kind of JSON value this is and how large, without any part of it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        # schemas.json_document writes 10^40 for everything that is longer.
        return (
            f"an integer of {len(str(abs(value)))} digits"
            if abs(value) < 10**40
            else "an integer of more than 40 digits"
        )
    if isinstance(value, float):
        return "a number with a fraction or exponent"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, dict):
        return f"an object of {len(value)} names"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
