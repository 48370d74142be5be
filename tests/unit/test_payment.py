"""The payment contract: an example for each reason, card numbers wherever they hide, messages without payload."""

from __future__ import annotations

import json

import pytest

from schemas.card_fields import DEFAULTS, UNDECLARED, CardFields
from schemas.card_numbers import is_card_number
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.control_record import Activate, ListAdd, ListRemove, parse_control
from schemas.dead_letter import KEY_BYTES_MAX, dead_letter_record
from schemas.label_record import Label
from schemas.payment import Payment
from schemas.payment_decoder import decode_payments

CARD = "4111111111111111"
GOOD = {"payment_id": "p_1", "event_time": "2026-01-01T12:30:00.250Z", "amount_minor": 5716, "currency": "EUR"}
R = DeadLetterReason


def with_(**fields: object) -> bytes:
    return json.dumps(GOOD | fields).encode()


def token(field: str, text: str) -> bytes:
    """A payment whose `field` is written as `text`, which need not be JSON."""
    return with_(**{field: "@"}).replace(b'"@"', text.encode())


def refusal(raw: bytes | None, key: bytes | None = None, cards: CardFields = UNDECLARED) -> ContractError:
    with pytest.raises(ContractError) as caught:
        Payment.from_json(raw, key, cards=cards)
    return caught.value


# reason, field that the error names, value
REFUSED: list[tuple[DeadLetterReason, str | None, bytes | None]] = [
    (R.NULL_VALUE, None, None),
    (R.EMPTY_VALUE, None, b""),
    (R.TOO_LARGE, None, with_(customer_id="x" * 70_000)),
    (R.WRONG_MAGIC, None, b"\x02" + with_()),
    (R.WRONG_MAGIC, None, b"\x00{}"),
    (R.UNKNOWN_SCHEMA_ID, None, b"\x00\x00\x00\x00\x07" + with_()),
    (R.NOT_UTF8, None, with_()[:-1] + b"\xff}"),
    (R.NOT_UTF8, None, with_().replace(b"p_1", b"\xed\xa0\x80")),
    (R.TOO_DEEP, None, token("attributes", '{"a":' * 40 + "1" + "}" * 40)),
    (R.TOO_DEEP, None, b"[" * 60_000),
    (R.NOT_JSON, None, b"payment_id=p_1"),
    (R.NOT_JSON, None, with_() + b"}"),
    (R.NOT_JSON, None, b"\xef\xbb\xbf" + with_()),
    (R.NOT_JSON, None, b" "),
    (R.NOT_AN_OBJECT, None, b"[" + with_() + b"]"),
    (R.NOT_AN_OBJECT, None, b"null"),
    (R.DUPLICATE_KEY, None, with_()[:-1] + b', "currency": "EUR"}'),
    (R.DUPLICATE_KEY, None, token("attributes", '{"a": 1, "\\u0061": 2}')),
    (R.NOT_FINITE, None, token("latitude", "NaN")),
    (R.NOT_FINITE, None, token("amount_minor", "-Infinity")),
    (R.NOT_FINITE, None, token("attributes", '{"a": 1e400}')),
    (R.CARD_NUMBER, "customer_id", with_(customer_id=CARD)),
    (R.UNKNOWN_FIELD, None, with_(surprise="123")),
    (R.CARD_VERIFICATION, None, with_(cvv="123")),
    (R.UNKNOWN_FIELD, None, with_(cvv=None)),
    (R.MISSING_FIELD, "currency", b'{"payment_id": "p_1", "event_time": 1767225600000, "amount_minor": 1}'),
    (R.MISSING_FIELD, "payment_id", with_(payment_id=None)),
    (R.WRONG_TYPE, "payment_id", with_(payment_id=17)),
    (R.WRONG_TYPE, "amount_minor", with_(amount_minor="5716")),
    (R.WRONG_TYPE, "amount_minor", with_(amount_minor=True)),
    (R.WRONG_TYPE, "event_time", with_(event_time=1.5)),
    (R.WRONG_TYPE, "attributes", with_(attributes={"a": [1]})),
    (R.INVALID_VALUE, "payment_id", with_(payment_id="")),
    (R.INVALID_VALUE, "payment_id", with_(payment_id="x" * 129)),
    (R.INVALID_VALUE, "payment_id", with_(payment_id="a\x00b")),
    (R.INVALID_VALUE, "payment_id", with_(payment_id="\ud800")),
    (R.INVALID_VALUE, "mcc", with_(mcc="541")),
    (R.INVALID_VALUE, "country", with_(country="de")),
    (R.INVALID_VALUE, "channel", with_(channel="E-Com")),
    (R.INVALID_VALUE, "ip", with_(ip="fe80::1%eth0")),
    (R.INVALID_VALUE, "latitude", with_(latitude=90.5)),
    (R.INVALID_VALUE, "attributes", with_(attributes={"a b": 1})),
    (R.INVALID_VALUE, "attributes", with_(attributes={"a": "x" * 257})),
    (R.INVALID_VALUE, "attributes", with_(attributes={f"n{i}": i for i in range(65)})),
    (R.INVALID_VALUE, "attributes", with_(attributes={"a": 2**63})),
    (R.AMOUNT_NEGATIVE, "amount_minor", with_(amount_minor=-1)),
    (R.AMOUNT_OVERFLOW, "amount_minor", with_(amount_minor=10**12)),
    (R.AMOUNT_OVERFLOW, "amount_minor", token("amount_minor", "9" * 5_000)),
    (R.AMOUNT_MINOR_UNITS, "amount_minor", token("amount_minor", "57.16")),
    (R.AMOUNT_MINOR_UNITS, "amount_minor", token("amount_minor", "5716.0")),
    (R.UNKNOWN_CURRENCY, "currency", with_(currency="EURO")),
    (R.UNKNOWN_CURRENCY, "currency", with_(currency="XAU")),
    (R.EVENT_TIME_INVALID, "event_time", with_(event_time="2026-01-01T12:30:00")),
    (R.EVENT_TIME_INVALID, "event_time", with_(event_time="2026-02-29T12:30:00Z")),
    (R.EVENT_TIME_INVALID, "event_time", with_(event_time="2026-01-01T23:59:60Z")),
    (R.EVENT_TIME_OUT_OF_RANGE, "event_time", with_(event_time="1999-12-31T23:59:59.999Z")),
    (R.EVENT_TIME_OUT_OF_RANGE, "event_time", with_(event_time=1_767_225_600)),
    (R.EVENT_TIME_OUT_OF_RANGE, "event_time", with_(event_time=4 * 10**12)),
]


