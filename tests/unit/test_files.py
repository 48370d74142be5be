"""Payments from Parquet, CSV and JSON lines: the same payments, in order, in bounded blocks, or a clear refusal."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from schemas.control_record import parse_control
from schemas.label_record import Label
from schemas.payment_decoder import decode_payments
from scorer.files.file_columns import decoded_blocks
from scorer.files.file_reader import FileBlock, FileError, label_records, read_payments
from scorer.files.mapping import CsvForm, Mapping, MappingError
from scorer.files.payment_file import ReadOptions
from scorer.simulate import World
from tests import handbook_data

DAY_MS = 86_400_000

MAPPING = Mapping.from_yaml("""
payment_id: id
event_time: at
amount: paid
currency: money
customer_id: who
mcc: shop_code
latitude: lat
attributes: {basket: items, gift: gift}
label: fraud
label_delay: 2d
""")

COLUMNS = ("id", "at", "paid", "money", "who", "shop_code", "lat", "items", "gift", "fraud")
ROWS: list[dict[str, object]] = [
    dict(zip(COLUMNS, cells, strict=True))
    for cells in (
        (1, "2026-01-01T10:00:00Z", "57.16", "EUR", "c1", 742, 48.25, 3, True, 0),
        (2, "2026-01-01 11:30:00.250", "1200", "JPY", None, 5411, None, None, None, 1),
        (3, "2026-01-01T13:00:00+01:00", "0.007", "KWD", "c3", None, -3.5, 1, False, None),
    )
]

EXPECTED: list[dict[str, object]] = [
    {
        "payment_id": "1", "event_time": 1767261600000, "amount_minor": 5716, "currency": "EUR", "customer_id": "c1",
        "mcc": "0742", "latitude": 48.25, "attributes": {"basket": 3, "gift": True},
    },
    {"payment_id": "2", "event_time": 1767267000250, "amount_minor": 1200, "currency": "JPY", "mcc": "5411"},
    {
        "payment_id": "3", "event_time": 1767268800000, "amount_minor": 7, "currency": "KWD", "customer_id": "c3",
        "latitude": -3.5, "attributes": {"basket": 1, "gift": False},
    },
]  # fmt: skip


def as_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path / "rows.parquet")
    return path / "rows.parquet"


def as_jsonl(path: Path) -> Path:
    (path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    return path / "rows.jsonl"


def only(path: Path, mapping: Mapping | None = MAPPING) -> FileBlock:
    """The one block of a small file."""
    (block,) = read_payments(path, mapping)
    return block


@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
def test_rows_become_payments(tmp_path: Path, write: object) -> None:
    """Each row becomes one payment in the contract's form; empty cells are left out, numbers become text."""
    block = only(write(tmp_path))  # type: ignore[operator]
    assert [json.loads(value) for value in block.values] == EXPECTED
    assert block.keys == [b"c1", None, b"c3"]
    assert block.row.tolist() == [1, 2, 3]
    assert block.event_time_ms.tolist() == [row["event_time"] for row in EXPECTED]
    assert block.label.tolist() == [0, 1, -1]
    assert block.label_known_at_ms.tolist() == [1767261600000 + 2 * DAY_MS, 1767267000250 + 2 * DAY_MS, -1]
    assert decode_payments(block.values, block.keys).rejects == []


def test_csv(tmp_path: Path) -> None:
    """CSV gives the same, also packed with gzip or zstd."""
    pa_csv.write_csv(pa.Table.from_pylist(ROWS), tmp_path / "rows.csv")
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    with pa.output_stream(str(tmp_path / "rows.csv.zst"), compression="zstd") as out:
        out.write((tmp_path / "rows.csv").read_bytes())
    for path in (tmp_path / "rows.csv", packed, tmp_path / "rows.csv.zst"):
        assert [json.loads(value) for value in only(path).values] == EXPECTED


