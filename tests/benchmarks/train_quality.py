"""Does `train` find more than plain xgboost: both on the same rows and features, over sets that it was not tuned on.

    python -m tests.benchmarks.train_quality [--long] [--sets PREFIX ...] [--keep FOLDER] [--trials N] [--check]

Plain xgboost: 300 trees, depth 6, rate 0.1, hist, all else by default, on every row whose label was known in time.
`train` sees the same rows by its own defaults. Measured is average precision on payments after them. The sets:

    handbook-K         the Handbook's own data, fold K of its protocol (only where the file is there)
    fresh-SEED         payments of the Handbook's kind, made by tests/handbook_data.py; the seeds serve nothing else
    simulated-S-SEED   the demo's simulator, S = share of fraud: 0.2 %, 1 %, 5 %
    drift-SEED         of the Handbook's kind: prices rise by 0.6 % a day, a kind of fraud ends, another one begins
    sharp-SEED         narrow bands of amount by category, at night: deep trees find them; half a million rows
    new-kind-SEED      one theft a card; in the last fifth of the days to learn from another kind takes the place of
                       the old one: other bands, and by day
    few-SEED           the same with 90 frauds, one a card: some 60 to learn from. The default for few frauds was chosen
                       on such sets, and is plain xgboost: .000 there is so by construction and shows nothing

By default one fold and short histories: some ten minutes on one core. `--long`: all folds, three seeds of each kind,
whole histories: an hour on an idle machine. A part of it by `--sets`, such as `--long --sets simulated-0.002`: each
set's line is printed as it is measured, so a run that is ended has what it had measured. `--keep FOLDER` keeps the
features, so that the next run only trains. A difference counts when its 95 % interval (customers drawn with
replacement, the same draws for both) leaves 0 out; `--check` fails when one is below 0. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.feature_set import FeatureSet
from scorer.backtest.backtest_figures import average_precisions_drawn
from scorer.bundle import Bundle
from scorer.files.file_columns import json_block
from scorer.files.mapping import Mapping
from scorer.replay import TrainingTable, chained, file_batches, training_table
from scorer.simulate import World
from scorer.training import TrainingRows, TrainingSettings, average_precision, import_xgboost, train
from tests import handbook_data
from tests.benchmarks import quality

EXAMPLES = quality.ROOT / "deploy" / "examples"
DAY_MS = quality.DAY_MS
START_MS = 1_704_067_200_000  # 2024-01-01
LABEL_DELAY_MS = 7 * DAY_MS
# Used by this benchmark and nothing else: no feature or default was chosen with them.
FRESH_SEEDS, SIMULATED_SEEDS, DRIFT_SEEDS, FEW_SEEDS = (
    (7101, 7102, 7103),
    (7201, 7202, 7203),
    (7301,),
    (7411, 7412, 7413),
)
SHARP_SEEDS = (7511, 7512, 7513)
NEW_KIND_SEEDS = (7701, 7702, 7703)
DRAWS = 200
SHARP = """\
name: sharp
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: weekday, payment: day_of_week}
  - {name: mcc, payment: mcc, categories: [CATEGORIES]}
  - {name: count_1h, entity: customer, aggregate: count, window: 1h}
  - {name: count_1d, entity: customer, aggregate: count, window: 1d}
  - {name: count_7d, entity: customer, aggregate: count, window: 7d}
  - {name: sum_1d, entity: customer, aggregate: sum, of: amount, window: 1d}
  - {name: mean_30d, entity: customer, aggregate: mean, of: amount, window: 30d}
  - {name: max_1d, entity: customer, aggregate: max, of: amount, window: 1d}
  - {name: max_30d, entity: customer, aggregate: max, of: amount, window: 30d}
  - {name: gap, entity: customer, aggregate: since_last}
  - {name: frauds_7d, entity: customer, aggregate: fraud_count, window: 7d}
  - {name: to_mean, ratio: [amount, mean_30d]}
