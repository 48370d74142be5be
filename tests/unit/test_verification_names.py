"""Card verification codes: refused by every name they have, at every door, and kept nowhere."""

from __future__ import annotations

import itertools
import json
import math
import re
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import FeatureSet
from features.feature_set import FeatureSetError
from schemas import dead_letter
from schemas.card_fields import CardFields
from schemas.card_mask import mask_card_numbers
from schemas.column_check import check
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.control_record import parse_control
from schemas.dead_letter import VALUE_BYTES_MAX, dead_letter_record
from schemas.payment import Payment
from schemas.payment_columns import PaymentColumns
from schemas.payment_decoder import decode_payments
from schemas.verification_names import _unescaped, is_verification_name, may_end_verification, names_verification
from scorer.files.mapping import Mapping, MappingError

# fmt: off
REFUSED = (
    "cvv", "CVV", "cvv2", "CVV2", "Cvv2", "cvc", "cvc2", "CVC2", "cvn", "cvd", "cid", "CID", "csc", "cav2", "CAV2",
    "icvv", "iCVV", "dcvv", "cvv_code", "cvvCode", "CvvNumber", "cvv2_value", "card_cvv", "cardCvv2", "card.cvv",
    "card_cid", "credit_card_cvv", "payment.card.cvc", "customer_cvv", "raw_cvv", "cvv_raw", "cvv_hash",
    "encrypted_cvv", "cvv_encrypted", "cvv_2", "c_v_v", "C.V.V", "security_code", "securityCode",
    "card_security_code", "cardSecurityCode", "CARD_SECURITY_VALUE", "card_verification", "card_verification_code",
    "card_verification_value", "cardVerificationNumber", "card_verification_value2", "card_validation_code",
    "cc_validation_value", "verification_value", "card_authentication_value", "card_identification_number",
    "amex_cid", "cvv2cvc2", "cvv_cvc", "cvc_no", "_cvv", "cvv_", "track1", "track2", "track_2", "track2_data",
    "trackData", "magstripe", "mag_track_data", "pin_block", "pinBlock", "encrypted_pin_block",
    "track2_equivalent_data", "card_pin",
)
TAKEN = (
    "cvv_result", "cvvResult", "cvv_match", "cvv_present", "cvc_check", "cvv2_response", "card_verification_result",
    "card_verification_method", "has_cvv", "no_cvv", "cvv_tries", "avs_result", "three_ds", "cavv_result",
    "basket_size", "new_address", "wallet", "verified", "email_verified", "merchant_verified", "validation_status",
    "client_id", "customer_cid_x", "incident", "decided", "discount", "cvar", "recv_time", "csv_source", "track",
    "tracking_id", "tracked", "contract", "transaction_type", "security_level", "country_code", "location_code",
    "city_number", "notification_count", "pin_entered", "pin_tries", "pincode", "postcode", "coincidence",
    "medicine",
)
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_every_spelling_is_refused_at_every_door(name: str) -> None:
    """As an attribute, a field, a feature, a filter, a mapped attribute or column, with the reason in words."""
    good = {"payment_id": "p1", "event_time": 1_767_270_600_250, "amount_minor": 1, "currency": "EUR"}
    inside, beside = {**good, "attributes": {"a": 1, name: "889"}}, {**good, "x": [{name: 7}]}
    for document in (inside, beside, {**good, name: 889}):
        raw = json.dumps(document).encode()
        with pytest.raises(ContractError) as refused:
            Payment.from_json(raw)
        assert refused.value.reason is DeadLetterReason.CARD_VERIFICATION
        assert "889" not in str(refused.value)
        (reject,) = decode_payments([raw]).rejects
        assert reject.error == refused.value
    feature_set = "name: s\ncurrency: EUR\nentities: {e: [customer_id]}\nfeatures:\n  - "
    counted = f"{{name: n, entity: e, aggregate: count, window: 1h, where: {{attributes.{name}: x}}}}"
    for feature in (f"{{name: f, payment: attributes.{name}}}", counted):
        with pytest.raises(FeatureSetError, match=f"attributes.{name}"):
            FeatureSet.from_yaml(feature_set + feature)
    mapping = "payment_id: id\nevent_time: t\namount: a\ncurrency: {constant: EUR}\n"
    with pytest.raises(MappingError, match="card verification code"):
        Mapping.from_yaml(f"{mapping}attributes: {{{name}: COLUMN}}\n")
    if name.lower() != "cid":  # a customer's id, as a column
        with pytest.raises(MappingError, match="card verification code"):
            Mapping.from_yaml(f"{mapping}device_id: {name}\n")


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_check_of_it_came_to_is_taken(name: str) -> None:
    """Results of the check, and words that only look alike, cost no payment."""
    assert not is_verification_name(name)
    raw = json.dumps({"payment_id": "p1", "event_time": 1_767_270_600_250, "amount_minor": 1, "currency": "EUR",
                      "attributes": {name: "M"}}).encode()  # fmt: skip
    assert decode_payments([raw]).rejects == []