def test_csv_attributes_are_numbers_truth_or_text_cell_by_cell(tmp_path: Path) -> None:
    """In a column of a CSV that holds this and that, a JSON number and a truth value are those; all else is text."""
    cells: dict[str, object] = {
        "3": 3, "9007199254740993": 9007199254740993, "-0.5": -0.5, "1e3": 1000.0, "0": 0, "true": True, "false": False,
        "007": "007", "+1": "+1", "True": True, "1e999": "1e999", ".5": ".5", "shoes": "shoes",
        "12345678901234567890": "12345678901234567890",
    }  # fmt: skip
    path = tmp_path / "rows.csv"
    mapping = Mapping.from_yaml(
        "{payment_id: id, event_time: t, amount: {constant: 1}, currency: {constant: EUR}, "
        "attributes: {x: x, k: {constant: '5'}}}"
    )
    path.write_text(
        "id,t,x\n" + "".join(f"p{i},1767225600000,{cell}\n" for i, cell in enumerate(cells)), encoding="utf-8"
    )
    found = [json.loads(value)["attributes"] for value in only(path, mapping).values]
    assert [(type(row["x"]), row["x"]) for row in found] == [(type(value), value) for value in cells.values()]
    assert {row["k"] for row in found} == {"5"}


def test_label_records(tmp_path: Path) -> None:
    """Known labels become control records with payment, verdict and times, one for each row with a label."""
    block = only(as_jsonl(tmp_path))
    labels = [parse_control(raw) for raw in label_records(block)]
    assert len(labels) == (block.label >= 0).sum() == 2
    assert all(isinstance(label, Label) for label in labels)
    assert [(label.payment_id, label.fraud) for label in labels] == [("1", False), ("2", True)]  # type: ignore[union-attr]
    assert [label.known_at_ms for label in labels] == block.label_known_at_ms[:2].tolist()  # type: ignore[union-attr]


def test_label_of_a_nameless_payment(tmp_path: Path) -> None:
    """A row without id or time, which the decoder refuses, has no label either: labels and records stay one to one."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id":null,"at":1700000000,"paid":1,"money":"EUR","fraud":1}\n{"id":"b","at":null,"paid":1,"money":"EUR","fraud":1}\n'
    )
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: paid, currency: money, label: fraud}")
    block = only(path, mapping)
    assert block.label.tolist() == [-1, -1]
    assert label_records(block) == []
    assert len(decode_payments(block.values, block.keys).rejects) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz"])
def test_contract_lines_need_no_mapping(tmp_path: Path, suffix: str) -> None:
    """JSON lines in the contract's own form pass unchanged, with key, id and time taken from them."""
    batch = next(iter(World(1, customers=300).stream(1_767_225_600_000)))
    values = batch.to_json()
    path = tmp_path / f"payments{suffix}"
    raw = b"\r\n".join(values)
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    block = only(path, None)
    assert block.values == values
    assert block.keys == batch.keys()
    assert block.payment_ids == batch.column("payment_id").tolist()
    assert np.array_equal(block.event_time_ms, batch.event_time_ms)
    assert (block.label == -1).all()


def test_bad_contract_lines_are_left_to_the_decoder(tmp_path: Path) -> None:
    """A line that is no payment is passed on, to become a dead letter and not the end of the file."""
    path = tmp_path / "payments.jsonl"
    lines = [
        b"not json",
        b"[1]",
        b'"text"',
        b'{"customer_id":5,"event_time":"noon"}',
        b"\xff",
        b'{"customer_id":"\\ud800"}',
        b"[" * 5000,
    ]
    path.write_bytes(b"\n".join(lines))
    block = only(path, None)
    assert block.values == lines
    assert block.keys == [None] * len(lines)
    assert (block.event_time_ms == -1).all()
    assert len(decode_payments(block.values, block.keys).rejects) == len(lines)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_blocks_are_bounded_and_in_order(tmp_path: Path, kind: str) -> None:
    """A file comes in blocks of at most rows_per_block, in its order, with row numbers that run on."""
    count = 1000
    table = pa.table(
        {
            "id": pa.array(range(count)),
            "at": pa.array(range(1_700_000_000, 1_700_000_000 + count)),
            "paid": pa.array([1.5] * count),
        }
    )
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=150)
    elif kind == "csv":
        pa_csv.write_csv(table, path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()), encoding="utf-8")
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: paid, currency: {constant: EUR}}")
    blocks = list(read_payments(path, mapping, rows_per_block=64))
    assert all(1 <= len(block) <= 64 for block in blocks)
    assert [name for block in blocks for name in block.payment_ids] == [str(i) for i in range(count)]
    assert np.concatenate([block.row for block in blocks]).tolist() == list(range(1, count + 1))
    assert np.concatenate([block.event_time_ms for block in blocks])[-1] == (1_700_000_000 + count - 1) * 1000


