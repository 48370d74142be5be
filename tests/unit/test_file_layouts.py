"""Files as people have them: every layout gives the payments that it means, and says which rows it refuses."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.pseudonym import pseudonym
from scorer.errors import FraudScorerError, UsageError
from scorer.files.file_columns import DecodedBlock, decoded_blocks
from scorer.files.file_reader import FileError, read_payments
from scorer.files.mapping import Mapping, MappingError
from scorer.files.payment_file import PaymentFile, ReadOptions
from tests.file_layouts import EUR, LAYOUTS, SIMPLE, Layout

CARDS = ("4111111111111111", "5555555555554444")
KEY = b"a key of thirty-two bytes or more"


def time_of(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def blocks_of(path: Path, text: str, **options: object) -> list[DecodedBlock]:
    mapping = Mapping.from_yaml(text)
    return list(decoded_blocks(path, mapping, 4096, options=ReadOptions(**options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_means_its_payments(layout: Layout, tmp_path: Path) -> None:
    """Each layout gives its payments in order of time, with their labels; refused rows are named by row and field."""
    path = layout.write(tmp_path)
    found, labels, refused = [], [], []
    for block in blocks_of(path, layout.mapping):
        payments = block.records.decode()
        for index, row in zip(payments.index.tolist(), payments.rows, strict=True):
            fields = {name: getattr(row, name) for name in row.__struct_fields__ if getattr(row, name) is not None}
            found.append(fields | {"event_time": time_of(fields["event_time"])})
            labels.append(None if block.label[index] < 0 else int(block.label[index]))
        refused += [(int(block.row[r.index]), r.error.field) for r in payments.rejects]
        assert not any(card in str(r.error) for r in payments.rejects for card in CARDS)
    assert found == layout.payments
    if layout.labels:
        assert labels == layout.labels
    assert sorted(refused, key=str) == sorted(layout.refused, key=str)


def months(rows: int = 3000) -> list[tuple[str, str, str, str]]:
    """A month of payments: id, time, amount, customer."""
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    return [
        (
            f"p{i}",
            (start + dt.timedelta(minutes=9 * i)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            f"{i * 37 % 9000 / 100:.2f}",
            f"c{i % 30}",
        )
        for i in range(rows)
    ]


def write_rows(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    path.write_text("id,ts,amount,cust\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(path: Path, text: str = SIMPLE, **options: object) -> list[str]:
    return [
        name
        for block in blocks_of(path, text, **options)
        for name in block.records.decode().text("payment_id").to_pylist()
    ]


def test_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    """A file sorted by customer or newest first gives the payments of the file in order of time, in that order."""
    rows = months()
    in_order = ids(write_rows(tmp_path / "a.csv", rows))
    assert in_order == [row[0] for row in rows]
    assert ids(write_rows(tmp_path / "b.csv", sorted(rows, key=lambda row: (row[3], row[1])))) == in_order
    assert ids(write_rows(tmp_path / "c.csv", rows[::-1])) == in_order


def test_rows_that_would_be_late_stop_a_file_that_keeps_its_order(tmp_path: Path) -> None:
    """With order_by: file the number of rows that would be late is counted, and too many stop the run."""
    path = write_rows(tmp_path / "newest.csv", months()[::-1])
    with pytest.raises(FileError, match=r"2,999 of 3,000 rows would be late"):
        ids(path, SIMPLE + "order_by: file\n")
    a_few = months()
    a_few[10], a_few[11] = a_few[11], a_few[10]
    swapped = ids(write_rows(tmp_path / "few.csv", a_few), SIMPLE + "order_by: file\n")
    assert swapped[10:12] == ["p11", "p10"]
    with pytest.raises(FileError, match="would be late"):
        ids(path, SIMPLE + "order_by: {sql: md5(id)}\n", lateness_ms=0)
    assert ids(path, SIMPLE + "order_by: ts\n") == [row[0] for row in months()]


@pytest.mark.parametrize("rows", [20, 3000])
def test_a_row_with_a_wrong_year_is_refused_and_no_other_changes(tmp_path: Path, rows: int) -> None:
    """A few rows far later than all others are refused; two months of payments with a month between are not."""
    good = months(rows)
    typo = [*good[:10], (good[10][0], "2042" + good[10][1][4:], *good[10][2:]), *good[11:]]
    (block,) = blocks_of(write_rows(tmp_path / "typo.csv", typo), SIMPLE)
    payments = block.records.decode()
    assert payments.text("payment_id").to_pylist() == [row[0] for row in good if row[0] != "p10"]
    assert [(block.row[r.index], r.error.reason.value) for r in payments.rejects] == [(11, "event_time_in_future")]
    assert len(ids(tmp_path / "typo.csv", SIMPLE, future_gap_ms=50 * 366 * 86_400_000)) == rows
    later = [(f"q{i}", row[1].replace("2024-01", "2024-07"), *row[2:]) for i, row in enumerate(good)]
    assert len(ids(write_rows(tmp_path / "both.csv", good + later))) == 2 * rows


def test_a_column_that_is_not_mapped_does_not_matter(tmp_path: Path) -> None:
    """A column that is empty for megabytes and then holds text changes nothing."""
    path = tmp_path / "late_text.csv"
    rows = months()
    with path.open("w") as out:
        out.write("id,ts,amount,cust,note,pad\n")
        for row in rows:
            out.write(",".join(row) + ",," + "x" * 2000 + "\n")
        out.write('q,2024-01-30T00:00:00Z,1.00,c1,"Bad CVV",K1A 0B1\n')
    assert ids(path) == [*(row[0] for row in rows), "q"]


def test_card_numbers_become_pseudonyms_before_anything_else_sees_them(tmp_path: Path) -> None:
    """A token is the same for a card however it is written, another for another card or key, and needs a key."""
    path = tmp_path / "cards.csv"
    path.write_text(
        f"id,ts,amount,cc\n1,2024-03-01T10:00:00Z,1,{CARDS[0]}\n2,2024-03-01T11:00:00Z,1,{CARDS[1]}\n"
        "3,2024-03-01T12:00:00Z,1,4111 1111 1111 1111\n4,2024-03-01T13:00:00Z,1,\n"
    )
    text = SIMPLE + "customer_id: {token: cc}\n"
    (block,) = blocks_of(path, text, token_key=KEY)
    customers = block.records.decode().text("customer_id").to_pylist()
    assert customers == [pseudonym(KEY, CARDS[0]), pseudonym(KEY, CARDS[1]), pseudonym(KEY, CARDS[0]), None]
    assert not any(card.encode() in value for value in block.records.values for card in CARDS)
    (other,) = blocks_of(path, text, token_key=KEY + b"!")
    assert other.records.decode().text("customer_id").to_pylist()[0] not in customers
    with pytest.raises(UsageError, match="FRAUD_SCORER_CARDS__KEYS_FILE"):
        blocks_of(path, text)


def test_folders_patterns_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a pattern and stdin are read as one file, in order of time; other files in a folder are let be."""
    rows = months(40)
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write_rows(folder / "b.csv", rows[:10])
    write_rows(folder / "deep" / "a.csv", rows[10:40:2])
    write_rows(folder / "deep" / "c.csv", rows[11:40:2])
    (folder / "_SUCCESS").write_text("")
    (folder / "README.md").write_text("no payments")
    expected = [row[0] for row in rows]
    assert ids(folder) == expected
    assert ids(folder / "**" / "*.csv") == expected
    with write_rows(tmp_path / "one.csv", rows).open("rb") as stdin, monkeypatch.context() as patched:
        patched.setattr("sys.stdin", type("Stdin", (), {"buffer": stdin}))
        assert ids(Path("-")) == expected
    with pytest.raises(FileError, match="no file has a name of this pattern"):
        ids(folder / "*.parquet")
    (folder / "x.jsonl").write_text("{}")
    with pytest.raises(FileError, match="files of different types"):
        ids(folder)


