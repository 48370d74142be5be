"""Cells as files really have them: stray quotes, spaces, marks in amounts, zones in times. None is read as another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scorer.files import source_relation
from scorer.files.file_reader import FileError, read_payments
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from tests.file_layouts import RFC, SIMPLE

KEY = b"a key of thirty-two bytes or more"


def read(path: Path, text: str = SIMPLE) -> tuple[list[dict[str, Any]], list[tuple[int, str | None, str]]]:
    """The payments, and of what is refused row, field and message."""
    values, refused = [], []
    for block in read_payments(path, Mapping.from_yaml(text), options=ReadOptions(token_key=KEY)):
        values += [json.loads(value) for value in block.values]
        refused += [(one.row, one.error.field, one.error.message) for one in block.refused]
    return values, refused


def csv(folder: Path, *rows: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("end", [2, 3, 9])
def test_rows_between_two_stray_quotes_are_refused(tmp_path: Path, place: int, end: int) -> None:
    """Rows that became one cell of a column, mapped or not, refuse the row that they are in, whatever `where` says."""

    def row(cells: list[str], note: str) -> str:
        return ",".join([*cells[:place], note, *cells[place:]])

    rows = [row([f"p{i}", RFC, "1"], '"5 inch' if i == 1 else '6"' if i == end else "") for i in range(12)]
    path = csv(tmp_path, row(["id", "ts", "amount"], "note"), *rows)
    for more in ("", "where: note is null\n"):
        values, refused = read(path, SIMPLE + more)
        assert [value["payment_id"] for value in values] == ["p0", *(f"p{i}" for i in range(end + 1, 12))]
        ((number, field, message),) = refused
        assert (number, field) == (2, None)
        assert "two stray quotes" in message


def test_text_of_several_lines_is_text(tmp_path: Path) -> None:
    """A cell of several lines is accepted; one whose lines look like rows where the mapping says that it is text."""
    text, rows = "Dear Sir,\nthank you, and\r\nbye", "a\nb,c,d,e"
    path = csv(tmp_path, "id,ts,amount,note", f'1,{RFC},1,"{text}"', f'2,{RFC},1,"{rows}"')
    values, refused = read(path, SIMPLE + "merchant_id: note\n")
    assert [value["merchant_id"] for value in values] == [text]
    assert [row for row, _, _ in refused] == [2]
    values, refused = read(path, SIMPLE + "merchant_id: note\ncsv: {lines_in_cells: true}\n")
    assert (values[1]["merchant_id"], refused) == (rows, [])


def test_cells_have_no_spaces_around_them(tmp_path: Path) -> None:
    """Spaces and tabs around a cell, in quotes or not, are none of it: not of an id, a currency, a word for nothing, or
    an attribute."""
    path = csv(
        tmp_path, "id, ts, amount, cust, cur, a", f"p1, {RFC}, 1, c1, EUR, x", f'p2 ,{RFC} ,1 ,"c1 ",EUR ,\tx ',
        f"p3,{RFC},1, NULL,EUR, ", f"p4,{RFC},1, 4532.0,EUR,",
    )  # fmt: skip
    text = "payment_id: id\nevent_time: ts\namount: amount\ncurrency: cur\ncustomer_id: cust\nattributes: {a: a}\n"
    values, refused = read(path, text)
    assert refused == []
    assert [value["payment_id"] for value in values] == ["p1", "p2", "p3", "p4"]
    assert [value.get("customer_id") for value in values] == ["c1", "c1", None, "4532"]
    assert [value.get("attributes") for value in values] == [{"a": "x"}, {"a": "x"}, None, None]


def test_a_quote_may_be_escaped_by_another_character(tmp_path: Path) -> None:
    """Quotes escaped by a backslash, as Spark and MySQL write them, are read where the mapping says so."""
    path = csv(tmp_path, 'id,ts,amount,"a \\"note\\""', f'1,{RFC},1,"5\\" x, y"', f'2,{RFC},1,"C:\\\\"')
    text = SIMPLE + 'merchant_id: \'a "note"\'\ncsv: {escape: "\\\\"}\n'
    values, refused = read(path, text)
    assert [value["merchant_id"] for value in values] == ['5" x, y', "C:\\"]
    assert refused == []


def test_a_list_on_one_line_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON list on one line is read whatever its length: what is limited is one payment."""
    monkeypatch.setattr(source_relation, "LINE_BYTES_MAX", 1 << 14)
    path = tmp_path / "list.json"
    path.write_text("\ufeff \n" + json.dumps([{"id": f"p{i}", "ts": RFC, "amount": 1} for i in range(1000)]), "utf-8")
    assert len(read(path)[0]) == 1000


def test_a_form_that_cannot_be_seen_is_named_as_such(tmp_path: Path) -> None:
    """Where delimiter and quote cannot be found in a file of plain ASCII, no encoding is blamed."""
    path = csv(
        tmp_path, "Bank", "May", "x", "id,ts,amount", f"1,{RFC},1", f"2,{RFC},1,5", f'"3"x,{RFC},1', f"4,{RFC},1"
    )
    with pytest.raises(FileError, match=r"csv: \{delimiter: \.\.\., quote: \.\.\.\}"):
        read(path, SIMPLE + 'csv: {skip: 3, delimiter: ","}\n')
