"""A small bundle and seeded payments with everything awkward among them, and what an undisturbed run decides."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

from schemas.decision_bytes import encode_decisions
from schemas.journal_record import ControlRange, InputRange
from scorer.bundle import Bundle, write_bundle
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch, Records
from tests.golden_rows import golden_rows

FEATURES = """
name: faults
currency: EUR
allowed_lateness: 10m
entities: {customer: [customer_id], pair: [customer_id, terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}
  - {name: customer_mean_1d, entity: customer, aggregate: mean, of: amount, window: 1d}
  - {name: pair_count_1h, entity: pair, aggregate: count, window: 1h}
  - {name: customer_gap, entity: customer, aggregate: since_last}
"""
# The same features, of cards whose numbers are replaced.
TOKENS = FEATURES.replace("customer_id", "card_token") + "card_numbers: {card_token: token, attributes.pan: token}\n"
POLICY = """
name: faults
flag: {score: 0.6}
rules:
  - {name: large, when: [{feature: amount, at_least: 480}], then: flag, reason: LARGE_AMOUNT}
reasons:
  - {code: UNUSUAL, sentence: Unusual for this customer., features: [amount, customer_mean_1d, customer_gap]}
  - {code: BUSY, sentence: Many payments in a short time., features: [customer_count_1h, pair_count_1h]}
"""
START_MS = 1_767_225_600_000
Payment = tuple[bytes, bytes]  # key, value


def make_bundle(folder: Path, *, features: str = FEATURES, policy: str = POLICY) -> Path:
    """Written once; a model that flags some and has both trees and features to explain."""
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.uniform(1, 500, 2000), rng.integers(0, 9, 2000), rng.uniform(1, 500, 2000),
                            rng.integers(0, 40, 2000), rng.uniform(0, 4000, 2000)]).astype(np.float32)  # fmt: skip
    odds = (rows[:, 0] > 1.4 * rows[:, 2]) & (rows[:, 1] > 2)
    data = xgb.DMatrix(rows, (odds | (rng.random(2000) < 0.05)).astype(np.float32), nthread=1)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, data, 12)
    write_bundle(
        folder, name="faults", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=features, policy_yaml=policy, threshold_score=0.6, metrics={}, versions={"xgboost": "3"},
        golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip
    return folder


def payments(seed: int, count: int) -> list[Payment]:
    """Payments of 60 customers in a few hours of event time; some late, repeated, repeated with other bytes, broken
    with and without an id."""
    rng = random.Random(seed)
    made: list[Payment] = []
    at_ms = START_MS
    for i in range(count):
        at_ms += int(rng.expovariate(1 / 4_000))
        customer = f"c{rng.randrange(60)}"
        fields: dict[str, Any] = {
            "payment_id": f"p{i}",
            "event_time": at_ms,
            "amount_minor": int(rng.paretovariate(1.2) * 700) % 50_000,
            "currency": "EUR",
            "customer_id": customer,
            "terminal_id": f"t{rng.randrange(15)}",
        }
        chance = rng.random()
        if chance < 0.01:
            broken = b"no json" if chance < 0.005 else json.dumps(fields | {"currency": "EUX"}).encode()
            made.append((customer.encode(), broken))
            continue
        if chance < 0.03 and made:
            made.append(made[rng.randrange(max(0, len(made) - 200), len(made))])
            continue
        if chance < 0.04:
            fields["payment_id"] = f"p{max(0, i - rng.randrange(1, 100))}"
        elif chance < 0.06:
            fields["event_time"] = at_ms - rng.randrange(1, 1_200_000)
        made.append((customer.encode(), json.dumps(fields).encode()))
    return made


@dataclass(frozen=True)
class Decided:
    """What an undisturbed run gives for payments in one partition."""

    decisions: list[bytes]
    features: np.ndarray[Any, np.dtype[np.float32]]
    dead_letters: list[tuple[int, str]]  # offset, reason


def undisturbed(bundle: Bundle, given: list[Payment]) -> Decided:
    """All payments in one batch through the pure function."""
    n = len(given)
    records = Records(
        partition=np.zeros(n, np.int32),
        offset=np.arange(n, dtype=np.int64),
        timestamp_ms=np.full(n, 1 << 62, np.int64),
        keys=[key for key, _ in given],
        values=[value for _, value in given],
    )
    batch = Batch(records, (InputRange(partition=0, start=0, end=n),), [], ControlRange(start=0, end=0))
    outcomes = Pipeline(bundle).run(batch)
    c = outcomes.columns
    return Decided(
        encode_decisions(c.payment_id.to_pylist(), c.decision, c.score, c.margin, c.reasons, c.mode, outcomes.bundles),
        c.features,
        sorted((item.index, item.error.reason.value) for item in outcomes.rejected),
    )