def test_files_of_a_folder_have_one_header(tmp_path: Path) -> None:
    """A file whose columns stand in another order would put its cells under wrong names: it is named, no cell is."""
    rows = months(4)
    write_rows(tmp_path / "a.csv", rows[:2])
    (tmp_path / "b.csv").write_text("cust,ts,amount,id\n" + "".join(f"{c},{t},{a},{i}\n" for i, t, a, c in rows[2:]))
    with pytest.raises(MappingError, match=r"the header of \S*b\.csv is not that of \S*a\.csv: .* from column 1 on"):
        ids(tmp_path)
    (tmp_path / "b.csv").write_text("".join(",".join(row) + "\n" for row in rows[2:]))  # without a header
    with pytest.raises(MappingError, match="is not that of") as caught:
        ids(tmp_path)
    assert rows[2][1] not in str(caught.value)
    write_rows(tmp_path / "b.csv", rows[2:])
    assert ids(tmp_path) == [row[0] for row in rows]


def test_a_file_without_a_header_shows_no_card_number(tmp_path: Path) -> None:
    """Its first line is a payment: the way out is named, no cell is."""
    path = tmp_path / "bare.csv"
    path.write_text(f"p1,2024-03-01T10:00:00Z,1.50,{CARDS[0]}\n")
    with pytest.raises(MappingError, match=r"column 4 of the first line .*header: false") as caught:
        ids(path)
    assert CARDS[0] not in str(caught.value)
    text = (
        "payment_id: column0\nevent_time: column1\namount: column2\ncurrency: {constant: EUR}\ncsv: {header: false}\n"
    )
    assert ids(path, text) == ["p1"]
    path.write_text("\n\n")
    with pytest.raises(MappingError, match="is empty"):
        ids(path)


