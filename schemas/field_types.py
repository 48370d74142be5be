"""The types of field that contracts are made of, and the way from pydantic's errors to the one ContractError of a
record.

Of several things wrong in one object the reason is the first in this order, whatever the order of its fields in the
JSON text:

    1. card_number, anywhere, in a value or in a name      4. missing_field, in the contract's order
    2. card_verification, by a name anywhere               5. the first wrong field, in the contract's order
    3. unknown_field
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Container
from functools import lru_cache
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, ValidationError, WithJsonSchema
from pydantic.functional_validators import AfterValidator, BeforeValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from schemas.card_fields import ATTRIBUTE, UNDECLARED, CardFields, CardRule
from schemas.card_numbers import SAFE_DIGITS_MAX, holds_card_number, number_is_card_number
from schemas.contract_error import ContractError, DeadLetterReason, shape
from schemas.currencies import CURRENCY_EXPONENT
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN, event_time_ms
from schemas.field_kinds import DEGREES_MAX, Kind
from schemas.verification_names import FORBIDDEN, is_verification_name

IDENTIFIER_CHARACTERS_MAX: Final = 128
CHANNEL_BYTES_MAX: Final = 32
AMOUNT_DIGITS_MAX: Final = SAFE_DIGITS_MAX  # so that no card number fits
AMOUNT_MINOR_END: Final = 10**AMOUNT_DIGITS_MAX  # exclusive
ATTRIBUTES_MAX: Final = 64
ATTRIBUTE_CHARACTERS_MAX: Final = 256
ATTRIBUTE_NAME_BYTES_MAX: Final = 64  # ASCII
ATTRIBUTE_INTEGER_END: Final = 2**63  # beyond it JSON parsers begin to disagree

AttributeValue = str | int | float | bool

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
ATTRIBUTE_NAME: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_.]{{0,{ATTRIBUTE_NAME_BYTES_MAX - 1}}}")
_IP_CHARACTERS = re.compile(r"[0-9a-fA-F:.]{2,45}")
_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"


class Contract(BaseModel):
    """What all contracts have in common: immutable, no unknown fields, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


C = TypeVar("C", bound=Contract)


def refusal(reason: DeadLetterReason, message: str) -> PydanticCustomError:
    """An error for use inside validators, which keeps its reason through pydantic."""
    return PydanticCustomError(reason.value, "{message}", {"message": message})


def _check_amount(value: object) -> object:
    if isinstance(value, float):
        raise refusal(
            DeadLetterReason.AMOUNT_MINOR_UNITS,
            "a number with a fraction or exponent; send whole minor units (57.16 EUR is 5716)",
        )
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise refusal(
                DeadLetterReason.AMOUNT_NEGATIVE,
                f"a negative {shape(value).removeprefix('an ')}; refunds are not payments",
            )
        if value >= AMOUNT_MINOR_END:
            raise refusal(DeadLetterReason.AMOUNT_OVERFLOW, f"{shape(value)}; at most {AMOUNT_DIGITS_MAX} are taken")
    return value


def _check_currency(code: str) -> str:
    if code not in CURRENCY_EXPONENT:
        raise refusal(DeadLetterReason.UNKNOWN_CURRENCY, f"{shape(code)}; send an ISO 4217 code such as EUR")
    return code


def _check_ip(text: str) -> str:
    try:
        if _IP_CHARACTERS.fullmatch(text) is None:  # ipaddress takes a scope ("%eth0") as well
            raise ValueError
        ipaddress.ip_address(text)
    except ValueError:
        raise refusal(DeadLetterReason.INVALID_VALUE, f"{shape(text)} is not an IPv4 or IPv6 address") from None
    return text


def _check_time(value: object) -> object:
    try:
        event_time_ms(value)
    except ContractError as exc:
        raise refusal(exc.reason, exc.message) from None
    return value


def _check_attributes(value: object) -> dict[str, AttributeValue]:
    if not isinstance(value, dict):
        raise refusal(DeadLetterReason.WRONG_TYPE, f"expected an object, found {shape(value)}")
    if len(value) > ATTRIBUTES_MAX:
        raise refusal(DeadLetterReason.INVALID_VALUE, f"{len(value)} attributes; at most {ATTRIBUTES_MAX} are taken")
    accepted: dict[str, AttributeValue] = {}
    for name, item in value.items():
        if not isinstance(name, str) or ATTRIBUTE_NAME.fullmatch(name) is None:
            raise refusal(
                DeadLetterReason.INVALID_VALUE,
                f"{shape(name)} as a name; names are 1 to 64 of A-Z a-z 0-9 _ . and begin with a letter or _",
            )
        if item is not None:
            accepted[name] = _check_attribute(item)
    return accepted


