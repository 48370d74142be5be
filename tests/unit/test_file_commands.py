"""Commands on files: the draft of a mapping, what was refused, and when that fails a run."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from scorer.cli import app
from scorer.errors import FraudScorerError, UsageError
from scorer.files.mapping import Mapping, MappingError
from scorer.files.title_lines import title_lines
from tests.file_layouts import LAYOUTS

FEATURES = """
name: small
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: count_1d, entity: customer, aggregate: count, window: 1d}
"""
MAPPING = "payment_id: id\nevent_time: ts\namount: amount\ncurrency: {constant: EUR}\ncustomer_id: cust\n"
CARD = "4111111111111111"


def run(*arguments: object) -> tuple[dict[str, object], str]:
    """The JSON that a command printed, and all its output. Raises the command's error."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1]), result.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "set.yaml").write_text(FEATURES)
    (tmp_path / "m.yaml").write_text(MAPPING)
    return tmp_path


def rows(place: Path, bad: int, good: int) -> Path:
    path = place / "rows.csv"
    lines = [f"b{i},2024-01-01T00:00:{i % 60:02d}Z,oops {CARD},c1" for i in range(bad)]
    lines += [f"g{i},2024-01-01T01:{i // 60 % 60:02d}:{i % 60:02d}Z,1.50,c1" for i in range(good)]
    path.write_text("id,ts,amount,cust\n" + "\n".join(lines) + "\n")
    return path


def features(place: Path, *more: object) -> tuple[dict[str, object], str]:
    return run(
        "features", "--feature-set", place / "set.yaml", "--input", place / "rows.csv",
        "--mapping", place / "m.yaml", "--output", place / "out.parquet", *more,
    )  # fmt: skip


def test_what_was_refused_is_counted_named_and_written(place: Path) -> None:
    """The summary has field, reason and rows as examples; --refused has every row; no cell stands anywhere."""
    rows(place, 2, 1000)
    result, output = features(place, "--refused", place / "refused.parquet")
    assert result["rows"] == 1000
    (one,) = result["refusals"]  # type: ignore[misc]
    assert (one["field"], one["reason"], one["rows"], one["examples"]) == ("amount", "invalid_value", 2, [1, 2])  # type: ignore[index]
    written = pq.read_table(place / "refused.parquet").to_pylist()
    assert [(row["row"], row["field"], row["reason"]) for row in written] == [
        (1, "amount", "invalid_value"),
        (2, "amount", "invalid_value"),
    ]
    assert CARD not in output + json.dumps(written)


def test_a_share_of_refused_rows_fails_the_run(place: Path) -> None:
    """More than 1 % refused is an error and nothing is written, but with another share; all of them always are."""
    rows(place, 3, 100)
    with pytest.raises(FraudScorerError, match=r"3 of 103 rows were refused, more than 1\.00% .*3 × amount") as caught:
        features(place)
    assert CARD not in str(caught.value)
    assert not (place / "out.parquet").exists()
    assert features(place, "--refused-max", "0.5")[0]["rows"] == 100
    rows(place, 5, 0)
    with pytest.raises(FraudScorerError, match="5 of 5 rows were refused"):
        features(place, "--refused-max", "1")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_gets_a_draft(layout: object, tmp_path: Path) -> None:
    """A draft is written for every layout; what it could not see is a question, and no card number is shown."""
    path = layout.write(tmp_path)  # type: ignore[attr-defined]
    result, output = run("mapping", path)
    assert "payment_id:" in str(result["mapping"])
    assert CARD not in output
    assert "4111 1111 1111 1111" not in output