def test_days_of_a_spreadsheet_are_times(tmp_path: Path) -> None:
    """Counted from 1899, with decimals cut by whoever wrote them; and a time before 2000 says what may be wrong."""
    path = tmp_path / "sheet.csv"
    path.write_text("id,day,amount\n1,45352.333333333,1\n2,45352.5,1\n3,12.5,1\n")
    text = "payment_id: id\namount: amount\ncurrency: {constant: EUR}\n"
    text += "event_time: {column: day, unit: d, start: 1899-12-30}\n"
    (block,) = blocks_of(path, text)
    payments = block.records.decode()
    assert [time_of(ms) for ms in payments.event_time_ms] == ["2024-03-01T08:00:00Z", "2024-03-01T12:00:00Z"]
    file = PaymentFile(path, Mapping.from_yaml(text))
    codes = [code for batch in file.batches(10) for code in batch.column("refused").to_pylist() if code]
    assert ["before 2000" in str(file.facts.refusal(code)) for code in codes] == [True]


def test_an_object_store_is_read_by_its_url() -> None:
    """A URL that fsspec knows is read like a file; what is not there is refused without a secret in the message."""
    import fsspec  # noqa: PLC0415

    text = "id,ts,amount,cust\n" + "".join(",".join(row) + "\n" for row in months(5))
    with fsspec.open("memory://bucket/payments.csv", "wb") as out:
        out.write(text.encode())
    mapping = Mapping.from_yaml(SIMPLE)
    (block,) = read_payments("memory://bucket/payments.csv", mapping)
    assert block.payment_ids == ["p0", "p1", "p2", "p3", "p4"]
    with pytest.raises(FileError, match="cannot be read"):
        read_payments("memory://bucket/absent.csv", mapping)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(select max(a) from read_csv('/etc/passwd'))", "subquery"),
        ("id from read_csv('/etc/passwd')", "more than an expression"),
        ("1; attach '/tmp/x.db'", "cannot be read as one expression"),
        ("id) from x --", "cannot be read as one expression"),
        ("id, amount", "not one expression"),
        ("*", "star"),
        ("random()", "something else each time"),
        ("current_timestamp", "something else each time"),
        ("current_setting('memory_limit')", "something else each time"),
        ("nope + 1", "does not fit"),
        ("amount * 2", "write COLUMN::BIGINT"),
    ],
)
def test_an_expression_is_an_expression_and_nothing_else(tmp_path: Path, expression: str, message: str) -> None:
    """A mapping reads no other file, changes nothing, and gives the same each time; else it is refused in words."""
    path = write_rows(tmp_path / "a.csv", months(3))
    mapping = Mapping.model_validate(
        {"payment_id": {"sql": expression}, "event_time": "ts", "amount": "amount", "currency": {"constant": "EUR"}}
    )
    with pytest.raises(MappingError, match=message.replace("(", r"\(")):
        read_payments(path, mapping)


