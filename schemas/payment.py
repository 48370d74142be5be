"""The payment contract, as documented pydantic fields: the reference that decides what is accepted and why not.

The class `Payment` is the one place where the fields stand: schemas.field_table derives every other list from it. A
new field is one line there (and a migration, where it enters the audit trail).

`Payment.from_json` takes some 50 µs a payment. The live path reads payments with `schemas.payment_decoder`, which
accepts only what it is certain of and gives everything else to this one.
"""

from __future__ import annotations

from functools import cached_property

from pydantic import Field

from schemas.card_numbers import key_is_card_number
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
)
from schemas.json_document import VALUE_BYTES_MAX, parse_object


class Payment(Contract):
    """One payment, as it stands on the payments topic. Null equals absent; unknown fields are refused."""

    payment_id: Identifier = Field(
        description="Unique id of the payment. Not bare digits: one in ten looks like a card number.",
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
        default=None, description="Token of the card, never its number.", examples=["tok_5e1f00c2"]
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
        cls, raw: bytes | None, key: bytes | None = None, *, value_bytes_max: int = VALUE_BYTES_MAX
    ) -> Payment:
        """The payment in a record's value.

        Raises ContractError: first for the key, then by schemas.json_document, then by schemas.field_types.
        """
        if key is not None:
            check_key(key)
        return check_contract(cls, parse_object(raw, value_bytes_max))


def check_key(key: bytes) -> None:
    """Raises ContractError for a record's key that is too long, or a card number."""
    if len(key) > KEY_BYTES_MAX:
        raise ContractError(
            DeadLetterReason.KEY_TOO_LARGE, "key", f"a key of {len(key)} bytes; at most {KEY_BYTES_MAX} are taken"
        )
    if key_is_card_number(key):
        raise ContractError(
            DeadLetterReason.CARD_NUMBER, "key", "the record's key is a card number; key payments by a token or an id"
        )
