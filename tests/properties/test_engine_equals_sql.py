"""The training export of a generated history, with rows moved late, equals the same windows in SQL, feature by
feature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.feature_set import Feature, FeatureSet
from features.filters import Range

# `ENGINE_SQL_ROWS=20000 pytest tests/properties/test_engine_equals_sql.py` is the long form.
ROWS = int(os.environ.get("ENGINE_SQL_ROWS", "3000"))
ROOT = Path(__file__).resolve().parents[2]
LABEL_DELAY_MS = 3_600_000

SET = """
name: sql
currency: EUR
allowed_lateness: 10m
rates: {version: "1", per_unit: {USD: 0.92, JPY: 0.0061}}
entities: {customer: [customer_id], terminal: [terminal_id], pair: [customer_id, merchant_id]}
features:
  - {name: amount, payment: amount}
  - {name: n_10s, entity: customer, aggregate: count, window: 10s}
  - {name: n_1h, entity: customer, aggregate: count, window: 1h, include_current: true}
  - {name: n_90d, entity: terminal, aggregate: count, window: 90d}
  - {name: sum_1d, entity: customer, aggregate: sum, of: amount, window: 1d}
  - {name: mean_7d, entity: customer, aggregate: mean, of: amount, window: 7d, include_current: true}
  - {name: std_1d, entity: terminal, aggregate: std, of: amount, window: 1d}
  - {name: min_6h, entity: customer, aggregate: min, of: amount, window: 6h}
  - {name: max_6h, entity: customer, aggregate: max, of: amount, window: 6h, where: {channel: [ecom, moto]}}
  - {name: max_old, entity: terminal, aggregate: max, of: amount, window: 6h, delay: 2h}
  - {name: median_2h, entity: customer, aggregate: median, of: amount, window: 2h}
  - {name: shops_1d, entity: customer, aggregate: distinct, of: merchant_id, window: 1d}
  - {name: shops_old, entity: customer, aggregate: distinct, of: merchant_id, window: 6h, delay: 1h}
  - {name: shop_share, entity: customer, aggregate: share, of: merchant_id, window: 7d}
  - {name: channel_share, entity: terminal, aggregate: share, of: channel, window: 1d, delay: 1h}
  - {name: risk_smooth, entity: terminal, aggregate: fraud_rate, window: 12h, delay: 2h, prior: {rate: 0.02, weight: 5}}
  - {name: hour_unlike, entity: customer, aggregate: circular_dispersion, of: hour_of_day, window: 7d}
  - {name: hour_spread, entity: terminal, aggregate: circular_variance, of: hour_of_day, window: 1d, delay: 1h}
  - {name: day_unlike, entity: customer, aggregate: circular_dispersion, of: day_of_week, window: 30d,
     include_current: true, where: {channel: ecom}}
  - {name: mean_5, entity: customer, aggregate: mean, of: amount, window: 30d, latest: 5}
  - {name: most_3, entity: terminal, aggregate: max, of: amount, window: 1d, latest: 3, delay: 1h}
  - {name: gaps_10, entity: customer, aggregate: mean_gap, window: 7d, latest: 10}
  - {name: pair_n, entity: pair, aggregate: count, window: 30d, where: {amount: {at_least: 20, below: 500}}}
  - {name: frauds_1d, entity: terminal, aggregate: fraud_count, window: 1d}
  - {name: risk, entity: terminal, aggregate: fraud_rate, window: 12h, delay: 2h}
  - {name: gap, entity: customer, aggregate: since_last}
  - {name: age, entity: pair, aggregate: since_first}
  - {name: since_fraud, entity: terminal, aggregate: since_fraud}
  - {name: first_fraud, entity: terminal, aggregate: since_first_fraud}
  - {name: decayed, entity: customer, aggregate: decayed_sum, of: amount, half_life: 3h}
  - {name: decayed_mean, entity: customer, aggregate: decayed_mean, of: amount, half_life: 12h}
  - {name: decayed_n, entity: terminal, aggregate: decayed_count, half_life: 1d, include_current: true}
  - {name: ratio, ratio: [amount, mean_7d]}
  - {name: unusual, entity: customer, aggregate: count, window: 14d, where: {ratio: {above: 2}}}