""".replace("CATEGORIES", ", ".join(f'"{number}"' for number in range(5000, 5014)))
SHARP_POLICY = "name: sharp\nflag: {share: 0.005}\n"
SHARP_MAPPING = """\
payment_id: payment_id
event_time: event_time
amount: amount
currency: {constant: EUR}
customer_id: customer_id
mcc: mcc
label: fraud
label_delay: 7d
"""


@dataclass(frozen=True)
class Part:
    """Rows to learn from and rows to measure on, of one set; `customer` int64 of the latter."""

    feature_set: str
    policy: str
    learn: TrainingRows
    X: np.ndarray
    fraud: np.ndarray
    customer: np.ndarray
    label_gap_ms: int


@dataclass(frozen=True)
class Result:
    """One set: average precision of both, and their difference with its 95 % interval."""

    name: str
    train: float
    plain: float
    difference: float
    low: float
    high: float
    rows: int
    frauds: int
    test_frauds: int
    trees: int
    train_s: float
    plain_s: float


def _texts(example: str) -> tuple[str, str]:
    folder = EXAMPLES / example
    return (folder / "feature_set.yaml").read_text(), (folder / "policy.yaml").read_text()


def _of_handbook(rows: quality.Rows, week: int, begin: int) -> Part:
    """`week`: first day of the training week; `begin`: first day to learn from."""
    border = (week + 7 + quality.DELAY_DAYS) * DAY_MS
    learned = (rows.day >= begin) & (rows.day < week + 7) & (rows.known_at_ms <= border)
    tested = quality.test_rows(rows, week)
    learn = TrainingRows(
        rows.features[learned], rows.label[learned], rows.time_ms[learned], rows.known_at_ms[learned]
    )  # fmt: skip
    X, fraud = np.ascontiguousarray(rows.features[tested]), rows.label[tested] == 1
    return Part(*_texts("handbook"), learn, X, fraud, rows.customer[tested], quality.DELAY_DAYS * DAY_MS)


def _handbook(rows: Callable[[], quality.Rows], fold: int) -> Part:
    week = quality.day_number(quality.WEEKS[fold])
    return _of_handbook(rows(), week, quality.day_number(quality.TRAIN_FROM))


def _made(table: pa.Table) -> Part:
    """The last of the table's weeks is tested; the first 30 days only fill windows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.parquet"
        pq.write_table(table, path)
        rows = quality.read_rows(path, None)
    last, first = int(rows.day.max()), int(rows.day.min())
    return _of_handbook(rows, last - 13 - quality.DELAY_DAYS, first + 30)


def _fresh(seed: int, *, days: int) -> Part:
    return _made(handbook_data.payments(seed, days=days))


def _drift(seed: int, *, days: int) -> Part:
    table = handbook_data.payments(seed, days=days)
    day = (table["TX_DATETIME"].to_numpy() - handbook_data.START).astype(np.int64) // DAY_MS
    scenario = table["TX_FRAUD_SCENARIO"].to_numpy()
    place = table.schema.get_field_index("TX_AMOUNT")
    dearer = np.rint(table["TX_AMOUNT"].to_numpy() * 1.006**day * 100) / 100
    table = table.set_column(place, "TX_AMOUNT", pa.array(dearer))
    kept = ~((scenario == 3) & (day < 0.6 * days)) & ~((scenario == 2) & (day > 0.7 * days))
    return _made(table.filter(pa.array(kept)))


def _simulated(seed: int, *, share: float, customers: int, days: int) -> Part:
    feature_set, policy = _texts("demo")
    customer: dict[str, int] = {}
    until_ms = START_MS + days * DAY_MS

    def history() -> Iterator[Any]:
        for batch in World(seed, customers=customers, fraud_share=share).stream(START_MS):
            if batch.event_time_ms[0] >= until_ms:
                return
            customer.update(
                zip((f"p_{token:012x}" for token in batch.payment.tolist()), batch.customer.tolist(), strict=True)
            )
            yield batch.keys(), batch.to_json(), batch.labels_json(), batch.label, batch.label_known_at_ms

    table = training_table(FeatureSet.from_yaml(feature_set), chained(starmap(json_block, history())))
    table = table.genuine_after(LABEL_DELAY_MS)
    who = np.array([customer[payment_id] for payment_id in table.payment_id], dtype=np.int64)
    return _in_time(table, feature_set, policy, who)


def _in_time(table: TrainingTable, feature_set: str, policy: str, customer: np.ndarray) -> Part:
    """The last three tenths of the frauds, by time, are tested."""
    time_ms, fraud = table.event_time_ms, table.label == 1
    border = int(np.quantile(time_ms[fraud], 0.7))
    learned, tested = (time_ms < border) & (table.label_known_at_ms <= border), time_ms >= border
    learn = TrainingRows(
        table.features[learned], table.label[learned], time_ms[learned], table.label_known_at_ms[learned]
    )
    X = np.ascontiguousarray(table.features[tested])
    return Part(feature_set, policy, learn, X, fraud[tested], customer[tested], LABEL_DELAY_MS)


