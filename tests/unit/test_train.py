"""Training: the split in time, the threshold, the gate, determinism, and what is refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.feature_set import FeatureSet
from scorer.bundle import Bundle
from scorer.model import CompiledModel
from scorer.pipeline import Batch, Pipeline
from scorer.training import (
    GateError,
    LeakageError,
    Recipe,
    TrainError,
    TrainingReport,
    TrainingRows,
    TrainingSettings,
    area_under_roc,
    average_precision,
    boosting,
    leakage_suspects,
    threshold_for_share,
    train,
)
from scorer.training.boosting import ROUNDS_FEW
from scorer.training.compiled_booster import CompiledBooster
from scorer.training.label_delays import late_confirmations
from scorer.training.recipe_search import RECIPE_OF_FEW, RECIPES, outranks
from scorer.training.time_split import split_in_time

xgb = pytest.importorskip("xgboost")

FEATURE_SET = """
name: cards
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}
  - {name: customer_count_7d, entity: customer, aggregate: count, window: 7d}
"""
POLICY = "name: cards\nflag: {score: 0.3}\n"
SHARE_POLICY = "name: cards\nflag: {share: 0.02}\n"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def _data(rows: int = 4_000, seed: int = 0) -> TrainingRows:
    """A month of payments; fraud depends on amount and count, labels are known a day later."""
    rng = np.random.default_rng(seed)
    X = rng.exponential(size=(rows, 4)).astype(np.float32)
    X[rng.random(X.shape) < 0.1] = np.nan
    risk = np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 2]) + rng.normal(scale=0.5, size=rows)
    label = (risk > 4).astype(np.int8)
    label[rng.random(rows) < 0.05] = -1
    times = np.sort(rng.integers(0, 30 * DAY_MS, rows)).astype(np.int64)
    return TrainingRows(X, label, times, times + DAY_MS)


def _train(data: TrainingRows, output: Path, **changed: Any) -> TrainingReport:
    """A run with some settings or arguments changed."""
    settings = TrainingSettings("cards", "2025-01-01T00:00:00Z", seed=7, label_gap_ms=DAY_MS, threads=1)
    of_settings = {name: changed.pop(name) for name in list(changed) if hasattr(settings, name)}
    arguments: dict[str, Any] = {"feature_set_yaml": FEATURE_SET, "policy_yaml": POLICY} | changed
    return train(data, output=output, settings=replace(settings, **of_settings), **arguments)


@pytest.fixture(scope="module")
def data() -> TrainingRows:
    return _data()


@pytest.fixture(scope="module")
def trained(
    data: TrainingRows, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingReport, list[tuple[int, int, float]]]:
    steps: list[tuple[int, int, float]] = []
    output = tmp_path_factory.mktemp("train") / "bundle"
    return _train(data, output, progress=lambda *step: steps.append(step)), steps


def test_the_bundle_is_what_the_report_says(
    trained: tuple[TrainingReport, list[tuple[int, int, float]]], data: TrainingRows
) -> None:
    """Training ends in a bundle that loads, is better than chance, and carries window, metrics and versions."""
    report, steps = trained
    bundle = Bundle.load(report.output)
    assert bundle.id == report.bundle_id
    assert bundle.manifest.metrics == report.metrics
    assert bundle.manifest.training == report.training
    assert "numpy" in bundle.manifest.versions
    assert report.metrics["auc"] > 0.9
    assert report.metrics["average_precision"] > 0.5
    assert report.threshold_score == 0.3
    assert report.rows_without_label == int((data.label == -1).sum())
    assert sum(share for _, share in report.gain_by_feature) == pytest.approx(1.0)
    assert {name for name, _ in report.gain_by_feature[:2]} == {"amount", "customer_count_1h"}
    begins = [place for place, step in enumerate(steps) if step[0] == 1]
    parts = [steps[a:b] for a, b in itertools.pairwise([*begins, len(steps)])]
    assert len(parts) == len(report.trials) + 1  # after the trials the look at the last days
    for part, trial in zip(parts[:-1], report.trials, strict=True):
        assert [step[0] for step in part] == list(range(1, len(part) + 1))
        assert trial.rounds <= len(part)
    assert report.trees in {trial.rounds for trial in report.trials}


def test_metrics_are_those_of_the_measured_model(
    trained: tuple[TrainingReport, list[tuple[int, int, float]]], data: TrainingRows, tmp_path: Path
) -> None:
    """Without a second fit, recall, precision and flagged share are those of the bundle over the validation rows."""
    report = _train(data, tmp_path / "measured", refit=False)
    assert report.metrics == trained[0].metrics
    bundle = Bundle.load(report.output)
    rows = (data.label >= 0) & (data.event_time_ms >= report.training.validation_from_ms)
    truth = data.label[rows] == 1
    flagged = bundle.model.margins(data.X[rows]) >= bundle.threshold_margin
    assert report.metrics["rows"] == len(truth)
    assert report.metrics["frauds"] == truth.sum()
    assert report.metrics["flagged"] == flagged.sum()
    assert report.metrics["recall"] == (truth & flagged).sum() / truth.sum()
    assert report.metrics["precision"] == (truth & flagged).sum() / flagged.sum()


def test_the_split_leaks_no_future(trained: tuple[TrainingReport, list[tuple[int, int, float]]]) -> None:
    """The training part ends a label gap before validation starts."""
    window = trained[0].training
    assert window.train_until_ms - 1 < window.validation_from_ms - window.label_gap_ms
    assert window.validation_rows == pytest.approx(0.2 * (4_000 - trained[0].rows_without_label), abs=2)
    total = window.train_rows + window.validation_rows + trained[0].rows_in_gap + trained[0].rows_without_label
    assert total == 4_000


def test_labels_known_too_late_are_left_out(data: TrainingRows, tmp_path: Path) -> None:
    """A training label that was not yet known when validation starts does not train the model."""
    late = data.label_known_at_ms.copy()
    late[:500] = 60 * DAY_MS
    report = _train(replace(data, label_known_at_ms=late), tmp_path / "late")
    base = int((data.label[:500] >= 0).sum())
    other = _train(data, tmp_path / "all")
    assert report.training.train_rows == other.training.train_rows - base
    assert report.rows_in_gap == other.rows_in_gap + base


def test_training_repeats_itself(
    trained: tuple[TrainingReport, list[tuple[int, int, float]]], data: TrainingRows, tmp_path: Path
) -> None:
    """The same data, seed and time give the same bundle to the last byte; another seed gives another."""
    again = _train(data, tmp_path / "again")
    assert again.bundle_id == trained[0].bundle_id
    for file in again.output.iterdir():
        assert file.read_bytes() == (trained[0].output / file.name).read_bytes()
    assert _train(data, tmp_path / "other", seed=8).bundle_id != again.bundle_id


def test_the_second_fit_sees_everything_known(
    trained: tuple[TrainingReport, list[tuple[int, int, float]]], data: TrainingRows
) -> None:
    """The model written has learned from all rows of known label, with as many trees as the measured one had."""
    report, _ = trained
    assert report.training.refit_rows == int((data.label >= 0).sum())
    assert report.training.refit_frauds == int((data.label == 1).sum())
    assert report.training.refit_rows > report.training.train_rows + report.training.validation_rows


def test_labels_known_after_the_day_of_training_do_not_exist(data: TrainingRows, tmp_path: Path) -> None:
    """Rows whose label became known after `as_of_ms` change nothing: the bundle equals one trained without them."""
    as_of = 20 * DAY_MS
    report = _train(data, tmp_path / "then", as_of_ms=as_of)
    known = data.label_known_at_ms <= as_of
    fewer = TrainingRows(data.X[known], data.label[known], data.event_time_ms[known], data.label_known_at_ms[known])
    assert _train(fewer, tmp_path / "fewer").bundle_id == report.bundle_id
    with pytest.raises(TrainError, match="became known later than the day of training"):
        _train(data, tmp_path / "early", as_of_ms=0)


def test_frauds_without_their_genuine_neighbours_are_not_trained_on(data: TrainingRows) -> None:
    """Where rows without a report are genuine after a week, the last week before the day of training has frauds alone:
    it is in no part, so that rates and days are those of whole days."""
    week, as_of = 7 * DAY_MS, int(data.event_time_ms.max())
    known_at = np.where(data.label == 1, data.event_time_ms, data.event_time_ms + week)
    rows = replace(data, label_known_at_ms=known_at)
    settings = TrainingSettings("x", "2025-01-01T00:00:00Z", as_of_ms=as_of, genuine_after_ms=week)
    split = split_in_time(rows, settings)
    end = data.event_time_ms[split.validation].max()
    assert (data.event_time_ms[split.train] <= split.validation_from_ms - week).all()
    assert (data.event_time_ms[split.known] <= as_of - week).all()
    assert (data.label[split.validation][data.event_time_ms[split.validation] > end - DAY_MS] == 0).any()
    undated = split_in_time(rows, replace(settings, as_of_ms=None))  # then the last payment's time
    assert (undated.known == split.known).all()
    frauds = np.flatnonzero(data.label == 1)
    for late, whole in ((frauds[-1:], False), (frauds[-len(frauds) // 20 :], True)):  # one report names no day
        later = known_at.copy()
        later[late] = as_of + week
        found = split_in_time(replace(rows, label_known_at_ms=later), replace(settings, as_of_ms=None)).known
        assert len(found) == ((rows.label >= 0).sum() if whole else len(split.known))
    tail = split_in_time(rows, replace(settings, genuine_after_ms=None)).validation
    assert (data.label[tail[data.event_time_ms[tail] > as_of - week]] == 1).all()


def test_frauds_that_are_reported_late_are_warned_about(data: TrainingRows, tmp_path: Path) -> None:
    """Where labels of frauds take ten days and those of genuine payments one, the newest ten days are almost without
    fraud: a note says how to leave them out. Where both take as long there is none."""
    delay = np.where(data.label == 1, 10, 1) * DAY_MS
    end = int(data.event_time_ms.max())
    late = replace(data, label_known_at_ms=data.event_time_ms + delay)
    (note,) = (one for one in _train(late, tmp_path / "late", as_of_ms=end, search_s_max=0).notes if "--until" in one)
    assert note.startswith("labels of frauds take 10.0 days, those of genuine payments 1.0")
    assert note.endswith(f"--until {np.datetime64(end - 10 * DAY_MS, 'ms').astype('datetime64[D]')}")
    assert _train(data, tmp_path / "soon", as_of_ms=end, search_s_max=0).notes == []


def test_genuine_payments_that_are_confirmed_late_are_warned_about(data: TrainingRows, tmp_path: Path) -> None:
    """Where labels of genuine payments take ten days and those of frauds one, all that is known of the newest nine days
    is fraud: a note says how to leave them out, and none is there once they are, or with --genuine-after."""
    delay = np.where(data.label == 1, 1, 10) * DAY_MS
    end = int(data.event_time_ms.max())
    late = replace(data, label_known_at_ms=data.event_time_ms + delay)
    found = late_confirmations(late.label, late.event_time_ms, late.label_known_at_ms, end)
    assert found is not None
    newest = (data.event_time_ms > end - 10 * DAY_MS) & (late.label_known_at_ms <= end)
    assert (found.rows, found.frauds) == (newest.sum(), newest.sum())
    notes = _train(late, tmp_path / "late", as_of_ms=end, search_s_max=0).notes
    (note,) = (one for one in notes if "genuine payments take 10.0 days, those of frauds 1.0" in one)
    day = np.datetime64(end - 10 * DAY_MS, "ms").astype("datetime64[D]")
    assert note.endswith(f"--until {day}")
    kept = data.event_time_ms < day.astype("datetime64[ms]").astype(np.int64)
    columns = ("X", "label", "event_time_ms", "label_known_at_ms")
    older = TrainingRows(*(getattr(late, name)[kept] for name in columns))
    assert late_confirmations(older.label, older.event_time_ms, older.label_known_at_ms, end) is None
    notes = _train(late, tmp_path / "after", as_of_ms=end, search_s_max=0, genuine_after_ms=10 * DAY_MS).notes
    assert not any("genuine payments take" in one for one in notes)


def test_validation_payments_without_a_label_are_noted(data: TrainingRows, tmp_path: Path) -> None:
    """Where few genuine payments are confirmed, scores are probabilities among the labelled ones: a note counts the
    others. Payments that are too young for a label are none of them."""
    confirmed = (data.label == 1) | ((data.label == 0) & (np.random.default_rng(3).random(len(data.label)) < 0.3))
    few = replace(data, label=np.where(confirmed, data.label, -1).astype(np.int8))
    report = _train(few, tmp_path / "few", search_s_max=0)
    times, window = data.event_time_ms, report.training
    there = (times >= window.validation_from_ms) & (times < window.validation_until_ms)
    without = int((few.label[there] < 0).sum())
    (note,) = (one for one in report.notes if "have no label" in one)
    assert note.startswith(f"{without:,} of {int(there.sum()):,} payments of the validation days have no label")
    assert "--genuine-after" in note
    assert "flag.cost" not in note
    slow = replace(data, label_known_at_ms=data.event_time_ms + 5 * DAY_MS)
    end = int(data.event_time_ms.max())
    assert _train(slow, tmp_path / "slow", as_of_ms=end, search_s_max=0).notes == []


def test_days_without_a_fraud_at_the_end_are_noted(data: TrainingRows, tmp_path: Path) -> None:
    """Reports that stopped arriving look like genuine payments: the note names the day of the last fraud."""
    times = data.event_time_ms
    stopped = times.min() + (times.max() - times.min()) * 0.85
    silent = replace(data, label=np.where(times > stopped, 0, data.label).astype(np.int8))
    last = np.datetime64(int(times[silent.label == 1].max()), "ms").astype("datetime64[D]")
    notes = _train(silent, tmp_path / "silent", search_s_max=0).notes
    assert any(note.startswith(f"the last fraud is of {last}") for note in notes)
    assert _train(data, tmp_path / "all", search_s_max=0).notes == []


def test_a_feature_that_knows_the_label_is_refused(data: TrainingRows, tmp_path: Path) -> None:
    """A column made from the label is refused as suspected leakage, upward, downward or by its gaps, until accepted."""
    noise = np.random.default_rng(3).random(len(data.label)).astype(np.float32)
    fraud = data.label == 1
    above = fraud + noise * np.float32(0.5)
    for leak in (above, -above, np.where(fraud, np.nan, noise)):
        X = data.X.copy()
        X[:, 3] = leak
        with pytest.raises(LeakageError, match=r"customer_count_7d .*--accept customer_count_7d"):
            _train(replace(data, X=X), tmp_path / "leak")
    assert _train(replace(data, X=X), tmp_path / "leak", accepted=["customer_count_7d"]).metrics["auc"] > 0.99


def test_a_feature_of_many_genuine_payments_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature that singles out as many genuine payments as frauds reaches an average precision of .5 alone, however
    many other payments there are."""
    monkeypatch.setattr(leakage_suspects, "_GENUINE_MAX", 5_000)
    fraud = np.zeros(100_000, dtype=np.bool_)
    fraud[:500] = True
    X = np.zeros((len(fraud), 1), dtype=np.float32)
    X[:1_000] = 1.0
    (alone,) = leakage_suspects.precision_alone(X, fraud, seed=1)
    assert alone == pytest.approx(0.5, abs=0.15)
    X[500:] = 0.0
    assert leakage_suspects.precision_alone(X, fraud, seed=1) == [1.0]


