"""The columnar decoder and the careful one agree on everything: what is accepted, with which values, and why not."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from payment_texts import FIELDS, GOOD, TOKENS, junk, keys, mutated, records, tokens_of, written

from schemas.contract_error import ContractError
from schemas.payment import Payment
from schemas.payment_batch import PaymentRow
from schemas.payment_decoder import decode_payments, event_times

BYTES_MAX = 4_096
# `DECODE_EXAMPLES=1000000 pytest tests/properties/test_decode_equals_reference.py` is the long form.
EXAMPLES = int(os.environ.get("DECODE_EXAMPLES", "4000"))


def outcomes(values: list[bytes | None], keys: list[bytes | None]) -> tuple[list[str], list[str]]:
    """What each way makes of the records, as text that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    careful = []
    for value, key in zip(values, keys, strict=True):
        try:
            payment = Payment.from_json(value, key, value_bytes_max=BYTES_MAX)
        except ContractError as error:
            careful.append(repr(error))
        else:
            fields = [getattr(payment, name) for name in FIELDS]
            careful.append(repr((fields, payment.event_time_ms, payment.amount_minor)))
    batch = decode_payments(values, keys, value_bytes_max=BYTES_MAX)
    fast = [""] * len(values)
    for reject in batch.rejects:
        fast[reject.index] = repr(reject.error)
    columns = zip(
        batch.index.tolist(), batch.rows, batch.event_time_ms.tolist(), batch.amount_minor.tolist(), strict=True
    )
    for index, row, event_time_ms, amount_minor in columns:
        assert fast[index] == ""
        fast[index] = repr(([getattr(row, name) for name in FIELDS], event_time_ms, amount_minor))
    assert batch.index.tolist() == sorted(batch.index.tolist())
    assert [reject.index for reject in batch.rejects] == sorted(reject.index for reject in batch.rejects)
    return fast, careful


def assert_equal(values: list[bytes | None], keys: list[bytes | None] | None = None) -> None:
    fast, careful = outcomes(values, keys or [None] * len(values))
    assert fast == careful


checked = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_row_and_contract_have_the_same_fields() -> None:
    """A field added to the contract cannot be forgotten in the fast row."""
    assert PaymentRow.__struct_fields__ == FIELDS == tuple(GOOD)


@checked
@given(st.lists(st.tuples(records(), keys), min_size=1, max_size=6))
def test_decode_equals_reference_on_payments(batch: list[tuple[bytes, bytes | None]]) -> None:
    """Payments, good and nearly good, come out of the columnar decoder as out of the reference."""
    assert_equal([value for value, _ in batch], [key for _, key in batch])


@checked
@given(st.lists(mutated() | junk, min_size=1, max_size=6))
@example(
    [
        b"\xef\xbb\xbf" + written(tokens_of(GOOD)),
        written(tokens_of(GOOD)) + b"\x0b",
        written(tokens_of(GOOD)) + b"," + written(tokens_of(GOOD)),
    ]
)
def test_decode_equals_reference_on_broken_bytes(values: list[bytes | None]) -> None:
    """Bytes that were payments once, and bytes that never were, are refused for the same reason by both."""
    assert_equal(values)


@checked
@given(st.lists(records() | mutated() | junk, min_size=1, max_size=6))
def test_event_times_are_those_of_accepted_payments(values: list[bytes | None]) -> None:
    """Whatever the reference accepts takes part in the order of a batch with its own time, however it is written."""
    for value, time_ms in zip(values, event_times(values, missing=-1).tolist(), strict=True):
        try:
            expected = Payment.from_json(value).event_time_ms
        except ContractError:
            continue
        assert time_ms == expected


def test_kept_refusals_hold_no_frames() -> None:
    """A batch of refusals keeps reasons only, not the texts and tables of the calls that found them."""
    errors = [reject.error for reject in decode_payments([b"junk", b"{}", written(tokens_of(GOOD)) + b","]).rejects]
    assert [(error.__traceback__, error.__context__, error.__cause__) for error in errors] == [(None, None, None)] * 3