@pytest.mark.parametrize(("reason", "field", "raw"), REFUSED)
def test_refused_with_its_reason(reason: DeadLetterReason, field: str | None, raw: bytes | None) -> None:
    """Each malformed payment is refused with its own reason, by both doors, and its neighbours are accepted."""
    error = refusal(raw)
    assert (error.reason, error.field) == (reason, field)
    batch = decode_payments([with_(), raw, with_()])
    assert batch.index.tolist() == [0, 2]
    assert [(reject.index, reject.error) for reject in batch.rejects] == [(1, error)]


def test_every_reason_has_an_example() -> None:
    """No reason is without an example; those of control, clock and feature set have tests of their own."""
    elsewhere = {R.EVENT_TIME_IN_FUTURE, R.INVALID_CONTROL, R.KEY_TOO_LARGE, R.NO_EXCHANGE_RATE, R.NOT_A_LABEL}
    assert {reason for reason, _, _ in REFUSED} | elsewhere == set(DeadLetterReason)
    assert all(reason.sentence.endswith(".") for reason in DeadLetterReason)


def test_first_wrong_thing_is_named_in_the_documented_order() -> None:
    """card_number, then unknown, then missing, then the contract's order, whatever the order in the text."""
    wrong = {"surprise": "1", "customer_id": "", "amount_minor": -1, "attributes": {"a": CARD}}
    assert refusal(json.dumps(wrong).encode()).reason == R.CARD_NUMBER
    wrong["attributes"] = {"a": 1}
    assert refusal(json.dumps(wrong).encode()).reason == R.UNKNOWN_FIELD
    del wrong["surprise"]
    assert refusal(json.dumps(wrong).encode()).field == "payment_id"
    assert (
        refusal(json.dumps(wrong | {"payment_id": "p", "event_time": "x", "currency": "?"}).encode()).field
        == "event_time"
    )


