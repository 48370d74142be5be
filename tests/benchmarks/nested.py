"""Chosen honestly: features and recipe from payments before the Handbook's first fold alone, then measured once.

    python -m tests.benchmarks.nested [--data FILE | --generated SEED] [--thin N] [--threads N]

The candidates are each list of features below with each recipe; how the lists were found, and on which data, is in
deploy/docs/pages/benchmarks.md. The inner folds have the
protocol of the four outer ones (tests/benchmarks/quality.py) four times before them: the last day that they test is the
day before the first outer fold begins, 2018-07-25. To be quick they learn from all frauds and one in `--thin` of the
other payments. The candidate with the highest mean average precision there is measured on the outer folds, on all
payments, and nothing is chosen after that. `best` is what hardly a ranking can be expected to exceed.

The lines of the shipped set were written with the four folds in view, which no choice among them makes undone: on data
of other seeds nothing was chosen. The last line is one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.feature_set import FeatureSet
from scorer.training import Recipe, average_precision, import_xgboost
from scorer.training.boosting import Boosting, Data, boost_rounds
from tests.benchmarks import quality
from tests.benchmarks.quality import EXAMPLE, WEEKS, Rows, test_rows

# Training weeks. The last tests until 20 days after its first day.
INNER_WEEKS = [WEEKS[-1] - np.timedelta64(21 + 7 * k, "D") for k in range(4)]
UNEXPLAINED = "{amount: {at_most: 220}, amount_to_median: {below: 2.5}}"
UNUSUAL = "{amount_to_usual: {at_least: 2}}"
STRICT = "{amount: {at_most: 220}, amount_to_median: {below: 1.7}, over_2_5_14d: 0}"
ADDED = {
    "last labels": f"""
  - {{name: last_label, entity: terminal, aggregate: last_label}}
  - {{name: last_plain, entity: terminal, aggregate: last_label, where: {UNEXPLAINED}}}
  - {{name: last_strict, entity: terminal, aggregate: last_label, where: {STRICT}}}
""",
    "more labels": f"""
  - {{name: strict_rate_7d, entity: terminal, aggregate: fraud_rate, window: 7d, delay: 7d, where: {STRICT}}}
  - {{name: strict_rate_28d, entity: terminal, aggregate: fraud_rate, window: 28d, delay: 7d, where: {STRICT}}}
  - {{name: plain_rate_21d, entity: terminal, aggregate: fraud_rate, window: 21d, delay: 7d, where: {UNEXPLAINED}}}
  - {{name: customer_since_fraud, entity: customer, aggregate: since_fraud}}
  - {{name: customer_frauds_7d, entity: customer, aggregate: fraud_count, window: 7d, delay: 7d}}
  - {{name: customer_frauds_14d, entity: customer, aggregate: fraud_count, window: 14d, delay: 7d}}
  - {{name: unusual_rate_7d, entity: customer, aggregate: fraud_rate, window: 7d, delay: 7d, where: {UNUSUAL}}}
  - {{name: unusual_rate_14d, entity: customer, aggregate: fraud_rate, window: 14d, delay: 7d, where: {UNUSUAL}}}
