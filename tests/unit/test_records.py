"""Decisions, journal records and dead letters: canonical bytes, chains, headers, masks; and the published schemas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.card_mask import mask_card_numbers
from schemas.card_numbers import is_card_number
from schemas.contract_error import ContractError, DeadLetterReason
from schemas.currencies import CURRENCY_EXPONENT, currency_index
from schemas.dead_letter import KEY_BYTES_MAX, VALUE_BYTES_MAX, DeadLetter, dead_letter_record
from schemas.decision import DECISIONS, MODES, Decision
from schemas.decision_bytes import encode_decisions
from schemas.journal_record import FIRST_PREVIOUS, ControlRange, InputRange, JournalError, JournalRecord
from schemas.json_schemas import json_schemas

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
CODES = st.lists(st.from_regex(r"[A-Z][A-Z0-9_]{0,12}", fullmatch=True), max_size=4)
ERROR = ContractError(DeadLetterReason.NOT_JSON, None, "Expecting value at character 0 of 4")


@settings(deadline=None)  # the first example may compile the kernel that writes decisions
@given(
    st.lists(
        st.tuples(
            TEXT,
            st.integers(0, 1),
            st.floats(0, 1),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            CODES,
            st.integers(0, 3),
            TEXT,
        ),
        max_size=5,
    )
)
def test_decisions_of_a_batch_are_the_decisions_one_by_one(
    rows: list[tuple[str, int, float, float, list[str], int, str]],
) -> None:
    """The batch encoder writes the model's canonical bytes, and they read back as the same numbers to the last bit."""
    ids, decisions, scores, margins, reasons, modes, bundles = (
        (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 7
    )
    encoded = encode_decisions(
        ids,
        np.array(decisions, np.uint8),
        np.array(scores, np.float64),
        np.array(margins, np.float32),
        reasons,
        np.array(modes, np.uint8),
        bundles,
    )
    assert len(encoded) == len(rows)
    for raw, (payment_id, decision, score, margin, codes, mode, bundle) in zip(encoded, rows, strict=True):
        fields = {
            "payment_id": payment_id,
            "decision": DECISIONS[decision],
            "score": score,
            "margin": margin,
            "reasons": codes,
            "bundle": bundle,
            "mode": MODES[mode],
        }
        model = Decision.model_validate(fields)
        assert model.to_bytes() == raw
        assert Decision.from_bytes(raw) == model
        assert repr(json.loads(raw)) == repr(fields)  # order, values, and the sign of zero


def test_decision_bytes_are_pinned() -> None:
    """The canonical form does not change with a library's version: replays are compared byte by byte."""
    encoded = encode_decisions(
        ["p_é", "p2"],
        np.array([1, 0], np.uint8),
        np.array([0.1, 4.5e-5]),
        np.array([-2.3, 1e20], np.float32),
        [["A", "B_1"], ()],
        np.array([0, 3], np.uint8),
        "b-1",
    )
    assert encoded == [
        '{"payment_id":"p_é","decision":"flag","score":0.1,"margin":-2.299999952316284,"reasons":["A","B_1"],"bundle":"b-1","mode":"normal"}'.encode(),
        b'{"payment_id":"p2","decision":"approve","score":0.000045,"margin":1.0000000200408773e20,"reasons":[],"bundle":"b-1","mode":"late"}',
    ]


@pytest.mark.parametrize(
    ("score", "margin", "decision", "mode"),
    [(np.nan, 0, 0, 0), (1.5, 0, 0, 0), (0.5, np.inf, 0, 0), (0.5, 0, 2, 0), (0.5, 0, 0, 5)],
)
def test_impossible_decisions_are_refused(score: float, margin: float, decision: int, mode: int) -> None:
    """NaN, an infinite margin or an unknown code never becomes a decision."""
    with pytest.raises(ValueError, match=r"score lies|decisions are below"):
        encode_decisions(
            ["p"],
            np.array([decision], np.uint8),
            np.array([score]),
            np.array([margin], np.float32),
            [[]],
            np.array([mode], np.uint8),
            "b",
        )
    with pytest.raises(ValueError, match="different lengths"):
        encode_decisions(
            ["p"], np.array([0], np.uint8), np.array([0.5]), np.array([0], np.float32), [], np.array([0], np.uint8), "b"
        )


def journal(**changes: object) -> JournalRecord:
    fields: dict[str, object] = {
        "shard": 0,
        "sequence": 0,
        "inputs": [InputRange(partition=0, start=5, end=9), InputRange(partition=2, start=0, end=0)],
        "control": ControlRange(start=0, end=3),
        "stream_time_ms": 1_767_225_600_000,
        "bundle": "cards-3f9c2a11d07b",
        "decisions": 3,
        "dead_letters": 1,
        "digest": "ab" * 32,
        "previous": FIRST_PREVIOUS,
    }
    return JournalRecord.model_validate(fields | changes)


def test_journal_records_form_a_chain() -> None:
    """Bytes read back as the record; the head changes with every field."""
    first = journal()
    assert JournalRecord.from_bytes(first.to_bytes()) == first
    assert first.to_bytes() == json.dumps(json.loads(first.to_bytes()), sort_keys=True, separators=(",", ":")).encode()
    changes = [
        {"shard": 1},
        {"sequence": 1},
        {"inputs": [InputRange(partition=0, start=5, end=8)]},
        {"control": ControlRange(start=0, end=4)},
        {"stream_time_ms": -1},
        {"bundle": "other"},
        {"decisions": 4},
        {"dead_letters": 2},
        {"digest": "ac" * 32},
        {"decided": "ad" * 32},
        {"sequence": 1, "previous": first.head},
    ]
    heads = {journal(**change).head for change in changes}
    assert len(heads | {first.head}) == len(changes) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [InputRange(partition=1, start=0, end=1), InputRange(partition=0, start=0, end=1)]},
        {"inputs": [InputRange(partition=1, start=0, end=1)] * 2},
        {"previous": "ab" * 32},
        {"digest": "AB" * 32},
        {"decided": "AB" * 32},
        {"decisions": -1},
        {"decisions": 1.0},
        {"version": 2},
        {"extra": 1},
    ],
)
def test_impossible_journal_records_are_refused(changes: dict[str, object]) -> None:
    """Disorder, a first record with a past, odd digests and unknown versions are refused."""
    with pytest.raises(ValidationError):
        journal(**changes)
    with pytest.raises(ValidationError):
        InputRange(partition=0, start=2, end=1)


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw + b" ", lambda raw: raw[:-1], lambda raw: raw.replace(b'"shard":0', b'"shard":-1'), lambda _: b""],
)
def test_journal_bytes_that_are_not_a_record(change: object) -> None:
    """Anything but the canonical bytes is a JournalError; only what names no head before it may be passed over."""
    with pytest.raises(JournalError) as refused:
        JournalRecord.from_bytes(change(journal().to_bytes()))  # type: ignore[operator]
    assert refused.value.foreign == (change(journal().to_bytes()) == b"")  # type: ignore[operator]


