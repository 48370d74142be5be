"""Amounts and times of files against slow, plain arithmetic on Decimal and datetime."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scorer.files.cells import CellError, minor_units, times_ms, whole_numbers

EXPONENTS = st.integers(0, 4)
# 10^11 minor units of two digits are a thousand million; the contract ends at 10^12.
MINORS = st.integers(-(10**12), 10**12)


@given(MINORS, EXPONENTS)
@example(5716, 2)
@example(10**12, 3)
def test_every_spelling_of_an_amount_is_exact(minor: int, exponent: int) -> None:
    """Text, decimal, float and Arrow columns of one amount all give its minor units, exactly."""
    amount = Decimal(minor).scaleb(-exponent)
    spellings = [f"{amount:f}", f"{amount:f}" + ("000" if exponent else ".000"), amount, float(amount)]
    for spelling in spellings:
        assert minor_units([spelling], [exponent]) == [minor]
    assert minor_units(pa.array([float(amount), None]), [exponent] * 2) == [minor, None]
    assert minor_units(pa.array([amount, None], pa.decimal128(30, 6)), [exponent] * 2) == [minor, None]
    assert minor_units(pa.array([float(amount)] * 2), [exponent, None]) == [minor, 0]


@given(st.integers(-(10**12), 10**12), EXPONENTS, st.integers(1, 999))
def test_a_finer_amount_is_refused(minor: int, exponent: int, rest: int) -> None:
    """An amount with decimals that its currency does not have is refused, never rounded."""
    amount = Decimal(minor).scaleb(-exponent) + Decimal(rest).scaleb(-exponent - 3)
    for spelling in (f"{amount:f}", amount):
        with pytest.raises(CellError, match="more decimals"):
            minor_units([spelling], [exponent])


@given(st.integers(0, 10**9), st.integers(2, 998))
def test_a_finer_float_is_refused(minor: int, thousandths: int) -> None:
    """A float that lies between two amounts is refused in every form, and the row is named."""
    value = (minor + thousandths / 1000) / 100
    for column in ([1.0, value], pa.array([1.0, value])):
        with pytest.raises(CellError, match="more decimals") as caught:
            minor_units(column, [2, 2])
        assert caught.value.index == 1


@given(st.integers(0, 2**24))
def test_single_precision(minor: int) -> None:
    """A float32 gives the amount that it was made of, or is refused where it can no longer tell cents apart."""
    column = pa.array([np.float32(minor / 100)], pa.float32())
    if minor < 2**23 - 1:
        assert minor_units(column, [2]) == [minor]
    elif minor > 2**23 + 1:
        with pytest.raises(CellError, match="single-precision"):
            minor_units(column, [2])


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_is_converted_or_refused(value: float) -> None:
    """Whatever a float holds: nothing for NaN, the nearest amount, or a refusal; the array and the single cell
    agree.
    """

    def outcome(column: object) -> object:
        try:
            return minor_units(column, [2])  # type: ignore[arg-type]
        except CellError as error:
            return str(error)

    result = outcome([value])
    assert result == outcome(pa.array([value], pa.float64(), from_pandas=False))
    if isinstance(result, list) and result[0] is not None:
        assert abs(Decimal(value) * 100 - result[0]) <= Decimal("0.00001") + abs(Decimal(value)) * Decimal("1e-13")


@given(st.text(max_size=60))
def test_any_text_is_converted_or_refused(text: str) -> None:
    """Any text is an amount and a time, or a refusal that does not repeat it."""
    for convert in (lambda column: minor_units(column, [2]), whole_numbers, times_ms):
        message = ""
        try:
            convert([text])
        except CellError as error:
            message = str(error)
        # A shorter text may stand in the message by chance.
        assert len(text) < 12 or text not in message


@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2096, 1, 1)))  # noqa: DTZ001 - naive on purpose
def test_every_spelling_of_a_time_is_equal(moment: dt.datetime) -> None:
    """Timestamps, text, and epoch numbers in s, ms, us and ns of one moment give its ms, cut off, not rounded."""
    us = (moment.replace(tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    ms, s = us // 1000, us // 1_000_000
    text = moment.isoformat()
    for cell in (moment, moment.replace(tzinfo=dt.UTC), text, text.replace("T", " ") + "Z", us * 1000, us, str(us), ms):
        assert times_ms([cell]) == [ms]
    assert times_ms([s]) == times_ms([str(s)]) == [s * 1000]
    for cell, unit in ((moment, pa.timestamp("us")), (us * 1000, pa.timestamp("ns")), (ms, pa.timestamp("ms", "UTC"))):
        assert times_ms(pa.array([cell, None], unit)) == [ms, None]
    ahead = moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    assert times_ms([ahead.isoformat()]) == [ms - 19_800_000]
