"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.durations import DURATION_MS_MAX, UNIT_MS, parse_duration_ms


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("250ms", 250),
        ("30s", 30_000),
        ("10m", 600_000),
        ("24h", 86_400_000),
        ("7d", 604_800_000),
        ("0s", 0),
        (" 5m ", 300_000),
    ],
)
def test_examples(text: str, expected_ms: int) -> None:
    """The forms of the documentation mean what it says."""
    assert parse_duration_ms(text) == expected_ms


@given(st.integers(0, 36_525), st.sampled_from(sorted(UNIT_MS)))
def test_number_times_unit(number: int, unit: str) -> None:
    """A duration is its number times its unit, exactly."""
    assert parse_duration_ms(f"{number}{unit}") == number * UNIT_MS[unit]


@pytest.mark.parametrize(
    "text", ["", "7", "d", "1.5h", "-3d", "7 d", "7D", "1h30m", "7w", "٣d", "1e3s", "7d\n8d", "9" * 60 + "s"]
)
def test_refused_with_the_way_out(text: str) -> None:
    """Anything else is refused with examples of what to write."""
    with pytest.raises(ValueError, match="write a whole number and its unit"):
        parse_duration_ms(text)


@pytest.mark.parametrize("value", [7, 7.5, None, True, ["7d"]])
def test_only_text(value: object) -> None:
    """A number without a unit is refused, not guessed."""
    with pytest.raises(ValueError, match="a duration is text"):
        parse_duration_ms(value)  # type: ignore[arg-type]


def test_longest() -> None:
    """A century is the longest; a day more is refused, whatever its unit."""
    assert parse_duration_ms("36525d") == DURATION_MS_MAX
    for text in ("36526d", "999999999999999d", f"{DURATION_MS_MAX + 1}ms"):
        with pytest.raises(ValueError, match="longest"):
            parse_duration_ms(text)