""",
}
LEFT_OUT = ("terminal_rate", "strict", "since_strict", "since_first_strict", "over_2_", "above_usual_2_", "customer_m")
"""Beginnings of names: what "fewer" does without."""
RECIPES = {
    "the default": (Recipe(), 150),
    "plain": (Recipe(max_depth=6, eta=0.1, leaf_share_min=1e-5, subsample=1.0, column_share=1.0), 100),
    "shallow": (Recipe(max_depth=3, eta=0.1), 200),
}


@dataclass(frozen=True)
class Candidate:
    """A list of columns, and how to learn from them."""

    name: str
    columns: list[int]
    recipe: Recipe
    rounds: int


def extended() -> FeatureSet:
    """The shipped set with all lines that are looked at."""
    shipped = (EXAMPLE / "feature_set.yaml").read_text(encoding="utf-8").rstrip("\n")
    return FeatureSet.from_yaml(shipped + "".join(lines.rstrip("\n") for lines in ADDED.values()) + "\n")


def candidates() -> Iterator[Candidate]:
    shipped = list(range(len(FeatureSet.from_yaml(EXAMPLE / "feature_set.yaml").names)))
    names = extended().names
    lists = {
        "shipped": shipped,
        "fewer": [column for column in shipped if not names[column].startswith(LEFT_OUT)],
        "+ last labels": [*shipped, *range(len(shipped), names.index("last_strict") + 1)],
        "+ more labels": list(range(len(names))),
    }
    for features, columns in lists.items():
        for way, (recipe, rounds) in RECIPES.items():
            yield Candidate(f"{features}, {way}", columns, recipe, rounds)


@dataclass(frozen=True)
class Learner:
    rows: Rows
    feature_set: FeatureSet
    threads: int

    def precision(self, candidate: Candidate, start: np.datetime64, thin: int = 1) -> float:
        """Average precision on the test week of the fold whose training week begins at `start`."""
        rows, week = self.rows, quality.day_number(start)
        fraud = rows.label == 1
        kept = np.flatnonzero(quality.learned_rows(rows, week) & (fraud | (np.arange(len(fraud)) % thin == 0)))
        tested = test_rows(rows, week)
        columns = candidate.columns
        # Not checked again: a line left out may be what another's `where` names, which asks nothing of a learner.
        chosen = self.feature_set.model_copy(update={"features": [self.feature_set.features[n] for n in columns]})
        X, none = np.ascontiguousarray(rows.features[kept][:, columns]), np.empty((0, len(columns)), dtype=np.float32)
        data = Data(X, fraud[kept], none, np.empty(0, dtype=np.bool_))
        boosting = Boosting(import_xgboost(), chosen, seed=1, threads=self.threads)
        booster = boost_rounds(boosting, data, candidate.recipe, candidate.rounds)
        margins = booster.inplace_predict(
            np.ascontiguousarray(rows.features[tested][:, columns]), predict_type="margin"
        )
        return average_precision(fraud[tested], margins)


def select(learner: Learner, thin: int) -> tuple[Candidate, dict[str, float]]:
    """The candidate of the highest mean over the inner folds, and each one's."""
    found: dict[str, float] = {}
    best: Candidate | None = None
    print(
        f"inner folds, before {WEEKS[-1]}" + " " * 8 + " mean " + " ".join(str(week)[5:] + " " for week in INNER_WEEKS)
    )
    for candidate in candidates():
        each = [learner.precision(candidate, week, thin) for week in INNER_WEEKS]
        found[candidate.name] = float(np.mean(each))
        print(
            f"{candidate.name:33} {found[candidate.name]:6.4f} " + " ".join(f"{one:6.4f}" for one in each), flush=True
        )
        if best is None or found[candidate.name] > found[best.name]:
            best = candidate
    assert best is not None
    return best, found


def main() -> None:
    parser = quality.parser_with_data(__doc__)
    parser.add_argument("--thin", type=int, default=5, help="inner folds learn from one genuine payment in so many")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    feature_set = extended()
    with tempfile.TemporaryDirectory() as folder:
        rows = quality.read_rows(quality.data_of(parser, arguments, Path(folder)), None, feature_set)
    report(Learner(rows, feature_set, arguments.threads), arguments.thin)


def report(learner: Learner, thin: int) -> None:
    chosen, inner = select(learner, thin)
    print(f"chosen: {chosen.name}\n{'outer folds, measured once':33} {'AP':>6} {'best':>6}")
    folds = []
    for start in WEEKS:
        best = quality.best_precision(learner.rows, test_rows(learner.rows, quality.day_number(start)))
        folds.append((learner.precision(chosen, start), best))
        print(f"{start!s:33} {folds[-1][0]:6.4f} {best:6.4f}", flush=True)
    mean, best = (float(value) for value in np.mean(folds, axis=0))
    print(f"{'mean':33} {mean:6.4f} {best:6.4f}")
    print(json.dumps({"inner": inner, "chosen": chosen.name, "average_precision": mean, "best": best}))


if __name__ == "__main__":
    main()