def test_arrow_types(tmp_path: Path) -> None:
    """Decimals, timestamps of any unit and zone, dictionaries, dates and floats with gaps read right."""
    moment = dt.datetime(2026, 1, 1, 10, 0, 0, 250_000, tzinfo=dt.UTC)
    naive = moment.replace(tzinfo=None)
    columns = {
        "id": pa.array([7.0, 8.0]),
        "us": pa.array([naive, None], pa.timestamp("us")),
        "ns": pa.array([naive, naive], pa.timestamp("ns")),
        "zone": pa.array([moment, moment], pa.timestamp("ms", "Asia/Tokyo")),
        "paid": pa.array([Decimal("12.30"), Decimal("99999999.99")], pa.decimal128(12, 2)),
        "who": pa.array(["a", None]).dictionary_encode(),
        "day": pa.array([dt.date(2026, 1, 1), None]),
        "fraud": pa.array([True, None]),
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    for time in ("us", "ns", "zone"):
        mapping = Mapping.from_yaml(
            f"{{payment_id: id, event_time: {time}, amount: paid, currency: {{constant: EUR}}, customer_id: who, "
            "label: fraud, attributes: {day: day}}"
        )
        block = only(path, mapping)
        first = json.loads(block.values[0])
        assert first == {
            "payment_id": "7", "event_time": 1767261600250, "amount_minor": 1230, "currency": "EUR", "customer_id": "a",
            "attributes": {"day": "2026-01-01"},
        }  # fmt: skip
        assert json.loads(block.values[1])["amount_minor"] == 9_999_999_999
        assert block.event_time_ms[1] == (-1 if time == "us" else 1767261600250)
        assert block.label[0] == 1


@pytest.mark.parametrize(
    ("cell", "value", "field", "message"),
    [
        ("paid", "57.165", "amount", "the amount has more decimals than its currency"),
        ("paid", "1,000.00", "amount", "the cell is not an amount"),
        ("paid", True, "amount", "the cell is not an amount"),
        ("paid", "1" * 200, "amount", "the cell is not an amount"),
        ("at", "yesterday", "event_time", "the text is not a time"),
        ("at", True, "event_time", "the text is not a time"),
        ("fraud", 2, "label", "the cell is not a label"),
        ("lat", "north", "latitude", "the text is not a number"),
        ("items", [1], "attributes.basket", "an object or list cannot be an attribute"),
    ],
)
def test_a_wrong_cell_refuses_its_row_alone(tmp_path: Path, cell: str, value: object, field: str, message: str) -> None:
    """A cell that cannot become its field refuses its row with row, field and reason, never with the value; the rows
    around it are payments."""
    rows = [dict(row) for row in ROWS]
    rows[1] |= {"money": "EUR", cell: value}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    block = only(path)
    assert [json.loads(raw) for raw in block.values] == [EXPECTED[0], EXPECTED[2]]
    assert block.row.tolist() == [1, 3]
    ((row, error),) = [(refused.row, refused.error) for refused in block.refused]
    assert (row, error.field) == (2, field)
    assert error.message.startswith(message)
    assert not isinstance(value, str) or value not in error.message
    (decoded,) = decoded_blocks(path, MAPPING, 100)
    assert [(reject.index, reject.error) for reject in decoded.records.decode().rejects] == [(1, error)]


def test_unknown_currency_is_left_to_the_decoder(tmp_path: Path) -> None:
    """A row of no known currency reaches the decoder, which refuses it, instead of ending the file."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id":"a","at":"2026-01-01","paid":"1.2345","money":"XYZ"}\n{"id":"b","at":"2026-01-01","paid":"1.20","money":"EUR"}\n'
    )
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: paid, currency: money}")
    decoded = decode_payments(only(path, mapping).values)
    assert [reject.error.reason.value for reject in decoded.rejects] == ["unknown_currency"]
    assert decoded.amount_minor.tolist() == [120]


@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
def test_missing_column(tmp_path: Path, write: object) -> None:
    """A column that is not there is refused by name, with those that are."""
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: price, currency: money}")
    with pytest.raises(MappingError, match=r"no column 'price'; there are id, at, paid"):
        list(read_payments(write(tmp_path), mapping))  # type: ignore[operator]


def test_csv_traps(tmp_path: Path) -> None:
    """A column there twice and an empty file are refused in words; rows of another width are refused one by one."""
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: paid, currency: {constant: EUR}}")
    path = tmp_path / "rows.csv"
    for text, message in (("id,at,paid,paid\n1,2026-01-01,1,1\n", "'paid' is there more than once"), ("", "empty")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(MappingError, match=message):
            list(read_payments(path, mapping))
    path.write_text("id,at,paid\n1,2026-01-01,1\n2,2026-01-01\n3,2026-01-01,1,\n4,2026-01-01,1\n", encoding="utf-8")
    block = only(path, mapping)
    assert block.payment_ids == ["1", "4"]
    assert [(one.row, one.error.message[:13]) for one in block.refused] == [(2, "the row has f"), (3, "the row has m")]


def test_a_line_that_cannot_be_read_is_refused_with_its_number(tmp_path: Path) -> None:
    """A row with a quote that does not close properly is refused by its place, counted as that of every other row: from
    the header on, however many lines are passed over before it. Rows after it keep their place."""
    mapping = Mapping.from_yaml("{payment_id: id, event_time: at, amount: paid, currency: {constant: EUR}}")
    path = tmp_path / "rows.csv"
    path.write_text('id,at,paid\n1,2026-01-01,1\n"2"x,2026-01-01,1\n3,2026-01-01,oops\n4,2026-01-01,1\n', "utf-8")
    path.with_name("skip.csv").write_text("Bank\nMay\n" + path.read_text("utf-8"), "utf-8")
    skip = mapping.model_copy(update={"csv": CsvForm(skip=2, delimiter=",", quote='"')})
    (whole, left_out) = read_payments(path.with_name("skip.csv"), skip)
    assert (whole.row.tolist(), [one.row for one in whole.refused + left_out.refused]) == ([1, 4], [3, 2])
    blocks = list(read_payments(path, mapping))
    assert [name for block in blocks for name in block.payment_ids] == ["1", "4"]
    assert blocks[0].row.tolist() == [1, 4]
    assert [(one.row, one.error.field) for block in blocks for one in block.refused] == [(3, "amount"), (2, None)]


def test_csv_text_keeps_its_zeros(tmp_path: Path) -> None:
    """Text of digits in CSV keeps leading zeros, commas in quotes and line breaks in quotes."""
    path = tmp_path / "rows.csv"
    path.write_text('id,at,paid,who\n007,2026-01-01T00:00:00Z,1.10,"a,\nb"\n', encoding="utf-8")
    mapping = Mapping.from_yaml(
        "{payment_id: id, event_time: at, amount: paid, currency: {constant: EUR}, customer_id: who}"
    )
    assert json.loads(only(path, mapping).values[0])["payment_id"] == "007"
    assert only(path, mapping).keys == [b"a,\nb"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, an unknown suffix, a broken file and a mapping left out are reported in words."""
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "rows.xlsx").write_bytes(b"")
    (tmp_path / "rows.csv").write_text("id\n1\n", encoding="utf-8")
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1}\n' * 1000)[:-20])
    with pytest.raises(FileError, match="no such file"):
        read_payments(tmp_path / "absent.csv", MAPPING)
    with pytest.raises(FileError, match=r"known are \.parquet"):
        read_payments(tmp_path / "rows.xlsx", MAPPING)
    with pytest.raises(FileError, match="not readable as parquet"):
        read_payments(tmp_path / "broken.parquet", MAPPING)
    with pytest.raises(MappingError, match="needs a mapping"):
        read_payments(tmp_path / "rows.csv")
    with pytest.raises(MappingError, match="no column"):
        list(read_payments(tmp_path / "list.jsonl", MAPPING))
    with pytest.raises(FileError, match="cannot be read"):
        list(read_payments(tmp_path / "cut.jsonl.gz"))