def test_the_database_reads_the_source_alone(tmp_path: Path) -> None:
    """Even SQL that got past the check could open no other file, and change no setting."""
    path = write_rows(tmp_path / "a.csv", months(3))
    file = PaymentFile(path, Mapping.from_yaml(SIMPLE))
    for query in (
        "select * from read_csv('/etc/passwd')",
        f"copy (select 1) to '{tmp_path / 'out.csv'}'",
        f"attach '{tmp_path / 'x.db'}'",
        "set memory_limit = '10GB'",
        "install httpfs",
    ):
        with pytest.raises(FileError, match="cannot be read"):
            file._all(query)
    file.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """What was spooled and spilled is removed when reading ends, early or by an error."""
    spool = tmp_path / "spool"
    spool.mkdir()
    path = write_rows(tmp_path / "a.csv", months(5000)[::-1])
    options = ReadOptions(temp_folder=spool)
    blocks = read_payments(path, Mapping.from_yaml(SIMPLE), 100, options)
    next(blocks)
    assert list(spool.iterdir())
    blocks.close()  # type: ignore[attr-defined]
    assert list(spool.iterdir()) == []
    with pytest.raises(FraudScorerError):
        read_payments(path, Mapping.from_yaml(SIMPLE.replace("amount: amount", "amount: absent")), 100, options)
    assert list(spool.iterdir()) == []


def test_a_file_larger_than_memory_is_sorted_on_disk(tmp_path: Path) -> None:
    """Rows that do not fit the memory given are sorted through the folder for it, exactly."""
    rng = np.random.default_rng(5)
    n = 600_000
    order = rng.permutation(n)
    import pyarrow as pa  # noqa: PLC0415

    pads = pa.array([f"{i:0200d}" for i in range(1000)]).take(pa.array(order % 1000))
    path = tmp_path / "large.parquet"
    table = {
        "id": order,
        "ts": pa.array(order + 1_700_000_000_000, pa.timestamp("ms")),
        "amount": order % 100,
        "pad": pads,
    }
    pq.write_table(pa.table(table), path)
    mapping = Mapping.from_yaml(SIMPLE + "attributes: {pad: pad}\n")
    options = ReadOptions(memory_mib=64, temp_folder=tmp_path)
    seen = 0
    for batch in PaymentFile(path, mapping, options).batches(65_536):
        times = batch.column("event_time").to_numpy()
        assert times[0] == 1_700_000_000_000 + seen
        assert (np.diff(times) == 1).all()
        seen += len(times)
    assert seen == n


def test_more_attributes_than_a_payment_carries_are_named(tmp_path: Path) -> None:
    """A mapping with too many attributes says how many there may be, and what to do."""
    names = ", ".join(f"a{i}: X" for i in range(65))
    with pytest.raises(MappingError, match=r"65 attributes; a payment carries at most 64: keep those"):
        Mapping.from_yaml(SIMPLE + f"attributes: {{{names}}}\n")


def test_a_hidden_cell_stands_in_no_message(tmp_path: Path) -> None:
    """Whatever is wrong with a file of card numbers, no message holds one."""
    messages = []
    for name, text in (
        ("quotes.csv", f'id,ts,amount\n"{CARDS[0]}"x,2024,1\n1,{CARDS[0]},{CARDS[0]}\n'),
        ("odd.jsonl", f'{{"id": {CARDS[0]}\n{{"id": "1", "ts": "{CARDS[0]}x", "amount": [{CARDS[0]}]}}\n'),
        ("head.csv", f"id,ts,amount\n{CARDS[0]},{CARDS[0]},{CARDS[0]},{CARDS[0]}\n"),
        ("bad.parquet", f"PAR1{CARDS[0]}PAR1"),
    ):
        (tmp_path / name).write_text(text)
        for mapping in (SIMPLE, SIMPLE.replace("payment_id: id", "payment_id: {sql: \"(id || 'x')::int::text\"}")):
            try:
                for block in read_payments(tmp_path / name, Mapping.from_yaml(mapping)):
                    messages += [str(one.error) for one in block.refused]
            except FraudScorerError as exc:
                messages.append(str(exc))
    assert len(messages) > 6
    assert not any(CARDS[0] in message for message in messages)


def test_the_time_zone_of_the_machine_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times without an offset are UTC wherever the command runs."""
    path = tmp_path / "a.csv"
    path.write_text("id,ts,amount\n1,2024-07-01 10:00:00,1\n")
    monkeypatch.setitem(os.environ, "TZ", "America/New_York")
    (block,) = read_payments(path, Mapping.from_yaml(SIMPLE))
    assert time_of(int(block.event_time_ms[0])) == "2024-07-01T10:00:00Z"
    assert json.loads(block.values[0])["currency"] == "EUR"
    assert EUR