def test_a_null_is_no_code() -> None:
    """A null equals an absent attribute here too, by both decoders."""
    raw = b'{"payment_id":"p","event_time":1767270600250,"amount_minor":1,"currency":"EUR","attributes":{"cvv":null}}'
    assert Payment.from_json(raw).attributes == {}
    assert decode_payments([raw]).rejects == []


@pytest.mark.parametrize(
    "text", ['"card　verification　value"', '"ＣＶＶ"', '"C-V-V"', '"card verification value"', '"c\\u0076v"']
)
def test_disguised_names_are_refused(text: str) -> None:
    """Full width, escapes, spaces and dashes in a field's name change nothing."""
    raw = (
        '{"payment_id":"p","event_time":1767270600250,"amount_minor":1,"currency":"EUR",' + text + ':"889"}'
    ).encode()
    with pytest.raises(ContractError) as refused:
        Payment.from_json(raw)
    assert refused.value.reason is DeadLetterReason.CARD_VERIFICATION


def test_other_contracts_refuse_it_too() -> None:
    """A label with a code in it is refused with the same reason."""
    with pytest.raises(ContractError) as refused:
        parse_control(
            b'{"type":"label","payment_id":"p","fraud":true,"known_at":1767270600250,"source":"s","cvv":"889"}'
        )
    assert refused.value.reason is DeadLetterReason.CARD_VERIFICATION


@pytest.mark.parametrize(
    "raw",
    [
        b'{"payment_id":"p1","cvv":"889"}',
        b'{"payment_id":"p1","attributes":{"card_security_code":889',
        b'{"payment_id":"p1","c\\u0076v2" : "889"}',
        b"payment_id=p1&cvv=889",
        b"<payment><cvc2>889</cvc2></payment>",
        "{'ＣＶＶ': 889}".encode(),
        '{"cvv": "889"}'.encode("utf-16-le"),
        b'\xff{"cvv": "889"}',
    ],
)
def test_a_dead_letter_keeps_no_code(raw: bytes) -> None:
    """Whatever a record with a code in it was refused for, its dead letter has no digit of it."""
    assert names_verification(raw)
    for reason in (DeadLetterReason.NOT_JSON, DeadLetterReason.MISSING_FIELD, DeadLetterReason.CARD_VERIFICATION):
        _, value, headers = dead_letter_record("payments", 0, 1, b"k", raw, ContractError(reason, None, "m"))
        assert value is not None
        assert not {*b"889"} & {*value}
        assert dict(headers)["fraud_scorer.masked"] == b"true"


FRAGMENTS = (
    "cvv", "xcvv", "cvc2", "track2", "card_security_code", "pin_block", "pan", "a", '"', "'", ":", "=", "<", ">", " ",
    "\n", "\\", ",", "{", "}", "[", "]", ";", "/", "&", "é", "\\u0063vv", "0" * 130 + "cvv",
    "".join(f"\\u{ord(letter):04x}" for letter in "card_verification_number"), "card (pin)", "c - v - v",
)  # fmt: skip
_PLAIN = re.compile(
    r"""["']((?:[^"'\\]|\\.){1,256})["']\s*[:=]|([^\s"':=,;&{}<>\[\]]{1,128})\s*[:=]|<\s*([^\s<>/]{1,128})"""
)


@settings(max_examples=3_000, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=9).map("".join))
def test_whatever_a_plain_search_finds_is_found_in_one_reading(text: str) -> None:
    """The pattern that reads each part once finds at least what one finds that tries every place."""
    names = [_unescaped(found[found.lastindex or 1]) for found in _PLAIN.finditer(text)]
    if any(is_verification_name(name) for name in names):
        assert names_verification(text.encode())