def test_one_payment_more_does_not_drop_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more genuine payments than are taken whole, as many are kept, and count as all; plain xgboost keeps all."""
    monkeypatch.setattr(boosting, "GENUINE_WHOLE", 1_000)
    fraud = np.arange(1_012) < 10
    assert len(boosting.sampled(fraud[:1_010], Recipe().genuine_per_fraud, 1)[0]) == 1_010
    rows, weight = boosting.sampled(fraud, Recipe().genuine_per_fraud, 1)
    assert (len(rows), weight) == (1_010, 1.002)
    assert len(boosting.sampled(fraud, RECIPE_OF_FEW.genuine_per_fraud, 1)[0]) == 1_012


def test_the_search_is_bounded_and_repeats_itself(data: TrainingRows, tmp_path: Path) -> None:
    """The same seed tries the same recipes; as many as asked, the default first; the best one trains the
    bundle, or the default where that is as good. With no time to spare the default alone is tried."""
    steps: list[tuple[int, int, float]] = []
    first = _train(data, tmp_path / "one", trials=3, trial_progress=lambda *step: steps.append(step))
    again = _train(data, tmp_path / "two", trials=3)
    assert first.bundle_id == again.bundle_id
    assert [step[:2] for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert first.trials[0].recipe == Recipe()
    best = max(first.trials, key=lambda trial: trial.average_precision)
    assert first.recipe in (best.recipe, Recipe())
    assert steps[-1][2] == best.average_precision
    hurried = _train(data, tmp_path / "three", trials=5, search_s_max=0)
    assert [trial.recipe for trial in hurried.trials] == [Recipe()]


def test_the_recipe_is_the_best_of_those_compared(data: TrainingRows, tmp_path: Path) -> None:
    """Without a search the known recipes are compared on later days, and none is taken that is worse there than the
    first; with no time to spare only the first is boosted, and a report says which were."""
    report = _train(data, tmp_path / "all")
    assert [trial.recipe for trial in report.trials] == list(RECIPES)
    (taken,) = (trial for trial in report.trials if trial.recipe == report.recipe)
    assert taken.average_precision >= report.trials[0].average_precision
    assert report.metrics["average_precision"] == pytest.approx(taken.average_precision, abs=1e-3)
    steps: list[tuple[int, int, float]] = []
    first = _train(data, tmp_path / "one", search_s_max=0, trial_progress=lambda *step: steps.append(step))
    assert [trial.recipe for trial in first.trials] == [RECIPES[0]]
    assert [step[:2] for step in steps] == [(1, len(RECIPES))]


def test_few_frauds_train_and_choose_nothing(data: TrainingRows, tmp_path: Path) -> None:
    """Sixty frauds in all, the last rows without any: validation begins where it holds enough frauds, the number of
    trees and the recipe are fixed ones, and the model written has learned from all of them."""
    label = data.label.copy()
    frauds = np.flatnonzero(label == 1)
    early = frauds[data.event_time_ms[frauds] < 23 * DAY_MS]
    label[frauds] = 0
    label[early[np.linspace(0, len(early) - 1, 60).astype(int)]] = 1
    report = _train(replace(data, label=label), tmp_path / "few", trials=2)
    assert [trial.recipe for trial in report.trials] == [RECIPE_OF_FEW]
    assert report.training.validation_frauds == 20
    assert report.training.refit_frauds == 60
    assert (report.trees, report.recipe) == (ROUNDS_FEW, RECIPE_OF_FEW)


def test_monotone_features_never_lower_the_margin(data: TrainingRows, tmp_path: Path) -> None:
    """With `monotone: increasing` a larger value, all else equal, never gives a smaller margin."""
    constrained = FEATURE_SET.replace(
        "{name: amount, payment: amount}", "{name: amount, payment: amount, monotone: increasing}"
    )
    report = _train(data, tmp_path / "monotone", feature_set_yaml=constrained)
    model = Bundle.load(report.output).model
    rows = np.repeat(data.X[:50], 40, axis=0)
    rows[:, 0] = np.tile(np.linspace(0, 8, 40, dtype=np.float32), 50)
    margins = model.margins(rows).reshape(50, 40)
    assert (np.diff(margins, axis=1) >= 0).all()
    assert FeatureSet.from_yaml(constrained).fingerprint == FeatureSet.from_yaml(FEATURE_SET).fingerprint


def test_the_selection_report_tells_signal_from_noise(
    trained: tuple[TrainingReport, list[tuple[int, int, float]]],
) -> None:
    """Features that decide the label carry, upward; one without signal loses next to nothing when it is shuffled."""
    worth = {row.name: row for row in trained[0].features}
    assert set(worth) == {"amount", "hour", "customer_count_1h", "customer_count_7d"}
    for name in ("amount", "customer_count_1h"):
        assert worth[name].verdict == "carries"
        assert worth[name].loss > 0.05
        assert (worth[name].direction or 0) > 0.3
    for name in ("hour", "customer_count_7d"):
        assert worth[name].loss < 0.05
        assert worth[name].impact < worth["amount"].impact


def test_a_share_becomes_a_threshold(data: TrainingRows, tmp_path: Path) -> None:
    """A policy's share is met on validation as closely as ties allow, and never exceeded."""
    report = _train(data, tmp_path / "share", policy_yaml=SHARE_POLICY)
    share, rows = report.metrics["flagged_share"], report.metrics["rows"]
    assert 0.02 - 2 / rows <= share <= 0.02