def test_handbook_file(tmp_path: Path) -> None:
    """A file of the handbook's kind reads whole: every amount exact, every payment accepted, labels a week late."""
    mapping = Mapping.from_yaml("""
payment_id: TRANSACTION_ID
event_time: TX_DATETIME
amount: TX_AMOUNT
currency: {constant: EUR}
customer_id: CUSTOMER_ID
terminal_id: TERMINAL_ID
label: TX_FRAUD
""")
    path = handbook_data.write(tmp_path / "handbook.parquet", seed=2, days=7)
    rows = pq.read_table(path).slice(0, 65_536).to_pylist()
    first = next(iter(read_payments(path, mapping)))
    assert len(first) == len(rows) == 65_536
    expected_minor = [int(Decimal(repr(row["TX_AMOUNT"])) * 100) for row in rows]
    time_ms = [int(row["TX_DATETIME"].replace(tzinfo=dt.UTC).timestamp() * 1000) for row in rows]
    assert json.loads(first.values[0]) == {
        "payment_id": "0", "event_time": time_ms[0], "amount_minor": expected_minor[0], "currency": "EUR",
        "customer_id": str(rows[0]["CUSTOMER_ID"]), "terminal_id": str(rows[0]["TERMINAL_ID"]),
    }  # fmt: skip
    assert first.event_time_ms.tolist() == time_ms
    assert (first.label_known_at_ms - first.event_time_ms == 7 * DAY_MS).all()
    assert first.label.tolist() == [row["TX_FRAUD"] for row in rows]
    assert set(first.label.tolist()) == {0, 1}
    decoded = decode_payments(first.values, first.keys)
    assert decoded.rejects == []
    assert decoded.amount_minor.tolist() == expected_minor


