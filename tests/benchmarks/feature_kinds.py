"""What each kind of feature adds where it was not tuned: average precision with and without it, on fresh seeds.

    python -m tests.benchmarks.feature_kinds [--seeds N] [--sets handbook simulated] [--kinds …] [--data FILE]
        [--forest] [--nested] [--thin N]

A shipped feature set (the Handbook's example, the demo's) is extended by the lines of one kind after the other, all
written before any of these seeds was made. Learner for all: plain xgboost (300 trees, depth 6, rate 0.1) on the same
rows, all frauds and one in four (`--thin`) of the others, which count as so many. Measured is average precision on
later payments whose labels were not known; the difference to the shipped set is given with a 95 % interval over seeds
(Student's t).

    handbook    payments of the Handbook's kind (tests/handbook_data.py), 110 days, the last week tested
    simulated   the demo's simulator, 1 % fraud, 90 days, the last three tenths of the frauds tested

`--nested`: the same lines on the Handbook's own data. The kinds are chosen on payments before the first fold alone
(trained until 2018-06-30, compared on 8 to 24 July), then measured on the four folds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.compress.isolation_forest import isolation_forest
from scorer.files.file_columns import json_block
from scorer.files.mapping import Mapping
from scorer.model import CompiledModel
from scorer.replay import TrainingTable, chained, file_batches, training_table
from scorer.simulate import World
from scorer.training import average_precision, import_xgboost
from tests import handbook_data
from tests.benchmarks import quality

DAY_MS = quality.DAY_MS
EXAMPLES = quality.ROOT / "deploy" / "examples"
START_MS = 1_704_067_200_000  # 2024-01-01
LABEL_DELAY_MS = 7 * DAY_MS
# Used by this benchmark and nothing else: no feature, prior or window was chosen with them.
HANDBOOK_SEEDS = (7501, 7502, 7503, 7504, 7505, 7506, 7507, 7508)
SIMULATED_SEEDS = (7601, 7602, 7603, 7604, 7605, 7606, 7607, 7608)

HANDBOOK = {
    "share": """
  - {name: k_share, entity: customer, aggregate: share, of: terminal_id, window: 60d}
""",
    "prior": """
  - {name: k_rate_7d, entity: terminal, aggregate: fraud_rate, window: 7d, delay: 7d, prior: {rate: 0.008, weight: 5}}
  - {name: k_rate_14d, entity: terminal, aggregate: fraud_rate, window: 14d, delay: 7d, prior: {rate: 0.008, weight: 5}}
  - {name: k_rate_28d, entity: terminal, aggregate: fraud_rate, window: 28d, delay: 7d, prior: {rate: 0.008, weight: 5}}
""",
    "circular": """
  - {name: k_hour_unlike, entity: customer, aggregate: circular_dispersion, of: hour_of_day, window: 60d}
  - {name: k_hour_spread, entity: customer, aggregate: circular_variance, of: hour_of_day, window: 60d}
  - {name: k_day_unlike, entity: customer, aggregate: circular_dispersion, of: day_of_week, window: 60d}
""",
    "latest": """
  - {name: k_mean_10, entity: customer, aggregate: mean, of: amount, window: 60d, latest: 10}
  - {name: k_amount_to_mean_10, ratio: [amount, k_mean_10]}
  - {name: k_max_5, entity: customer, aggregate: max, of: amount, window: 60d, latest: 5}
  - {name: k_amount_to_max_5, ratio: [amount, k_max_5]}
  - {name: k_gap, entity: customer, aggregate: since_last}
  - {name: k_mean_gap, entity: customer, aggregate: mean_gap, window: 60d, latest: 10}
  - {name: k_gap_to_mean, ratio: [k_gap, k_mean_gap]}
""",
    "neighbours": """
  - {name: k_terminals, entity: customer, aggregate: neighbour_frauds, of: terminal, window: 28d}
  - {name: k_customers, entity: terminal, aggregate: neighbour_frauds, of: customer, window: 28d}
