"""Payments of the handbook's kind, with a feature set, a policy and a bundle small enough for a test."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from functools import cache
from pathlib import Path

from features.feature_set import FeatureSet
from scorer.files.file_columns import undecoded
from scorer.files.file_reader import label_records, read_payments
from scorer.files.mapping import Mapping
from scorer.operate.record_sender import Outgoing, outgoing_pairs
from scorer.replay import chained, training_table
from scorer.training import TrainingRows, TrainingSettings, train
from tests import handbook_data

SEED = 2
MAPPING = """
payment_id: TRANSACTION_ID
event_time: TX_DATETIME
customer_id: CUSTOMER_ID
terminal_id: TERMINAL_ID
amount: TX_AMOUNT
currency: {constant: EUR}
label: TX_FRAUD
label_delay: 1d
"""
FEATURES = """
name: handbook
currency: EUR
# Sent in seconds instead of days: four partitions of one producer drift apart by hours of event time.
allowed_lateness: 2d
entities: {customer: [customer_id], terminal: [terminal_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour_of_day, payment: hour_of_day}
  - {name: customer_count_1d, entity: customer, aggregate: count, window: 1d}
  - {name: customer_mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d, include_current: true}
  - {name: customer_std_7d, entity: customer, aggregate: std, of: amount, window: 7d}
  - {name: amount_to_mean, ratio: [amount, customer_mean_7d]}
  - {name: terminals_1d, entity: customer, aggregate: distinct, of: terminal_id, window: 1d}
  - {name: terminal_count_7d, entity: terminal, aggregate: count, window: 7d}
  - {name: terminal_frauds_7d, entity: terminal, aggregate: fraud_count, window: 7d}
  - {name: customer_gap, entity: customer, aggregate: since_last}
"""
POLICY = """
name: handbook
flag: {share: 0.02}
rules:
  - {name: large, when: [{feature: amount, at_least: 220}], then: flag, reason: LARGE_AMOUNT}
reasons:
  - code: UNUSUAL_AMOUNT
    sentence: The amount is unusual for this customer.
    features: [amount, amount_to_mean, customer_mean_7d, customer_std_7d]
  - {code: TERMINAL, sentence: The terminal has known frauds., features: [terminal_frauds_7d, terminal_count_7d]}
"""


# Without the terminal: what two shards of a topic keyed by customer can compute.
CUSTOMER_FEATURES = "\n".join(line for line in FEATURES.splitlines() if "entity: terminal" not in line)
CUSTOMER_POLICY = "\n".join(line for line in POLICY.splitlines() if "TERMINAL" not in line)


@cache
def handbook_file() -> Path:
    """A week of generated payments, about 68,000, written once a process."""
    folder = Path(tempfile.mkdtemp(prefix="handbook-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return handbook_data.write(folder / "handbook.parquet", SEED, days=7)


def train_bundle(folder: Path, features: str = FEATURES, policy: str = POLICY) -> Path:
    """A bundle trained on the first 60,000 payments."""
    blocks = itertools.islice(read_payments(handbook_file(), Mapping.from_yaml(MAPPING), rows_per_block=20_000), 3)
    table = training_table(
        FeatureSet.from_yaml(features),
        chained(map(undecoded, blocks)),
    )
    train(
        TrainingRows(table.features, table.label, table.event_time_ms, table.label_known_at_ms),
        features,
        policy,
        folder,
        TrainingSettings(name="handbook", created_at="2026-01-01T00:00:00Z"),
    )
    return folder


def handbook(count: int, rows: int = 5_000) -> list[Outgoing]:
    """The first payments, in blocks of `rows`."""
    blocks = read_payments(handbook_file(), Mapping.from_yaml(MAPPING), rows_per_block=rows)
    return [
        Outgoing(b.keys, b.values, b.event_time_ms, outgoing_pairs(label_records(b), b.label_known_at_ms[b.label >= 0]))
        for b in itertools.islice(blocks, count // rows)
    ]
