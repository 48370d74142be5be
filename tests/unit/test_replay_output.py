"""A replay's output of an idle topic, whose batches have a row or two: memory and files are as of large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorer.errors import UsageError
from scorer.replay import part_files
from scorer.replay.replay_output import FileOutput, FolderOutput, decision_schema

NAMES = ["amount", "customer_count_1d"]
ROWS = 4_000
FIRST = datetime(2026, 1, 1, 22, tzinfo=UTC)
Make = Callable[[Path], FileOutput | FolderOutput]


@pytest.fixture(scope="module")
def decided() -> pa.Table:
    """Decisions of a few hours on two days."""
    schema = decision_schema(NAMES)
    rows = [
        {
            "payment_id": f"p_{i}", "event_time": FIRST + timedelta(seconds=5 * i), "partition": i % 2,
            "offset": i // 2, "amount_minor": i, "currency": "EUR", "customer_id": None if i % 9 == 0 else f"c_{i % 7}",
            "decision": "flag" if i % 5 == 0 else "approve", "mode": "normal", "score": i / ROWS, "margin": 0.5,
            "reasons": ["LARGE"] * (i % 3), "fired": [], "bundle": "b", "amount": float(i), "customer_count_1d": 1.0,
        }
        for i in range(ROWS)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def small(table: pa.Table) -> Iterator[pa.Table]:
    """The same rows in tables of one row with memory of their own; now and then an empty one."""
    for i in range(len(table)):
        yield table.take([i])
        if i % 10 == 0:
            yield table.slice(0, 0)


def folder(path: Path) -> FolderOutput:
    return FolderOutput(path, decision_schema(NAMES), {"bundle": "b"})


def file(path: Path) -> FileOutput:
    return FileOutput(path, decision_schema(NAMES))


def test_a_source_that_may_have_changed_does_not_go_on(tmp_path: Path) -> None:
    """Of stdin and of an address nothing says that it holds the payments of the interrupted run: it is refused to go on
    with them. A new folder is written."""
    about: dict[str, object] = {"source": "-", "source_bytes": None, "source_changed_ns": None}
    FolderOutput(tmp_path / "out", decision_schema(NAMES), about)
    with pytest.raises(UsageError, match="cannot go on; choose another folder"):
        FolderOutput(tmp_path / "out", decision_schema(NAMES), about)


@pytest.mark.parametrize("make", [file, folder])
def test_small_batches_are_stored_as_large_ones_are(make: Make, decided: pa.Table, tmp_path: Path) -> None:
    """Rows that come one by one are the same files as all at once: no row group of their own, for the writer has those
    in memory until the file is complete."""
    at_once, one_by_one = tmp_path / "at_once", tmp_path / "one_by_one"
    for path, tables in ((at_once, iter([decided])), (one_by_one, small(decided))):
        output = make(path)
        for table in tables:
            output.write(table)
        output.close()
    found = [part_files(path) if path.is_dir() else [path] for path in (at_once, one_by_one)]
    assert len(found[0]) == len(found[1]) == (2 if make is folder else 1)
    for expected, path in zip(*found, strict=True):
        assert pq.ParquetFile(path).read().equals(pq.ParquetFile(expected).read())
        assert pq.read_metadata(path).num_row_groups == pq.read_metadata(expected).num_row_groups == 1


@pytest.mark.parametrize("make", [file, folder])
def test_small_batches_that_wait_take_the_memory_of_their_rows(make: Make, decided: pa.Table, tmp_path: Path) -> None:
    """Waiting rows are joined as they come: they take a part of what their tables would take."""
    before = pa.total_allocated_bytes()
    apart = list(small(decided))
    separate = pa.total_allocated_bytes() - before
    del apart
    before = pa.total_allocated_bytes()
    output = make(tmp_path / "waiting")
    for table in small(decided):
        output.write(table)
    del table
    waiting = pa.total_allocated_bytes() - before
    output.abandon()
    assert 0 < waiting < separate / 4


def test_an_output_without_a_decision_is_complete(tmp_path: Path, decided: pa.Table) -> None:
    """A window in which nothing was decided gives a file with all columns and no row."""
    output = file(tmp_path / "empty.parquet")
    output.write(decided.slice(0, 0))
    output.close()
    table = pq.read_table(tmp_path / "empty.parquet")
    assert (table.num_rows, table.schema.names) == (0, decided.schema.names)
