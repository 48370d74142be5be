"""The feature engine against a rescan of every event: the window rules of the design, written the plain way."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.engine import Engine
from features.feature_set import FeatureSet
from features.hashing import hash_strings
from schemas.decode import decode_payments

T0 = 1_767_225_600_000

SET = """
name: proof
currency: EUR
allowed_lateness: 20s
entities: {customer: [customer_id], pair: [customer_id, merchant_id], terminal: [terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: n, entity: customer, aggregate: count, window: 1m}
  - {name: n_now, entity: customer, aggregate: count, window: 1m, include_current: true}
  - {name: total, entity: customer, aggregate: sum, of: amount, window: 1m}
  - {name: mean, entity: customer, aggregate: mean, of: amount, window: 2m, include_current: true}
  - {name: std, entity: customer, aggregate: std, of: amount, window: 2m}
  - {name: least, entity: customer, aggregate: min, of: amount, window: 1m}
  - {name: most, entity: customer, aggregate: max, of: amount, window: 1m, include_current: true}
  - {name: middle, entity: customer, aggregate: median, of: amount, window: 2m}
  - {name: shops, entity: customer, aggregate: distinct, of: merchant_id, window: 1m, include_current: true}
  - {name: online, entity: customer, aggregate: count, window: 1m, where: {channel: ecom}}
  - {name: small, entity: customer, aggregate: sum, of: amount, window: 1m, where: {amount: {below: 5}}}
  - {name: pair_n, entity: pair, aggregate: count, window: 30s}
  - {name: late_n, entity: terminal, aggregate: count, window: 1m, delay: 30s}
  - {name: frauds, entity: terminal, aggregate: fraud_count, window: 1m}
  - {name: rate, entity: terminal, aggregate: fraud_rate, window: 1m, delay: 30s}
  - {name: gap, entity: customer, aggregate: since_last}
  - {name: age, entity: customer, aggregate: since_first}
  - {name: last, entity: customer, aggregate: last, of: amount}
  - {name: ratio, ratio: [amount, mean]}
"""


class Oracle:
    """Rescans all events for each payment."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.labels: list[dict] = []
        self.now = -(1 << 60)

    def features(self, p: dict) -> list[float]:
        late = p["t"] < self.now - 20_000
        self.now = max(self.now, p["t"])
        now = self.now

        def window(key, length, delay=0, where=lambda e: True, current=False):
            if any(p.get(k) is None for k in key):
                return None
            rows = [
                e
                for e in self.events
                if all(e.get(k) == p[k] for k in key) and now - delay - length < e["t"] <= now - delay and where(e)
            ]
            return [*rows, p] if current and where(p) else rows

        def known(e):
            verdicts = sorted(
                (x for x in self.labels if x["id"] == e["id"] and x["known"] <= now), key=lambda x: x["known"]
            )
            return verdicts[-1]["fraud"] if verdicts else None

        def of(rows, f, empty=math.nan, absent=math.nan):
            return absent if rows is None else empty if not rows else f([r["a"] for r in rows])

        c, t = ["c"], ["k"]
        mine = window(c, 1 << 59)
        mean = of(window(c, 120_000, current=True), lambda a: sum(a) / len(a) / 100)
        frauds, settled = window(t, 60_000), window(t, 60_000, 30_000)
        values = [
            p["a"] / 100,
            of(window(c, 60_000), len, 0),
            of(window(c, 60_000, current=True), len, 0),
            of(window(c, 60_000), lambda a: sum(a) / 100, 0),
            mean,
            of(window(c, 120_000), lambda a: math.sqrt(len(a) * sum(x * x for x in a) - sum(a) ** 2) / len(a) / 100),
            of(window(c, 60_000), lambda a: min(a) / 100),
            of(window(c, 60_000, current=True), lambda a: max(a) / 100),
            of(window(c, 120_000), lambda a: float(np.median(a)) / 100),
            math.nan if p["c"] is None else len({e["m"] for e in window(c, 60_000, current=True)}),
            of(window(c, 60_000, where=lambda e: e["ch"] == "ecom"), len, 0),
            of(window(c, 60_000, where=lambda e: e["a"] < 500), lambda a: sum(a) / 100, 0),
            of(window(["c", "m"], 30_000), len, 0),
            of(window(t, 60_000, 30_000), len, 0),
            math.nan if frauds is None else sum(known(e) is True for e in frauds),
            math.nan if not settled else sum(known(e) is True for e in settled) / len(settled),
            math.nan if not mine else (now - max(e["t"] for e in mine)) / 1000,
            math.nan if not mine else (now - min(e["t"] for e in mine)) / 1000,
            math.nan if not mine else max(enumerate(mine), key=lambda item: (item[1]["t"], item[0]))[1]["a"] / 100,
        ]
        values.append(values[0] / mean if mean and not math.isnan(mean) else math.nan)
        if not late:
            self.events.append(p)
        return values


payments = st.lists(
    st.fixed_dictionaries({
        "step": st.integers(-40_000, 50_000),
        "a": st.sampled_from([0, 1, 499, 500, 12_345, 999_999_999_999]),
        "c": st.sampled_from(["c1", "c2", None]),
        "m": st.sampled_from(["m1", "m2"]),
        "k": st.sampled_from(["t1", None]),
        "ch": st.sampled_from(["pos", "ecom"]),
        "label": st.one_of(st.none(), st.tuples(st.integers(0, 90_000), st.booleans())),
        "again": st.one_of(st.none(), st.integers(90_001, 150_000)),
    }),
    min_size=1,
    max_size=40,
)  # fmt: skip


def built(steps: list[dict]) -> tuple[list[dict], list[dict]]:
    rows, labels, t = [], [], T0
    for i, step in enumerate(steps):
        t = max(T0 - 60_000, t + step["step"])
        row = {**step, "t": t, "id": f"p{i}"}
        rows.append(row)
        if step["label"] is not None:
            delay, fraud = step["label"]
            labels.append({"id": row["id"], "known": t + delay, "fraud": fraud})
            if step["again"] is not None:  # the verdict is taken back later
                labels.append({"id": row["id"], "known": t + step["again"], "fraud": not fraud})
    return rows, labels


def run(rows: list[dict], labels: list[dict], cuts: list[int]) -> np.ndarray:
    engine = Engine(FeatureSet.from_yaml(SET))
    for label in labels:
        engine.add_label(label["id"], fraud=label["fraud"], known_at_ms=label["known"])
    out, start = [], 0
    for end in [*sorted(set(c for c in cuts if 0 < c < len(rows))), len(rows)]:
        values = [
            json.dumps({
                "payment_id": r["id"], "event_time": r["t"], "amount_minor": r["a"], "currency": "EUR", "customer_id": r["c"], "merchant_id": r["m"],
                "terminal_id": r["k"], "channel": r["ch"],
            }, separators=(",", ":")).encode()
            for r in rows[start:end]
        ]  # fmt: skip
        batch = decode_payments(values)
        assert not batch.rejects
        amount, _ = engine.convert(batch)
        features, _ = engine.apply(batch, amount, hash_strings(batch.column("payment_id"))[0])
        out.append(features)
        start = end
    return np.concatenate(out)


@settings(max_examples=150, deadline=None)
@given(payments, st.lists(st.integers(1, 39), max_size=6))
def test_every_feature_equals_a_rescan_of_all_events(steps: list[dict], cuts: list[int]) -> None:
    """Each value equals rescanning every event, late payments, late and corrected labels included, however the batches are cut."""
    rows, labels = built(steps)
    oracle = Oracle()
    oracle.labels = labels
    expected = np.array([oracle.features(row) for row in rows], dtype=np.float32)
    actual = run(rows, labels, cuts)
    names = FeatureSet.from_yaml(SET).names
    for column, name in enumerate(names):
        np.testing.assert_allclose(actual[:, column], expected[:, column], rtol=2e-6, err_msg=name)
    np.testing.assert_array_equal(actual, run(rows, labels, []))
