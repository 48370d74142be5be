"""The payment contract, as documented pydantic fields: the reference that decides what is accepted and why not.

The class `Payment` is the one place where the fields stand: schemas.field_table derives every other list from it. A
new field is one line there (and a migration, where it enters the audit trail).

`Payment.from_json` takes some 50 µs a payment. The live path reads payments with `schemas.payment_decoder`, which
accepts only what it is certain of and gives everything else to this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from pydantic import Field

from schemas.card_fields import ATTRIBUTE, UNDECLARED, CardFields, CardRule
from schemas.card_numbers import holds_card_number, key_is_card_number
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.dead_letter import KEY_BYTES_MAX
from schemas.event_time import event_time_ms
from schemas.field_types import (
    AmountMinor,
    Attributes,
    Channel,
    Contract,
    Country,
    Currency,
    EventTime,
    Identifier,
    Ip,
    Latitude,
    Longitude,
    MerchantCategory,
    check_contract,
    is_identifier,
)
from schemas.json_document import VALUE_BYTES_MAX, parse_object


class Payment(Contract):
    """One payment, as it stands on the payments topic. Null equals absent; unknown fields are refused."""

    payment_id: Identifier = Field(
        description="Unique id of the payment.",
        examples=["p_7f3a19"],
    )
    event_time: EventTime = Field(
        description="When it happened: RFC 3339 with offset, or epoch milliseconds.",
        examples=["2026-01-01T12:30:00.250Z", 1_767_270_600_250],
    )
    amount_minor: AmountMinor = Field(
        description="Amount in minor units of `currency`: 57.16 EUR is 5716, 57 JPY is 57.", examples=[5716]
    )
    currency: Currency = Field(description="ISO 4217 code of a currency that has minor units.", examples=["EUR"])
    customer_id: Identifier | None = Field(default=None, description="Who pays.", examples=["c_000042"])
    account_id: Identifier | None = Field(
        default=None, description="The account that is charged.", examples=["a_000042"]
    )
    card_token: Identifier | None = Field(
        default=None,
        description="Token of the card; its number only where the feature set declares the field as token.",
        examples=["tok_5e1f00c2"],
    )
    merchant_id: Identifier | None = Field(default=None, description="Who is paid.", examples=["m_0815"])
    terminal_id: Identifier | None = Field(
        default=None, description="Terminal or web shop checkout.", examples=["t_3311"]
    )
    device_id: Identifier | None = Field(default=None, description="Device of the payer.", examples=["d_91c0"])
    ip: Ip | None = Field(
        default=None,
        description="Address the payment came from, IPv4 or IPv6.",
        examples=["192.0.2.17", "2001:db8::17"],
    )
    mcc: MerchantCategory | None = Field(
        default=None, description="Merchant category code, ISO 18245, four digits as text.", examples=["5411"]
    )
    channel: Channel | None = Field(
        default=None, description="How it was made, a short lower-case word.", examples=["pos", "ecom", "atm", "moto"]
    )
    country: Country | None = Field(
        default=None, description="Country of the payer, two capital letters (ISO 3166).", examples=["DE"]
    )
    merchant_country: Country | None = Field(
        default=None, description="Country of the merchant, likewise.", examples=["FR"]
    )
    latitude: Latitude | None = Field(default=None, description="Where the payer was, degrees.", examples=[52.52])
    longitude: Longitude | None = Field(default=None, description="Where the payer was, degrees.", examples=[13.405])
    merchant_latitude: Latitude | None = Field(
        default=None, description="Where the merchant is, degrees.", examples=[48.8566]
    )
    merchant_longitude: Longitude | None = Field(
        default=None, description="Where the merchant is, degrees.", examples=[2.3522]
    )
    attributes: Attributes | None = Field(
        default=None,
        description="Further data by name: text, number or truth value. A null is the same as no such attribute. "
        "A card verification code (cvv, cvc2, card_security_code …) is refused by its name; the result of its check is "
        "taken.",
        examples=[{"basket_size": 3, "new_address": True, "wallet": "none"}],
    )

    @cached_property
    def event_time_ms(self) -> int:
        """Event time, epoch milliseconds UTC."""
        return event_time_ms(self.event_time)

    @classmethod
    def from_json(
        cls,
        raw: bytes | None,
        key: bytes | None = None,
        *,
        value_bytes_max: int = VALUE_BYTES_MAX,
        cards: CardFields = UNDECLARED,
    ) -> Payment:
        """The payment in a record's value, values of token fields as they came (`with_pseudonyms` replaces them).

        Raises ContractError: first for the key, then by schemas.json_document, then by schemas.field_types; it holds
        the payment id where that can be read.
        """
        document: dict[str, Any] = {}
        try:
            if key is not None:
                _check_key(key, raw, value_bytes_max, cards)
            document = parse_object(raw, value_bytes_max)
            return check_contract(cls, document, cards=cards)
        except ContractError as error:
            if error.field == "key":
                with suppress(ContractError):
                    document = parse_object(raw, value_bytes_max)
            error.payment_id, error.document = _readable_id(error.document or document, cards), None
            raise

    def with_pseudonyms(self, cards: CardFields) -> Payment:
        """The same payment, with the pseudonyms of what `cards` declares as token."""
        return self.model_copy(update=pseudonyms_of(self, cards))


def pseudonyms_of(payment: Any, cards: CardFields) -> dict[str, Any]:
    """The fields of a payment that are replaced, by name, with their new values."""
    changed: dict[str, Any] = {}
    for name in cards.tokens:
        if name.startswith(ATTRIBUTE):
            attributes: Mapping[str, Any] = changed.get("attributes", payment.attributes) or {}
            value = attributes.get(name.removeprefix(ATTRIBUTE))
            if value is not None and not isinstance(value, bool):
                changed["attributes"] = {**attributes, name.removeprefix(ATTRIBUTE): cards.replaced(value)}
        elif (text := getattr(payment, name)) is not None:
            changed[name] = cards.replaced(text)
    return changed


def replaced_key(key: bytes | None, payment: Any, cards: CardFields) -> bytes | None:
    """The key under which a payment's decision goes: its pseudonym where the key is declared as token, or is the value
    of such a field in `payment` (before that was replaced)."""
    if key is None:
        return None
    text = key_text(key)
    if cards.key_rule is CardRule.TOKEN:
        return cards.replaced(text).encode()
    if cards.key_rule is None and any(
        not name.startswith(ATTRIBUTE)
        and (value := getattr(payment, name)) is not None
        and cards.is_value(text, value, CardRule.TOKEN)
        for name in cards.tokens
    ):
        return cards.replaced(text).encode()
    return key


def _readable_id(document: Mapping[str, Any], cards: CardFields) -> str | None:
    """The payment id of a refused record, if that alone is as the contract wants it: then it can be answered."""
    text = document.get("payment_id")
    if not isinstance(text, str) or not is_identifier(text):
        return None
    return None if cards.rule("payment_id") is CardRule.REFUSE and holds_card_number(text) else text


def key_text(key: bytes) -> str:
    """A record's key as text, also when it is a JSON string with its quotes."""
    return key.strip(b' \t\r\n"').decode("utf-8", "replace")


