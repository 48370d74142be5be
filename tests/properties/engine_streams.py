"""Streams for the engine's proofs: feature sets that use every aggregate and option, payments that come in every kind
of order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from features.currency_conversion import conversion_factors
from features.feature_set import FeatureSet
from features.hashing import hash_strings
from features.window_engine import WindowEngine
from schemas.payment_decoder import decode_payments

T0 = 1_767_225_600_000

# Keys of customer and pair are kept for life (since_first …); keys of terminal and device go when their windows are
# empty.
PROOF = FeatureSet.from_yaml("""
name: proof
currency: EUR
allowed_lateness: 20s
rates: {version: v1, per_unit: {USD: 0.92, JPY: 0.0061}}
entities: {customer: [customer_id], pair: [customer_id, merchant_id], terminal: [terminal_id], device: [device_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: day, payment: day_of_week}
  - {name: channel_number, payment: channel, categories: [pos, ecom]}
  - {name: risk, payment: attributes.risk}
  - {name: lat, payment: latitude}
  - {name: n_1ms, entity: customer, aggregate: count, window: 1ms}
  - {name: n, entity: customer, aggregate: count, window: 1m}
  - {name: n_now, entity: customer, aggregate: count, window: 1m, include_current: true}
  - {name: total, entity: customer, aggregate: sum, of: amount, window: 1m}
  - {name: mean, entity: customer, aggregate: mean, of: amount, window: 2m, include_current: true}
  - {name: std, entity: customer, aggregate: std, of: amount, window: 2m}
  - {name: std_now, entity: device, aggregate: std, of: amount, window: 1m, include_current: true}
  - {name: least, entity: customer, aggregate: min, of: amount, window: 1m}
  - {name: most_now, entity: customer, aggregate: max, of: amount, window: 1m, include_current: true}
  - {name: least_late, entity: device, aggregate: min, of: amount, window: 1m, delay: 15s}
  - {name: most_online, entity: device, aggregate: max, of: amount, window: 40s, where: {channel: ecom}}
  - {name: middle, entity: customer, aggregate: median, of: amount, window: 2m}
  - {name: middle_late, entity: device, aggregate: median, of: amount, window: 30s, delay: 10s}
  - {name: middle_now, entity: device, aggregate: median, of: amount, window: 90s, include_current: true,
     where: {channel: [pos]}}
  - {name: middle_3, entity: customer, aggregate: median, of: amount, window: 1m, latest: 3}
  - {name: mean_2, entity: customer, aggregate: mean, of: amount, window: 10m, latest: 2}
  - {name: mean_4_now, entity: device, aggregate: mean, of: amount, window: 2m, latest: 4, include_current: true,
     where: {channel: ecom}}
  - {name: std_5, entity: terminal, aggregate: std, of: amount, window: 5m, latest: 5, include_current: true}
  - {name: least_2, entity: terminal, aggregate: min, of: amount, window: 1m, latest: 2, delay: 10s}
  - {name: most_3, entity: terminal, aggregate: max, of: amount, window: 5m, latest: 3}
  - {name: tills_in_trouble, entity: customer, aggregate: neighbour_frauds, of: terminal, window: 2m}
  - {name: devices_in_trouble, entity: terminal, aggregate: neighbour_frauds, of: device, window: 40s, latest: 2,
     where: {channel: ecom}}
  - {name: customers_in_trouble, entity: device, aggregate: neighbour_frauds, of: customer, window: 5m, latest: 3}
  - {name: near, entity: customer, aggregate: nearest_km, window: 10m}
  - {name: near_2, entity: customer, aggregate: nearest_km, window: 1m, latest: 2}
  - {name: near_online, entity: terminal, aggregate: nearest_km, window: 5m, latest: 3, where: {channel: ecom}}
  - {name: gaps_3, entity: terminal, aggregate: mean_gap, window: 5m, latest: 3}
  - {name: gaps_4_now, entity: customer, aggregate: mean_gap, window: 1m, latest: 4, include_current: true}
  - {name: gaps_2_late, entity: terminal, aggregate: mean_gap, window: 1m, latest: 2, delay: 10s}
  - {name: shops, entity: customer, aggregate: distinct, of: merchant_id, window: 1m, include_current: true}
  - {name: shops_late, entity: customer, aggregate: distinct, of: merchant_id, window: 1m, delay: 25s}
  - {name: shop_share, entity: customer, aggregate: share, of: merchant_id, window: 1m}
  - {name: shop_share_now, entity: device, aggregate: share, of: merchant_id, window: 2m, include_current: true,
     where: {channel: ecom}}
  - {name: till_share_late, entity: device, aggregate: share, of: terminal_id, window: 1m, delay: 10s}
  - {name: shop_share_smooth, entity: customer, aggregate: share, of: merchant_id, window: 1m, include_current: true,
     prior: {rate: 0.05, weight: 2.5}}
  - {name: rate_smooth, entity: terminal, aggregate: fraud_rate, window: 1m, delay: 30s, prior: {rate: 0.01, weight: 7}}
  - {name: hour_unlike, entity: customer, aggregate: circular_dispersion, of: hour_of_day, window: 9h}
  - {name: hour_unlike_now, entity: device, aggregate: circular_dispersion, of: hour_of_day, window: 40h, delay: 1m,
     include_current: true, where: {channel: ecom}}
  - {name: hour_spread, entity: device, aggregate: circular_variance, of: hour_of_day, window: 9h,
     include_current: true}
  - {name: day_unlike, entity: customer, aggregate: circular_dispersion, of: day_of_week, window: 3d}
  - {name: day_spread, entity: customer, aggregate: circular_variance, of: day_of_week, window: 9h}
  - {name: online, entity: customer, aggregate: count, window: 1m, where: {channel: ecom}}
  - {name: small, entity: customer, aggregate: sum, of: amount, window: 1m, where: {amount: {below: 5}}}
  - {name: pair_n, entity: pair, aggregate: count, window: 30s}
  - {name: pair_first, entity: pair, aggregate: since_first}
  - {name: late_n, entity: terminal, aggregate: count, window: 1m, delay: 30s}
  - {name: frauds, entity: terminal, aggregate: fraud_count, window: 1m}
  - {name: rate, entity: terminal, aggregate: fraud_rate, window: 1m, delay: 30s}
  - {name: big_rate, entity: terminal, aggregate: fraud_rate, window: 2m, where: {amount: {at_least: 5}}}
  - {name: terminal_fraud_recent, entity: terminal, aggregate: since_fraud, window: 1m}
  - {name: gap, entity: customer, aggregate: since_last}
  - {name: gap_recent, entity: device, aggregate: since_last, window: 30s}
  - {name: gap_online, entity: customer, aggregate: since_last, where: {channel: ecom}}
  - {name: age, entity: customer, aggregate: since_first}
  - {name: age_big, entity: customer, aggregate: since_first, where: {amount: {above: 5}}}
  - {name: last, entity: customer, aggregate: last, of: amount}
  - {name: last_risky, entity: customer, aggregate: last, of: amount, where: {attributes.risk: {at_least: 2}}}
  - {name: speed, entity: customer, aggregate: speed_kmh}
  - {name: speed_online, entity: device, aggregate: speed_kmh, window: 1m, where: {channel: ecom}}
  - {name: since_fraud, entity: customer, aggregate: since_fraud}
  - {name: since_first_fraud, entity: customer, aggregate: since_first_fraud}
  - {name: since_online_fraud, entity: customer, aggregate: since_fraud, where: {channel: ecom}}
  - {name: last_label, entity: customer, aggregate: last_label}
  - {name: last_label_recent, entity: device, aggregate: last_label, window: 1m}
  - {name: decayed, entity: customer, aggregate: decayed_count, half_life: 20s, include_current: true}
  - {name: decayed_sum, entity: customer, aggregate: decayed_sum, of: amount, half_life: 20s}
  - {name: decayed_online, entity: pair, aggregate: decayed_sum, of: amount, half_life: 1m, where: {channel: ecom}}
  - {name: decayed_mean, entity: customer, aggregate: decayed_mean, of: amount, half_life: 20s}
  - {name: decayed_mean_now, entity: device, aggregate: decayed_mean, of: amount, half_life: 5s, include_current: true}
  - {name: decayed_std, entity: customer, aggregate: decayed_std, of: amount, half_life: 20s}
  - {name: decayed_std_now, entity: pair, aggregate: decayed_std, of: amount, half_life: 2m, include_current: true,
     where: {channel: ecom}}
  - {name: decayed_z, zscore: [amount, decayed_mean, decayed_std]}
  - {name: ratio, ratio: [amount, mean]}
  - {name: difference, difference: [amount, mean]}
  - {name: zscore, zscore: [amount, mean, std]}
  - {name: unusual, entity: customer, aggregate: count, window: 2m, include_current: true, where: {ratio: {above: 1.2}}}
  - {name: unusual_sum, entity: device, aggregate: sum, of: amount, window: 1m, delay: 5s,
     where: {ratio: {above: 0.5}, channel: pos}}
  - {name: nth, entity: terminal, aggregate: count, window: 2m, where: {n_now: [1, 3]}}
  - {name: nested, entity: terminal, aggregate: max, of: amount, window: 2m,
     where: {unusual: {at_least: 1}, hour: {below: 24}}}
""")

FACTORS = {"EUR": 1.0, "USD": 0.92, "JPY": 0.0061 * 100}
assert conversion_factors(PROOF) == FACTORS


def payments(count_max: int, *, lateness_ms: int = 40_000) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Steps of a stream: mostly onwards, some backwards (late, or beyond the lateness), some standing still, some far
    ahead."""
    step = st.one_of(
        st.integers(0, 15_000),
        st.just(0),
        st.integers(-lateness_ms, -1),
        st.sampled_from([1, 20_000, 60_000, 200_000, 200_000, 14_000_000, 90_000_000]),
    )
    return st.lists(
        st.fixed_dictionaries({
            "step": step,
            "amount": st.sampled_from([0, 1, 499, 500, 501, 12_345, 500_000_000_000, 999_999_999_999]),
            "currency": st.sampled_from(["EUR", "EUR", "EUR", "USD", "JPY"]),
            "customer_id": st.sampled_from(["c1", "c1", "c2", None]),
            "merchant_id": st.sampled_from(["m1", "m2", None]),
            "terminal_id": st.sampled_from(["t1", "t2", None]),
            "device_id": st.sampled_from(["d1", "d1", "d2", None]),
            "channel": st.sampled_from(["pos", "ecom", None]),
            "place": st.sampled_from([
                None, (52.5, 13.4), (52.5, 13.4), (52.5000002, 13.4), (48.1, 11.6), (-33.9, 151.2), (0, 180.0),
                (0.1, -179.9), (90.0, 10.0),
            ]),
            "risk": st.sampled_from([None, 1, 2.5, "high"]),
            "label": st.one_of(st.none(), st.tuples(st.integers(-30_000, 90_000), st.booleans())),
            "again": st.one_of(st.none(), st.integers(90_001, 250_000)),
        }),
        min_size=count_max // 3,  # short ones fill no window
        max_size=count_max,
    )  # fmt: skip


def built(steps: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[str, int, bool]]]:
    """Payments with their times and ids, and labels: some before their payment, some taken back later."""
    rows: list[dict[str, Any]] = []
    labels: list[tuple[str, int, bool]] = []
    now = T0
    for i, step in enumerate(steps):
        t = max(T0 - 60_000, now + step["step"])
        now = max(now, t)
        place = step["place"] or (None, None)
        row = {**step, "t": t, "payment_id": f"p{i}", "latitude": place[0], "longitude": place[1]}
        row["attributes"] = {} if step["risk"] is None else {"risk": step["risk"]}
        rows.append(row)
        if step["label"] is not None:
            delay, fraud = step["label"]
            labels.append((row["payment_id"], t + delay, fraud))
            if step["again"] is not None:
                labels.append((row["payment_id"], t + step["again"], not fraud))
    return rows, labels


