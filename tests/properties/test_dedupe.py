"""The dedupe table against a dictionary, and its snapshots: taken while batches go on, restored at any point."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hashing import PUBLIC_KEY, hash_strings
from scorer.pipeline.dedupe import Dedupe, Outcome

HORIZON_MS = 1000
batches = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 400), st.integers(0, 2)), min_size=1, max_size=30),
    min_size=1,
    max_size=12,
)  # fmt: skip


class Plain:
    """The rule: an id seen within the horizon of stream time repeats its first payment."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int, int]] = {}  # id: when seen, payload, number
        self.now, self.count = 0, 0

    def scan(self, rows: list[tuple[int, int, int]]) -> list[tuple[int, bool, bool]]:
        found = []
        for name, t, payload in rows:
            self.known = {k: v for k, v in self.known.items() if v[0] >= self.now - HORIZON_MS}
            if name in self.known:
                _, first, number = self.known[name]
                found.append((number, True, first != payload))
                continue
            self.now = max(self.now, t)
            self.known[name] = (self.now, payload, self.count)
            found.append((self.count, False, False))
            self.count += 1
        return found


def scan(table: Dedupe, rows: list[tuple[int, int, int]], now: int) -> list[tuple[int, bool, bool]]:
    """As the enricher does it, with an outcome that tells the number of the payment decided."""
    ids, _ = hash_strings([str(name) for name, _, _ in rows], PUBLIC_KEY)
    payload = np.array([p for _, _, p in rows], dtype=np.uint64)
    entry, duplicate, conflict = table.scan(ids, payload, np.array([t for _, t, _ in rows], np.int64), now)
    fresh = entry[~duplicate]
    numbers = [table.number(Outcome(0, e % 4, (f"R{e}",), (), "b")) for e in fresh.tolist()]
    table.record(fresh, fresh.astype(np.float32), fresh / 2.0, np.array(numbers, dtype=np.int32))
    margins, scores, recalled = table.recall(entry)
    outcomes = [table.outcome(number) for number in recalled.tolist()]
    assert margins.tolist() == entry.tolist()
    assert scores.tolist() == (entry / 2.0).tolist()
    assert [o.reasons for o in outcomes] == [(f"R{e}",) for e in entry.tolist()]
    return list(zip(entry.tolist(), duplicate.tolist(), conflict.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(0, 12), st.integers(0, 4))
def test_it_equals_a_dictionary_through_a_snapshot_at_any_point(
    steps: list[list[tuple[int, int, int]]], begin: int, length: int
) -> None:
    """Repeats, conflicts and recalled outcomes are a dictionary's, also after a restore from a snapshot that was copied
    while batches went on."""
    table, plain, capture, t = Dedupe(horizon_ms=HORIZON_MS, capacity=65_536), Plain(), None, 0
    for number, step in enumerate(steps):
        if number == begin:
            capture = table.capture()
        rows = []
        for name, dt, payload in step:
            t += dt
            rows.append((name, t, payload))
        now = plain.now
        assert scan(table, rows, now) == plain.scan(rows)
        if capture is not None and number == begin + length // 2:
            capture.copy()
        if capture is not None and number == begin + length:
            image = capture.finish()
            table = Dedupe(horizon_ms=HORIZON_MS, capacity=65_536)
            table.restore(image)