CARDS = (
    CARD,
    "4111 1111 1111 1111",
    " 4111-1111--1111-1111",
    "4222222222222",
    "6304000000000000000",
    "378282246310005",
)


# Also the ids that are opaque unless they are declared.
REFUSING = CardFields.of(dict.fromkeys(DEFAULTS, "refuse"))


def assert_card_refused(raw: bytes, key: bytes | None, field: str | None, digits: str) -> None:
    error = refusal(raw, key, REFUSING)
    assert (error.reason, error.field) == (R.CARD_NUMBER, field)
    assert decode_payments([raw], [key], cards=REFUSING).rejects == [(0, error)]
    dead_key, dead_value, headers = dead_letter_record("payments", 0, 7, key, raw, error)
    left = b" ".join([dead_key or b"", dead_value or b"", *(text for _, text in headers)]) + str(error).encode()
    assert digits.strip().encode() not in left
    assert b"***" in left


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("field", Payment.model_fields)
def test_card_number_as_text_of_any_field(field: str, card: str) -> None:
    """A card number as any field's text is refused; its digits are in neither message nor dead letter."""
    assert_card_refused(with_(**{field: card}), None, field, card)


@pytest.mark.parametrize("field", [name for name in Payment.model_fields if name != "event_time"])
def test_card_number_as_number_of_any_field(field: str) -> None:
    """Written as a JSON number it is no less a card number."""
    assert_card_refused(with_(**{field: int(CARD)}), None, field, CARD)


@pytest.mark.parametrize(
    "text", [f'"{CARD}"', CARD, f"-{CARD}", f"{CARD}.0", "4.111111111111111e15", '"\\u0034111111111111111"']
)
def test_card_number_in_an_attribute(text: str) -> None:
    """Nor do attributes, floats, exponents or JSON's escapes hide one."""
    digits = "111111111111111" if "e15" in text or "u0034" in text else CARD
    assert_card_refused(token("attributes", f'{{"a": {text}}}'), None, "attributes", digits)


def test_card_number_as_a_time_is_out_of_range() -> None:
    """A number as event time is judged as a time: in range it is one; a card number is out of range, and masked."""
    error = refusal(with_(event_time=int(CARD)))
    assert error.reason == R.EVENT_TIME_OUT_OF_RANGE
    _, value, _ = dead_letter_record("payments", 0, 7, None, with_(event_time=int(CARD)), error)
    assert CARD.encode() not in (value or b"")
    assert is_card_number("1767225600009")
    assert Payment.from_json(with_(event_time=1_767_225_600_009)).event_time_ms == 1_767_225_600_009


@pytest.mark.parametrize("key", [CARD.encode(), b"4111 1111 1111 1111", b'"4111-1111-1111-1111"'])
def test_card_number_as_key(key: bytes) -> None:
    """A record keyed by a card number is refused although its value is good."""
    assert_card_refused(with_(), key, "key", key.decode().strip('"'))


def test_a_key_longer_than_its_decision_may_carry() -> None:
    """A key of 4 KiB is taken and a longer one refused, by the reference and in a batch, and its dead letter has 4 KiB
    of it."""
    longest = b"k" * KEY_BYTES_MAX
    assert Payment.from_json(with_(), longest).payment_id == "p_1"
    with pytest.raises(ContractError) as caught:
        Payment.from_json(with_(), longest + b"k")
    assert (caught.value.reason, caught.value.field) == (R.KEY_TOO_LARGE, "key")
    batch = decode_payments([with_(), with_()], [longest, longest + b"k"])
    assert (batch.index.tolist(), batch.rejects[0].error) == ([0], caught.value)
    key, _, headers = dead_letter_record("payments", 0, 7, longest + b"k", with_(), caught.value)
    assert key == longest
    assert dict(headers)["fraud_scorer.truncated"] == b"true"


def test_card_number_as_a_name() -> None:
    """A field or an attribute named by a card number is refused for that, and the name is not repeated."""
    assert_card_refused(with_(**{CARD: 1}), None, None, CARD)
    assert_card_refused(with_(attributes={CARD: 1}), None, "attributes", CARD)


