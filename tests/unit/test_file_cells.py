"""Cells as files really have them: stray quotes, spaces, marks in amounts, zones in times. None is read as another."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from schemas.card_fields import token_text
from schemas.pseudonym import pseudonym
from scorer.files import source_relation
from scorer.files.file_reader import FileError, read_payments
from scorer.files.mapping import Mapping, MappingError
from scorer.files.payment_file import ReadOptions
from scorer.files.refusals import Refusals
from tests.file_layouts import RFC, SIMPLE

KEY = b"a key of thirty-two bytes or more"
CARD = "4111111111111111"


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
        # Each row that is lost counts, so that a file with many is refused as a whole.
        assert [(number, field) for number, field, _ in refused] == [(2, None)] * end
        assert "two stray quotes" in refused[0][2]


def test_rows_that_end_in_a_carriage_return_are_found_as_others(tmp_path: Path) -> None:
    """The same with the line ends of old Macs."""
    notes = ["", "", '"5 inch', '6"', "", ""]
    path = csv(tmp_path, "\r".join(["id,ts,amount,note", *(f"{i},{RFC},1,{note}" for i, note in enumerate(notes)), ""]))
    path.write_bytes(path.read_bytes().strip(b"\n"))
    values, refused = read(path)
    assert ([value["payment_id"] for value in values], [row for row, _, _ in refused]) == (["0", "1", "4", "5"], [3, 3])


def test_text_of_several_lines_is_text(tmp_path: Path) -> None:
    """A cell of several lines is accepted; one whose lines look like rows where the mapping says that it is text."""
    text, rows = "Dear Sir,\nthank you, and\r\nbye", "a\nb,c,d,e"
    path = csv(tmp_path, "id,ts,amount,note", f'1,{RFC},1,"{text}"', f'2,{RFC},1,"{rows}"')
    values, refused = read(path, SIMPLE + "merchant_id: note\n")
    assert [value["merchant_id"] for value in values] == [text]
    assert [row for row, _, _ in refused] == [2, 2]
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


@pytest.mark.parametrize(
    ("options", "good", "wrong"),
    [
        (
            'thousands_mark: ","',
            {"12.50": 1250, "1,234.50": 123450, "-1,234,567": -123456700, "1,00,000.00": 10000000, "1234.5": 123450},
            ["12,50", "1,23,45", "1234,567.00", "1.234,50", "1,2345", ",500"],
        ),
        (
            'decimal_mark: ","',
            {"12,50": 1250, "1.234,50": 123450, "1.234": 123400, "1234,5": 123450},
            ["12.50", "1.5", "1,234.50", "1.00.000,00", "1.23"],
        ),
        ('decimal_mark: ",", thousands_mark: "\'"', {"1'234,50": 123450}, ["12.50", "1'23,50", "1.234'567"]),
        (
            'decimal_mark: ",", currency_sign: "€"',
            {"1 234,50 €": 123450, "- € 5": -500, "€1.234": 123400},
            ["1 23 €", "€ 12.5", "1.234 567 €"],
        ),
    ],
)
def test_a_mark_groups_thousands_or_refuses_its_amount(
    tmp_path: Path, options: str, good: dict[str, int], wrong: list[str]
) -> None:
    """A thousands mark stands between groups of three digits, or as in India: elsewhere it may be a decimal mark, and
    the amount would be a hundred times too large."""
    cells = [*good, *wrong]
    path = csv(tmp_path, "id|ts|amount", *(f"{cell}|{RFC}|{cell}" for cell in cells))
    text = SIMPLE.replace("amount: amount", f"amount: {{column: amount, refunds: attribute, {options}}}")
    values, refused = read(path, text + 'csv: {delimiter: "|"}\n')
    signed = {v["payment_id"]: v["amount_minor"] * (-1 if v["attributes"]["refund"] else 1) for v in values}
    assert signed == good
    assert [(cells[row - 1], field) for row, field, _ in refused] == [(cell, "amount") for cell in wrong]


TIMES = {
    "10:00": 8, "10:00:00.0": 8, "10:00:00Z": 10, "10:00:00+05:00": 5, "10:00 GMT": 10, "10:00:00 UTC": 10,
    "10:00:00 UTC+2": 8, "10:00:00 America/New_York": 14, "10:00:00 EST": None, "10:00:00 BST": None,
    "10:00:00 PM": None, "10:00:00 Nowhere/City": None, "10:00:00 -": None,
}  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_the_zone_in_a_text_is_its_zone(tmp_path: Path, zone: str) -> None:
    """A text that names its zone is of that zone, whatever the mapping's is; one that ends in other letters, which may
    stand for several zones or for the afternoon, is refused."""
    path = csv(tmp_path, "id,ts,amount", *(f"{cell},2024-07-01 {cell},1" for cell in TIMES))
    values, refused = read(path, SIMPLE + f"time_zone: {zone}\n")
    hours = {value["payment_id"]: (value["event_time"] - DAY_MS) / 3_600_000 for value in values}
    local = 10 if zone == "UTC" else 8
    assert hours == {cell: hour if hour != 8 or "+" in cell else local for cell, hour in TIMES.items() if hour}
    assert [(list(TIMES)[row - 1], field) for row, field, _ in refused] == [
        (cell, "event_time") for cell, hour in TIMES.items() if hour is None
    ]


DAY_MS = 1_719_792_000_000  # 2024-07-01


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_formats_with_and_without_a_zone_are_read_each_by_itself(tmp_path: Path, zone: str) -> None:
    """A row without an offset is of the mapping's zone, whatever the row before it had; %Z is a zone as %z is."""
    cells = ["12:00+0500", "12:00", "12:00+0200", "12:00 UTC", "12:00 Asia/Tokyo", "12:00", "12:00 BST", "noon"]
    path = csv(tmp_path, "id,ts,amount", *(f"{i},01.07.2024 {cell},1" for i, cell in enumerate(cells, 1)))
    form = ", ".join(f'"%d.%m.%Y %H:%M{end}"' for end in ("%z", "", " %Z"))
    text = SIMPLE.replace("event_time: ts", f"event_time: {{column: ts, format: [{form}]}}")
    values, refused = read(path, text + f"time_zone: {zone}\n")
    local = 12 if zone == "UTC" else 10
    hours = {value["payment_id"]: (value["event_time"] - DAY_MS) / 3_600_000 for value in values}
    assert hours == {"1": 7, "2": local, "3": 10, "4": 12, "5": 3, "6": local}
    assert [row for row, _, _ in refused] == [7, 8]


