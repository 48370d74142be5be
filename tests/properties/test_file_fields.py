"""Amounts and times of files against slow, plain arithmetic on Decimal and datetime."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.files.mapping import Mapping
from scorer.files.payment_file import PaymentFile

CODES = {0: "JPY", 2: "EUR", 3: "KWD", 4: "CLF"}
# 10^11 minor units of two digits are a thousand million; the contract ends at 10^12.
AMOUNTS = st.lists(
    st.tuples(st.integers(-(10**12) + 1, 10**12 - 1), st.sampled_from([*CODES])), min_size=1, max_size=50
)
FORM = {"deadline": None, "max_examples": 4}


def read(columns: dict[str, Any], field: str, text: str, form: str = "parquet") -> list[tuple[Any, str | None]]:
    """A field of each row and why it is refused, by a mapping whose time and id are good."""
    count = len(next(iter(columns.values())))
    table = pa.table({"id": range(count), "at": [1_700_000_000 + i for i in range(count)]} | columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{form}"
        (pq.write_table if form == "parquet" else pa_csv.write_csv)(table, path)
        file = PaymentFile(path, Mapping.from_yaml(text))
        rows = [row for batch in file.batches(10_000) for row in batch.to_pylist()]
        rows.sort(key=lambda row: row["row"])
        return [(row[field], file.facts.refusal(row["refused"]).field if row["refused"] else None) for row in rows]


def amounts(cells: Sequence[Any], codes: Sequence[str], form: str = "parquet") -> list[tuple[Any, str | None]]:
    text = "payment_id: id\nevent_time: at\namount: paid\ncurrency: money\n"
    return read({"paid": cells, "money": list(codes)}, "amount_minor", text, form)


@settings(**FORM)  # type: ignore[arg-type]
@given(AMOUNTS)
def test_every_spelling_of_an_amount_is_exact(minors: list[tuple[int, int]]) -> None:
    """Text, decimal and float columns of one amount all give its minor units, exactly."""
    exact = [Decimal(minor).scaleb(-digits) for minor, digits in minors]
    codes = [CODES[digits] for _, digits in minors]
    expected = [(minor, None) for minor, _ in minors]
    text = [f"{amount:f}" for amount in exact]
    for cells in (text, [f"{t}0" if "." in t else f"{t}.000" for t in text], pa.array(exact, pa.decimal128(30, 6))):
        assert amounts(cells, codes) == expected
    assert amounts([float(amount) for amount in exact], codes) == expected
    assert amounts(text, codes, "csv") == expected


@settings(**FORM)  # type: ignore[arg-type]
@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.sampled_from([0, 2, 3, 4]), st.integers(1, 99)), min_size=1))
def test_a_finer_amount_is_refused(minors: list[tuple[int, int, int]]) -> None:
    """An amount with decimals that its currency does not have is refused, never rounded."""
    exact = [Decimal(minor).scaleb(-digits) + Decimal(rest).scaleb(-digits - 2) for minor, digits, rest in minors]
    codes = [CODES[digits] for _, digits, _ in minors]
    for cells in ([f"{amount:f}" for amount in exact], pa.array(exact, pa.decimal128(30, 6))):
        assert [why for _, why in amounts(cells, codes)] == ["amount"] * len(exact)


@settings(**FORM)  # type: ignore[arg-type]
@given(st.lists(st.datetimes(dt.datetime(2001, 1, 1), dt.datetime(2090, 1, 1)), min_size=1, max_size=50))  # noqa: DTZ001
def test_every_spelling_of_a_time_is_its_millisecond(times: list[dt.datetime]) -> None:
    """Timestamps, ISO text with and without offset, and epoch numbers of one instant all give its millisecond."""
    expected = [((t - dt.datetime(1970, 1, 1)) // dt.timedelta(milliseconds=1), None) for t in times]  # noqa: DTZ001
    near = dt.timezone(dt.timedelta(hours=5, minutes=30))
    spellings: list[Any] = [
        pa.array(times, pa.timestamp("us")),
        pa.array(times, pa.timestamp("ns")),
        pa.array([t.replace(tzinfo=dt.UTC) for t in times], pa.timestamp("us", "Asia/Tokyo")),
        [t.isoformat() for t in times],
        [t.isoformat(sep=" ") + "Z" for t in times],
        [t.replace(tzinfo=dt.UTC).astimezone(near).isoformat() for t in times],
        [ms for ms, _ in expected],
        [ms * 1000 for ms, _ in expected],
        [f"{ms // 1000}.{ms % 1000:03d}" for ms, _ in expected],
    ]
    text = "payment_id: id\nevent_time: ts\namount: {constant: 1}\ncurrency: {constant: EUR}\n"
    for cells in spellings:
        found = read({"ts": cells}, "event_time", text)
        assert [ms for ms, _ in found] == [ms for ms, _ in expected]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
def test_local_times_are_those_of_the_zone(zone: str) -> None:
    """Every half hour of a year: times that do not exist or exist twice are refused, all others are the zone's own."""
    import zoneinfo  # noqa: PLC0415

    there = zoneinfo.ZoneInfo(zone)
    local = [dt.datetime(2024, 1, 1) + dt.timedelta(minutes=30 * i) for i in range(2 * 24 * 366)]  # noqa: DTZ001
    expected: list[tuple[int | None, str | None]] = []
    earlier: list[int | None] = []
    for one in local:
        first, second = one.replace(tzinfo=there), one.replace(tzinfo=there, fold=1)
        ms = int(first.timestamp() * 1000)
        exists = first.astimezone(dt.UTC).astimezone(there).replace(tzinfo=None) == one
        twice = exists and first.utcoffset() != second.utcoffset()
        expected.append((ms, "event_time" if twice or not exists else None))
        earlier.append(ms if exists else None)
    text = f"payment_id: id\nevent_time: ts\namount: {{constant: 1}}\ncurrency: {{constant: EUR}}\ntime_zone: {zone}\n"
    for cells in (pa.array(local, pa.timestamp("us")), [one.isoformat() for one in local]):
        found = read({"ts": cells}, "event_time", text)
        assert [why for _, why in found] == [why for _, why in expected]
        assert [ms for ms, why in found if why is None] == [ms for ms, why in expected if why is None]
        resolved = read({"ts": cells}, "event_time", text + "repeated_hour: earlier\n")
        assert [ms for ms, _ in resolved] == earlier