def test_dead_letter_keeps_value_and_origin() -> None:
    """The refused bytes are kept as they were, and the headers say where from, why and how."""
    key, value, headers = dead_letter_record("payments", 3, 99, b"c_1", b"junk", ERROR, timestamp_ms=17)
    assert (key, value) == (b"c_1", b"junk")
    assert dict(headers)["__connect.errors.offset"] == b"99"
    assert DeadLetter.from_headers([("traceparent", None), *headers]) == DeadLetter(
        topic="payments",
        partition=3,
        offset=99,
        reason=DeadLetterReason.NOT_JSON,
        field=None,
        message=ERROR.message,
        timestamp_ms=17,
        value_bytes=4,
        masked=False,
        truncated=False,
    )
    assert dead_letter_record("payments", 3, 99, None, None, ERROR)[:2] == (None, None)
    with pytest.raises(ValueError, match=r"__connect\.errors\.topic"):
        DeadLetter.from_headers(None)


@settings(deadline=None)  # the first example may compile the mask
@given(
    st.none() | st.binary(max_size=40),
    st.none() | st.binary(max_size=40) | st.just(b"4111111111111111") | st.just(b"x" * (VALUE_BYTES_MAX + 1)),
    st.sampled_from(DeadLetterReason),
    st.none() | st.sampled_from(["key", "currency"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.none() | st.integers(-1, 2**53),
)
def test_dead_letter_headers_are_the_models(
    key: bytes | None,
    value: bytes | None,
    reason: DeadLetterReason,
    field: str | None,
    message: str,
    timestamp_ms: int | None,
) -> None:
    """The headers that the worker writes are those of the documented model, whatever was refused and why."""
    kept_key, kept_value, headers = dead_letter_record(
        "payments", 3, 99, key, value, ContractError(reason, field, message), timestamp_ms=timestamp_ms
    )
    described = DeadLetter.from_headers(headers)
    assert described.to_headers() == headers
    assert (described.reason, described.field, described.message) == (reason, field, message)
    assert described.timestamp_ms == timestamp_ms
    assert described.value_bytes == (-1 if value is None else len(value))
    assert described.truncated == (len(value or b"") > VALUE_BYTES_MAX)
    assert described.masked == (kept_key != key or kept_value != (None if value is None else value[:VALUE_BYTES_MAX]))


def test_dead_letter_is_bounded() -> None:
    """A value of megabytes is cut, and a card number across the cut does not survive in part."""
    value = b"x" * (VALUE_BYTES_MAX - 8) + b"4111111111111111" + b"y" * 1_000_000
    key, kept, headers = dead_letter_record("payments", 0, 0, b"k" * 10_000, value, ERROR)
    assert (len(key or b""), len(kept or b"")) == (KEY_BYTES_MAX, VALUE_BYTES_MAX)
    assert (kept or b"").endswith(b"x********")
    described = DeadLetter.from_headers(headers)
    assert (described.masked, described.truncated, described.value_bytes) == (True, True, len(value))


@pytest.mark.parametrize(
    ("raw", "masked"),
    [
        (b"4111111111111111", b"****************"),
        (b"a4111111111111111b", b"a****************b"),
        (b"4111 1111 1111 1111 123", b"**** **** **** **** 123"),
        (b"12 4111-1111-1111-1111", b"12 ****-****-****-****"),
        (b"4111  1111 - 1111 1111", b"****  **** - **** ****"),
        (b"4\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x001\x00", b"*\x00" * 16),
        (rb'"\u0034111\u0020111111111111"', rb'"\u002a***\u0020************"'),
        (b"41111111111111110", b"41111111111111110"),  # 17 digits that fail
        (b"411111111111111112345", b"*********************"),  # longer than any: who knows
        (b"[4.111111111111111e15, 411111111111111E+1]", b"[*.***************e15, ***************E+1]"),
        (b"[52.52000659999999, 13.405, 1.5e3]", b"[52.52000659999999, 13.405, 1.5e3]"),
        (
            b'{"event_time": 1767225600009, "known_at":1767225600009}',
            b'{"event_time": 1767225600009, "known_at":1767225600009}',
        ),
        (b'{"order":1767225600009,"event_time":4222222222222}', b'{"order":*************,"event_time":*************}'),
        (b"2026-01-01T12:30:00.250Z", b"2026-01-01T12:30:00.250Z"),
        (b"", b""),
    ],
)
def test_masks(raw: bytes, masked: bytes) -> None:
    """Card numbers are masked however their digits are spread; times and other numbers stay readable."""
    assert mask_card_numbers(raw) == masked


@given(st.from_regex(r"[0-9]{12,18}", fullmatch=True), st.data())
def test_whatever_the_door_calls_a_card_number_is_masked(digits: str, data: st.DataObject) -> None:
    """Of any card number, spaces and dashes anywhere and any of it escaped, no digit is left in a dead letter."""
    card = next(digits + check for check in "0123456789" if is_card_number(digits + check))
    spread = "".join(digit + data.draw(st.sampled_from(["", "", "", " ", "-", " - "])) for digit in card)
    assert is_card_number(spread)
    escaped = "".join(f"\\u{ord(c):04x}" if data.draw(st.integers(0, 9)) == 0 else c for c in spread)
    raw = f'{{"a":"{escaped}"}}'.encode()
    masked = mask_card_numbers(raw)
    assert len(masked) == len(raw)
    assert not any(c.isdigit() for c in json.loads(masked)["a"])
    assert mask_card_numbers(masked) == masked


@given(st.binary(max_size=200))
def test_masking_changes_digits_alone(raw: bytes) -> None:
    """Masking keeps the length, touches nothing but digits, and masks nothing a second time."""
    masked = mask_card_numbers(raw)
    assert len(masked) == len(raw)
    assert all(a == b or (chr(a) in "0123456789" and b in b"*2a") for a, b in zip(raw, masked, strict=True))
    assert mask_card_numbers(masked) == masked


def test_currencies() -> None:
    """Exponents are ISO 4217's, and indices are the code's own, whatever the list holds."""
    assert [CURRENCY_EXPONENT[code] for code in ("EUR", "JPY", "KWD")] == [2, 0, 3]
    assert (currency_index("AED"), currency_index("EUR")) == (4 * 26 + 3, 4 * 676 + 20 * 26 + 17)
    with pytest.raises(KeyError):
        currency_index("XAU")


def test_published_schemas_document_every_field() -> None:
    """Every contract is published, each field with a description, and the bounds are JSON Schema's own keywords."""
    schemas = json_schemas()
    names = {"payment", "label", "control", "decision", "fast_decision", "dead_letter", "journal", "audit"}
    assert set(schemas) == names
    for schema in schemas.values():
        assert not any(f'"{keyword}"' in json.dumps(schema) for keyword in ("ge", "le", "gt", "lt", "min_length"))
        for part in [schema, *schema.get("$defs", {}).values()]:
            assert all(
                "description" in described or "$ref" in described for described in part.get("properties", {}).values()
            )
    payment = schemas["payment"]
    assert payment["required"] == ["payment_id", "event_time", "amount_minor", "currency"]
    assert payment["additionalProperties"] is False
    assert payment["properties"]["amount_minor"] == {
        "description": "Amount in minor units of `currency`: 57.16 EUR is 5716, 57 JPY is 57.",
        "examples": [5716],
        "exclusiveMaximum": 10**12,
        "minimum": 0,
        "title": "Amount Minor",
        "type": "integer",
    }
