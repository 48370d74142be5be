"""Which fields may hold a card number is declared: no random id is refused for looking like one, no number passes."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable

import pytest

from features.feature_set import FeatureSet, FeatureSetError
from schemas.card_fields import CardFields, CardRule
from schemas.card_numbers import IBAN_LENGTHS, holds_card_number, is_iban
from schemas.card_rule import luhn
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.control_record import ListAdd, parse_control, parse_control_masked
from schemas.dead_letter import dead_letter_record
from schemas.field_table import card_checks
from schemas.payment import Payment
from schemas.payment_decoder import decode_payments
from schemas.pseudonym import PseudonymKeyError, PseudonymKeys, id_of_key, is_pseudonym, pseudonym
from scorer.pipeline.card_shares import CardShares
from scorer.pipeline.records import Rejected
from tests.properties.payment_texts import GOOD, tokens_of, written

KEY, OTHER = bytes(range(32)), bytes(32)
CARD = "4111111111111111"
IDS_OF_EACH_KIND = 100_000


def _digits(r: random.Random, count: int) -> str:
    return f"{r.randrange(10**count):0{count}}"


def _iban(country: str, letters: int) -> Callable[[random.Random], str]:
    """IBANs of a country whose account numbers begin with so many letters."""

    def make(r: random.Random) -> str:
        bank = "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(letters))
        body = bank + _digits(r, IBAN_LENGTHS[country] - 4 - letters)
        check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
        return f"{country}{check:02}{body}"

    return make


# What people really use, in the field where it stands. The first half is as good as random digits.
KINDS: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "16-digit reference": ("payment_id", lambda r: _digits(r, 16)),
    "snowflake": ("payment_id", lambda r: str((1_767_225_600_000 - 1_288_834_974_657 << 22) + r.getrandbits(50))),
    "retrieval reference number": ("payment_id", lambda r: _digits(r, 12)),
    "acquirer reference number": ("payment_id", lambda r: "7" + _digits(r, 22)),
    "network transaction id": ("payment_id", lambda r: _digits(r, 15)),
    "p_ and 16 digits": ("payment_id", lambda r: "p_" + _digits(r, 16)),
    "14 digits of time and a counter": ("payment_id", lambda r: f"20260101{_digits(r, 6)}{_digits(r, 4)}"),
    "64-bit merchant": ("merchant_id", lambda r: str(r.getrandbits(63))),
    "15-digit merchant": ("merchant_id", lambda r: _digits(r, 15)),
    "16-digit terminal": ("terminal_id", lambda r: _digits(r, 16)),
    "IMEI": ("device_id", lambda r: next(n + c for n in ["35" + _digits(r, 12)] for c in "0123456789" if luhn(n + c))),
    "GB IBAN": ("account_id", _iban("GB", 4)),
    "FI IBAN": ("account_id", _iban("FI", 0)),
    "DK IBAN": ("account_id", _iban("DK", 0)),
    "AT IBAN": ("account_id", _iban("AT", 0)),
    "CH IBAN": ("account_id", _iban("CH", 0)),
    "DE IBAN in groups": (
        "account_id",
        lambda r: " ".join(t[i : i + 4] for t in [_iban("DE", 0)(r)] for i in range(0, len(t), 4)),
    ),
    "UUID": ("customer_id", lambda r: str(uuid.UUID(int=r.getrandbits(128), version=4))),
    "32 hex digits": ("customer_id", lambda r: r.randbytes(16).hex()),
    "24 hex digits": ("customer_id", lambda r: r.randbytes(12).hex()),
    "cloud resource name": ("account_id", lambda r: f"arn:aws:iam::{_digits(r, 12)}:user/{r.randbytes(4).hex()}"),
    "10-digit customer": ("customer_id", lambda r: _digits(r, 10)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_id_is_refused(kind: str) -> None:
    """100,000 ids of each kind, without any declaration: not one payment is refused for its id looking like a card."""
    field, make = KINDS[kind]
    chosen = random.Random(kind)
    ids = [make(chosen) for _ in range(IDS_OF_EACH_KIND)]
    rest = json.dumps({name: value for name, value in GOOD.items() if name not in (field, "attributes")})[1:]
    values = [f'{{"{field}": "{text}", {rest}'.encode() for text in ids]
    batch = decode_payments(values, [text.encode() for text in ids])
    assert len(batch) == IDS_OF_EACH_KIND
    assert batch.column(field).tolist() == ids


@pytest.mark.parametrize("rule", ["opaque", "token"])
def test_long_numbers_of_customers_are_taken_once_declared(rule: str) -> None:
    """16 random digits as customer id: one in ten is refused without a declaration, none with one."""
    chosen = random.Random(rule)
    values = [written(tokens_of(GOOD | {"customer_id": _digits(chosen, 16)})) for _ in range(2_000)]
    refused = len(decode_payments(values).rejects)
    assert 140 < refused < 260
    assert not decode_payments(values, cards=CardFields.of({"customer_id": rule}).with_key(KEY)).rejects


def test_an_account_number_of_no_country_is_no_iban() -> None:
    """Only the registry's countries, lengths and checks are spared."""
    good = _iban("FI", 0)(random.Random(1))
    assert is_iban(good)
    assert is_iban(" ".join(good[i : i + 4] for i in range(0, 18, 4)))
    wrong = good[:2] + f"{(int(good[2:4]) + 1) % 100:02}" + good[4:]
    for text in (wrong, good[1:], "XX" + good[2:], good + "1", good.lower(), "FI" + CARD):
        assert not is_iban(text)
    assert holds_card_number("FI" + CARD)