@pytest.mark.parametrize("field", FIELDS)
def test_decode_equals_reference_on_every_token_in_every_field(field: str) -> None:
    """Each field treats each odd token alike in both, on its own and as an attribute, alone and beside whitespace."""
    batch: list[bytes | None] = []
    for token in TOKENS:
        spaced = (f'{{"a":{token}}}', f'{{ "a" : {token} , "b":1}}') if field == "attributes" else (f" {token}\n",)
        for text in (token, *spaced):
            fields = [(name, text if name == field else json.dumps(value)) for name, value in GOOD.items()]
            batch.append(written(fields))
    assert_equal(batch)


def test_decode_equals_reference_on_names() -> None:
    """Doubled, unknown, misspelt, escaped and null fields, also inside attributes, are treated alike."""
    good = tokens_of(GOOD)
    batch: list[bytes | None] = [written(good)]
    for name, token in good:
        others = [(other, value) for other, value in good if other != name]
        batch += [
            written(others),
            written([*others, (name, "null")]),
            written([*good, (name, token)]),
            written([*good, (name, "null")]),
        ]
        batch += [
            written([(name.upper(), token), *others]),
            written([(name + "_", token), *others]),
            written([(name[:-1], token), *others]),
        ]
        batch += [
            written([(f"\\u{ord(name[0]):04x}{name[1:]}", token), *others]),
            written([*good, (name + "\\ud800", "null")]),
        ]
    for inside in (
        '"a":1,"a":1',
        '"a":null,"a":1',
        '"a":null',
        '"":1',
        '"1a":1',
        '"a b":1',
        '"a.b":1',
        '"é":1',
        '"a":1,',
        '"a"',
        f'"{"a" * 64}":1',
        f'"{"a" * 65}":1',
    ):
        batch.append(written([*good[:4], ("attributes", f"{{{inside}}}")]))
    for count in (63, 64, 65):
        batch.append(written([*good[:4], ("attributes", "{" + ",".join(f'"n{i}":{i}' for i in range(count)) + "}")]))
    assert_equal(batch)


def test_good_payments_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What producers normally send is certain for the kernel: spaces, nulls, IPv6, numeric times, accents included."""
    forms: list[bytes | None] = [
        json.dumps(GOOD).encode(),
        json.dumps(GOOD | {"ip": None, "country": None}, separators=(",", ":")).encode(),
        json.dumps(GOOD | {"ip": "2001:db8::17", "event_time": 1_767_225_600_000}, indent=2).encode(),
        json.dumps(
            GOOD | {"merchant_id": "Café № 5", "attributes": {"a": None, "b": -1.5}}, ensure_ascii=False
        ).encode(),
        json.dumps(GOOD | {"payment_id": "4111111111111112", "event_time": "2026-01-01 00:00:00.5+05:30"}).encode(),
        json.dumps(GOOD | {"payment_id": "é" * 128, "attributes": {"a": "é" * 256}}, ensure_ascii=False).encode(),
    ]
    careful = [Payment.from_json(value) for value in forms]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(Payment, "from_json", refuse)
    batch = decode_payments(forms, [b"c_1"] * len(forms))
    expected = [repr([getattr(payment, name) for name in FIELDS]) for payment in careful]
    assert [repr([getattr(row, name) for name in FIELDS]) for row in batch.rows] == expected


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**32))
def test_columns_follow_take(count: int, seed: int) -> None:
    """Columns, attributes and index of a reordered batch are those of the batch, reordered."""
    values = [
        json.dumps(
            GOOD | {"payment_id": f"p{i}", "latitude": i if i % 2 else None, "attributes": {"n": i} if i % 3 else None}
        ).encode()
        for i in range(count)
    ]
    batch = decode_payments([*values, b"junk"])
    order = np.random.default_rng(seed).permutation(count)[: count // 2 + 1] if count else np.empty(0, np.int64)
    batch.column("customer_id")
    taken = batch.take(order)
    for name in ("payment_id", "customer_id", "latitude"):
        assert repr(taken.column(name).tolist()) == repr(batch.column(name)[order].tolist())
    assert taken.attribute("n").tolist() == [i if i % 3 else None for i in order.tolist()]
    assert taken.index.tolist() == order.tolist()
    assert [reject.index for reject in taken.rejects] == [count]
