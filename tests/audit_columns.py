"""Any audit columns that a worker could digest, for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from schemas import audit_record
from schemas.audit_record import AuditColumns, AuditContext

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
FLOAT64 = st.floats(allow_nan=True, allow_infinity=True)
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def columns(draw: st.DrawFn, rows_min: int = 0) -> AuditColumns:
    """Any audit columns of up to 12 rows and 5 features."""
    n, k, c = draw(st.integers(rows_min, 12)), draw(st.integers(1, 5)), draw(st.integers(0, 2))

    def many(values: st.SearchStrategy, dtype: type | None = None):
        drawn = draw(st.lists(values, min_size=n, max_size=n))
        return drawn if dtype is None else np.array(drawn, dtype)

    return AuditColumns(
        payment_id=many(TEXT),
        partition=many(st.integers(0, 2**31 - 1), np.int32),
        offset=many(INT64, np.int64),
        event_time_ms=many(st.integers(0, audit_record.EVENT_TIME_MS_MAX), np.int64),
        amount_minor=many(INT64, np.int64),
        currency=many(TEXT),
        **{name: many(st.none() | TEXT) for name in audit_record.NULLABLE},
        decision=many(st.integers(0, 1), np.uint8),
        mode=many(st.integers(0, 3), np.uint8),
        margin=many(FLOAT32, np.float32),
        score=many(FLOAT64, np.float64),
        reasons=many(st.lists(TEXT, max_size=3)),
        fired=many(st.lists(TEXT, max_size=3)),
        features=np.array(draw(st.lists(FLOAT32, min_size=n * k, max_size=n * k)), np.float32).reshape(n, k),
        challenger_margins=np.array(draw(st.lists(FLOAT32, min_size=n * c, max_size=n * c)), np.float32).reshape(n, c),
    )


def context(features: int, challengers: int = 0) -> AuditContext:
    return AuditContext(
        bundle="cards-0123456789ab",
        threshold=0.5,
        feature_fingerprint="ab" * 32,
        feature_names=tuple(f"feature_{i}" for i in range(features)),
        challengers=tuple(f"challenger_{i}" for i in range(challengers)),
    )


def about_of(given: AuditColumns) -> AuditContext:
    """The context that fits the widths of `given`."""
    return context(given.features.shape[1], given.challenger_margins.shape[1])
