"""Card numbers, plain and in disguise: one verdict on a text, whether it comes as JSON, Parquet or CSV."""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.card_fields import DEFAULTS, CardFields, CardRule
from schemas.card_numbers import holds_card_number
from schemas.card_rule import ISSUERS, PRINTED, luhn
from schemas.contract_error import ContractError
from schemas.field_table import TEXT_FIELDS
from schemas.payment import Payment
from schemas.payment_batch import PaymentBatch
from schemas.payment_decoder import decode_payments
from schemas.pseudonym import is_pseudonym
from scorer.files.file_columns import decoded_blocks
from scorer.files.mapping import Mapping
from tests.properties.payment_texts import GOOD

# Also the ids that are opaque unless they are declared.
REFUSING = CardFields.of(dict.fromkeys(DEFAULTS, "refuse"))
# A declaration of each kind, the attribute among them.
DECLARED = CardFields.of({"card_token": "token", "account_id": "token", "attributes.note": "token", "key": "opaque"})
NAMES = {name: name for name in GOOD if name != "attributes"}
MAPPING = Mapping.model_validate(NAMES | {"attributes": {"note": "note"}})
# Every text field, and an attribute.
PLACES = [*TEXT_FIELDS, "note"]
SEPARATORS = ["", " ", "-", ".", "_", "/", "\\", "|", ",", ";", " - ", "..", "\u00a0", "\u200b", "é", ":", "x", "a"]
ZEROS = [*map(ord, "0\uff10\u0660\u06f0\u0966"), 0x1D7CE]  # ASCII, full-width and other scripts' digits
AROUND = ["", "", "x", "y", "c", "p_", "card", "é", " ", "(", "12/27 ", " 12/27", "0.", "deadbeef", ":", "\u00a0", "9"]
SPACES = "".join(chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) == "Zs")


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """A number that an issuer could have issued; one in four with a wrong check digit."""
    low, high, least, most = map(int, draw(st.sampled_from(ISSUERS.tolist())))
    length = draw(st.integers(least, most))
    start = str(draw(st.integers(low, high)))
    digits = start + draw(st.text(st.sampled_from("0123456789"), min_size=length - 5, max_size=length - 5))
    check = next(c for c in "0123456789" if luhn(digits + c))
    return digits + (check if draw(st.integers(0, 3)) else str((int(check) + 1) % 10))


@st.composite
def disguises(draw: st.DrawFn) -> str:
    """A number in groups, behind separators, in digits of several scripts, with something around it."""
    digits = draw(numbers())
    sizes = draw(
        st.sampled_from([(len(digits),), (4,) * 5, (1,) * 19, *PRINTED]) | st.lists(st.integers(1, 8), min_size=1)
    )
    zeros = draw(st.just([ord("0")]) | st.just([ord("0")]) | st.lists(st.sampled_from(ZEROS), min_size=1, max_size=3))
    groups, at = [], 0
    for size in [*sizes, len(digits)]:
        if at < len(digits):
            groups.append(
                "".join(chr(zeros[(at + k) % len(zeros)] + int(d)) for k, d in enumerate(digits[at : at + size]))
            )
            at += size
    joined = draw(st.sampled_from(SEPARATORS)).join(groups)
    return draw(st.sampled_from(AROUND)) + joined + draw(st.sampled_from(AROUND))


def payments(texts: list[str]) -> list[dict[str, Any]]:
    """Each text in each text field of an else good payment."""
    good = {name: GOOD[name] for name in NAMES} | {"note": "none"}
    return [good | {place: text} for text in texts for place in PLACES]


def verdicts(batch: PaymentBatch) -> list[Any]:
    found: dict[int, Any] = {r.index: (r.error.reason.value, r.error.field) for r in batch.rejects}
    for index, row in zip(batch.index.tolist(), batch.rows, strict=True):
        found[index] = [getattr(row, name) for name in TEXT_FIELDS]  # CSV makes a number of an attribute that is one
    return [found[index] for index in range(len(found))]


def of_json(rows: list[dict[str, Any]], *, escaped: bool, cards: CardFields = REFUSING) -> list[Any]:
    values = [
        json.dumps(
            {name: row[name] for name in NAMES} | {"attributes": {"note": row["note"]}}, ensure_ascii=escaped
        ).encode()
        for row in rows
    ]
    keys = [row["customer_id"].encode() for row in rows]  # as the rows of a file have it
    return verdicts(decode_payments(values, keys, cards=cards))


