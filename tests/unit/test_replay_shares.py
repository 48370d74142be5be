"""A file replayed by several processes: the same decisions, in the same order, as by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorer.bundle import Bundle, write_bundle
from scorer.errors import UsageError
from scorer.files.mapping import Mapping
from scorer.replay import replay_file, replay_shares
from tests.golden_rows import golden_rows

xgboost = pytest.importorskip("xgboost")

PAYMENTS = 40_000  # three blocks
START_MS = 1_767_225_600_000
FEATURES = """
name: shares
currency: EUR
dedupe_horizon: 1h
entities: {customer: [customer_id], pair: [customer_id, merchant_id]}
required: [merchant_id]
features:
  - {name: amount, payment: amount}
  - {name: count_1d, entity: customer, aggregate: count, window: 1d, include_current: true}
  - {name: mean_1h, entity: customer, aggregate: mean, of: amount, window: 1h}
  - {name: pair_gap, entity: pair, aggregate: since_last}
  - {name: frauds, entity: customer, aggregate: fraud_rate, window: 1d, delay: 1h}
"""
POLICY = """
name: shares
flag: {score: 0.4}
reasons: [{code: AMOUNT, sentence: Unusual., features: [amount, mean_1h]}]
"""
MAPPING = """
payment_id: id
event_time: at
amount: paid
currency: {constant: EUR}
customer_id: who
merchant_id: shop
label: fraud
label_delay: 2h
"""


def history(n: int = PAYMENTS) -> pa.Table:
    """Payments in order of time; some come again (soon, or after the dedupe horizon), some lack what is required."""
    rng = np.random.default_rng(4)
    number = np.arange(n)
    number[50::97] -= 20
    number[5000::211] -= 4000
    customer = np.random.default_rng(5).integers(0, 300, n)[number]
    return pa.table(
        {
            "id": [f"p{i}" for i in number],
            "at": pa.array(START_MS + 5_000 * np.arange(n), pa.timestamp("ms")),
            "paid": np.round(np.random.default_rng(6).lognormal(3, 1, n)[number], 2),
            "who": [None if c == 7 else f"c{c}" for c in customer],
            "shop": [None if rng.random() < 0.01 else f"m{m}" for m in rng.integers(0, 9, n)],
            "fraud": pa.array(rng.random(n) < 0.1, pa.bool_(), mask=rng.random(n) < 0.5),
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shares")
    pq.write_table(history(), folder / "history.parquet")
    _bundle(folder / "bundle", FEATURES)
    return folder


def _bundle(folder: Path, features: str) -> None:
    rng = np.random.default_rng(3)
    X = rng.lognormal(2, 2, (2000, 5)).astype(np.float32)
    X[rng.random(X.shape) < 0.2] = np.nan
    y = (np.nan_to_num(X[:, 0]) > np.nan_to_num(X[:, 2])).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, xgboost.DMatrix(X, y), 10)
    write_bundle(
        folder, name="shares", created_at="2026-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=features, policy_yaml=POLICY, threshold_score=0.4,
        golden=golden_rows(bytes(booster.save_raw("ubj"))),
    )  # fmt: skip


def test_three_processes_decide_as_one(place: Path) -> None:
    """Every column of every decision, its place in the output and every count are those of one process."""
    mapping = Mapping.from_yaml(MAPPING)
    one = replay_file(Bundle.load(place / "bundle"), place / "history.parquet", mapping, place / "one.parquet")
    many = replay_shares(place / "bundle", place / "history.parquet", mapping, place / "many.parquet", processes=3)
    assert many == one
    assert one.duplicates >= 400
    assert one.dead_letters > 300
    assert 0 < one.flagged < one.decisions
    expected, found = pq.read_table(place / "one.parquet"), pq.read_table(place / "many.parquet")
    assert set(expected["mode"].unique().to_pylist()) == {"normal", "duplicate", "refused"}
    assert one.refused > 300
    for name in expected.column_names:  # NaN is not equal to itself: bits are compared
        a, b = expected[name].combine_chunks(), found[name].combine_chunks()
        if pa.types.is_floating(a.type):
            a, b = (column.to_numpy(zero_copy_only=False).view(f"u{column.type.bit_width // 8}") for column in (a, b))
            assert (a == b).all(), name
        else:
            assert a.equals(b), name


def test_what_shares_cannot_decide_alike_is_refused(place: Path, tmp_path: Path) -> None:
    """Rows out of order, a payment that comes again under another key, and entities without a common key are refused
    with the reason."""
    mapping, table = Mapping.from_yaml(MAPPING + "order_by: file\n"), history(200)

    def replay(changed: pa.Table, bundle: Path = place / "bundle") -> None:
        pq.write_table(changed, tmp_path / "history.parquet")
        replay_shares(bundle, tmp_path / "history.parquet", mapping, None, processes=2)

    with pytest.raises(UsageError, match="in order of event time"):
        replay(table.take(pa.array([*range(100), 150, *range(100, 150)])))
    again = table.slice(0, 1).set_column(3, "who", pa.array(["c299"]))
    other = table.slice(0, 1).set_column(3, "who", pa.array(["c298"]))
    late = table.column("at").slice(199, 1)
    for repeated in (again, other):
        table = pa.concat_tables([table, repeated.set_column(1, "at", late)])
    with pytest.raises(UsageError, match="came again with another customer_id"):
        replay(table)
    _bundle(tmp_path / "bundle", FEATURES.replace("pair: [customer_id, merchant_id]", "pair: [merchant_id]"))
    with pytest.raises(UsageError, match="entities customer and pair have no field in common"):
        replay(history(50), tmp_path / "bundle")