def _check_attribute(item: object) -> AttributeValue:
    if isinstance(item, bool):
        return item
    if isinstance(item, str):
        if len(item) > ATTRIBUTE_CHARACTERS_MAX or _CONTROL_CHARACTER.search(item) or not _encodable(item):
            allowed = f"at most {ATTRIBUTE_CHARACTERS_MAX} are taken, no control characters, no lone surrogates"
            raise refusal(DeadLetterReason.INVALID_VALUE, f"an attribute is {shape(item)}; {allowed}")
        return item
    if isinstance(item, int):
        if not -ATTRIBUTE_INTEGER_END <= item < ATTRIBUTE_INTEGER_END:
            raise refusal(
                DeadLetterReason.INVALID_VALUE, f"an attribute is {shape(item)}; integers are taken up to 64 bits"
            )
        return item
    if isinstance(item, float):
        if not abs(item) < float("inf"):
            raise refusal(DeadLetterReason.NOT_FINITE, "an attribute is NaN or infinite; leave it out instead")
        return item
    raise refusal(
        DeadLetterReason.WRONG_TYPE, f"an attribute is {shape(item)}; text, a number or a truth value is taken"
    )


def _encodable(text: str) -> bool:
    """Whether `text` has a UTF-8 form. Lone surrogates, which JSON can write as \\ud800, have none."""
    return not any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else True


Identifier = Annotated[
    str, StringConstraints(min_length=1, max_length=IDENTIFIER_CHARACTERS_MAX, pattern=_NO_CONTROL), Kind.IDENTIFIER
]
AmountMinor = Annotated[int, Field(ge=0, lt=AMOUNT_MINOR_END), BeforeValidator(_check_amount), Kind.AMOUNT]
Currency = Annotated[
    str,
    AfterValidator(_check_currency),
    WithJsonSchema({"type": "string", "enum": list(CURRENCY_EXPONENT), "description": "ISO 4217 code."}),
    Kind.CURRENCY,
]
EventTime = Annotated[
    str | int,
    PlainValidator(_check_time),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "integer", "minimum": EVENT_TIME_MS_MIN, "exclusiveMaximum": EVENT_TIME_MS_END},
            ]
        }
    ),
    Kind.TIME,
]
Ip = Annotated[
    str,
    AfterValidator(_check_ip),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
    Kind.IP,
]
MerchantCategory = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}$"), Kind.MCC]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$"), Kind.COUNTRY]
Channel = Annotated[str, StringConstraints(pattern=rf"^[a-z0-9_]{{1,{CHANNEL_BYTES_MAX}}}$"), Kind.CHANNEL]
TEXT_TYPES: Final[dict[Kind, Any]] = {
    Kind.IDENTIFIER: Identifier,
    Kind.CURRENCY: Currency,
    Kind.IP: Ip,
    Kind.MCC: MerchantCategory,
    Kind.CHANNEL: Channel,
    Kind.COUNTRY: Country,
}
Latitude = Annotated[float, Field(ge=-DEGREES_MAX[Kind.LATITUDE], le=DEGREES_MAX[Kind.LATITUDE]), Kind.LATITUDE]
Longitude = Annotated[float, Field(ge=-DEGREES_MAX[Kind.LONGITUDE], le=DEGREES_MAX[Kind.LONGITUDE]), Kind.LONGITUDE]
Attributes = Annotated[
    dict[str, AttributeValue],
    PlainValidator(_check_attributes),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": ATTRIBUTES_MAX,
            "propertyNames": {"pattern": f"^{ATTRIBUTE_NAME.pattern}$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "maxLength": ATTRIBUTE_CHARACTERS_MAX, "pattern": _NO_CONTROL},
                    {"type": "number"},
                    {"type": "boolean"},
                    {"type": "null"},
                ]
            },
        }
    ),
    Kind.ATTRIBUTES,
]


def is_identifier(text: str) -> bool:
    """Whether `text` has the form of an id; card numbers aside."""
    long = 1 <= len(text) <= IDENTIFIER_CHARACTERS_MAX
    return long and _CONTROL_CHARACTER.search(text) is None and _encodable(text)


def check_contract(
    contract: type[C],
    document: dict[str, Any],
    times: frozenset[str] = frozenset({"event_time", "known_at"}),
    cards: CardFields = UNDECLARED,
) -> C:
    """`document` as a record of `contract`. Raises ContractError by the precedence above.

    A null equals an absent field. Integers in the fields named in `times` are not taken for card numbers: one in ten
    13-digit times passes the Luhn check. Values of fields that `cards` declares opaque or token are not tested; nothing
    is replaced here.
    """
    fields = contract.model_fields  # a property of pydantic's: asked for once, it costs a microsecond each time
    _refuse_card_numbers(fields, document, times, cards)
    _refuse_verification(fields, document)
    for name in document:
        if name not in fields:
            raise _unknown_field(contract, name)
    try:
        return contract.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as exc:
        raise _contract_error(contract, exc.errors(include_url=False)) from None