def is_declared_value(key: bytes, fields: Mapping[str, Any], cards: CardFields) -> bool:
    """Whether the key is the value of a field that is opaque or token: then it is what that field is."""
    text = key_text(key)
    return any(
        (rule := cards.rule(name)) is not CardRule.REFUSE
        and isinstance(value, str)
        and cards.is_value(text, value, rule)
        for name, value in fields.items()
        if name in Payment.model_fields
    )


def _check_key(key: bytes, raw: bytes | None, value_bytes_max: int, cards: CardFields) -> None:
    """Raises ContractError for a record's key that is too long, or a card number where it must not be one."""
    if len(key) > KEY_BYTES_MAX:
        raise ContractError(
            DeadLetterReason.KEY_TOO_LARGE, "key", f"a key of {len(key)} bytes; at most {KEY_BYTES_MAX} are taken"
        )
    if cards.key_rule in (CardRule.OPAQUE, CardRule.TOKEN):
        return
    if not key_is_card_number(key, ibans_spared=cards.ibans_spared):
        return
    document: dict[str, Any] = {}
    if cards.key_rule is None:
        with suppress(ContractError):  # what is no object has no field that the key could be the value of
            document = parse_object(raw, value_bytes_max)
    if not is_declared_value(key, document, cards):
        raise ContractError(
            DeadLetterReason.CARD_NUMBER, "key", "the record's key is a card number; key payments by a token or an id"
        )