def test_features_without_a_value_are_reported(data: TrainingRows, tmp_path: Path) -> None:
    """A feature that is NaN in all training rows is named in the report, and training goes on."""
    X = data.X.copy()
    X[:, 3] = np.nan
    assert _train(replace(data, X=X), tmp_path / "b").empty_features == ["customer_count_7d"]


def _without(data: TrainingRows, label: int) -> TrainingRows:
    changed = data.label.copy()
    changed[changed == label] = 1 - label
    return replace(data, label=changed)


def _infinite(data: TrainingRows) -> TrainingRows:
    X = data.X.copy()
    X[10, 2] = np.inf
    return replace(data, X=X)


REFUSED = {
    "no fraud": (lambda d: _without(d, 1), {}, "0 frauds"),
    "only fraud": (lambda d: _without(d, 0), {}, "no genuine payment"),
    "no label": (lambda d: replace(d, label=np.full_like(d.label, -1)), {}, "no row has a known label"),
    "no rows": (lambda _: _data(0), {}, "no row has a known label"),
    "too few rows": (lambda _: _data(80), {}, "rows, at least"),
    "gap swallows training": (lambda d: d, {"label_gap_ms": 40 * DAY_MS}, "training part has 0 rows.*label gap"),
    "columns": (lambda d: replace(d, X=d.X[:, :3].copy()), {}, "X has 3 columns, the feature set names 4"),
    "X dtype": (lambda d: replace(d, X=d.X.astype(np.float64)), {}, "X is float64"),
    "label dtype": (lambda d: replace(d, label=d.label.astype(np.int64)), {}, "label is int64"),
    "label length": (lambda d: replace(d, label=d.label[:-1]), {}, r"label is int8 \(3999,\)"),
    "label value": (lambda d: replace(d, label=d.label + np.int8(2)), {}, "label holds values other than"),
    "time dtype": (lambda d: replace(d, event_time_ms=d.event_time_ms.astype(float)), {}, "event_time_ms is float64"),
    "infinite": (_infinite, {}, "'customer_count_1h' is infinite"),
    "validation share": (lambda d: d, {"validation_share": 1.0}, "validation_share is 1.0, out of range"),
    "threads": (lambda d: d, {"threads": 0}, "threads is 0, out of range"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_train_is_refused(data: TrainingRows, tmp_path: Path, case: str) -> None:
    """Data that no model can come from is refused with its reason, and nothing is written."""
    change, arguments, message = REFUSED[case]
    with pytest.raises(TrainError, match=message):
        _train(change(data), tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_before_the_work(data: TrainingRows, tmp_path: Path) -> None:
    """An output that exists is refused at once, not after minutes of training."""
    rounds: list[int] = []
    with pytest.raises(TrainError, match="never overwritten"):
        _train(data, tmp_path, progress=lambda *step: rounds.append(step[0]))
    assert not rounds


def test_the_gate_compares_bits(data: TrainingRows) -> None:
    """One leaf off by its last bit is enough for the gate to refuse, naming row and both margins."""
    rows = data.X[:500]
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(rows, (data.label[:500] == 1), nthread=1), 3
    )
    model = CompiledModel.from_bytes(bytes(booster.save_raw("ubj")))
    assert (CompiledBooster(b"", model, booster).proved_margins(rows) == model.margins(rows)).all()
    value = model.table.value.copy()
    leaf = int(np.flatnonzero(model.table.feature < 0)[0])
    value[leaf] += np.float32(1e-3)
    other = CompiledModel(replace(model.table, value=value))
    with pytest.raises(GateError, match=r"differs from xgboost on .* rows, first on validation row"):
        CompiledBooster(b"", other, booster).proved_margins(rows)


def test_training_without_xgboost_names_the_extra() -> None:
    """Where xgboost is not installed the error says what to install."""
    code = (
        "import sys; sys.modules['xgboost'] = None\nimport scorer.training as t\n"
        "try: t.import_xgboost()\nexcept t.TrainError as e: print(e)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert "fraud-scorer[train]" in done.stdout


SCORED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])), min_size=1, max_size=30)