"""


def history(rows: int, seed: int) -> pa.Table:
    """Payments in the order in which they arrive: one in twelve up to an hour late, some keys missing, many equal
    times."""
    rng = np.random.default_rng(seed)
    at = 1_700_000_000_000 + np.cumsum(rng.choice([0, 0, 1, 1000, 20_000, 100_000, 900_000], rows))
    arrival = at + np.where(rng.random(rows) < 1 / 12, rng.integers(0, 3_600_000, rows), 0)
    order = np.argsort(arrival, kind="stable")
    money = rng.choice(["EUR", "EUR", "EUR", "USD", "JPY"], rows)

    def key(prefix: str, count: int, missing: float) -> list[str | None]:
        numbers = (rng.pareto(1.0, rows) * 2).astype(int) % count  # a few keys have most of the traffic
        return [None if gone else f"{prefix}{n}" for n, gone in zip(numbers, rng.random(rows) < missing, strict=True)]

    table = pa.table({
        "id": [f"p{i}" for i in range(rows)], "at": at,
        "minor": np.rint(np.exp(rng.normal(8, 2, rows))).astype(np.int64), "money": money,
        "who": key("c", 30, 0.02), "shop": key("m", 50, 0.02), "till": key("t", 20, 0.05),
        "channel": rng.choice(["pos", "ecom", "moto"], rows),
        "fraud": pa.array(rng.integers(0, 2, rows), pa.int8(), mask=rng.random(rows) < 0.5),
    })  # fmt: skip
    return table.take(order)


def write_lines(table: pa.Table, folder: Path) -> None:
    """Payments and labels as their contracts have them: such lines are read in the file's order, late or not."""
    names = {
        "id": "payment_id", "minor": "amount_minor", "money": "currency", "who": "customer_id", "shop": "merchant_id",
        "till": "terminal_id", "channel": "channel",
    }  # fmt: skip
    with (folder / "history.jsonl").open("w") as payments, (folder / "labels.jsonl").open("w") as labels:
        for row in table.to_pylist():
            payment = {field: row[name] for name, field in names.items() if row[name] is not None}
            print(json.dumps(payment | {"event_time": text_of(row["at"])}), file=payments)
            if row["fraud"] is not None:
                known_at = text_of(row["at"] + LABEL_DELAY_MS)
                label = {"type": "label", "payment_id": row["id"], "fraud": bool(row["fraud"]), "known_at": known_at}
                print(json.dumps(label), file=labels)


def text_of(time_ms: int) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


BASE = f"""
CREATE TABLE p AS SELECT *, max(t) OVER (ORDER BY seq) AS now,
t < coalesce(max(t) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING
    AND 1 PRECEDING), t) - 600000 AS late, t + {LABEL_DELAY_MS} AS known
FROM (SELECT row_number() OVER () AS seq, "at" AS t, who AS customer_id, shop AS merchant_id, till AS terminal_id,
    channel, fraud, id, CAST(round_even(minor * CASE money WHEN 'EUR' THEN 1.0::DOUBLE WHEN 'USD' THEN 0.92::DOUBLE
    ELSE 0.0061::DOUBLE * 100 END, 0) AS BIGINT) AS amount
    FROM history)
"""


def clause(f: Feature, done: set[str]) -> str:
    tests = []
    for name, condition in f.where.items():
        column = "j.amount / 100.0" if name == "amount" else f"j.f_{name}" if name in done else f"j.{name}"
        if isinstance(condition, Range):
            pairs = (
                (">=", condition.at_least),
                (">", condition.above),
                ("<=", condition.at_most),
                ("<", condition.below),
            )
            tests += [f"{column} {sign} {bound}" for sign, bound in pairs if bound is not None]
            tests.append(f"NOT isnan({column})")
        else:
            values = condition if isinstance(condition, list) else [condition]
            tests.append(f"{column} IN ({', '.join(repr(value) for value in values)})")
    return " AND ".join(tests) or "true"


