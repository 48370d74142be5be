"""Windows that begin anew at a stream time (WindowEngine.begin_at) equal a plain rescan, even where the first payments,
hundreds of them, are late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_oracle import Oracle
from engine_streams import T0, feed, give_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from features.feature_set import FeatureSet
from features.window_engine import WindowEngine

FEATURES = FeatureSet.from_yaml("""
name: begun
currency: EUR
allowed_lateness: 20s
entities: {customer: [customer_id]}
features:
  - {name: n, entity: customer, aggregate: count, window: 1m}
  - {name: n_late, entity: customer, aggregate: count, window: 1m, delay: 10s}
  - {name: total, entity: customer, aggregate: sum, of: amount, window: 2m}
  - {name: least, entity: customer, aggregate: min, of: amount, window: 1m}
  - {name: frauds, entity: customer, aggregate: fraud_count, window: 2m}
  - {name: gap, entity: customer, aggregate: since_last, window: 2m}
""")


def _stream(seed: int, late: int) -> tuple[list[dict[str, Any]], list[tuple[str, int, bool]]]:
    """`late` payments before T0, then some that move stream time over the ends of their windows; and labels."""
    rng = np.random.default_rng(seed)
    times = [*(T0 - rng.integers(1, 20_000, late)), *(T0 + np.cumsum(rng.integers(0, 4_000, 60)))]
    rows = [
        {"payment_id": f"p{i}", "t": int(t), "amount": int(rng.integers(1, 999)), "currency": "EUR",
         "customer_id": f"c{rng.integers(0, 3)}"}
        for i, t in enumerate(times)
    ]  # fmt: skip
    labelled = rng.choice(len(rows), len(rows) // 3, replace=False)
    return rows, [(f"p{i}", int(times[i] + rng.integers(0, 90_000)), bool(rng.random() < 0.7)) for i in labelled]


@pytest.mark.parametrize("snapshot", ["none", "own", "of an earlier release"])
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(100, 400), st.integers(20, 150))
def test_late_rows_of_windows_begun_anew_leave_them_in_time(snapshot: str, seed: int, late: int, batch: int) -> None:
    """Segments of late rows are kept, and searched for a label's payment, until those rows have left their windows,
    also by an engine that was restored in between. Snapshots of earlier releases have the boundaries behind all late
    rows: only labels of those are not found then."""
    rows, labels = _stream(seed, late)
    if snapshot == "of an earlier release":
        labels = [label for label in labels if int(label[0][1:]) >= late]
    oracle = Oracle(FEATURES, labels, {"EUR": 1.0})
    oracle.now = T0
    engine = WindowEngine(FEATURES, segment_shift=6)
    engine.begin_at(T0)
    give_labels(engine, labels)
    for start in range(0, len(rows), batch):
        piece = rows[start : start + batch]
        wanted = np.array([oracle.features(row) for row in piece], dtype=np.float32)
        np.testing.assert_allclose(feed(engine, piece), wanted, rtol=2e-6)
        if snapshot != "none":
            capture = engine.capture()
            capture.copy()
            image = capture.finish()
            assert image is not None
            if snapshot == "of an earlier release":
                passed = image.arrays["passed"][:, 0]
                np.maximum(passed, min(late, start + len(piece)), out=passed)
            engine = WindowEngine.restore(FEATURES, image)
