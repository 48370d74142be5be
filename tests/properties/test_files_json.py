"""The column-wise JSON of file rows against the row-wise one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scorer import files

TEXTS = st.none() | st.text(max_size=12) | st.text(alphabet='abc"\\\n\u00e9\u2028\x7f', max_size=6)
WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
OTHER = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | TEXTS
COLUMN = st.sampled_from([TEXTS, WHOLE, OTHER])


@st.composite
def columns(draw: st.DrawFn) -> dict[str, list[object]]:
    rows = draw(st.integers(1, 6))
    names = draw(
        st.lists(st.sampled_from(["payment_id", "event_time", "amount_minor", "mcc", "ip"]), min_size=1, unique=True)
    )
    return {name: draw(st.lists(draw(COLUMN), min_size=rows, max_size=rows)) for name in names}


@settings(max_examples=300, deadline=None)
@given(columns())
def test_column_wise_json_is_row_wise_json(fields: dict[str, list[object]]) -> None:
    """Whatever a block holds, its payments are the same bytes, whether they were made by column or by row."""
    assert files._encode(fields) == files._encoded(fields)


def test_plain_columns_take_the_fast_way() -> None:
    """Texts without escapes and whole numbers, some missing, are joined by column."""
    fields: dict[str, list[object]] = {"payment_id": ["a", "b"], "event_time": [1, -2], "ip": [None, "\u00e9"]}
    assert files._joined(fields) == files._encoded(fields)
    assert files._joined({"payment_id": ["a"], "latitude": [0.1]}) is None