def test_a_draft_finds_the_fields_of_a_usual_file(tmp_path: Path) -> None:
    """Names and cells together give the fields; card numbers become tokens; the preview shows the payments."""
    path = tmp_path / "payments.csv"
    path.write_text(
        "TransactionID,TX_DATETIME,TransactionAmt,Currency,cc_num,merchant,lat,long,is_fraud,CVV,items\n"
        + "".join(
            f"{i},2024-01-0{1 + i % 9} 10:00:00,{i}.5,EUR,{card},shop {i % 3},48.2{i},16.3{i},{i % 2},123,{i}\n"
            for i, card in enumerate([CARD, "5555555555554444"] * 5)
        )
    )
    result, _ = run("mapping", path, "--rows", 3)
    mapping = Mapping.from_yaml(str(result["mapping"]))
    assert (mapping.payment_id, mapping.event_time, mapping.amount) == (
        "TransactionID",
        "TX_DATETIME",
        "TransactionAmt",
    )
    assert mapping.card_token.token == "cc_num"
    assert (mapping.currency, mapping.merchant_id, mapping.label) == ("Currency", "merchant", "is_fraud")
    assert (mapping.latitude, mapping.longitude) == ("lat", "long")
    assert list(mapping.attributes) == ["items"]
    shown = result["preview"]
    assert [row["payment_id"] for row in shown] == ["0", "9", "1"]  # type: ignore[attr-defined, index]
    assert str(shown[0]["card_token"]).startswith("tk_")  # type: ignore[index]


HEAD = "id,ts,amount,cust,mcc,three_ds,fraud,note\n"
DRAFTS = {
    # What a data frame with gaps writes: whole numbers as floats.
    "floats": (
        HEAD + "1,2024-03-01T10:00:00Z,1.5,4532.0,742.0,True,0.0,a\n2,2024-03-01T11:00:00Z,2.5,,,Y,1.0,b\n",
        {"customer_id": ["4532", None], "mcc": ["0742", None], "attributes.three_ds": [True, True], "label": [0, 1]},
    ),
    "a currency sign": (
        HEAD + "1,2024-03-01T10:00:00Z,$1.50,c,5411,no,0,a\n2,2024-03-01T11:00:00Z,$2.50,c,5411,yes,1,b\n",
        {"currency": ["USD", "USD"], "amount_minor": [150, 250], "attributes.three_ds": [False, True]},
    ),
    "cells that are none of it": (
        HEAD + f"1,2024-03-01T10:00:00Z,oops {CARD},c,5411,no,0,a\n2,2024-03-01T11:00:00Z,2.50,c,5411,no,0,b\n"
        "3,2024-03-01T12:00:00Z,3.50,c,5411,no,0,b\n4,soon,3.50,c,5411,no,0,b\n",
        {"payment_id": ["1", "2", "3", "4"], "refused": [True, None, None, True], "label": [0, 0, 0, 0]},
    ),
    "a text that is too long": (
        HEAD + f"1,2024-03-01T10:00:00Z,1.5,c,5411,no,0,{'x' * 300}\n2,2024-03-01T11:00:00Z,2.5,c,5411,yes,1,b\n",
        {"refused": [None, None], "attributes.note": [None, None]},
    ),
    "numbers that may be card numbers": (
        HEAD + f"1,2024-03-01T10:00:00Z,1.5,c,5411,no,0,{CARD}\n2,2024-03-01T11:00:00Z,2.5,c,5411,yes,1,1\n",
        {"refused": [None, None], "attributes.note": [None, None]},
    ),
    "times as one number": (
        HEAD + "1,20240301100000,1.5,c,5411,no,0,a\n2,20240301110000,2.5,c,5411,yes,1,b\n",
        {"event_time": ["2024-03-01T10:00:00.000Z", "2024-03-01T11:00:00.000Z"]},
    ),
    "a year of two digits": (
        HEAD + "1,13.03.24 10:00,1.5,c,5411,no,nein,a\n2,13.03.24 11:00,2.5,c,5411,yes,Ja,b\n",
        {"event_time": ["2024-03-13T10:00:00.000Z", "2024-03-13T11:00:00.000Z"], "label": [0, 1]},
    ),
    "twelve hours": (
        HEAD + "1,03/13/2024 01:05:00 PM,1.5,c,5411,no,0,a\n2,03/13/2024 02:05:00 PM,2.5,c,5411,yes,1,b\n",
        {"event_time": ["2024-03-13T13:05:00.000Z", "2024-03-13T14:05:00.000Z"]},
    ),
    "days of a spreadsheet": (
        HEAD + "1,45352.333333333,1.5,c,5411,no,0,a\n2,45352.5,2.5,c,5411,yes,1,b\n",
        {"event_time": ["2024-03-01T08:00:00.000Z", "2024-03-01T12:00:00.000Z"]},
    ),
    "an id that is there twice": (
        HEAD + "".join(f"p{i % 19},2024-03-01T10:{i:02}:00Z,1.5,c,5411,no,0,a\n" for i in range(20)),
        {"payment_id": [f"p{i}" for i in range(5)]},
    ),
    "a device that is a truth value": (
        HEAD.replace("note", "new_device")
        + "1,2024-03-01T10:00:00Z,1.5,c,5411,no,0,t\n2,2024-03-01T11:00:00Z,2.5,c,5411,yes,1,f\n",
        {"device_id": [None, None], "attributes.new_device": [True, False]},
    ),
    "a column that counts the rows": (
        ",ts,amount,cust,mcc,three_ds,fraud,trans\n0,2024-03-01T10:00:00Z,1.5,c,5411,no,0,a\n"
        "1,2024-03-01T11:00:00Z,2.5,c,5411,yes,1,b\n",
        {"payment_id": ["a", "b"], "attributes.column0": [None, None]},
    ),
}


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_can_be_used_as_it_is(tmp_path: Path, name: str) -> None:
    """What a file shows is read without an edit of the draft; what would refuse rows is left out, with the reason."""
    text, expected = DRAFTS[name]
    path = tmp_path / "payments.csv"
    path.write_text(text)
    result, output = run("mapping", path)
    shown: list[dict[str, object]] = result["preview"]  # type: ignore[assignment]
    for field, values in expected.items():
        found = [row.get(field) for row in shown]
        if field == "refused":  # why is shown elsewhere
            found = [None if value is None else True for value in found]
        assert found == values, (field, result["mapping"])
    assert CARD not in output
    if "note" in text and "attributes.note" in expected:
        assert "#  note: note   # ? left out: " in str(result["mapping"])