HALF = b"QmFzZTY0" * 2**16  # 512 KiB without a delimiter
LONG = (
    HALF, b'{"image":"' + HALF + b'"}', b"cvv" + b"x" * len(HALF), b"cvv" + b'"a' * (len(HALF) // 2),
    b"cvv" + b" " * len(HALF), b"cvv" + b"< " * (len(HALF) // 2), b'cvv"' + b"\\" * len(HALF),
    b"cvv" + (b'"' + b"a" * 256) * (len(HALF) // 257),
)  # fmt: skip


@pytest.mark.parametrize("raw", LONG, ids=lambda raw: repr(raw[:12]))
def test_a_long_value_takes_time_in_proportion_to_its_length(raw: bytes) -> None:
    """No text takes much more than ordinary JSON of its length: the search holds the interpreter, and other shards wait
    meanwhile."""
    ordinary = (b'{"cvv_result":"M","note":"one word and another"},' * (len(raw) // 49))[: len(raw)]

    def seconds(value: bytes) -> float:
        best = math.inf
        for _ in range(3):
            before = time.thread_time()
            names_verification(value)
            best = min(best, time.thread_time() - before)
        return best

    assert seconds(raw) < 10 * seconds(ordinary)


def test_what_lies_far_behind_the_cut_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter is the same for a record that goes on for a megabyte, and a number across the cut is masked."""
    looked_at = list[int]()

    def mask(raw: bytes) -> bytes:
        looked_at.append(len(raw))
        return mask_card_numbers(raw)

    monkeypatch.setattr(dead_letter, "mask_card_numbers", mask)
    number = b"4111 1111 1111 1111"
    raw = b"-" * (VALUE_BYTES_MAX - 8) + number + b"-" * 2**20
    error = ContractError(DeadLetterReason.NOT_JSON, None, "m")
    _, value, headers = dead_letter_record("payments", 0, 1, b"k", raw, error)
    assert value == b"-" * (VALUE_BYTES_MAX - 8) + b"**** ***"
    assert dict(headers)["fraud_scorer.value_bytes"] == b"%d" % len(raw)
    assert dict(headers)["fraud_scorer.truncated"] == b"true"
    assert max(looked_at) < VALUE_BYTES_MAX + 2**15


def test_a_key_that_is_a_token_has_its_pseudonym_wherever_its_field_stands() -> None:
    """The field that declares a record's key may lie behind what the letter keeps."""
    cards = CardFields.of({"card_token": "token"}).with_key(b"k" * 32)
    raw = b'{"note":"' + b"x" * (VALUE_BYTES_MAX + 2**17) + b'","card_token":"tok_of_mine_1"}'
    error = ContractError(DeadLetterReason.MISSING_FIELD, "payment_id", "m")
    short = b'{"card_token":"tok_of_mine_1"}'
    (wanted, *_), (found, *_) = (
        dead_letter_record("payments", 0, 1, b"tok_of_mine_1", value, error, cards=cards) for value in (short, raw)
    )
    assert found == wanted != b"tok_of_mine_1"


def test_a_dead_letter_without_a_code_stays_as_it_is() -> None:
    """Digits are masked only where there is a reason: a repaired record can be sent again."""
    raw = b'{"payment_id":"p1","amount_minor":-5,"attributes":{"cvv_result":"M","basket":3}}'
    error = ContractError(DeadLetterReason.AMOUNT_NEGATIVE, "amount_minor", "m")
    assert dead_letter_record("payments", 0, 1, None, raw, error)[1] == raw


# fmt: off
words = st.sampled_from([
    "cvv", "cvc", "csc", "cid", "cav", "cvn", "cvd", "icvv", "card", "cc", "credit", "verification", "validation",
    "authentication", "identification", "security", "code", "value", "number", "digits", "data", "track",
    "pin", "block", "magstripe", "magnetic", "stripe", "result", "raw", "my", "payment", "id", "no", "equivalent",
    "1", "2", "c", "v", "d",
])
# fmt: on


def certain(name: str) -> bool:
    """What the kernel concludes from the letters of a name."""
    window = np.uint64(0)
    for letter in name.lower():
        if "a" <= letter <= "z":
            window = np.uint64((int(window) << 8 | ord(letter)) & (2**64 - 1))
            if may_end_verification(window):
                return False
    return True


@settings(max_examples=2000, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), st.sampled_from(["", "_", "."]), st.booleans())
def test_the_kernel_passes_no_forbidden_name(parts: list[str], separator: str, upper: bool) -> None:
    """What the screening kernel is certain of is never a name that the reference refuses."""
    name = separator.join(part.title() if upper else part for part in parts)
    assert not (certain(name) and is_verification_name(name))


def test_the_kernel_passes_no_forbidden_name_of_few_words() -> None:
    """The same for every name of up to three of those words."""
    some = (
        *("cvv", "csc", "cid", "cav", "card", "security", "verification", "validation", "authentication"),
        *("identification", "code", "value", "number", "digits", "data", "track", "1", "pin", "block", "mag"),
        *("stripe", "magnetic"),
    )
    names = ["".join(parts) for count in (1, 2, 3) for parts in itertools.product(some, repeat=count)]
    forbidden = [name for name in names if is_verification_name(name)]
    assert len(forbidden) > 100
    assert [name for name in forbidden if certain(name)] == []


def test_columns_of_files_are_refused_alike() -> None:
    """A Parquet column under such a name costs the rows that have a value in it, and no others."""
    columns = PaymentColumns(
        np.full(2, 1_767_270_600_250),
        np.ones(2, dtype=np.int64),
        {"payment_id": pa.array(["a", "b"]), "currency": pa.array(["EUR", "EUR"])},
        {},
        {"cvv": pa.array(["889", None]), "cvv_result": pa.array(["M", "N"])},
    )
    assert check(columns).certain.tolist() == [False, True]
