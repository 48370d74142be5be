"""Quality: the shipped handbook features through training and the compiled model, on the handbook's four folds.

    python -m tests.benchmarks.quality [--data ../shared/data/handbook.parquet | --generated SEED] [--features FILE]

Protocol (Fraud Detection Handbook, chapter 5): training from 2018-05-01 to the end of the training week, seven days of
delay, a test week. On test day d, customers with a fraud in the training week or on a day up to d - 8 are taken out.
Average precision and AUC over a fold's test rows; card precision at 100 by day. The figure is the mean of the folds.
`--generated SEED` makes data of the same kind instead (tests/handbook_data.py), so that what was tuned on one seed
is measured on others. `best` is the average precision of a ranking by the chance of fraud, which hardly a model can be
expected to exceed (tests/benchmarks/handbook_posterior.py); `most` is a simpler bound above it: every fraud that
anything known by then points to stands before every genuine payment, the others stand anywhere (`most_precise`).
Features may be taken from a file that `fraud-scorer features` wrote. The last line is one JSON object. Features and
recipe were chosen on these folds; `python -m tests.benchmarks.nested` chooses before the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from features.feature_set import FeatureSet
from scorer.bundle import Bundle
from scorer.files.mapping import Mapping
from scorer.replay import file_batches, training_table
from scorer.training import (
    TrainingRows,
    TrainingSettings,
    area_under_roc,
    average_precision,
    card_precision,
    train,
)
from tests import handbook_data
from tests.benchmarks.handbook_posterior import Payments, chance_of_fraud

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "deploy" / "examples" / "handbook"
DAY_MS = 86_400_000
DELAY_DAYS = 7
HIDDEN, COMPROMISED_DAYS = 2, 28  # the scenario of terminals
TRAIN_FROM = np.datetime64("2018-05-01")
WEEKS = [np.datetime64("2018-08-15") - np.timedelta64(7 * k, "D") for k in range(4)]
DATA = ROOT.parent / "shared" / "data" / "handbook.parquet"
WHERE_DATA_IS = """\
no benchmark data at {path}.
It is the Fraud Detection Handbook's simulated data, which has no licence and so is not part of this repository:
https://github.com/Fraud-Detection-Handbook/simulated-data-raw (a pickled table a day, 2018-04-01 to 2018-09-30). Join
the days, in order of time, to one Parquet file with the columns
{columns}
and name it with --data FILE; or measure on data of the same kind, made here: --generated SEED."""
PUBLISHED = {
    "XGBoost (chapter 5, best on test)": (0.871, 0.694, 0.304),
    "Neural network (chapter 7)": (0.876, 0.675, 0.303),
    "41 features, 84 days (earlier trial)": (0.884, 0.752, 0.310),
}


@dataclass(frozen=True)
class Rows:
    """All payments in the order of the file: features float32 [n, k], and what the protocol needs of each, [n]."""

    features: np.ndarray
    label: np.ndarray
    known_at_ms: np.ndarray
    time_ms: np.ndarray
    customer: np.ndarray
    terminal: np.ndarray
    scenario: np.ndarray
    amount: np.ndarray
    """float64, major units"""

    @property
    def day(self) -> np.ndarray:
        return self.time_ms // DAY_MS


@dataclass(frozen=True)
class Fold:
    """One fold's figures on its test week."""

    week: str
    auc: float
    average_precision: float
    best: float
    most: float
    cp100: float
    trees: int
    rows_learned_from: int
    validation_average_precision: float
    train_s: float
    frauds: int
    found: dict[str, float]
    """By scenario: the share of its frauds among as many best-scored payments as there are frauds."""