def test_a_pseudonym_is_keyed_stable_and_stands_for_itself() -> None:
    """The same number in any grouping has the same one; another key gives another; it never looks like a card."""
    made = pseudonym(KEY, CARD)
    assert made == "tk_lpgpggkdgekapchfdmeiikfkgaoefcjm" or is_pseudonym(made)
    assert {pseudonym(KEY, text) for text in (CARD, "4111 1111 1111 1111", "4111-1111-1111-1111", made)} == {made}
    assert pseudonym(OTHER, CARD) != made
    assert not any(c.isdigit() for c in made)
    assert pseudonym(KEY, "4111x") != pseudonym(KEY, "4111")


def test_keys_are_read_from_text_and_never_shown() -> None:
    """One key a line; a short one is an error that does not repeat it; a key is found again by its id."""
    keys = PseudonymKeys.from_text(f"{KEY.hex()}\n{OTHER.hex()}\n")
    assert keys.current() == KEY
    assert keys.named(id_of_key(OTHER)) == OTHER
    assert KEY.hex() not in repr(keys)
    assert id_of_key(KEY) not in KEY.hex()
    with pytest.raises(PseudonymKeyError, match="none of the 2 keys"):
        keys.named("0" * 16)
    with pytest.raises(PseudonymKeyError, match="key 2 is text of 6 characters") as caught:
        PseudonymKeys.from_text(f"{KEY.hex()} secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(PseudonymKeyError, match="FRAUD_SCORER_CARDS__KEYS_FILE"):
        PseudonymKeys().current()


def test_the_feature_set_declares_and_its_fingerprint_tells() -> None:
    """Unknown fields and a payment id as token are refused with the way out; without declarations nothing changes."""
    text = "name: s\ncurrency: EUR\nfeatures: [{name: amount, payment: amount}]\n"
    plain = FeatureSet.from_yaml(text)
    declared = FeatureSet.from_yaml(text + "card_numbers: {card_token: token, attributes.pan: token, key: opaque}\n")
    assert plain.fingerprint == FeatureSet.from_yaml(text + "card_numbers: {}\n").fingerprint != declared.fingerprint
    assert declared.cards.tokens == ("attributes.pan", "card_token")
    assert declared.cards.need_key
    assert not plain.cards.need_key
    with pytest.raises(FeatureSetError, match=r"unknown field 'card_tokn'.*card_token"):
        FeatureSet.from_yaml(text + "card_numbers: {card_tokn: token}\n")
    with pytest.raises(FeatureSetError, match="cannot be a token"):
        FeatureSet.from_yaml(text + "card_numbers: {payment_id: token}\n")
    assert not card_checks(declared.cards).all()


def test_a_token_field_without_a_key_is_an_error() -> None:
    """No value of a token field ever passes as it came."""
    with pytest.raises(PseudonymKeyError):
        decode_payments([written(tokens_of(GOOD))], cards=CardFields.of({"card_token": "token"}))


def test_a_key_is_what_its_field_is() -> None:
    """A record keyed by an opaque id is taken as it is, by a token field its decision goes under the pseudonym."""
    cards = CardFields.of({"card_token": "token"}).with_key(KEY)
    given = GOOD | {"merchant_id": CARD, "card_token": "5500000000000004"}
    raw = written(tokens_of(given))
    keys = [CARD.encode(), b"5500000000000004", b'"5500000000000004"', b"4012888888881881", b"c_1"]
    batch = decode_payments([raw] * 5, keys, cards=cards)
    shown = pseudonym(KEY, "5500000000000004").encode()
    assert batch.keys == {1: shown, 2: shown}
    assert [(r.index, r.error.reason.value, r.error.field) for r in batch.rejects] == [(3, "card_number", "key")]
    declared = decode_payments([raw], [b"4012888888881881"], cards=cards.with_rules({"key": CardRule.TOKEN}))
    assert declared.keys == {0: pseudonym(KEY, "4012888888881881").encode()}
    good = written(tokens_of(GOOD))
    assert not decode_payments([good], [b"4012888888881881"], cards=CardFields.of({"key": "opaque"})).rejects


def test_a_dead_letter_keeps_ids_and_no_number() -> None:
    """Refused for its currency, a payment keeps its opaque ids, so that it can be sent again; the number in its token
    field stands there as its pseudonym, and as the record's key."""
    cards = CardFields.of({"card_token": "token"}).with_key(KEY)
    given = GOOD | {"payment_id": CARD, "card_token": "5500 0000 0000 0004", "currency": "XXY"}
    raw = written(tokens_of(given))
    (reject,) = decode_payments([raw], cards=cards).rejects
    assert reject.error.reason is DeadLetterReason.UNKNOWN_CURRENCY
    key, value, headers = dead_letter_record("payments", 0, 1, b"5500 0000 0000 0004", raw, reject.error, cards=cards)
    kept = json.loads(value or b"")
    assert kept == given | {"card_token": pseudonym(KEY, "5500000000000004")}
    assert key == kept["card_token"].encode()
    assert (
        decode_payments([json.dumps(kept | {"currency": "EUR"}).encode()], cards=cards).rows[0].card_token
        == key.decode()
    )
    assert "5500" not in repr(headers)
    undeclared = dead_letter_record("payments", 0, 1, b"5500000000000004", raw, reject.error)
    assert b"5500" not in repr(undeclared).encode()
    assert CARD.encode() in (undeclared[1] or b"")


def test_values_of_a_list_are_what_its_field_is() -> None:
    """A list of merchants takes any number; one of cards holds pseudonyms; else a card number is refused, and what is
    stored for people shows none."""
    raw = ListAdd(list="l", value=CARD).model_dump_json().encode()
    with pytest.raises(ContractError, match="card_number: value"):
        parse_control(raw)
    opaque = parse_control(raw, cards=CardFields.of({"lists.l": "opaque"}))
    token = parse_control(raw, cards=CardFields.of({"lists.l": "token"}).with_key(KEY))
    assert (opaque.value, token.value) == (CARD, pseudonym(KEY, CARD))  # type: ignore[union-attr]
    assert parse_control_masked(raw) == ListAdd(list="l", value="*" * 16)
    with pytest.raises(ContractError):
        parse_control_masked(
            b'{"type": "label", "payment_id": "p", "fraud": true, "known_at": 1, "analyst": "%s"}' % CARD.encode()
        )


def test_the_share_tells_numbers_from_cards() -> None:
    """Random long numbers in a field that refuses: declare it opaque. Cards in an opaque one: declare it token."""
    chosen = random.Random(5)

    def card() -> str:
        return next(n + c for n in ["4" + _digits(chosen, 14)] for c in "0123456789" if luhn(n + c))

    ids = [
        {"customer_id": _digits(chosen, 16), "merchant_id": card(), "terminal_id": _digits(chosen, 16)}
        for _ in range(500)
    ]
    batch = decode_payments([written(tokens_of(GOOD | given)) for given in ids])
    shares = CardShares(CardFields())
    shares.add(batch, [Rejected(r.index, r.error) for r in batch.rejects])
    found = {share.field: share for share in shares.found()}
    assert {name: share.advice.value for name, share in found.items()} == {
        "customer_id": "opaque",
        "merchant_id": "token",
    }
    assert found["customer_id"].numbers == 500
    assert "card" in found["merchant_id"].sentence()


def test_the_reference_replaces_as_the_batch_does() -> None:
    """`Payment.with_pseudonyms` is the plain form of what a batch holds, attributes and numbers among them."""
    cards = CardFields.of({"card_token": "token", "attributes.pan": "token", "attributes.n": "token"}).with_key(KEY)
    given = GOOD | {"card_token": CARD, "attributes": {"pan": int(CARD), "n": 12.5, "other": True}}
    raw = written(tokens_of(given))
    (row,) = decode_payments([raw], cards=cards).rows
    payment = Payment.from_json(raw, cards=cards).with_pseudonyms(cards)
    assert (row.card_token, row.attributes) == (payment.card_token, payment.attributes)
    assert payment.attributes == {"pan": pseudonym(KEY, CARD), "n": pseudonym(KEY, "12.5"), "other": True}
