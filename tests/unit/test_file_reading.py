"""Files are read once: what was looked at is what is used; the look equals plain arithmetic; processes share it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.files.file_columns import decoded_blocks, shared_blocks, shared_rows
from scorer.files.file_reader import FileError, read_payments
from scorer.files.mapping import Mapping
from scorer.files.payment_file import DAY_MS, PaymentFile, ReadOptions
from scorer.files.time_survey import Survey, TimeSurvey
from scorer.replay import replay_file, replay_shares
from tests.faults.payments import START_MS, TOKENS, make_bundle

SIMPLE = """
payment_id: id
event_time: ts
amount: amount
currency: {constant: EUR}
customer_id: cust
attributes: {size: size, gift: gift}
"""
ROWS = 40_000


def table(n: int = 500, *, shuffled: bool = False) -> pa.Table:
    order = np.random.default_rng(1).permutation(n) if shuffled else np.arange(n)
    return pa.table(
        {
            "id": [f"p{i}" for i in order],
            "ts": (START_MS + order * 1000).tolist(),
            "amount": [f"{i % 900}.50" for i in order],
            "cust": [f"c{i % 7}" for i in order],
            "size": [None if i % 5 == 0 else int(i) for i in order],
            "gift": [bool(i % 2) for i in order],
        }
    )


def write_csv(path: Path, rows: pa.Table) -> Path:
    pa_csv.write_csv(rows, path)
    return path


def write_json(path: Path, rows: pa.Table) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    return path


def read(path: Path, mapping: Mapping, **options: Any) -> list[bytes]:
    return [value for block in read_payments(path, mapping, 100, ReadOptions(**options)) for value in block.values]


@pytest.mark.parametrize("write", [write_csv, write_json], ids=["csv", "json"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_text_is_parsed_once(tmp_path: Path, write: Callable[[Path, pa.Table], Path], *, shuffled: bool) -> None:
    """What is looked at is what is used: rows that change in between are not seen, in order of time or not."""
    path = write(tmp_path / ("a.csv" if write is write_csv else "a.jsonl"), table(shuffled=shuffled))
    expected = read(path, Mapping.from_yaml(SIMPLE))
    blocks = read_payments(path, Mapping.from_yaml(SIMPLE), 100)
    path.write_bytes(b"")
    assert [value for block in blocks for value in block.values] == expected
    assert len(expected) == 500


@pytest.mark.parametrize("until", [None, START_MS + 100_500])
@pytest.mark.parametrize("order", ["", "order_by: file\n", "order_by: {sql: 'size::bigint'}\n"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_form_gives_the_same_rows(tmp_path: Path, order: str, until: int | None, *, shuffled: bool) -> None:
    """CSV, JSON and Parquet of the same rows give the same batches in every order, whole or up to a time."""
    rows, mapping = table(shuffled=shuffled), Mapping.from_yaml(SIMPLE + order)
    pq.write_table(rows, tmp_path / "a.parquet")
    found = []
    for path in (
        tmp_path / "a.parquet", write_csv(tmp_path / "a.csv", rows), write_json(tmp_path / "a.jsonl", rows),
    ):  # fmt: skip
        file = PaymentFile(path, mapping, ReadOptions(late_share_max=1.0))
        survey = file.facts.survey
        batches = list(file.batches(64, until))
        assert max(batch.num_rows for batch in batches) <= 64
        found.append((survey, pa.Table.from_batches(batches).combine_chunks().to_pylist()))
    assert found[0] == found[1] == found[2]
    names, times = [row["payment_id"] for row in found[0][1]], rows["ts"].to_pylist()
    before = [i for i, time in enumerate(times) if until is None or time < until]
    # Up to a time: in order of time the rows before it, in the file's all up to the last of these, else all.
    wanted = len(before) if not order else before[-1] + 1 if "file" in order else len(times)
    assert len(set(names)) == len(names) == wanted


def survey_of(times: list[int | None], size: int, gap_ms: int, lateness_ms: int) -> Survey:
    parts = [pa.array(times[i : i + size], pa.int64()) for i in range(0, len(times), size)]
    survey = TimeSurvey(future_gap_ms=gap_ms, lateness_ms=lateness_ms)
    for part in parts:
        survey.add(part)
    return survey.found(lambda: iter(parts))


def plain_survey(times: list[int | None], gap_ms: int, lateness_ms: int) -> Survey:
    """The same by lists alone."""
    there = sorted(time for time in times if time is not None)
    limit = None
    few = len(times) // 100 if len(times) > 1000 else (len(times) - 1) // 2
    for i in range(max(len(there) - few, 1), len(there)):
        before, after, beyond = there[i - 1], there[i], len(there) - i
        rare = beyond * 100 <= len(times) or after - before > max(10 * (before - there[0]), 12 * gap_ms)
        if after - before > gap_ms and rare:
            limit = after
            break
    kept = [time for time in times if time is not None and (limit is None or time < limit)]
    unordered = late = 0
    for i, time in enumerate(kept):
        latest = max(kept[:i], default=time)
        unordered += time < latest
        late += time < latest - lateness_ms
    first, last = (min(kept), max(kept)) if kept else (None, None)
    return Survey(len(times), first, last, unordered == 0, late, limit)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 50), st.integers(0, 1000), st.integers(9_000, 99_000), st.none()), max_size=60),
    st.integers(1, 20),
    st.integers(0, 300),
    st.integers(0, 40),
)
def test_the_look_at_times_equals_plain_arithmetic(
    times: list[int | None], size: int, gap_ms: int, lateness_ms: int
) -> None:
    """Order, late rows and the far future are those of all times together, however they come in parts."""
    assert survey_of(times, size, gap_ms, lateness_ms) == plain_survey(times, gap_ms, lateness_ms)


def test_one_percent_of_a_long_file_may_be_in_the_far_future() -> None:
    """Of many rows the last hundredth is looked at, and no more of it is refused."""
    near, far = list(range(20_000)), [DAY_MS * 400 + i for i in range(200)]
    for count in (1, 200):
        found = survey_of([*near[:10], *far[:count], *near[10:]], 1000, 30 * DAY_MS, 0)
        assert found == Survey(20_000 + count, 0, 19_999, True, 0, far[0])
    assert survey_of([*near[:1000], *far], 1000, 30 * DAY_MS, 0).future_from_ms is None


# --- JSON lines in the contract's own form ----------------------------------------------------------------------------


def lines(path: Path, times: list[int]) -> Path:
    """Payments p0, p1, … at these times."""
    path.write_text(
        "".join(
            json.dumps(
                {
                    "payment_id": f"p{i}", "event_time": time, "amount_minor": 100, "currency": "EUR",
                    "customer_id": f"c{i % 3}",
                }
            )
            + "\n"
            for i, time in enumerate(times)
        )
    )  # fmt: skip
    return path


def test_contract_lines_of_the_far_future_are_refused_as_mapped_rows_are(tmp_path: Path) -> None:
    """One line with a wrong year is refused with the same words as a row of a CSV; the others are as without it."""
    times = [START_MS + 60_000 * i for i in range(200)]
    wrong = [*times[:50], START_MS + 4000 * DAY_MS, *times[50:]]
    path = lines(tmp_path / "a.jsonl", wrong)
    (block,) = read_payments(path)
    mapped = tmp_path / "a.csv"
    mapped.write_text("id,ts,amount\n" + "".join(f"p{i},{time},1\n" for i, time in enumerate(wrong)))
    mapping = Mapping.from_yaml("{payment_id: id, event_time: ts, amount: amount, currency: {constant: EUR}}")
    (of_csv,) = read_payments(mapped, mapping)
    assert [(one.row, one.error) for one in block.refused] == [(one.row, one.error) for one in of_csv.refused]
    assert [one.row for one in block.refused] == [51]
    assert block.payment_ids == [f"p{i}" for i in range(201) if i != 50]
    (decoded,) = decoded_blocks(path, None, 1000)
    accepted = decoded.records.decode()
    assert [(reject.index, reject.error) for reject in accepted.rejects] == [(50, block.refused[0].error)]
    assert [row.payment_id for row in accepted.rows] == block.payment_ids
    assert accepted.index.tolist() == [i for i in range(201) if i != 50]
    assert decoded.row.tolist() == list(range(1, 202))


def test_contract_lines_that_would_be_late_stop_the_run(tmp_path: Path) -> None:
    """Newest first, nearly all lines would be late: the error has the number and the way out; a few may be late."""
    times = [START_MS + 60_000 * i for i in range(200)]
    with pytest.raises(FileError, match=r"a\.jsonl: 199 of 200 rows would be late: they come after .*Sort its lines"):
        read_payments(lines(tmp_path / "a.jsonl", times[::-1]))
    near = [*times[:100], times[98], *times[100:]]
    (block,) = read_payments(lines(tmp_path / "b.jsonl", near))
    assert len(block) == 201
    late = [*times[:100], *times[90:93], *times[100:]]
    with pytest.raises(FileError, match="3 of 203 rows would be late"):
        read_payments(lines(tmp_path / "c.jsonl", late))
    assert len(next(read_payments(tmp_path / "c.jsonl", options=ReadOptions(lateness_ms=3_600_000)))) == 203


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("reading") / "bundle", features=TOKENS)


@pytest.mark.parametrize("form", ["csv", "shuffled.csv", "jsonl", "contract"])
def test_processes_share_one_reading_of_any_file(bundle: Path, tmp_path: Path, form: str) -> None:
    """A CSV, one that has to be sorted, JSON and contract lines: two processes decide as one, and refuse as one."""
    keys = PseudonymKeys((bytes(range(32)),))
    text = (
        "payment_id: id\nevent_time: ts\namount: amount\ncurrency: {constant: EUR}\ncard_token: {token: cust}\n"
        "terminal_id: {constant: t1}\n"
    )
    mapping = None if form == "contract" else Mapping.from_yaml(text)
    if form == "contract":
        times = [START_MS + 1000 * i for i in range(ROWS)]
        path = lines(tmp_path / "a.jsonl", [*times[:777], START_MS + 4000 * DAY_MS, *times[777:]])
        path.write_text(path.read_text().replace("customer_id", "card_token"))
    else:
        rows = table(ROWS, shuffled=form.startswith("shuffled"))
        at = rows["amount"].to_pylist()
        at[123] = "oops"
        rows = rows.set_column(2, "amount", pa.array(at))
        path = (write_json if form == "jsonl" else write_csv)(tmp_path / f"a.{form}", rows)
    options = ReadOptions(token_key=keys.current(), temp_folder=tmp_path)
    one = replay_file(Bundle.load(bundle), path, mapping, tmp_path / "one.parquet", keys=keys, options=options)
    many = replay_shares(
        bundle, path, mapping, tmp_path / "many.parquet", processes=2, keys=keys, options=options,
        refused=tmp_path / "refused.parquet",
    )  # fmt: skip
    assert one.dead_letters == 1
    assert many.counts() == one.counts()
    assert pq.read_table(tmp_path / "refused.parquet").num_rows == 1
    expected, found = pq.read_table(tmp_path / "one.parquet"), pq.read_table(tmp_path / "many.parquet")
    for name in expected.column_names:
        if pa.types.is_floating(expected[name].type):
            a, b = (t[name].to_numpy().view(f"u{expected[name].type.bit_width // 8}") for t in (expected, found))
            assert (a == b).all(), name
        else:
            assert expected[name].equals(found[name]), name
    assert not list(tmp_path.glob("fraud-scorer-*")), "the shared rows are removed"


def test_stdin_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be read once alone is read once."""

    class Stdin:
        buffer = io.BytesIO(b"id,ts,amount,cust,size,gift\np1,1767225600,1.5,c1,1,true\np2,1767225601,2.5,c1,2,false\n")

    monkeypatch.setattr("sys.stdin", Stdin)
    rows, workspace = shared_rows("-", Mapping.from_yaml(SIMPLE), 100)
    for _ in range(2):
        (block,) = shared_blocks(rows, 100)
        assert [row.payment_id for row in block.records.decode().rows] == ["p1", "p2"]
    workspace.close()