@given(SCORED)
def test_average_precision_equals_its_definition(scored: list[tuple[bool, float]]) -> None:
    """Average precision equals the sum over thresholds of precision times the step in recall."""
    truth, scores = np.array([t for t, _ in scored]), np.array([s for _, s in scored])
    if not truth.any():
        assert np.isnan(average_precision(truth, scores))
        return
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        recall = (truth & flagged).sum() / truth.sum()
        total += (recall - before) * (truth & flagged).sum() / flagged.sum()
        before = recall
    assert average_precision(truth, scores) == pytest.approx(total)


@given(SCORED)
def test_auc_equals_counting_pairs(scored: list[tuple[bool, float]]) -> None:
    """AUC equals the share of fraud and genuine pairs in the right order, ties counting half."""
    truth, scores = np.array([t for t, _ in scored]), np.array([s for _, s in scored])
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[truth], scores[~truth])]
    ours = area_under_roc(truth, scores)
    assert np.isnan(ours) if not pairs else ours == pytest.approx(float(np.mean(pairs)))


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.9]), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_threshold_is_the_lowest_that_keeps_the_share(values: list[float], share: float) -> None:
    """The threshold flags at most the share, and the next lower score would flag more."""
    scores = np.array(values)
    try:
        threshold = threshold_for_share(scores, share)
    except TrainError:
        assert (scores == scores.max()).mean() > share
        return
    assert (scores >= threshold).mean() <= share
    lower = scores[scores < threshold]
    if len(lower):
        assert (scores >= lower.max()).mean() > share


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "Cards 1"}, "name does not match"),
        ({"created_at": ""}, "created_at has 0 characters"),
        ({"accepted": ["amont"]}, "--accept amont: cards has no such feature; it has amount"),
        ({"feature_set_yaml": Path("cards.yaml")}, "feature_set_yaml is of type PosixPath, wanted str"),
    ],
)
def test_what_no_bundle_can_be_written_with_is_refused_before_training(
    data: TrainingRows, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """A name that the manifest refuses costs no training run first."""
    rounds: list[int] = []
    with pytest.raises(TrainError, match=message):
        _train(data, tmp_path / "bundle", progress=lambda *_: rounds.append(1), **changed)
    assert not rounds


def test_columns_that_are_no_arrays_are_refused_by_name(data: TrainingRows, tmp_path: Path) -> None:
    """A list of labels gives an error that names the column."""
    with pytest.raises(TrainError, match="label is of type list, wanted a numpy array"):
        _train(replace(data, label=data.label.tolist()), tmp_path / "bundle")


def test_a_pipeline_names_what_it_takes(trained: tuple[TrainingReport, Any]) -> None:
    """A path in place of a bundle, and payments in place of a batch, give errors that name the call to make."""
    with pytest.raises(TypeError, match=r"bundle is of type str, wanted a Bundle: Bundle.load"):
        Pipeline("bundles/cards")  # type: ignore[arg-type]
    pipeline = Pipeline(Bundle.load(trained[0].output))
    with pytest.raises(TypeError, match=r"batch is of type list, wanted a Batch: Batch.of_payments"):
        pipeline.run([b"{}"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the records are of type bytes"):
        Batch.of_payments(b"{}")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="record 0 is of type dict"):
        pipeline.run(Batch.of_payments([{}]))  # type: ignore[list-item]
    payment = {"payment_id": "p1", "event_time": DAY_MS * 20_000, "amount_minor": 1, "currency": "EUR"}
    pipeline.close()
    with pytest.raises(ValueError, match="the engine is closed"):
        pipeline.run(Batch.of_payments([json.dumps({**payment, "customer_id": "c"}).encode()]))


def test_another_recipe_has_to_be_better_by_more_than_chance() -> None:
    """Of rankings that are as good the first one stays, whatever luck says; one that is clearly better is taken."""
    rng = np.random.default_rng(7)
    fraud = rng.random(20_000) < 0.01
    as_good = [rng.normal(size=len(fraud)) + 2.0 * fraud for _ in range(12)]
    better = rng.normal(size=len(fraud)) + 3.0 * fraud
    assert sum(outranks(fraud, scores, as_good[0], 1) for scores in as_good[1:]) <= 4
    assert not outranks(fraud, as_good[0], as_good[0], 1)
    assert outranks(fraud, better, as_good[0], 1)
    assert not outranks(fraud, as_good[0], better, 1)