def of_file(
    rows: list[dict[str, Any]], folder: Path, form: str, mapping: Mapping = MAPPING, cards: CardFields = REFUSING
) -> list[Any]:
    path = folder / f"payments.{form}"
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    (pq.write_table if form == "parquet" else pa_csv.write_csv)(table, path)
    blocks = decoded_blocks(path, mapping, 10_000, cards)
    (block,) = blocks
    return verdicts(block.records.decode(cards))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(disguises(), min_size=1, max_size=5))
@example(["4111.1111.1111.1111", "x4111111111111111y", "4111\uff11\uff11\uff11\uff1111111111"])
@example(["\uff14" + "\uff11" * 15, "4111\u200b1111\u200b1111\u200b1111", "4111111111111111 12/27"])
def test_one_verdict_on_a_text_from_every_input(texts: list[str]) -> None:
    """A disguised card number in any text field is refused, and all else accepted, alike from JSON, Parquet and CSV, of
    which spaces around a cell are no part."""
    rows = payments(texts)
    plain = of_json(rows, escaped=False)
    assert of_json(rows, escaped=True) == plain
    with tempfile.TemporaryDirectory() as folder:
        assert of_file(rows, Path(folder), "parquet") == plain
        bare = payments([text.strip(SPACES) for text in texts])
        assert of_file(rows, Path(folder), "csv") == of_json(bare, escaped=False)
    for row, verdict in zip(rows, plain, strict=True):
        assert (verdict[0] == "card_number") == any(holds_card_number(row[place]) for place in PLACES)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(disguises() | st.text(st.characters(exclude_categories=("Cs",)), max_size=20), min_size=1, max_size=4))
@example(["4111.1111.1111.1111", "x4111111111111111y", "tok_1"])
def test_one_verdict_on_declared_fields_from_every_input(texts: list[str]) -> None:
    """Opaque texts are taken as they are, pseudonyms stand for those of token fields, and all else is tested: alike
    from JSON and Parquet, and as the reference says."""
    # An empty cell of a file is an absent field, and a category code of fewer than four digits has lost its zeros.
    texts = [text for text in texts if text and not re.fullmatch("[0-9]{1,3}", text)] or ["x"]
    rows = payments(texts)
    cards = DECLARED.with_key(bytes(32))
    plain = of_json(rows, escaped=False, cards=cards)
    assert of_json(rows, escaped=True, cards=cards) == plain
    with tempfile.TemporaryDirectory() as folder:
        assert of_file(rows, Path(folder), "parquet", cards=cards) == plain
    for row, verdict in zip(rows, plain, strict=True):
        raw = json.dumps({name: row[name] for name in NAMES} | {"attributes": {"note": row["note"]}}).encode()
        if isinstance(verdict, tuple):
            with pytest.raises(ContractError) as caught:
                Payment.from_json(raw, cards=cards)
            assert verdict == (caught.value.reason.value, caught.value.field)
            continue
        changed = Payment.from_json(raw, cards=cards).with_pseudonyms(cards)
        assert verdict == [getattr(changed, name) for name in TEXT_FIELDS]
        assert is_pseudonym(changed.card_token or "")
        opaque = [place for place in TEXT_FIELDS if cards.rule(place) is CardRule.OPAQUE]
        assert [getattr(changed, place) for place in opaque] == [row[place] for place in opaque]


@pytest.mark.parametrize("name", ["x4111111111111111", "card.4111.1111.1111.1111", "c_4111_1111_1111_1111"])
def test_a_card_number_in_an_attributes_name_is_refused_from_every_input(name: str, tmp_path: Path) -> None:
    """The name of an attribute is checked like its value, and null values make no difference between the inputs."""
    good = {field: GOOD[field] for field in NAMES}
    values = [json.dumps(good | {"attributes": {name: value}}).encode() for value in (1, "a", True)]
    assert [r.error.reason.value for r in decode_payments(values).rejects] == ["card_number"] * 3
    mapping = Mapping.model_validate(NAMES | {"attributes": {name: "note"}})
    for form in ("parquet", "csv"):
        found = of_file([good | {"note": 1}, good | {"note": None}], tmp_path, form, mapping)
        assert found[0] == ("card_number", "attributes")
        assert found[1][0] == good["payment_id"]