""",
    "decayed": """
  - {name: k_decayed_mean, entity: customer, aggregate: decayed_mean, of: amount, half_life: 14d}
  - {name: k_decayed_std, entity: customer, aggregate: decayed_std, of: amount, half_life: 14d}
  - {name: k_decayed_z, zscore: [amount, k_decayed_mean, k_decayed_std]}
  - {name: k_decayed_ratio, ratio: [amount, k_decayed_mean]}
  - {name: k_decayed_count, entity: customer, aggregate: decayed_count, half_life: 3d}
""",
}
DEMO = {
    "share": """
  - {name: k_merchant, entity: customer, aggregate: share, of: merchant_id, window: 30d}
  - {name: k_mcc, entity: customer, aggregate: share, of: mcc, window: 30d}
  - {name: k_country, entity: customer, aggregate: share, of: merchant_country, window: 30d}
  - {name: k_channel, entity: customer, aggregate: share, of: channel, window: 30d}
""",
    "prior": """
  - {name: k_terminal, entity: terminal, aggregate: fraud_rate, window: 14d, prior: {rate: 0.01, weight: 20}}
  - {name: k_merchant_rate, entity: merchant, aggregate: fraud_rate, window: 28d, prior: {rate: 0.01, weight: 20}}
""",
    "circular": """
  - {name: k_hour_unlike, entity: customer, aggregate: circular_dispersion, of: hour_of_day, window: 30d}
  - {name: k_hour_spread, entity: customer, aggregate: circular_variance, of: hour_of_day, window: 30d}
  - {name: k_merchant_hour, entity: merchant, aggregate: circular_dispersion, of: hour_of_day, window: 30d}
""",
    "latest": """
  - {name: k_mean_5, entity: customer, aggregate: mean, of: amount, window: 30d, latest: 5}
  - {name: k_amount_to_mean_5, ratio: [amount, k_mean_5]}
  - {name: k_mean_gap, entity: customer, aggregate: mean_gap, window: 30d, latest: 5}
  - {name: k_gap_to_mean, ratio: [customer_gap, k_mean_gap]}
  - {name: k_merchant_20, entity: merchant, aggregate: mean, of: amount, window: 30d, latest: 20}
  - {name: k_merchant_20_ratio, ratio: [k_merchant_20, merchant_mean_30d]}
""",
    "neighbours": """
  - {name: k_terminals, entity: card, aggregate: neighbour_frauds, of: terminal, window: 14d}
  - {name: k_cards, entity: device, aggregate: neighbour_frauds, of: card, window: 14d}
  - {name: k_cards_of_terminal, entity: terminal, aggregate: neighbour_frauds, of: card, window: 14d}
""",
    "decayed": """
  - {name: k_decayed_mean, entity: customer, aggregate: decayed_mean, of: amount, half_life: 7d}
  - {name: k_decayed_std, entity: customer, aggregate: decayed_std, of: amount, half_life: 7d}
  - {name: k_decayed_z, zscore: [amount, k_decayed_mean, k_decayed_std]}
  - {name: k_decayed_merchant, entity: merchant, aggregate: decayed_mean, of: amount, half_life: 7d}
  - {name: k_decayed_merchant_ratio, ratio: [amount, k_decayed_merchant]}
""",
    "places": """
  - {name: k_near, entity: customer, aggregate: nearest_km, window: 30d}
  - {name: k_near_3, entity: customer, aggregate: nearest_km, window: 30d, latest: 3}
  - {name: k_near_card, entity: card, aggregate: nearest_km, window: 7d}