def _sharp(seed: int, *, customers: int, days: int, frauds: int | None = None, new_kind: bool = False) -> Part:
    """Stolen cards spend in narrow bands of amount by category, mostly at night; each card is stolen once at most.
    `frauds`: so many in all, one a card. `new_kind`: in the last fifth of the days to learn from, and after them, the
    bands are others, by day."""
    random = np.random.default_rng(seed)
    mccs = np.array([f"{number:04d}" for number in range(5000, 5014)])
    usual, taken = random.uniform(1.5, 4.5, len(mccs)), random.uniform(2.0, 7.0, len(mccs))
    preferred = random.dirichlet(np.ones(len(mccs)), customers).cumsum(axis=1)
    count = random.poisson(random.uniform(0.5, 6.5, customers) * days)
    who = np.repeat(np.arange(customers), count)
    kind = (random.random(len(who))[:, None] > preferred[who]).sum(axis=1).clip(0, len(mccs) - 1)
    hour = np.where(random.random(len(who)) < 0.5, random.uniform(12, 24, len(who)), random.uniform(0, 24, len(who)))
    second = (random.integers(0, days, len(who)) * 24 + hour) * 3600
    amount = np.exp(random.normal(usual[kind], 1.0))
    stolen = int(customers * min(0.9, days / 500)) if frauds is None else frauds
    victims = random.choice(customers, stolen, replace=False)
    thefts = np.repeat(victims, random.integers(6, 14, stolen) if frauds is None else 1)
    begin = np.repeat(random.uniform(0, days - 2, len(victims)), np.bincount(thefts, minlength=customers)[victims])
    at = random.choice(len(mccs), len(thefts), p=np.full(len(mccs), 1 / len(mccs)))
    bands = taken[at]
    day = np.floor(begin) + random.integers(0, 2, len(thefts))
    night = np.where(
        random.random(len(thefts)) < 0.8, random.uniform(22, 28, len(thefts)), random.uniform(0, 24, len(thefts))
    )
    if new_kind:
        learned = 0.7 * days - LABEL_DELAY_MS / DAY_MS  # see _in_time
        is_new, other = begin >= 0.8 * learned, np.random.default_rng([seed, 1])
        bands = np.where(is_new, other.permutation(taken)[at], bands)
        night = np.where(is_new, other.uniform(10, 16, len(thefts)), night)
    columns = (
        np.concatenate([who, thefts]),
        np.concatenate([second, (day * 24 + night) * 3600]),
        np.concatenate([amount, np.exp(random.normal(bands, 0.12))]),
        np.concatenate([kind, at]),
        np.repeat([0, 1], [len(who), len(thefts)]),
    )
    order = np.argsort(columns[1], kind="stable")
    customer, seconds, amounts, kinds, fraud = (column[order] for column in columns)
    table = pa.table(
        {
            "payment_id": pa.array(np.arange(len(order))).cast(pa.string()),
            "event_time": pa.array(START_MS + (seconds * 1000).astype(np.int64), pa.timestamp("ms", tz="UTC")),
            "amount": np.maximum(1, np.rint(amounts * 100)) / 100,
            "customer_id": pa.array(customer).cast(pa.string()),
            "mcc": mccs[kinds],
            "fraud": fraud,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sharp.parquet"
        pq.write_table(table, path)
        made = training_table(FeatureSet.from_yaml(SHARP), file_batches(path, Mapping.from_yaml(SHARP_MAPPING)))
    return _in_time(made, SHARP, SHARP_POLICY, customer[np.array(made.payment_id, dtype=np.int64)])


def sets(data: Path, *, long: bool) -> dict[str, Callable[[], Part]]:
    """The sets by name, each made when called."""
    made: dict[str, Callable[[], Part]] = {}
    if data.is_file():
        kept: list[quality.Rows] = []

        def rows() -> quality.Rows:
            if not kept:
                kept.append(quality.read_rows(data, None))
            return kept[0]

        made |= {f"handbook-{fold}": partial(_handbook, rows, fold) for fold in (range(4) if long else [0])}
    seeds = 3 if long else 1
    days = 183 if long else 110
    made |= {f"fresh-{seed}": partial(_fresh, seed, days=days) for seed in FRESH_SEEDS[:seeds]}
    size = {"customers": 2000 if long else 1000, "days": 90}
    for number, share in enumerate((0.002, 0.01, 0.05)):
        for seed in SIMULATED_SEEDS if long else SIMULATED_SEEDS[number : number + 1]:
            made[f"simulated-{share:g}-{seed}"] = partial(_simulated, seed, share=share, **size)
    made |= {f"drift-{seed}": partial(_drift, seed, days=days) for seed in DRIFT_SEEDS}
    few = {"customers": 300, "days": 100, "frauds": 90}
    wide = {"customers": 1000, "days": 180 if long else 120}
    made |= {f"sharp-{seed}": partial(_sharp, seed, **wide) for seed in SHARP_SEEDS[:seeds]}
    single = {"customers": 2000 if long else 600, "days": 60, "frauds": 1900 if long else 580, "new_kind": True}
    made |= {f"new-kind-{seed}": partial(_sharp, seed, **single) for seed in NEW_KIND_SEEDS[:seeds]}
    return made | {f"few-{seed}": partial(_sharp, seed, **few) for seed in FEW_SEEDS}


def _cached(make: Callable[[], Part], path: Path | None) -> Part:
    if path is not None and path.is_file():
        stored = np.load(path)
        names = ("X", "label", "event_time_ms", "label_known_at_ms")
        learn = TrainingRows(*(stored[f"learn_{name}"] for name in names))
        texts = str(stored["feature_set"]), str(stored["policy"])
        return Part(*texts, learn, stored["X"], stored["fraud"], stored["customer"], int(stored["label_gap_ms"]))
    part = make()
    if path is not None:
        learned = {f"learn_{name}": values for name, values in vars(part.learn).items()}
        np.savez(path, **learned, **{name: np.asarray(v) for name, v in vars(part).items() if name != "learn"})
    return part


def plain_margins(part: Part, *, seed: int, threads: int) -> np.ndarray:
    """float32 [n]: xgboost with 300 trees of depth 6 at a rate of 0.1, all else by its defaults."""
    xgboost = import_xgboost()
    parameters = {
        "objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "tree_method": "hist", "seed": seed,
        "nthread": threads,
    }  # fmt: skip
    matrix = xgboost.DMatrix(part.learn.X, part.learn.fraud.astype(np.float32), nthread=threads)
    booster = xgboost.train(parameters, matrix, 300)
    return np.asarray(booster.inplace_predict(part.X, predict_type="margin"), dtype=np.float32)


def measure(name: str, part: Part, folder: Path, *, seed: int, trials: int | None, threads: int) -> Result:
    settings = TrainingSettings(
        name="measured", created_at="2024-01-01T00:00:00Z", seed=seed, label_gap_ms=part.label_gap_ms, threads=threads
    )
    settings = settings if trials is None else replace(settings, trials=trials)
    began = time.perf_counter()
    report = train(part.learn, part.feature_set, part.policy, folder / name, settings)
    trained = time.perf_counter()
    ours = Bundle.load(report.output).model.margins(part.X)
    loaded = time.perf_counter()
    theirs = plain_margins(part, seed=seed, threads=threads)
    plain_s = time.perf_counter() - loaded
    draws = [
        average_precisions_drawn(part.customer, part.fraud, scores, rounds=DRAWS, seed=1) for scores in (ours, theirs)
    ]
    low, high = np.nanpercentile(draws[0] - draws[1], [2.5, 97.5])
    a, b = average_precision(part.fraud, ours), average_precision(part.fraud, theirs)
    return Result(
        name=name, train=a, plain=b, difference=a - b, low=float(low), high=float(high), rows=len(part.learn.X),
        frauds=int(part.learn.fraud.sum()), test_frauds=int(part.fraud.sum()), trees=report.trees,
        train_s=trained - began, plain_s=plain_s,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=quality.DATA)
    parser.add_argument("--long", action="store_true", help="all folds and seeds, whole histories")
    parser.add_argument("--sets", nargs="*", default=[""], help="only sets whose names begin so")
    parser.add_argument("--keep", type=Path, help="folder that keeps the features of each set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, help="recipes to search; by default as `train` does")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="fail when `train` is worse than plain xgboost somewhere")
    arguments = parser.parse_args()
    results: list[Result] = []
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    heads = f"{'set':24} {'train':>7} {'plain':>7} {'difference':>10}  {'95 % interval':18}"
    print(f"{heads} {'frauds':>7} {'trees':>6} {'s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in sets(arguments.data, long=arguments.long).items():
            if not name.startswith(tuple(arguments.sets)):
                continue
            size = "long" if arguments.long else "short"
            path = None if arguments.keep is None else arguments.keep / f"{size}-{name}.npz"
            part = _cached(make, path)
            one = measure(
                name, part, Path(folder), seed=arguments.seed, trials=arguments.trials, threads=arguments.threads
            )
            results.append(one)
            print(
                f"{name:24} {one.train:7.4f} {one.plain:7.4f} {one.difference:+10.4f} "
                f" [{one.low:+.4f}, {one.high:+.4f}] {one.frauds:7d} {one.trees:6d} {one.train_s:6.1f}",
                flush=True,
            )
    worse = [one.name for one in results if one.high < 0.0]
    mean = float(np.mean([one.difference for one in results])) if results else 0.0
    print(json.dumps({"mean_difference": mean, "worse": worse, "sets": [asdict(one) for one in results]}))
    if arguments.check and worse:
        parser.exit(1, f"train is worse than plain xgboost beyond noise on {', '.join(worse)}\n")


if __name__ == "__main__":
    main()
