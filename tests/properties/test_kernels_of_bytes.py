"""The kernels that read and write values in a batch's bytes agree with Python on all that they are certain of."""

from __future__ import annotations

import json
import math
import re

import msgspec
import numba
import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from schemas.decision import DECISIONS, MODES, Decision
from schemas.decision_bytes import encode_decisions
from schemas.payment_batch import as_numbers
from schemas.payment_columns import places_of
from schemas.payment_decoder import decode_payments
from schemas.text_kernels import decimal_number, is_utf8
from schemas.text_set import NOT_THERE, TextSet

checked = settings(max_examples=2_000, deadline=None)
values = st.lists(st.none() | st.binary(max_size=40), max_size=30)
digits = st.text("0123456789", min_size=1, max_size=20)
decimals = st.one_of(
    st.floats(-180, 180).map(repr),
    st.tuples(st.sampled_from(["", "-"]), digits, st.none() | digits).map(
        lambda t: t[0] + t[1] + ("" if t[2] is None else "." + t[2])
    ),
    # Halves between two doubles, and their neighbours: where one wrong bit would round the wrong way.
    st.tuples(st.integers(2**53, 10**17), st.integers(1, 18)).map(lambda t: f"{t[0]}.{t[1]}"),
    st.text("0123456789.-+eE ", max_size=8),
)


def as_bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text + b"}", dtype=np.uint8)


@settings(checked, max_examples=6_000)
@given(decimals)
@example("9007199254740993")
@example("0.9007199254740993")
@example("90071992547409.925")
@example("-0")
@example("-0.0")
@example("0.30000000000000004")
@example("179.99999999999997")
def test_a_number_that_is_certain_is_the_one_that_json_reads(text: str) -> None:
    """What the kernel takes is a JSON number and the double that readers make of it; common forms are taken."""
    found, end = decimal_number(as_bytes(text.encode()), 0, len(text), math.inf)
    try:
        expected = msgspec.json.decode(text[:end] if end >= 0 else text, type=float)
    except msgspec.MsgspecError:
        assert end < 0
        return
    if end < 0:
        common = re.fullmatch(r"-?(0|[1-9]\d*)(?:\.(\d{1,18}))?", text)
        assert common is None or len(text) > 18 or text == "-0"
        return
    assert math.copysign(1, found) == math.copysign(1, expected)
    assert found == expected == json.loads(text[:end], parse_int=float)


@checked
@given(st.binary(max_size=12) | st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_utf8_is_what_python_decodes(raw: bytes) -> None:
    try:
        raw.decode()
        expected = True
    except UnicodeDecodeError:
        expected = False
    assert is_utf8(as_bytes(raw), 0, len(raw)) is expected


@checked
@given(st.lists(st.text(max_size=6), max_size=20), st.lists(st.none() | st.text(max_size=6), min_size=1, max_size=20))
def test_a_set_of_texts_gives_each_its_number(known: list[str], asked: list[str | None]) -> None:
    number = {text: n for n, text in enumerate(dict.fromkeys(known))}
    places = places_of(pa.array([*asked, *known], pa.string()))
    assert TextSet(known).numbers(*places).tolist() == [number.get(text, NOT_THERE) for text in [*asked, *known]]


@checked
@given(values, values, st.data())
def test_a_byte_column_is_a_list_of_its_values(
    first: list[bytes | None], second: list[bytes | None], data: st.DataObject
) -> None:
    column = ByteColumn.concatenated([ByteColumn.of(first), ByteColumn.of(second)])
    whole = first + second
    assert column == whole
    assert [column[i] for i in range(len(column))] == whole
    rows = data.draw(st.lists(st.sampled_from(range(len(whole))))) if whole else []
    assert column.take(np.array(rows, dtype=np.int64)) == [whole[i] for i in rows]


@checked
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=20).filter(lambda text: text.encode("utf-8", "replace").decode() == text),
            st.sampled_from(range(len(DECISIONS))),
            st.floats(0, 1),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.sampled_from([(), ("LATE",), ("A", "B_1")]),
            st.sampled_from(range(len(MODES))),
            st.sampled_from(["cards-1", "kärten-2"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_decisions_of_a_batch_have_the_bytes_of_each(rows: list[tuple]) -> None:
    """The kernel's bytes are those of the contract's own encoder, id by id, whatever stands in the id."""
    ids, decisions, scores, margins, reasons, modes, bundles = (list(column) for column in zip(*rows, strict=True))
    made = encode_decisions(
        pa.array(ids, pa.string()), np.array(decisions, np.uint8), np.array(scores), np.array(margins, np.float32),
        reasons, np.array(modes, np.uint8), bundles,
    )  # fmt: skip
    expected = [
        Decision.model_construct(
            payment_id=i, decision=DECISIONS[d], score=s, margin=m, reasons=r, bundle=b, mode=MODES[o]
        ).to_bytes()
        for i, d, s, m, r, o, b in rows
    ]
    assert made == expected


attributes = st.dictionaries(
    st.sampled_from(["a", "ab", "b", "b.c", "a_b"]),
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**11), 10**11), st.floats(-1e9, 1e9), st.text("xyz ü", max_size=4)
    ),
)


@checked
@given(st.lists(st.none() | attributes, min_size=1, max_size=6), st.sampled_from([None, 1]))
def test_numbers_of_an_attribute_are_those_of_its_values(held: list[dict | None], indent: int | None) -> None:
    """Read where they stand, attributes have the numbers that they have as Python objects, in any spacing."""
    payment = {
        "payment_id": "p_1", "event_time": "2026-01-01T00:00:00Z", "amount_minor": 1, "currency": "EUR",
        "customer_id": "c_1", "terminal_id": "t_1", "merchant_id": "m_1",
    }  # fmt: skip
    raw = [json.dumps(payment | {"attributes": each}, indent=indent).encode() for each in held]
    batch = decode_payments(raw)
    assert not batch.rejects
    for name in ("a", "ab", "b", "b.c", "a_b", "other"):
        expected = as_numbers(np.array([(each or {}).get(name) for each in held], dtype=object))
        np.testing.assert_array_equal(batch.attribute_numbers(name), expected)
        np.testing.assert_array_equal(as_numbers(batch.attribute(name)), expected)


def test_columns_are_of_one_type_to_numba_whatever_they_came_from() -> None:
    """Kernels that the warm-up compiled for bytes from Python serve those from a client: no payment waits for another
    compilation."""
    given = ByteColumn.of([b"a", None, b"bc"])
    read = ByteColumn(np.array([97, 98, 99], np.uint8), np.array([0, 1, 1, 3]), np.array([False, True, False]))
    joined = ByteColumn.concatenated([read, read])
    for column in (read, joined, given.take(np.array([0, 1])), read.part(1, 3), joined[::2]):
        for name in ("data", "offsets", "absent"):
            assert numba.typeof(getattr(column, name)) == numba.typeof(getattr(given, name)), name
