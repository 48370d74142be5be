"""Cells of a file as values of the payment contract: text, minor units, milliseconds, labels. Exact, or an error that
names the row.

A column is a pyarrow Array (Parquet, CSV) or a list of Python values (JSON lines). A cell with nothing in it becomes
None and the field is left out; whether the contract can do without it is the decoder's to say. Errors show a value's
shape, never the value.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Column: TypeAlias = pa.Array | list[object]

# Text of a number: room for any float's shortest form and any amount; more is no amount.
NUMBER_CHARACTERS_MAX = 40
# A float may miss a whole number of minor units by this much: 57.16 * 100 is 5715.999999999999.
MINOR_TOLERANCE = 1e-6
FLOAT64_WHOLE_MAX = 2.0**53
EXACT_DIGITS = 400
# Two neighbouring float32 are less than 0.01 apart only below 2^16 x 1.28; 2^23 minor units of two digits are
# 83,886.08.
FLOAT32_MINOR_MAX = 2.0**23

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_DIGITS = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_EXACT = Context(prec=EXACT_DIGITS, traps=[InvalidOperation, Inexact])
# RFC 8259, section 6; and no longer than any number that the contract takes.
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_LABELS = {"1": 1, "0": 0, "true": 1, "false": 0, "1.0": 1, "0.0": 0, "": -1}
# The same instants in seconds, milliseconds, microseconds and nanoseconds do not overlap from 1973 to 5138.
_EPOCH_UNITS = ((1e11, 1000, 1), (1e14, 1, 1), (1e17, 1, 1_000), (math.inf, 1, 1_000_000))


class CellError(ValueError):
    """A value that cannot become its field. `index` counts rows of the block from 0; the message has no value in it."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def python_values(column: Column) -> list[Any]:
    """The column as Python objects; dictionaries of Parquet are unpacked."""
    return column if isinstance(column, list) else column.to_pylist()


def texts(column: Column, *, digits: int = 0) -> list[str | None]:
    """Text cells; whole numbers become their digits (TRANSACTION_ID 17 -> "17"), padded with zeros to `digits`."""
    if isinstance(column, pa.Array):
        if pa.types.is_integer(column.type) and not digits:
            column = pc.cast(column, pa.string())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return column.to_pylist()  # type: ignore[no-any-return]
    return [_text(i, value, digits) for i, value in enumerate(python_values(column))]


def _text(index: int, value: Any, digits: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:0{digits}d}"
    if isinstance(value, float | Decimal):
        # A column of whole numbers with gaps is often stored as floats.
        if _is_nan(value):
            return None
        if -FLOAT64_WHOLE_MAX < value < FLOAT64_WHOLE_MAX and value == int(value):
            return f"{int(value):0{digits}d}"
    raise CellError(index, f"{_shape(value)} is not text; store the column as text or whole numbers")


def numbers(column: Column) -> list[float | None]:
    """Finite float64 cells; NaN becomes None."""
    return [_number(i, value) for i, value in enumerate(python_values(column))]


def _number(index: int, value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) <= NUMBER_CHARACTERS_MAX and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise CellError(index, f"{_shape(value)} is not a number; write it like 48.85 with a decimal point")
    number = float(value)
    if math.isinf(number):
        raise CellError(index, "infinity is not a number that a payment can carry; leave the cell empty")
    return None if math.isnan(number) else number


def attributes(column: Column) -> list[str | float | int | bool | None]:
    """Text, finite numbers and booleans as they are; times as RFC 3339 text."""
    return [_attribute(i, value) for i, value in enumerate(python_values(column))]


def text_attributes(column: Column) -> list[str | float | int | bool | None]:
    """Attributes of a file that holds text alone (CSV): a cell that is a JSON number, true or false is that value, any
    other text is text (007, +1, 1e999 and True stay text). Cell by cell, so no row changes what another means.
    """
    return [_text_attribute(value) for value in python_values(column)]