_SENT = (
    "payment_id",
    "currency",
    "customer_id",
    "merchant_id",
    "terminal_id",
    "device_id",
    "channel",
    "latitude",
    "longitude",
    "attributes",
)


def document(row: dict[str, Any]) -> bytes:
    """The payment as a record's value."""
    fields = {name: row[name] for name in _SENT if row.get(name) is not None}
    return json.dumps({**fields, "event_time": row["t"], "amount_minor": row["amount"]}, separators=(",", ":")).encode()


def feed(engine: WindowEngine, rows: list[dict[str, Any]]) -> np.ndarray:
    """One batch through the engine: features, float32 [n, F]."""
    batch = decode_payments([document(row) for row in rows])
    assert not batch.rejects
    amount, convertible = engine.convert(batch)
    assert convertible.all()
    return engine.apply(batch, amount, hash_strings(batch.column("payment_id"), engine.hash_key)[0])[0]


def give_labels(engine: WindowEngine, labels: Iterable[tuple[str, int, bool]]) -> None:
    for payment_id, known, fraud in labels:
        engine.add_label(payment_id, fraud=fraud, known_at_ms=known)


def pieces(rows: list[Any], cuts: Iterable[int]) -> list[list[Any]]:
    """The list cut at the places given."""
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(rows)}), len(rows)]
    return [rows[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def run(
    rows: list[dict[str, Any]],
    labels: list[tuple[str, int, bool]],
    cuts: Iterable[int] = (),
    *,
    folder: Path | None = None,
    segment_shift: int = 6,
    feature_set: FeatureSet = PROOF,
) -> np.ndarray:
    """All rows through a new engine, in batches cut at the places given."""
    engine = WindowEngine(feature_set, folder=folder, segment_shift=segment_shift)
    give_labels(engine, labels)
    out = [feed(engine, piece) for piece in pieces(rows, cuts)]
    engine.close()
    return np.concatenate(out)