def _refuse_card_numbers(
    fields: Container[str], document: dict[str, Any], times: frozenset[str], cards: CardFields
) -> None:
    for name, value in document.items():
        if name == "attributes" and isinstance(value, dict):
            found = any(
                holds_card_number(key, ibans_spared=cards.ibans_spared)
                or (_tested(cards, ATTRIBUTE + key, item) and _holds_card_number(item, cards, numbers=True))
                for key, item in value.items()
            )
        else:
            found = _tested(cards, name, value) and _holds_card_number(value, cards, numbers=name not in times)
        if found or holds_card_number(name, ibans_spared=cards.ibans_spared):
            message = "a card number (13 to 19 digits that pass the Luhn check); send a token instead"
            raise ContractError(DeadLetterReason.CARD_NUMBER, name if name in fields else None, message)


def _tested(cards: CardFields, name: str, value: object) -> bool:
    """Whether a value is tested at all: what a field cannot be anyway (a list, a number where text stands) is."""
    if isinstance(value, str) or (name.startswith(ATTRIBUTE) and isinstance(value, int | float)):
        return cards.rule(name) is CardRule.REFUSE
    return True


def _refuse_verification(fields: Container[str], document: dict[str, Any]) -> None:
    for name, value in document.items():
        if value is not None and (is_verification_name(name) or _names_verification(value)):
            raise ContractError(DeadLetterReason.CARD_VERIFICATION, name if name in fields else None, FORBIDDEN)


def _names_verification(value: object) -> bool:
    # As deep as documents.DEPTH_MAX at most.
    if isinstance(value, dict):
        return any(
            item is not None and (is_verification_name(name) or _names_verification(item))
            for name, item in value.items()
        )
    return isinstance(value, list) and any(_names_verification(item) for item in value)


def _holds_card_number(value: object, cards: CardFields, *, numbers: bool) -> bool:
    # As deep as documents.DEPTH_MAX at most.
    spared = cards.ibans_spared
    if isinstance(value, str):
        return holds_card_number(value, ibans_spared=spared)
    if isinstance(value, dict):
        return any(
            holds_card_number(name, ibans_spared=spared) or _holds_card_number(item, cards, numbers=True)
            for name, item in value.items()
        )
    if isinstance(value, list):
        return any(_holds_card_number(item, cards, numbers=True) for item in value)
    return numbers and isinstance(value, int | float) and not isinstance(value, bool) and number_is_card_number(value)


def _contract_error(contract: type[Contract], errors: list[ErrorDetails]) -> ContractError:
    order = {name: number for number, name in enumerate(contract.model_fields)}
    first = min(
        errors, key=lambda error: (error["type"] != "missing", order[str(error["loc"][0])])
    )  # the first of equals
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return ContractError(DeadLetterReason.MISSING_FIELD, field, "required, and absent or null")
    if first["type"] in _CUSTOM:
        return ContractError(DeadLetterReason(first["type"]), field, first["msg"])  # type: ignore[call-arg]
    describe = _PYDANTIC.get(first["type"])
    if describe is not None:
        reason, expected = describe(first.get("ctx", {}))
    elif first["type"].endswith("_type"):
        reason, expected = DeadLetterReason.WRONG_TYPE, _TYPES.get(first["type"], "another type")
    else:
        reason, expected = DeadLetterReason.INVALID_VALUE, "the contract's form"
    return ContractError(reason, field, f"expected {expected}, found {shape(first['input'])}")


def _unknown_field(contract: type[Contract], name: str) -> ContractError:
    # The name itself is payload. The nearest name of the contract is not, and is what a person needs.
    near = _nearest_field(contract, name[:64])
    hint = f"; did you mean {near}?" if near else ""
    message = f"the contract has no field of that name ({shape(name)}){hint}"
    if "attributes" in contract.model_fields:
        message += "; further data goes in attributes"
    return ContractError(DeadLetterReason.UNKNOWN_FIELD, None, message)


@lru_cache(maxsize=1024)
def _nearest_field(contract: type[Contract], name: str) -> str | None:
    # Remembered: a producer with a field of its own has it in every record, and a comparison costs 25 µs.
    return next(iter(difflib.get_close_matches(name, contract.model_fields, n=1)), None)


_CUSTOM: Final = frozenset(reason.value for reason in DeadLetterReason)
_TYPES: Final = {
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
}
_Describe = Callable[[dict[str, Any]], tuple[DeadLetterReason, str]]
# What is shown of pydantic's context are the contract's own bounds.
_PYDANTIC: Final[dict[str, _Describe]] = {
    "string_too_short": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"at least {ctx['min_length']} characters"),
    "string_too_long": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"at most {ctx['max_length']} characters"),
    "string_pattern_mismatch": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"the form {ctx['pattern']}"),
    "string_unicode": lambda _: (DeadLetterReason.INVALID_VALUE, "text without lone surrogates"),
    "greater_than_equal": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"at least {ctx['ge']:g}"),
    "less_than_equal": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"at most {ctx['le']:g}"),
    "literal_error": lambda ctx: (DeadLetterReason.INVALID_VALUE, f"one of {ctx['expected']}"),
    "finite_number": lambda _: (DeadLetterReason.NOT_FINITE, "a finite number"),
    "int_from_float": lambda _: (DeadLetterReason.WRONG_TYPE, "an integer"),
}
