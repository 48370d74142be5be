"""Training: the second fit, which learns from days that the measured model has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.feature_set import FeatureSet
from scorer.bundle import Bundle
from scorer.model.calibration import fit_platt
from scorer.training import TrainingReport, TrainingRows, TrainingSettings, average_precision, train
from scorer.training.boosting import ROUNDS_FEW, Boosting, Data, boost_rounds, plain_rounds
from scorer.training.recipe_search import RECIPE_OF_FEW

xgb = pytest.importorskip("xgboost")

DAY_MS = 86_400_000
COLUMNS = 20
FEATURE_SET = """
name: cards
currency: EUR
entities: {customer: [customer_id]}
features:
""" + "".join(
    f"  - {{name: count_{number}, entity: customer, aggregate: count, window: {number}h}}\n"
    for number in range(1, COLUMNS + 1)
)
POLICY = "name: cards\nflag: {share: 0.02}\n"
# Two columns in which the new kind lies in narrow bands.
BANDS = np.array([(0.1, 0.7), (0.3, 0.2), (0.5, 0.9), (0.7, 0.4), (0.9, 0.1), (0.2, 0.5), (0.4, 0.8), (0.6, 0.3)])


def _part(
    rng: np.random.Generator, rows: int, *, old: int, new: int, days: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 [n, 20], label int8 [n], time int64 [n]; so many frauds of the old kind and of the new one."""
    X = rng.uniform(size=(rows, COLUMNS)).astype(np.float32)
    frauds = rng.choice(rows, old + new, replace=False)
    X[frauds[:old], 0] = rng.uniform(0.85, 1.0, old)
    X[frauds[:old], 1] = rng.uniform(0.6, 1.0, old)
    X[frauds[old:], 2:4] = BANDS[rng.integers(0, len(BANDS), new)] + rng.uniform(0, 0.03, (new, 2))
    label = np.zeros(rows, np.int8)
    label[frauds] = 1
    return X, label, np.sort(rng.integers(days[0] * DAY_MS, days[1] * DAY_MS, rows)).astype(np.int64)


def _trained(learned: list[tuple[np.ndarray, np.ndarray, np.ndarray]], output: Path) -> TrainingReport:
    X, label, times = (np.concatenate(column) for column in zip(*learned, strict=True))
    settings = TrainingSettings("cards", "2025-01-01T00:00:00Z", threads=1)
    return train(TrainingRows(X, label, times, times), FEATURE_SET, POLICY, output, settings)


def test_a_kind_of_fraud_that_began_in_the_last_weeks_is_found_as_plain_boosting_finds_it(tmp_path: Path) -> None:
    """Of a new kind that the training part has no fraud of, the bundle finds as much on later days as xgboost with 300
    rounds on all the same rows does."""
    rng = np.random.default_rng(1)
    learned = [_part(rng, 8_000, old=60, new=0, days=(0, 60)), _part(rng, 2_000, old=0, new=150, days=(60, 80))]
    later, later_label, _ = _part(rng, 6_000, old=0, new=150, days=(80, 140))
    report = _trained(learned, tmp_path / "bundle")
    assert report.training.train_frauds == 60  # those of the old kind alone
    found = average_precision(later_label == 1, Bundle.load(report.output).model.margins(later))
    X, label = (np.concatenate([part[place] for part in learned]) for place in (0, 1))
    plain = xgb.train({"objective": "binary:logistic", "eta": 0.1, "nthread": 1}, xgb.DMatrix(X, label), 300)
    assert found > 0.9 * average_precision(later_label == 1, plain.inplace_predict(later, predict_type="margin"))


def test_the_model_measured_is_made_as_the_one_written(tmp_path: Path) -> None:
    """Calibration and threshold are of a model with the rounds and the recipe of the written one: with fewer rounds its
    margins lie nearer together, and the written one's would be taken for surer than they are."""
    rng = np.random.default_rng(2)
    learned = [_part(rng, 4_000, old=60, new=0, days=(0, 60)), _part(rng, 1_000, old=0, new=70, days=(60, 80))]
    report = _trained(learned, tmp_path / "bundle")
    # 35 frauds of the later days can't stop: as many rounds as plain boosting takes.
    assert report.trees == plain_rounds(report.recipe.eta) > max(trial.rounds for trial in report.trials)
    X, label, _ = learned[0]
    boosting = Boosting(xgb, FeatureSet.from_yaml(FEATURE_SET), seed=1, threads=1)
    measured = boost_rounds(boosting, Data(X, label == 1, X[:0], label[:0] == 1), report.recipe, report.trees)
    held_out, truth = learned[1][0], learned[1][1] == 1
    margins = measured.inplace_predict(held_out, predict_type="margin")
    assert report.metrics["average_precision"] == pytest.approx(average_precision(truth, margins))
    assert Bundle.load(report.output).manifest.calibration == fit_platt(margins, truth.astype(np.float64))


def test_few_frauds_before_the_later_days_choose_nothing(tmp_path: Path) -> None:
    """However many come later, the model is plain xgboost, as the guide for risk teams says."""
    rng = np.random.default_rng(3)
    learned = [_part(rng, 4_000, old=40, new=0, days=(0, 60)), _part(rng, 1_000, old=0, new=120, days=(60, 80))]
    report = _trained(learned, tmp_path / "bundle")
    assert (report.recipe, report.trees, report.late_trials) == (RECIPE_OF_FEW, ROUNDS_FEW, [])


def test_the_report_says_which_recipes_were_looked_at_again(tmp_path: Path) -> None:
    """Repeatable by what the report names: the chosen one first, and the written one among them."""
    rng = np.random.default_rng(1)
    learned = [_part(rng, 8_000, old=60, new=0, days=(0, 60)), _part(rng, 2_000, old=0, new=150, days=(60, 80))]
    report = _trained(learned, tmp_path / "bundle")
    assert report.recipe in [trial.recipe for trial in report.late_trials]
    assert report.trees >= max(trial.rounds for trial in report.late_trials if trial.recipe == report.recipe)