def _text_attribute(value: Any) -> str | float | int | bool | None:
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, str) or len(value) > NUMBER_CHARACTERS_MAX or not (m := _JSON_NUMBER.fullmatch(value)):
        return value  # type: ignore[no-any-return]
    if m[2] is None and m[3] is None:
        # The contract takes 64 bits; longer digits are an identifier, and a float would change them.
        return int(value) if -(1 << 63) <= int(value) < 1 << 63 else value
    number = float(value)
    return number if math.isfinite(number) else value


def _attribute(index: int, value: Any) -> str | float | int | bool | None:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | Decimal):
        return _number(index, value)
    if isinstance(value, datetime):
        return _utc(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    raise CellError(index, f"{_shape(value)} cannot be an attribute: text, a number or true/false can")


def whole_numbers(column: Column) -> list[int | None]:
    """Amounts that are minor units already: whole numbers, also as text or as floats without a fraction."""
    return [_minor(i, value, 0, "minor units") for i, value in enumerate(python_values(column))]


def minor_units(column: Column, exponent: list[int | None]) -> list[int | None]:
    """Amounts in major units as minor units of each row's currency, whose digits after the point are `exponent`
    (None: not known).

    Decimals, text and whole numbers are converted exactly. A float must be the nearest one to a whole number of minor
    units, or within 1e-6 of it. A row of an unknown currency gives 0, for the decoder refuses it anyway. Raises
    CellError.
    """
    if (
        isinstance(column, pa.Array)
        and pa.types.is_floating(column.type)
        and len(set(exponent)) == 1
        and exponent[0] is not None
    ):
        return _floats_minor(column, exponent[0])
    single = isinstance(column, pa.Array) and column.type in (pa.float32(), pa.float16())
    return [
        _minor(i, np.float32(value) if single and value is not None else value, digits, "major units")
        for i, (value, digits) in enumerate(zip(python_values(column), exponent, strict=True))
    ]


def _floats_minor(column: pa.Array, exponent: int) -> list[int | None]:
    """All floats of one exponent at once; whatever looks wrong goes through `_minor`, which alone raises."""
    single = column.type != pa.float64()
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    # The largest floats overflow to infinity, and infinity minus itself is NaN: neither is sure; `_minor` refuses it.
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = values * 10.0**exponent
        nearest = np.rint(scaled)
        sure = (np.abs(scaled - nearest) <= MINOR_TOLERANCE) & (
            np.abs(nearest) < (FLOAT32_MINOR_MAX if single else FLOAT64_WHOLE_MAX)
        )
    minor: list[int | None] = np.where(sure, nearest, 0).astype(np.int64).tolist()
    for i in np.flatnonzero(~sure).tolist():
        minor[i] = _minor(i, np.float32(values[i]) if single else float(values[i]), exponent, "major units")
    return minor


def _minor(index: int, value: Any, exponent: int | None, unit: str) -> int | None:
    if value is None or value == "":
        return None
    if exponent is None:
        return 0
    if isinstance(value, str):
        if len(value) > NUMBER_CHARACTERS_MAX or not _NUMBER.fullmatch(value):
            raise CellError(
                index,
                f"{_shape(value)} is not an amount; write it like 1234.56, with no separators or currency signs",
            )
        value = Decimal(value)
    if isinstance(value, bool):
        raise CellError(index, "true/false is not an amount")
    if isinstance(value, int):
        return int(value * 10**exponent)
    if isinstance(value, Decimal):
        return _decimal_minor(index, value, exponent, unit)
    if isinstance(value, float | np.floating):
        return _float_minor(index, value, exponent, unit)
    raise CellError(index, f"{_shape(value)} is not an amount; store the column as decimal, text or float")


def _decimal_minor(index: int, value: Decimal, exponent: int, unit: str) -> int | None:
    if value.is_nan():
        return None
    if (
        value.is_infinite()
        or (value and value.adjusted() > NUMBER_CHARACTERS_MAX)
        or len(value.as_tuple().digits) > EXACT_DIGITS // 2
    ):
        raise CellError(index, "the amount is too large for a payment, or has too many digits")
    scaled = _EXACT.scaleb(value, exponent)
    whole = int(scaled)
    if scaled != whole:
        raise CellError(index, _too_fine(exponent, unit))
    return whole


def _float_minor(index: int, value: float | np.floating, exponent: int, unit: str) -> int | None:  # type: ignore[type-arg]
    single = isinstance(value, np.floating) and not isinstance(value, np.float64)
    exact = float(value)
    if math.isnan(exact):
        return None
    scaled = exact * 10.0**exponent
    if abs(scaled) >= FLOAT64_WHOLE_MAX:
        raise CellError(
            index, "the amount is too large for a float to hold its minor units; store the column as decimal or text"
        )
    whole = round(scaled)
    if single and abs(whole) >= FLOAT32_MINOR_MAX:
        raise CellError(
            index,
            "a single-precision float cannot hold the minor units of so large an amount; store the column as double",
        )
    # Division of two exact floats is correctly rounded: equality says that `value` is the nearest float to `whole`
    # minor units.
    nearest = whole / 10.0**exponent
    if abs(scaled - whole) <= MINOR_TOLERANCE or (np.float32(nearest) == value if single else nearest == exact):
        return whole
    raise CellError(index, _too_fine(exponent, unit))


def _too_fine(exponent: int, unit: str) -> str:
    if unit == "minor units":
        return "minor units are whole numbers; map the column to `amount` if it holds major units"
    return (
        f"the amount has more decimals than its currency ({exponent}); round it where it is made, or map another column"
    )


def times_ms(column: Column) -> list[int | None]:
    """Event times in epoch ms: timestamps and dates (naive ones are UTC), ISO 8601 text (without an offset: UTC), or
    epoch numbers, whose size tells seconds from ms, us and ns. Fractions of a millisecond are cut off. Raises
    CellError.
    """
    if isinstance(column, pa.Array) and pa.types.is_timestamp(column.type):
        per_ms = {"s": 1, "ms": 1, "us": 1_000, "ns": 1_000_000}[column.type.unit]
        ticks = pc.cast(column, pa.int64())
        known = pc.fill_null(ticks, 0).to_numpy(zero_copy_only=False)
        ms = known * 1_000 if column.type.unit == "s" else known // per_ms
        return [t if valid else None for t, valid in zip(ms.tolist(), pc.is_valid(ticks).to_pylist(), strict=True)]
    return [_time_ms(i, value) for i, value in enumerate(python_values(column))]


def _time_ms(index: int, value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if len(value) > NUMBER_CHARACTERS_MAX:
            raise CellError(index, f"{_shape(value)} is not a time; write it like 2026-01-31T12:34:56Z")
        if _DIGITS.fullmatch(value):
            value = int(value)
        elif _NUMBER.fullmatch(value):
            value = Decimal(value)
        else:
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise CellError(index, f"{_shape(value)} is not a time; write it like 2026-01-31T12:34:56Z") from None
    if isinstance(value, datetime):
        since = _utc(value) - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days * 86_400_000
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise CellError(index, f"{_shape(value)} is not a time; write it like 2026-01-31T12:34:56Z")
    if _is_nan(value):
        return None
    if not -1e19 < value < 1e19:
        raise CellError(index, "the number is too large for a time; write epoch seconds or milliseconds")
    times, divisor = next((t, d) for below, t, d in _EPOCH_UNITS if -below < value < below)
    return math.floor(value * times / divisor) if not isinstance(value, int) else value * times // divisor


def labels(column: Column) -> npt.NDArray[np.int8]:
    """int8 [n]: 1 fraud, 0 genuine, -1 not known. Takes 0/1, true/false, and either as text."""
    out = np.full(len(column), -1, dtype=np.int8)
    for i, value in enumerate(python_values(column)):
        if value is None or _is_nan(value):
            continue
        label = _LABELS.get(str(value).strip().lower())
        if label is None:
            raise CellError(
                i, f"{_shape(value)} is not a label; write 1 for fraud, 0 for genuine, nothing where it is not known"
            )
        out[i] = label
    return out


def _is_nan(value: Any) -> bool:
    """NaN, the only value unlike itself, stands for nothing in files."""
    return bool(value != value)  # noqa: PLR0124


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _shape(value: Any) -> str:
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    return f"a value of type {type(value).__name__}"