""",
}
FOREST_TREES = 100
# Two-sided 95 % of Student's t, by degrees of freedom 1 to 9 (any table of it).
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def extended(example: str, kinds: dict[str, str]) -> tuple[FeatureSet, dict[str, list[int]]]:
    """The example's set with the lines of all kinds, and the columns of "shipped", of each kind added to it and of
    "all"."""
    text = (EXAMPLES / example / "feature_set.yaml").read_text(encoding="utf-8").rstrip("\n")
    shipped = list(range(len(FeatureSet.from_yaml(text).names)))
    columns, first = {"shipped": shipped}, len(shipped)
    for kind, lines in kinds.items():
        text += lines.rstrip("\n")
        end = len(FeatureSet.from_yaml(text).names)
        columns[kind] = [*shipped, *range(first, end)]
        first = end
    columns["all"] = list(range(first))
    return FeatureSet.from_yaml(text), columns


@dataclass(frozen=True)
class Learner:
    """Plain xgboost: 300 trees, depth 6, rate 0.1; one genuine row in `thin` is learned from. `forest`: an isolation
    forest is measured too."""

    threads: int
    thin: int
    forest: bool = False

    def margins(
        self, features: np.ndarray, fraud: np.ndarray, learned: np.ndarray, tested: np.ndarray, columns: list[int]
    ) -> Any:
        """Of the rows `tested` (numbers), learned from the rows `learned` (bool [n]) of features float32 [n, k]."""
        xgboost = import_xgboost()
        kept = np.flatnonzero(learned & (fraud | (np.arange(len(fraud)) % self.thin == 0)))
        parameters = {
            "objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "tree_method": "hist", "nthread": self.threads,
        }  # fmt: skip
        weight = np.where(fraud[kept], 1.0, float(self.thin))
        X = np.ascontiguousarray(features[kept][:, columns])
        matrix = xgboost.DMatrix(X, fraud[kept].astype(np.float32), weight=weight, nthread=self.threads)
        booster = xgboost.train(parameters, matrix, 300)
        return booster.inplace_predict(np.ascontiguousarray(features[tested][:, columns]), predict_type="margin")

    def precisions(
        self, table: TrainingTable, learned: np.ndarray, tested: np.ndarray, columns: dict[str, list[int]]
    ) -> dict[str, float]:
        """Average precision by name of the columns."""
        features, fraud = table.features, table.label == 1
        found = {
            name: average_precision(fraud[tested], self.margins(features, fraud, learned, tested, chosen))
            for name, chosen in columns.items()
        }
        if self.forest:  # of the shipped features: as a challenger of its own, and as one feature more
            shipped = np.ascontiguousarray(features[:, columns["shipped"]])
            forest = CompiledModel(isolation_forest(shipped[learned], trees=FOREST_TREES, seed=1)).margins(shipped)
            both, all_of_both = np.column_stack([shipped, forest]), list(range(shipped.shape[1] + 1))
            found["forest alone"] = average_precision(fraud[tested], forest[tested].astype(np.float64))
            found["forest"] = average_precision(fraud[tested], self.margins(both, fraud, learned, tested, all_of_both))
        return found


def handbook(seed: int, learner: Learner, kinds: list[str]) -> dict[str, float]:
    feature_set, columns = extended("handbook", {kind: HANDBOOK[kind] for kind in kinds if kind in HANDBOOK})
    with tempfile.TemporaryDirectory() as folder:
        path = handbook_data.write(Path(folder) / "made.parquet", seed, days=110)
        table, rows = read_handbook(feature_set, path)
    last, first = int(rows.day.max()), int(rows.day.min())
    week = last - 13 - quality.DELAY_DAYS
    return learner.precisions(table, _learned(rows, first + 30, week), quality.test_rows(rows, week), columns)


def read_handbook(feature_set: FeatureSet, path: Path) -> tuple[TrainingTable, quality.Rows]:
    mapping = Mapping.from_yaml(EXAMPLES / "handbook" / "mapping.yaml")
    table = training_table(feature_set, file_batches(path, mapping))
    rows = quality.rows_of(
        path, table.payment_id, table.features, table.label, table.label_known_at_ms, table.event_time_ms
    )
    return table, rows


def _learned(rows: quality.Rows, first: int, week: int) -> np.ndarray:
    border = (week + 7 + quality.DELAY_DAYS) * DAY_MS
    return (rows.day >= first) & (rows.day < week + 7) & (rows.known_at_ms <= border)


def simulated(seed: int, learner: Learner, kinds: list[str]) -> dict[str, float]:
    feature_set, columns = extended("demo", {kind: DEMO[kind] for kind in kinds if kind in DEMO})
    until_ms = START_MS + 90 * DAY_MS

    def history() -> Iterator[Any]:
        for batch in World(seed, customers=1_000, fraud_share=0.01).stream(START_MS):
            if batch.event_time_ms[0] >= until_ms:
                return
            yield batch.keys(), batch.to_json(), batch.labels_json(), batch.label, batch.label_known_at_ms

    table = training_table(feature_set, chained(starmap(json_block, history()))).genuine_after(LABEL_DELAY_MS)
    border = int(np.quantile(table.event_time_ms[table.label == 1], 0.7))
    learned = (table.event_time_ms < border) & (table.label_known_at_ms <= border)
    return learner.precisions(table, learned, np.flatnonzero(table.event_time_ms >= border), columns)


def nested(data: Path, learner: Learner, kinds: list[str]) -> dict[str, Any]:
    """The kinds chosen before the first fold, then measured on all four."""
    feature_set, columns = extended("handbook", {kind: HANDBOOK[kind] for kind in kinds if kind in HANDBOOK})
    table, rows = read_handbook(feature_set, data)
    first = quality.day_number(quality.TRAIN_FROM)
    day = {text: quality.day_number(np.datetime64(text)) for text in ("2018-06-30", "2018-07-08", "2018-07-24")}
    border = (day["2018-06-30"] + 8) * DAY_MS
    learned = (rows.day >= first) & (rows.day <= day["2018-06-30"]) & (rows.known_at_ms <= border)
    compared = np.flatnonzero((rows.day >= day["2018-07-08"]) & (rows.day <= day["2018-07-24"]))
    before = learner.precisions(table, learned, compared, columns)
    print("before the first fold", {name: round(value, 4) for name, value in before.items()}, flush=True)
    chosen = max(columns, key=lambda name: before[name])
    measured: dict[str, list[float]] = {}
    for start in quality.WEEKS:
        week = quality.day_number(start)
        some = {name: columns[name] for name in {"shipped", chosen}}
        found = learner.precisions(table, _learned(rows, first, week), quality.test_rows(rows, week), some)
        print(start, {name: round(value, 4) for name, value in found.items()}, flush=True)
        for name, value in found.items():
            measured.setdefault(name, []).append(value)
    return {"before": before, "chosen": chosen, "folds": {name: float(np.mean(v)) for name, v in measured.items()}}


def table_of(name: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    """The differences to "shipped", with their interval over the runs; printed as they are."""
    result: dict[str, Any] = {"seeds": len(runs), "shipped": float(np.mean([run["shipped"] for run in runs]))}
    print(f"{name}: {len(runs)} seeds, AP of the shipped set {result['shipped']:.4f}")
    for kind in runs[0]:
        if kind == "shipped":
            continue
        difference = np.array([run[kind] - run["shipped"] for run in runs])
        half = STUDENT[len(runs) - 2] * difference.std(ddof=1) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
        result[kind] = {"difference": float(difference.mean()), "half_interval": float(half)}
        print(f"  + {kind:10} {difference.mean():+.4f} ± {half:.4f}   {' '.join(f'{d:+.4f}' for d in difference)}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="of each set, 8 at most")
    parser.add_argument("--sets", nargs="*", default=["handbook", "simulated"], choices=["handbook", "simulated"])
    parser.add_argument("--forest", action="store_true", help="an isolation forest too")
    parser.add_argument("--kinds", nargs="*", default=list(DEMO), choices=list(DEMO), help="all by default")
    parser.add_argument("--data", type=Path, default=quality.DATA)
    parser.add_argument("--nested", action="store_true", help="only the selection on the Handbook's own data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--thin", type=int, default=4, help="learn from one genuine payment in so many")
    arguments = parser.parse_args()
    learner = Learner(arguments.threads, arguments.thin, arguments.forest)
    if arguments.nested:
        if not arguments.data.is_file():
            columns = ", ".join(handbook_data.SCHEMA.names)
            parser.error(quality.WHERE_DATA_IS.format(path=arguments.data, columns=columns))
        print(json.dumps(nested(arguments.data, learner, arguments.kinds)))
        return
    result = {}
    ways = {"handbook": (handbook, HANDBOOK_SEEDS), "simulated": (simulated, SIMULATED_SEEDS)}
    for name in arguments.sets:
        run, seeds = ways[name]
        runs = []
        for seed in seeds[: arguments.seeds]:
            runs.append(run(seed, learner, arguments.kinds))
            print(name, seed, {kind: round(value, 4) for kind, value in runs[-1].items()}, flush=True)
        result[name] = table_of(name, runs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
