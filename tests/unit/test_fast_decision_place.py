"""The place behind a decision on topic decisions-fast, read without the decision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from schemas.fast_decision import place_of
from schemas.fast_decision_bytes import placed


@given(
    shard=st.integers(0, 2**31 - 1),
    sequence=st.integers(0, 2**63 - 1),
    decisions=st.lists(st.binary(max_size=40).map(lambda value: b'{"x":"' + value + b'"}'), min_size=1, max_size=12),
)
def test_the_place_is_the_one_that_was_written(shard: int, sequence: int, decisions: list[bytes]) -> None:
    """Whatever the decision before it holds, of every row of a batch."""
    column = placed(ByteColumn.of(decisions), shard, sequence)
    assert [place_of(bytes(column[row])) for row in range(len(column))] == [(shard, sequence)] * len(decisions)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"shard":0,"sequence":1,"row":2}',
        b',"shard":0,"sequence":1,"row":2} ',
        b',"shard":-1,"sequence":1,"row":2}',
    ],
)
def test_what_is_no_record_of_the_topic_has_none(value: bytes) -> None:
    """A stranger's record says nothing about batches."""
    with pytest.raises(ValueError, match="place"):
        place_of(value)