def test_a_question_that_is_left_in_a_draft_is_named(tmp_path: Path) -> None:
    """A draft is YAML whatever it could not see, and says what is still to be decided when it is used."""
    path = tmp_path / "odd.csv"
    path.write_text("a,when,state\nx,2024-03-01T10:00:00Z,ok\ny,2024-03-01T11:00:00Z,back\n")
    text = str(run("mapping", path)[0]["mapping"])
    with pytest.raises(UsageError, match=r"amount still is the draft's question mark: say which column"):
        Mapping.from_yaml(text)
    path.write_text("id,ts,amount,fraud\nx,2024-03-01T10:00:00Z,1.00,ok\ny,2024-03-01T11:00:00Z,2.00,back\n")
    result, _ = run("mapping", path)
    with pytest.raises(UsageError, match=r"label still is .* which words mean fraud"):
        Mapping.from_yaml(str(result["mapping"]))
    assert [row["amount_minor"] for row in result["preview"]] == [100, 200]  # type: ignore[attr-defined]


def test_a_draft_of_a_file_without_a_header_takes_its_first_line_for_a_payment(tmp_path: Path) -> None:
    """No cell becomes the name of a column, a card number least of all."""
    path = tmp_path / "bare.csv"
    for card in ("x", CARD):
        path.write_text(f"p1,2024-03-01T10:00:00Z,1.50,{card}\np2,2024-03-01T11:00:00Z,2.50,{card}\n")
        result, output = run("mapping", path)
        assert "csv: {header: false}" in str(result["mapping"])
        assert "event_time: column1" in str(result["mapping"])
        assert result["rows"] == 2
        assert CARD not in output


