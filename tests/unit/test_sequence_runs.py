"""Numbers of missing batches kept as runs equal the plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scorer.audit.verify.head_comparison import Runs


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(-2, 62))
def test_runs_equal_the_list_of_their_numbers(numbers: set[int], end: int) -> None:
    """First, last, count and both sides of a bound are those of the list."""
    plain, runs = sorted(numbers), Runs()
    for number in plain:
        runs.add(number)
    assert (runs.first, runs.last, len(runs)) == (plain[0], plain[-1], len(plain))
    assert list(runs.up_to(end)) == [number for number in plain if number <= end]
    beyond = runs.beyond(end)
    assert list(beyond.up_to(plain[-1])) == [number for number in plain if number > end]
    assert bool(beyond) is any(number > end for number in plain)