@pytest.mark.parametrize("field", [*Payment.model_fields, "zqx7surprise", "customer_idd"])
@pytest.mark.parametrize(
    "value",
    [
        "zqx7",
        "zqx7" * 100,
        "zqx7\x00",
        ["zqx7"],
        {"zqx7": "zqx7"},
        {"zqx7 ": 1},
        73159731597,
        -73159731597,
        731.59731597,
        73159731597 * 10**30,
    ],
)
def test_messages_hold_no_payload(field: str, value: object) -> None:
    """Whatever is wrong, neither the value nor an unknown name is in the error's text."""
    rejects = decode_payments([with_(**{field: value})]).rejects
    shown = "".join(str(error) + repr(error) for _, error in rejects)
    assert not any(part in shown for part in ("zqx7", "73159731597", "731.59731597", "customer_idd"))


def test_unknown_names_get_a_hint() -> None:
    """The message for a misspelt field names the contract's own field that is nearest."""
    assert "did you mean customer_id?" in str(refusal(with_(customerId="c_1")))


def test_null_equals_absent() -> None:
    """Null in an optional field, or as an attribute, is the same as leaving it out."""
    raw = with_(customer_id=None, latitude=None, attributes={"a": None, "b": 1})
    assert Payment.from_json(raw) == Payment.from_json(with_(attributes={"b": 1}))
    assert decode_payments([raw]).rows[0].attributes == {"b": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T12:30:00.250Z", 1_767_270_600_250),
        ("2026-01-01 12:30:00.2509999+00:00", 1_767_270_600_250),
        ("2026-01-01T14:30:00.25+02:00", 1_767_270_600_250),
        ("2025-12-31T23:00:00-13:30", 1_767_270_600_000),
        ("2000-02-29T00:00:00Z", 951_782_400_000),
    ],
)
def test_times(text: str, expected: int) -> None:
    """Offsets are taken off and fractions cut to milliseconds."""
    assert Payment.from_json(with_(event_time=text)).event_time_ms == expected


def test_control_records() -> None:
    """Each kind of control record is distinguished by its type."""
    label = parse_control(
        b'{"type":"label","payment_id":"p_1","fraud":true,"known_at":"2026-01-09T08:00:00Z","event_time":1767225600000}'
    )
    assert isinstance(label, Label)
    assert (label.fraud, label.known_at_ms, label.event_time_ms) == (True, 1_767_945_600_000, 1_767_225_600_000)
    assert parse_control(b'{"type":"list_add","list":"blocked","value":"t_1"}') == ListAdd(list="blocked", value="t_1")
    assert parse_control(b'{"type":"list_remove","list":"blocked","value":"t_1"}') == ListRemove(
        list="blocked", value="t_1"
    )
    assert parse_control(b'{"type":"activate","bundle":"b-1","location":"s3://b/b-1"}') == Activate(
        bundle="b-1", location="s3://b/b-1"
    )


@pytest.mark.parametrize(
    ("reason", "raw"),
    [
        (R.NULL_VALUE, None),
        (R.NOT_JSON, b"label"),
        (R.INVALID_CONTROL, b"{}"),
        (R.INVALID_CONTROL, b'{"type": "Label"}'),
        (R.INVALID_CONTROL, b'{"type": ["label"]}'),
        (R.MISSING_FIELD, b'{"type": "label", "payment_id": "p_1", "fraud": true}'),
        (R.WRONG_TYPE, b'{"type": "label", "payment_id": "p_1", "fraud": 1, "known_at": 1767225600000}'),
        (R.EVENT_TIME_INVALID, b'{"type": "label", "payment_id": "p_1", "fraud": true, "known_at": "yesterday"}'),
        (R.UNKNOWN_FIELD, b'{"type": "list_add", "list": "a", "value": "b", "values": []}'),
        (R.INVALID_VALUE, b'{"type": "list_add", "list": "a b", "value": "c"}'),
        (R.CARD_NUMBER, b'{"type": "list_add", "list": "a", "value": "4111111111111111"}'),
    ],
)
def test_refused_control_records(reason: DeadLetterReason, raw: bytes | None) -> None:
    """Malformed control records have the payments' reasons, and one of their own for an unknown type."""
    with pytest.raises(ContractError) as caught:
        parse_control(raw)
    assert caught.value.reason == reason