def query(s: FeatureSet, f: Feature, done: set[str]) -> str:
    """One feature as a self-join: every payment i against the payments j that it may see."""
    same = " AND ".join(f"j.{field} = i.{field}" for field in s.entities[f.entity])
    inside = f"j.t > i.now - {f.delay + f.window} AND j.t <= i.now - {f.delay}" if f.window else "true"
    seen = f"(j.seq < i.seq AND NOT j.late AND {inside})" + (" OR j.seq = i.seq" if f.include_current else "")
    fraud = "j.fraud = 1 AND j.known <= i.now AND j.seq < i.seq"
    rate, weight = (f.prior.rate, f.prior.weight) if f.prior else (0, 0)
    place, parts = ("({} // 3600000 % 24)", 24) if f.of == "hour_of_day" else ("(({} // 86400000 + 3) % 7)", 7)
    own, other = (f"(2 * pi() * {place.format(row + '.t')} / {parts})" for row in "ij")
    fade = f"power(2.0, -(i.now - j.t) / {f.half_life}.0)" if f.half_life else ""
    value = {
        "count": "count(j.seq)", "sum": "coalesce(sum(j.amount), 0) / 100.0", "mean": "avg(j.amount) / 100.0",
        "min": "min(j.amount) / 100.0",
        "max": "max(j.amount) / 100.0", "std": "stddev_pop(j.amount) / 100.0", "median": "median(j.amount) / 100.0",
        "mean_gap": "(max(j.t) - min(j.t)) / nullif(count(j.seq) - 1, 0) / 1000.0",
        "distinct": f"count(DISTINCT j.{f.of})",
        "share": f"CASE WHEN any_value(i.{f.of}) IS NOT NULL THEN count(j.seq) FILTER (j.{f.of} = i.{f.of}) / "
        "nullif(count(j.seq), 0) END",
        "circular_dispersion": f"avg(1 - cos({own} - {other})) FILTER (j.seq IS NOT NULL)",
        "circular_variance": f"1 - sqrt(pow(avg(cos({other})), 2) + pow(avg(sin({other})), 2))",
        "fraud_count": f"count(j.seq) FILTER ({fraud})",
        "fraud_rate": f"(count(j.seq) FILTER ({fraud}) + {rate * weight}) / nullif(count(j.seq) + {weight}, 0)",
        "since_last": "(any_value(i.now) - max(j.t)) / 1000.0",
        "since_first": "(any_value(i.now) - min(j.t)) / 1000.0",
        "since_fraud": f"(any_value(i.now) - max(j.t) FILTER ({fraud})) / 1000.0",
        "since_first_fraud": f"(any_value(i.now) - min(j.t) FILTER ({fraud})) / 1000.0",
        "decayed_count": f"coalesce(sum({fade}), 0)",
        "decayed_sum": f"coalesce(sum(j.amount * {fade}), 0) / 100.0",
        "decayed_mean": f"sum(j.amount * {fade}) / nullif(sum({fade}), 0) / 100.0",
    }[f.aggregate]  # fmt: skip
    missing = " OR ".join(f"any_value(i.{field}) IS NULL" for field in s.entities[f.entity])
    joined = f"p j ON {same} AND ({seen}) AND ({clause(f, done)})"
    if f.latest:  # the payments in the window, newest first
        pairs = "SELECT i.seq AS at, j.*, row_number() OVER (PARTITION BY i.seq ORDER BY j.t DESC, j.seq DESC) AS place"
        joined = f"({pairs} FROM p i JOIN {joined}) j ON j.at = i.seq AND j.place <= {f.latest}"
    return (
        f"SELECT i.seq, CAST(CASE WHEN {missing} THEN 'nan'::DOUBLE ELSE coalesce({value}, 'nan'::DOUBLE) END AS "
        f"FLOAT) AS v "
        f"FROM p i LEFT JOIN {joined} GROUP BY i.seq"
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_the_training_export_equals_sql_for_every_feature(seed: int, tmp_path: Path) -> None:
    """`fraud-scorer features` on a file whose rows were moved late gives, for every feature, what a SQL self-join
    gives."""
    table = history(ROWS, seed)
    write_lines(table, tmp_path)
    (tmp_path / "set.yaml").write_text(SET, encoding="utf-8")
    command = [
        "features",
        "--feature-set",
        "set.yaml",
        "--input",
        "history.jsonl",
        "--labels",
        "labels.jsonl",
        "--output",
        "out.parquet",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scorer", *command], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FRAUD_SCORER_FILES__LATE_MAX": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported = pq.read_table(tmp_path / "out.parquet")
    assert exported["payment_id"].to_pylist() == table["id"].to_pylist()

    s, known = FeatureSet.from_yaml(SET), set[str]()
    with duckdb.connect() as sql:
        sql.register("history", table)
        sql.execute(BASE)
        for f in s.features:
            if f.kind == "aggregate":
                sql.execute(f"CREATE TABLE f AS {query(s, f, known)}")
            elif f.payment:
                sql.execute("CREATE TABLE f AS SELECT seq, CAST(amount / 100.0 AS FLOAT) AS v FROM p")
            else:
                a, b = f.ratio
                sql.execute(
                    f"CREATE TABLE f AS SELECT seq, CASE WHEN f_{b} = 0 THEN 'nan'::FLOAT ELSE f_{a} / f_{b} END AS "
                    f"v FROM p"
                )
            expected = sql.execute("SELECT v FROM f ORDER BY seq").fetchnumpy()["v"]
            actual = exported[f.name].to_numpy()
            np.testing.assert_allclose(actual, np.ma.filled(expected, np.nan), rtol=3e-6, atol=1e-7, err_msg=f.name)
            sql.execute(f"CREATE TABLE q AS SELECT p.*, f.v AS f_{f.name} FROM p JOIN f USING (seq)")
            sql.execute("DROP TABLE p; DROP TABLE f; ALTER TABLE q RENAME TO p")
            known.add(f.name)
        late = sql.execute("SELECT count(*) FILTER (late), count(*) FILTER (t < now AND NOT late) FROM p").fetchone()
    assert min(late) > ROWS // 100, late