def test_reading_until_a_time_reaches_the_last_early_payment_wherever_it_stands(tmp_path: Path) -> None:
    """In the order of the file, all rows up to its last payment before the end are read; by time, those before it."""
    text = "payment_id: id\nevent_time: at\namount_minor: m\ncurrency: {constant: EUR}\n"
    times = [1_700_000_000_000 + 1000 * second for second in (5, 1, 9, 2, 8, 7)]
    table = pa.table({"id": list("abcdef"), "at": pa.array(times, pa.timestamp("ms")), "m": [1] * 6})
    pq.write_table(table, tmp_path / "f.parquet")
    options = ReadOptions(late_share_max=1.0)

    def rows(order: str, until_ms: int) -> list[int]:
        mapping = Mapping.from_yaml(text + f"order_by: {order}\n")
        blocks = decoded_blocks(tmp_path / "f.parquet", mapping, 100, options=options, until_ms=until_ms)
        return [row for block in blocks for row in block.row.tolist()]

    assert rows("file", 1_700_000_003_000) == [1, 2, 3, 4]
    assert rows("file", 1_700_000_000_000) == []
    assert rows("file", 1_800_000_000_000) == [1, 2, 3, 4, 5, 6]
    assert rows("event_time", 1_700_000_008_000) == [2, 4, 1, 6]