TABLE = "id;ts;amount;cust\np1;2024-03-01T10:00:00Z;1.50;a\np2;2024-03-01T11:00:00Z;2.50;b\n"
TITLES = {
    "a name and a period": ("Statement of account\nPeriod: 2024-03\n\n", 3),
    "padded with empty cells": ("Statement of account;;;\n;;;\n", 2),
    "a delimiter in quotes": ('"From 1 March; to 31 March"\n', 1),
    "names and values": ("Account;DE12\nPeriod;2024\n\n", 3),
    "none": ("", 0),
}
# Whose first line is the table's, or where that is not certain.
TABLES = {
    "decimal commas, and commas in texts": "day;paid;use\n1;0,50;Mueller, Hans, Berlin\n2;1,50;Mayer, Eva, Bonn\n",
    "JSON in a column": 'id;ts;attrs\n1;2;{"a":1,"b":2,"c":3}\n2;3;{"a":1,"b":2,"c":3}\n',
    "another separator in texts": "id,desc\n1,a|b|c|d|e\n2,a|b|c|d|e\n3,a|b|c|d|e\n",
    "an index without a name": ",amount\n0,1.5\n1,2.5\n2,3.5\n",
    "few names": "id,,,\n1,2,3,4\n2,3,4,5\n",
    "no name for the row numbers": '"id","amount"\n"1","a",1.5\n"2","b",2.5\n"3","c",3.5\n',
    "no header, and gaps": "1,,,\n2,3,4,5\n3,4,5,6\n",
    "one column": "id\n1\n2\n3\n",
    "a cell of several lines": '"Bank\nStreet"\nid,time,amount\n1,2,3\n2,3,4\n',
    "nothing": "",
}


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_lines_above_a_table_are_seen_and_passed_over(title: str, line_end: str, tmp_path: Path) -> None:
    """As bank statements have them: the draft counts them, and with that count the payments are read."""
    lines, count = TITLES[title]
    path = tmp_path / "statement.csv"
    path.write_bytes((lines + TABLE).replace("\n", line_end).encode())
    result, _ = run("mapping", path)
    assert (f"csv: {{skip: {count}}}" in str(result["mapping"])) == (count > 0)
    assert "payment_id: id" in str(result["mapping"])
    assert [row["amount_minor"] for row in result["preview"]] == [150, 250]  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_no_line_of_a_table_is_taken_for_a_title(text: str, tmp_path: Path) -> None:
    """A header or a payment that was passed over would be lost without a word."""
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert title_lines(path) == 0


def test_a_title_of_several_lines_in_quotes_is_refused(place: Path) -> None:
    """Lines and cells are counted differently there: payments would be passed over."""
    path = place / "statement.csv"
    path.write_text('"Bank\nStreet\nCity"\n' + TABLE.replace(";", ","))
    (place / "m.yaml").write_text(MAPPING + "csv: {skip: 3}\n")
    with pytest.raises(MappingError, match="a cell of several lines"):
        run("features", "--input", path, "--mapping", place / "m.yaml", "--feature-set", place / "set.yaml",
            "--output", place / "out.parquet")  # fmt: skip


def test_a_table_whose_names_are_not_in_its_first_line_is_refused_with_the_way_out(place: Path) -> None:
    """Whose mapping does not count the lines above it reads which key does."""
    path = place / "statement.csv"
    path.write_text("Statement of account\n" + TABLE)
    with pytest.raises(MappingError, match=r"csv: \{skip: N\}"):
        run("features", "--input", path, "--mapping", place / "m.yaml", "--feature-set", place / "set.yaml",
            "--output", place / "out.parquet")  # fmt: skip


def test_a_draft_overwrites_nothing(tmp_path: Path) -> None:
    """A mapping that is there is not lost to a draft."""
    path = LAYOUTS[0].write(tmp_path)
    run("mapping", path, "--output", tmp_path / "m.yaml")
    assert "payment_id:" in (tmp_path / "m.yaml").read_text()
    with pytest.raises(UsageError, match="exists"):
        run("mapping", path, "--output", tmp_path / "m.yaml")


def test_a_time_of_a_label_that_is_no_number_names_its_line(tmp_path: Path) -> None:
    """Digits that Python's int does not take are refused by the contract, with line and field."""
    path = tmp_path / "labels.csv"
    path.write_text("payment_id,fraud,known_at\np1,1,²\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"labels\.csv, line 2: known_at"):
        run("labels", "add", "--input", path)