@pytest.mark.parametrize("place", ["card_token: {token: cc}\n", "attributes: {card_token: {token: cc}}\n"])
def test_a_token_is_the_same_whatever_type_its_column_has(tmp_path: Path, place: str) -> None:
    """A card number as text, as a whole number, as a float because its column has gaps, or among texts of JSON has the
    pseudonym that its payment on the topic has."""
    live = pseudonym(KEY, token_text(float(CARD)))
    text, rows = SIMPLE + place, {"id": ["1", "2"], "ts": [RFC, RFC], "amount": [1, 1]}
    lines = [json.dumps({"id": 3, "ts": RFC, "amount": 1, "cc": cell}) for cell in (CARD, int(CARD), float(CARD))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    for number, column in enumerate((
        pa.array([int(CARD), None]), pa.array([float(CARD), None]), pa.array([f" {CARD} ", None]),
        pa.array([Decimal(CARD), None]), pa.array(["4111 1111 1111 1111", None]),
    )):  # fmt: skip
        pq.write_table(pa.table(rows | {"cc": column}), tmp_path / f"{number}.parquet")
    cells = (CARD, f"{CARD}.0", f" {CARD} ", "4111-1111-1111-1111")
    csv(tmp_path, "id,ts,amount,cc", *(f"{i},{RFC},1,{cell}" for i, cell in enumerate(cells)))
    for path in sorted(tmp_path.iterdir()):
        values, refused = read(path, text)
        tokens = [value["card_token"] for value in (v.get("attributes", v) for v in values) if "card_token" in value]
        assert (set(tokens), refused) == ({live}, []), path.name
    pq.write_table(pa.table(rows | {"cc": [float(CARD) + 0.5, 1.0]}), tmp_path / "0.parquet")
    assert [row for row, _, _ in read(tmp_path / "0.parquet", text)[1]] == [1]


def test_a_text_that_is_not_utf8_is_read_by_a_guess_that_is_named(tmp_path: Path) -> None:
    """A text in another encoding is read as the usual one, and the guess is a warning; where other lines are UTF-8, one
    wrong byte would change all their letters, so the file is refused until the mapping says what it is."""
    rows, text = f"id,ts,amount,shop\n1,{RFC},1,Müller\n2,{RFC},1,Bäcker\n", SIMPLE + "merchant_id: shop\n"
    path, warnings = tmp_path / "rows.csv", list[str]()

    def shops(more: str = "") -> list[str]:
        blocks = read_payments(path, Mapping.from_yaml(text + more), options=ReadOptions(warn=warnings.append))
        return [json.loads(value)["merchant_id"] for block in blocks for value in block.values]

    path.write_bytes(rows.encode("cp1252"))
    assert shops() == ["Müller", "Bäcker"]
    (warning,) = warnings
    assert "rows.csv is not UTF-8 (line 2); it is read as cp1252" in warning
    assert shops("encoding: cp1252\n") == ["Müller", "Bäcker"]
    path.write_bytes(rows.encode() + f"3,{RFC},1,caf".encode() + b"\xe9\n")
    with pytest.raises(FileError, match=r"line 4 is not UTF-8, and line 2 is; .*encoding: NAME"):
        shops()
    path.write_bytes(rows.encode())
    assert shops() == ["Müller", "Bäcker"]
    assert len(warnings) == 1


@pytest.mark.parametrize("order", ["", "order_by: file\n", "order_by: id\n"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_that_where_leaves_out_are_counted(tmp_path: Path, suffix: str, order: str) -> None:
    """Each once, however often the file is read; those that it has no value for, since a cell is empty, apart."""
    count, path = 5000, tmp_path / f"rows.{suffix}"
    status = [None if i % 10 == 0 else "declined" if i % 3 == 0 else "ok" for i in range(count)]
    table = pa.table({"id": range(count), "ts": [RFC] * count, "amount": [1] * count, "status": status})
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        pa_csv.write_csv(table, path)
    else:
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    for where, kept, unknown in (
        ("status <> 'declined'", status.count("ok"), status.count(None)),
        ("status is distinct from 'declined'", count - status.count("declined"), 0),
    ):
        refusals = Refusals()
        mapping = Mapping.from_yaml(SIMPLE + f'where: "{where}"\n' + order)
        blocks = read_payments(path, mapping, options=ReadOptions(left_out=refusals.leave_out, late_share_max=1))
        assert sum(map(len, blocks)) == kept
        assert (refusals.left_out, refusals.unknown, refusals.total) == (count - kept, unknown, 0)


def test_a_name_twice_in_a_line_of_json_refuses_it(tmp_path: Path) -> None:
    """As on the topic: it is not clear which of the two values is meant."""
    path = tmp_path / "rows.jsonl"
    lines = ['"amount": 1, "amount": 999', '"amount": 1', '"amount": 1, "x": 1, "id": "2"', '"amount": 1, "y": 2']
    path.write_text("\n".join(f'{{"id": "{i}", "ts": "{RFC}", {line}}}' for i, line in enumerate(lines)) + "\n[1]\n")
    values, refused = read(path)
    assert [value["payment_id"] for value in values] == ["1", "3"]
    assert [(row, message) for row, _, message in refused] == [
        (1, "a name stands twice in one object"), (3, "a name stands twice in one object"),
        (5, "the line is not a JSON object"),
    ]  # fmt: skip


def test_a_mapped_column_is_in_every_file_of_a_folder(tmp_path: Path) -> None:
    """A column that has another name in one of the Parquet files would be empty there: the file is named. What is not
    mapped may be missing, and an expression may be over what is in some of the files."""
    for name, columns in (("a", {"customer": ["c1"], "more": [1]}), ("b", {"customer_id": ["c2"]})):
        pq.write_table(pa.table({"id": [name], "ts": [RFC], "amount": [1.0]} | columns), tmp_path / f"{name}.parquet")
    with pytest.raises(MappingError, match=r"b\.parquet has no column 'customer', which other files have"):
        read(tmp_path, SIMPLE + "customer_id: customer\n")
    values, _ = read(tmp_path, SIMPLE + 'customer_id: {sql: "coalesce(customer, customer_id)"}\n')
    assert [value["customer_id"] for value in values] == ["c1", "c2"]
    assert len(read(tmp_path)[0]) == 2


def test_no_number_is_no_label(tmp_path: Path) -> None:
    """A float column of labels with gaps: what is not a number is not known, also where only fraud has words."""
    path = tmp_path / "rows.parquet"
    columns = {"id": ["1", "2", "3", "4"], "ts": [RFC] * 4, "amount": [1.0] * 4, "f": [1.0, float("nan"), None, 0.0]}
    pq.write_table(pa.table(columns), path)
    for words in ('{column: f, fraud: ["1.0"]}', "f"):
        (block,) = read_payments(path, Mapping.from_yaml(SIMPLE + f"label: {words}\n"))
        assert block.label.tolist() == [1, -1, -1, 0]


@pytest.mark.parametrize("more", ["", "where: coalesce(note, '') <> 'out'\n"])
@pytest.mark.parametrize(
    ("closing", "lost"), [('"ok, text"', 24), ('a "word" now', 24), (None, 34)], ids=["quoted", "within", "never"]
)
def test_all_lines_behind_a_stray_quote_are_refused(tmp_path: Path, closing: str | None, lost: int, more: str) -> None:
    """Whether another cell closes it or none, each line that came out as no row counts as refused."""
    notes = ["out", "", *["x"] * 38]
    notes[6], notes[29] = '"5 inch', closing or "x"
    rows = [f"p{i},{RFC},1,{note}" for i, note in enumerate(notes)]
    for name in ("rows.csv", "rows.csv.gz"):
        path = csv(tmp_path, "id,ts,amount,note", *rows)
        if name.endswith("gz"):
            path = tmp_path / name
            path.write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
        values, refused = read(path, SIMPLE + more)
        assert len(values) + len(refused) + bool(more) == 40
        assert len(refused) == lost
        assert {row for row, _, _ in refused} == {7}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("more", ["", "where: id <> '2'\n"])
def test_lines_that_are_no_rows_are_not_missed(tmp_path: Path, end: str, more: str) -> None:
    """Blank lines, text of several lines (also where it is left out), a title, and a last line that does not end."""
    text = f'"a,{end}{end}b"'
    rows = ["A title", "id,ts,amount,note", f"1,{RFC},1,{text}", "", f"2,{RFC},1,{text}", "", "", f"3,{RFC},1,"]
    rows.append(f"4,{RFC},1,{text}")
    path = tmp_path / "rows.csv"
    for last in ("", end, end * 3):
        path.write_text(end.join(rows) + last, newline="")
        values, refused = read(path, SIMPLE + more + "csv: {skip: 1}\n")
        assert (len(values), refused) == (3 if more else 4, [])


def test_a_decimal_is_a_token_with_all_its_digits(tmp_path: Path) -> None:
    """Decimals are exact: those beyond what a float keeps too, in text fields and tokens."""
    number = "4111111111111111113"
    pq.write_table(
        pa.table({"id": ["1"], "ts": [RFC], "amount": ["1"], "cc": pa.array([Decimal(number)], pa.decimal128(38, 0))}),
        tmp_path / "rows.parquet",
    )
    ((value,), refused) = read(tmp_path / "rows.parquet", SIMPLE + "card_token: {token: cc}\nmerchant_id: cc\n")
    assert (value["card_token"], value["merchant_id"], refused) == (pseudonym(KEY, number), number, [])


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_zone_of_a_format_needs_no_blank_before_it(tmp_path: Path, zone: str) -> None:
    """UTC right behind the time, where the format says so; without a format such a text is refused in every zone."""
    path = csv(tmp_path, "id,ts,amount", "1,2026-01-05T10:00:00UTC,1")
    formatted = SIMPLE.replace("event_time: ts", 'event_time: {column: ts, format: "%Y-%m-%dT%H:%M:%S%Z"}')
    values, refused = read(path, f"{formatted}time_zone: {zone}\n")
    assert ([value["event_time"] for value in values], refused) == ([1_767_607_200_000], [])
    values, refused = read(path, f"{SIMPLE}time_zone: {zone}\n")
    assert (values, len(refused)) == ([], 1)


def test_a_word_that_looks_like_utf8_makes_no_mixed_file(tmp_path: Path) -> None:
    """cp1252 in which two letters happen to be UTF-8 is cp1252."""
    path = tmp_path / "rows.csv"
    for word in ("NESCAFÉ®", "CAFÉ’S", "LIBERTÉ\u00a0!", "„Spaß“"):
        path.write_text(f"id,ts,amount,shop\n1,{RFC},1,{word}\n2,{RFC},1,Müller\n", encoding="cp1252")
        values, refused = read(path, SIMPLE + "merchant_id: shop\n")
        assert ([value["merchant_id"] for value in values], refused) == ([word.strip(), "Müller"], [])