def read_rows(data: Path, features: Path | None, feature_set: FeatureSet | None = None) -> Rows:
    """Computed from the file, or taken from a file of features. `feature_set`: None is the shipped one."""
    feature_set = feature_set or FeatureSet.from_yaml(EXAMPLE / "feature_set.yaml")
    if features is None:
        table = training_table(feature_set, file_batches(data, Mapping.from_yaml(EXAMPLE / "mapping.yaml")))
        ids, X, label = table.payment_id, table.features, table.label
        known_at_ms, time_ms = table.label_known_at_ms, table.event_time_ms
    else:
        written = pq.read_table(features)
        ids = written["payment_id"].to_pylist()
        X = np.empty((len(ids), len(feature_set.names)), dtype=np.float32)
        for column, name in enumerate(feature_set.names):
            X[:, column] = written[name].to_numpy()
        label = written["label"].to_numpy().astype(np.int8)
        known_at_ms = written["label_known_at"].to_numpy().astype("datetime64[ms]").astype(np.int64)
        time_ms = written["event_time"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    return rows_of(data, ids, X, label, known_at_ms, time_ms)


def rows_of(
    data: Path,
    payment_ids: Sequence[str],
    features: np.ndarray,
    label: np.ndarray,
    known_at_ms: np.ndarray,
    time_ms: np.ndarray,
) -> Rows:
    """The rows with what the protocol needs of each payment, from the file that they were made of."""
    names = ["TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD_SCENARIO", "TX_AMOUNT"]
    source = pq.read_table(data, columns=names)
    number = source["TRANSACTION_ID"].to_numpy().astype(np.int64)
    order = np.argsort(number)
    place = order[np.searchsorted(number[order], np.array(payment_ids, dtype=np.int64))]
    customer, terminal, scenario = (
        np.array(source[name].to_pylist(), dtype=np.int64)[place]
        for name in ("CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD_SCENARIO")
    )
    amount = source["TX_AMOUNT"].to_numpy()[place]
    return Rows(features, label, known_at_ms, time_ms, customer, terminal, scenario, amount)


def day_number(date: np.datetime64) -> int:
    """Days since 1970, as `Rows.day` has them."""
    return int(date.astype("datetime64[D]").astype(np.int64))


def learned_rows(rows: Rows, week: int) -> np.ndarray:
    """bool [n]: up to the end of the training week. `week`: its first day."""
    return np.asarray((rows.day >= day_number(TRAIN_FROM)) & (rows.day < week + 7))


def test_rows(rows: Rows, week: int) -> np.ndarray:
    """Row numbers of the test week, without the customers known by then. `week`: first day of the training week."""
    fraud = rows.label == 1
    parts = []
    for k in range(7):
        known_days = (rows.day >= week) & (rows.day <= week + 6 + k)
        known = np.unique(rows.customer[fraud & known_days])
        today = np.flatnonzero(rows.day == week + 7 + DELAY_DAYS + k)
        parts.append(today[~np.isin(rows.customer[today], known)])
    return np.concatenate(parts)


def best_precision(rows: Rows, tested: np.ndarray) -> float:
    """The average precision of the test rows by their chance of fraud, from how the payments were made.

    Hardly a ranking can be expected to exceed it. Among a few hundred frauds chance may put one above it.
    """
    payments = Payments(rows.time_ms, rows.customer, rows.terminal, rows.amount, rows.label == 1)
    return average_precision(rows.label[tested] == 1, chance_of_fraud(payments, tested))


def most_precise(rows: Rows, tested: np.ndarray) -> float:
    """The average precision that no ranking of the test rows can be expected to exceed.

    Scenario 2 makes every payment of a terminal fraud for 28 days, and changes nothing else about them: until the first
    of its frauds is known, seven days later, nothing tells them from genuine ones. So all frauds come first but those
    of scenario 2 at a terminal with no known fraud of the 28 days; these stand in random order among the genuine.
    """
    of_terminals = np.flatnonzero((rows.label == 1) & (rows.scenario == HIDDEN))
    key = rows.terminal[of_terminals] * 10**14 + rows.time_ms[of_terminals]
    order = np.sort(key)
    asked = tested[np.isin(tested, of_terminals)]
    now = rows.terminal[asked] * 10**14 + rows.time_ms[asked]
    known_from, known_until = (
        np.searchsorted(order, now - days * DAY_MS, side="right") for days in (COMPROMISED_DAYS, DELAY_DAYS)
    )
    later = int((known_from == known_until).sum())
    first = int((rows.label[tested] == 1).sum()) - later
    found = np.arange(1, later + 1)
    place = first + found * (len(tested) - first + 1) / (later + 1)
    return float((first + ((first + found) / place).sum()) / (first + later))


def run_fold(rows: Rows, start: np.datetime64, folder: Path, *, seed: int, trials: int, threads: int) -> Fold:
    week = day_number(start)
    learned = learned_rows(rows, week)
    began = time.perf_counter()
    report = train(
        TrainingRows(rows.features[learned], rows.label[learned], rows.time_ms[learned], rows.known_at_ms[learned]),
        (EXAMPLE / "feature_set.yaml").read_text(),
        (EXAMPLE / "policy.yaml").read_text(),
        folder / str(start),
        TrainingSettings(
            name="handbook",
            created_at="2018-09-01T00:00:00Z",
            seed=seed,
            label_gap_ms=DELAY_DAYS * DAY_MS,
            trials=trials,
            threads=threads,
        ),
    )
    took = time.perf_counter() - began
    bundle = Bundle.load(report.output)
    tested = test_rows(rows, week)
    scores = bundle.model.margins(np.ascontiguousarray(rows.features[tested]))
    truth = rows.label[tested] == 1
    best = np.argsort(-scores, kind="stable")[: int(truth.sum())]
    in_best = np.zeros(len(tested), dtype=np.bool_)
    in_best[best] = True
    found = {str(scenario): float(in_best[rows.scenario[tested] == scenario].mean()) for scenario in (1, 2, 3)}
    daily = card_precision(rows.day[tested], rows.customer[tested], scores, truth, 100)
    return Fold(
        week=str(start), auc=area_under_roc(truth, scores), average_precision=average_precision(truth, scores),
        best=best_precision(rows, tested), most=most_precise(rows, tested),
        cp100=float(np.mean(daily)), trees=report.trees,
        rows_learned_from=report.training.refit_rows,
        validation_average_precision=report.metrics["average_precision"], train_s=took, frauds=int(truth.sum()),
        found=found,
    )  # fmt: skip


def parser_with_data(description: str | None) -> argparse.ArgumentParser:
    """A parser that takes the payments by --data or --generated, for `data_of`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, default=DATA)
    source.add_argument("--generated", type=int, metavar="SEED", help="make data of the same kind from this seed")
    return parser


def data_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace, folder: Path) -> Path:
    """The file of payments, made in `folder` where a seed was given. Ends the program where there is none."""
    if arguments.generated is not None:
        return handbook_data.write(folder / "handbook.parquet", arguments.generated)
    if not arguments.data.is_file():
        parser.error(WHERE_DATA_IS.format(path=arguments.data, columns=", ".join(handbook_data.SCHEMA.names)))
    return Path(arguments.data)


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="1 is quicker on a machine that is busy otherwise")
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1, 2, 3], help="which of the four, newest first")
    arguments = parser.parse_args()
    folds: list[Fold] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = read_rows(data_of(parser, arguments, Path(folder)), arguments.features)
        print(
            f"{'training week':36} {'AUC':>6} {'AP':>6} {'best':>6} {'most':>6} {'CP@100':>6} {'trees':>6} "
            f"{'train s':>8}  found of 1, 2, 3"
        )
        for number in arguments.folds:
            fold = run_fold(
                rows,
                WEEKS[number],
                Path(folder),
                seed=arguments.seed,
                trials=arguments.trials,
                threads=arguments.threads,
            )
            folds.append(fold)
            shares = ", ".join(f"{share:.2f}" for share in fold.found.values())
            print(
                f"{fold.week:36} {fold.auc:6.4f} {fold.average_precision:6.4f} {fold.best:6.4f} {fold.most:6.4f} "
                f"{fold.cp100:6.4f} {fold.trees:6d} {fold.train_s:8.1f}  {shares}",
                flush=True,
            )
    names = ("auc", "average_precision", "best", "most", "cp100")
    mean = {name: float(np.mean([getattr(fold, name) for fold in folds])) for name in names}
    print(f"{'mean':36} " + " ".join(f"{mean[name]:6.4f}" for name in names))
    # Measured on the handbook's own data: not comparable with other seeds.
    for name, (auc, precision, cards) in PUBLISHED.items() if arguments.generated is None else ():
        print(f"{name:36} {auc:6.3f} {precision:6.3f} {'':13} {cards:6.3f}")
    print(json.dumps(mean | {"folds": [asdict(fold) for fold in folds]}))


if __name__ == "__main__":
    main()
