"""What a filter (`where`) may say: the payment's fields by type, conditions, and the refusal of those that no payment
meets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from features.yaml_model import PlacedError, Strict, closest
from schemas.field_kinds import DEGREES_MAX
from schemas.field_table import KINDS, POSITION_FIELDS, TEXT_FIELDS
from schemas.field_types import TEXT_TYPES
from schemas.verification_names import FORBIDDEN, is_verification_name

# Currency last: the order is in published documents.
KEY_FIELDS = (*(name for name in TEXT_FIELDS if name != "currency"), "currency")
CALENDAR_FIELDS = ("amount", "hour_of_day", "day_of_week")

_BOUNDS = ("at_least", "above", "at_most", "below")
_TEXTS: Mapping[str, TypeAdapter[str]] = {name: TypeAdapter(TEXT_TYPES[KINDS[name]]) for name in KEY_FIELDS}
# What the contract lets a number be, both ends included.
_EXTENT = {
    "amount": (0.0, math.inf),
    "hour_of_day": (0.0, 23.0),
    "day_of_week": (0.0, 6.0),
    **{name: (-float(DEGREES_MAX[KINDS[name]]), float(DEGREES_MAX[KINDS[name]])) for name in POSITION_FIELDS},
}
_FLOAT32 = float(np.finfo(np.float32).max)


def is_field(name: str) -> bool:
    """Whether a filter's name means a field of the payment; any other name means an earlier feature."""
    return name in KEY_FIELDS or name in _EXTENT or name.startswith("attributes.")


class Range(Strict):
    """A half-open or closed range on a number; all bounds given must hold."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


Scalar = str | float | bool


def _condition(value: object) -> object:
    if isinstance(value, Range):
        return value
    if isinstance(value, dict):
        for name, bound in value.items():
            if name not in _BOUNDS:
                raise PlacedError(
                    f"unknown bound {str(name)[:64]!r}; {closest(name, _BOUNDS)}bounds are {', '.join(_BOUNDS)}", name
                )
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not _finite(bound):
                raise PlacedError(f"{name} takes a finite number, such as {{{name}: 100}}", name)
        if not value:
            raise ValueError("a range needs at_least, above, at_most or below")
        return value
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list lets no payment pass; name at least one value")
        return [_scalar(item) for item in value]
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, str | bool) or (isinstance(value, int | float) and _finite(value)):
        return value
    if isinstance(value, int | float):
        raise ValueError("no payment has an infinite or missing number (NaN) to be equal to; write a finite number")
    raise ValueError("write text, a number, true or false, a list of those, or a range such as {above: 100}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


Condition = Annotated[Scalar | list[Scalar] | Range, BeforeValidator(_condition)]


def intervals(condition: object) -> list[tuple[float, float]]:
    """A condition on a feature as closed intervals. Value and bound are compared as the float32 that the column
    holds."""
    if isinstance(condition, Range):
        low, high = np.float32(-np.inf), np.float32(np.inf)
        if condition.at_least is not None:
            low = max(low, np.float32(condition.at_least))
        if condition.above is not None:
            low = max(low, np.nextafter(np.float32(condition.above), np.float32(np.inf)))
        if condition.at_most is not None:
            high = min(high, np.float32(condition.at_most))
        if condition.below is not None:
            high = min(high, np.nextafter(np.float32(condition.below), np.float32(-np.inf)))
        return [(float(low), float(high))]
    return [(float(np.float32(value)), float(np.float32(value))) for value in _values(condition)]


def check_attribute(name: str) -> None:
    """Refuse attributes.NAME where no payment may have such an attribute. Raises ValueError."""
    if is_verification_name(name.removeprefix("attributes.")):
        raise ValueError(f"{name} is {FORBIDDEN}")


def check(name: str, condition: object) -> None:
    """Refuse a condition on the field or feature `name` that no payment can meet. Raises ValueError with what to
    write."""
    if name.startswith("attributes."):
        check_attribute(name)
    if name in _TEXTS:
        _check_text(name, condition)
    elif isinstance(condition, Range):
        _check_range(name, condition)
    elif not name.startswith("attributes."):
        for value in _values(condition):
            _check_number(name, value)


def _values(condition: object) -> list[Any]:
    return condition if isinstance(condition, list) else [condition]


def _check_text(name: str, condition: object) -> None:
    if isinstance(condition, Range):
        raise ValueError(f"{name} is text and has no range; write the text, or a list of texts")
    for value in _values(condition):
        if isinstance(value, bool):
            meant = "'NO'" if "country" in name and not value else f"'{str(value).lower()}'"
            raise ValueError(
                f"{name} is text, and YAML reads {str(value).lower()} here (as it does NO, OFF, YES and ON); write "
                f"{meant} in quotes"
            )
        if not isinstance(value, str):
            text = f"{value:04.0f}" if name == "mcc" and value == int(value) else f"{value:.15g}"
            raise ValueError(f"{name} is text, and {value:.15g} is a number; write '{text}' in quotes")
        try:
            known = _TEXTS[name].validate_python(value)
        except ValidationError as exc:
            raise ValueError(f"no payment has the {name} {value[:64]!r}: {exc.errors()[0]['msg']}") from exc
        if known != value:
            raise ValueError(f"{name} {value[:64]!r} is written {known!r} in payments; write that")


def _check_number(name: str, value: object) -> None:
    what = name if is_field(name) else f"{name}: a feature"
    if isinstance(value, str | bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is a number; write a number, a list of numbers or a range")
    low, high = _EXTENT.get(name, (-_FLOAT32, _FLOAT32))
    if not low <= value <= high:
        raise ValueError(f"{what} is never {value:.15g}; {_extent(low, high)}")
    if name in ("hour_of_day", "day_of_week") and value != int(value):
        raise ValueError(f"{name} is a whole number, never {value:.15g}; {_extent(low, high)}")


def _check_range(name: str, condition: Range) -> None:
    low, high = _EXTENT.get(name, (-math.inf, math.inf))
    given = [bound for bound in (condition.at_least, condition.above, condition.at_most, condition.below) if bound]
    if not is_field(name):
        if any(abs(bound) > _FLOAT32 for bound in given):
            raise ValueError(f"{name} is a float32, at most 3.4e38; write smaller bounds")
        first, last = intervals(condition)[0]
        empty = first > last
    else:
        first = max(-math.inf if b is None else b for b in (condition.at_least, condition.above))
        last = min(math.inf if b is None else b for b in (condition.at_most, condition.below))
        opened = condition.above == first or condition.below == last
        empty = first > last or (first == last and opened)
    if empty:
        raise ValueError("the range is empty: no number meets all its bounds; raise the upper or lower the lower one")
    beyond_low = last < low or (last == low and last == condition.below)
    beyond_high = first > high or (first == high and first == condition.above)
    if beyond_low or beyond_high:
        raise ValueError(f"{name} never lies in this range; {_extent(low, high)}")


def _extent(low: float, high: float) -> str:
    return f"it is at least {low:g}" if high == math.inf else f"it lies from {low:g} to {high:g}"
