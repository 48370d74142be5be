"""`train --continue`: what newer payments may change, and what they may not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.bundle import Bundle, write_bundle
from scorer.bundle.challengers import with_challengers
from scorer.bundle.gate import verify
from scorer.pipeline import Batch, Pipeline
from scorer.training import TrainError, TrainingReport, TrainingRows, TrainingSettings, average_precision, train
from scorer.training.continuation import begins_with

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
POLICY = "name: cards\nflag: {share: 0.05}\n"
DAY_MS = 86_400_000
BORDER_DAY, DAYS = 30, 60


def _rows(seed: int, rows: int, days: tuple[int, int], *, drifted: bool) -> TrainingRows:
    """Payments of [days): a fraud is a large amount often; once drifted, it is a large count instead."""
    rng = np.random.default_rng(seed)
    X = rng.exponential(size=(rows, 4)).astype(np.float32)
    risk = (X[:, 2] if drifted else X[:, 0]) + rng.normal(scale=0.4, size=rows)
    times = np.sort(rng.integers(days[0] * DAY_MS, days[1] * DAY_MS, rows)).astype(np.int64)
    return TrainingRows(X, (risk > 3.2).astype(np.int8), times, times + DAY_MS)


def _joined(*parts: TrainingRows) -> TrainingRows:
    return TrainingRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in list(vars(parts[0]))[:4]))


SETTINGS = TrainingSettings("cards", "2025-01-01T00:00:00Z", seed=3, label_gap_ms=DAY_MS, threads=1, search_s_max=0)
EARLIER = _rows(1, 6_000, (0, BORDER_DAY), drifted=False)


def _train(rows: TrainingRows, output: Path, present: Path | None = None, **changed: Any) -> TrainingReport:
    feature_set = changed.pop("feature_set", FEATURE_SET)
    return train(rows, feature_set, POLICY, output, replace(SETTINGS, **changed), present=present)


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the first month."""
    return _train(EARLIER, tmp_path_factory.mktemp("present") / "bundle").output


@pytest.fixture(scope="module")
def drifted() -> TrainingRows:
    """The first month, which the bundle has seen, and a second one with another kind of fraud."""
    return _joined(EARLIER, _rows(2, 6_000, (BORDER_DAY, DAYS), drifted=True))


@pytest.fixture(scope="module")
def continued(present: Path, drifted: TrainingRows, tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    return _train(drifted, tmp_path_factory.mktemp("continued") / "bundle", present)


def test_what_has_changed_is_learned(continued: TrainingReport, present: Path) -> None:
    """On days after all of training the bundle ranks a new kind of fraud far better than the one it came from."""
    later = _rows(9, 6_000, (DAYS, DAYS + 30), drifted=True)
    before, after = (
        average_precision(later.fraud, Bundle.load(folder).model.margins(later.X).astype(np.float64))
        for folder in (present, continued.output)
    )
    assert after > before + 0.2
    assert continued.lineage is not None
    assert continued.lineage.made in ("continued", "anew")
    assert continued.candidates[continued.lineage.made] == max(continued.candidates.values())
    assert continued.metrics["average_precision"] > continued.metrics["average_precision_before"] + 0.2


def test_what_compares_models_did_not_choose_them(present: Path, continued: TrainingReport, tmp_path: Path) -> None:
    """Where frauds enough are held back, labels of the later ones change which model is taken, and nothing about the
    new models. With few frauds the same rows do both, and a note says so."""
    (note,) = continued.notes
    assert "too few to do both apart, 100 are enough" in note
    rows = _joined(EARLIER, _rows(2, 14_000, (BORDER_DAY, DAYS), drifted=True))
    report = _train(rows, tmp_path / "as_they_are", present)
    frauds = np.flatnonzero(rows.fraud & (rows.event_time_ms >= report.training.validation_from_ms))
    later = frauds[len(frauds) // 2 + 1 :]
    others = np.setdiff1d(np.arange(later[0], len(rows.label)), later)
    label = rows.label.copy()
    label[later], label[others[: len(later)]] = 0, 1  # as many, on payments like any other
    turned = _train(replace(rows, label=label), tmp_path / "turned", present, refit=False)
    assert report.notes == turned.notes == []
    assert turned.trials == report.trials
    assert turned.candidates["anew"] < report.candidates["anew"] - 0.2
    assert report.lineage is not None
    assert turned.lineage is not None
    assert (report.lineage.made != "kept", turned.lineage.made) == (True, "kept")


def test_nothing_held_back_was_seen(continued: TrainingReport, present: Path, drifted: TrainingRows) -> None:
    """Though the file holds the first month too, the rows that compare the models are a fifth of the newer ones: none
    is older than what the present model has seen."""
    seen = Bundle.load(present).manifest.training
    assert seen is not None
    window = continued.training
    assert window.validation_from_ms >= seen.validation_until_ms
    newer = drifted.event_time_ms >= seen.validation_until_ms
    assert window.validation_rows == pytest.approx(0.2 * newer.sum(), rel=0.02)


def test_a_continued_bundle_says_where_it_comes_from(continued: TrainingReport, present: Path, tmp_path: Path) -> None:
    """The manifest names the bundle, its hash and what became of its trees; the gate passes; a bundle with challengers
    keeps it, and one that continues nothing is written as it always was."""
    bundle, old = Bundle.load(continued.output), Bundle.load(present)
    lineage = bundle.manifest.lineage
    assert lineage is not None
    assert lineage == continued.lineage
    assert lineage.bundle == old.id
    assert old.id.endswith(lineage.manifest_sha256[:12])
    assert lineage.average_precision_before == continued.candidates["kept"]
    assert verify(continued.output).passed
    both = with_challengers(continued.output, [present], tmp_path / "both", created_at="x")
    assert both.manifest.lineage == lineage
    assert "lineage" not in json.loads((present / "manifest.json").read_text())


def _bands(seed: int, rows: int, days: tuple[int, int], *, new_kind: bool) -> TrainingRows:
    """Frauds in narrow bands of amount by hour, which take many rows to learn; a second kind, of large counts, is
    easy."""
    rng = np.random.default_rng(seed)
    X = rng.exponential(size=(rows, 4)).astype(np.float32)
    X[:, 1] = rng.random(rows) * 24
    fraud = (np.floor(X[:, 1] / 3) % 4 == np.floor(X[:, 0] * 2)) & (rng.random(rows) < 0.3)
    fraud |= new_kind & (X[:, 2] > 3)
    times = np.sort(rng.integers(days[0] * DAY_MS, days[1] * DAY_MS, rows)).astype(np.int64)
    return TrainingRows(X, fraud.astype(np.int8), times, times + DAY_MS)


def test_the_trees_of_the_present_model_come_first(tmp_path: Path) -> None:
    """Where the present model knows what a few newer days cannot teach anew, and they bring a second kind of fraud, it
    is continued: its trees, bit for bit, then new ones; the second fit adds as many. The bundle decides payments."""
    present = _train(_bands(1, 8_000, (0, BORDER_DAY), new_kind=False), tmp_path / "present").output
    few = _bands(2, 6_000, (BORDER_DAY, DAYS), new_kind=True)
    report = _train(few, tmp_path / "next", present, validation_share=0.85)
    assert report.lineage is not None
    assert report.lineage.made == "continued", report.candidates
    old, new = Bundle.load(present), Bundle.load(report.output)
    assert report.lineage.trees_kept == old.model.tree_count < new.model.tree_count == report.trees
    assert begins_with(new.model.table, old.model.table)
    assert not begins_with(old.model.table, new.model.table)
    assert report.training.train_from_ms >= BORDER_DAY * DAY_MS
    assert report.training.refit_rows > report.training.train_rows
    assert verify(report.output).passed
    payment = {"payment_id": "p", "event_time": 20_000 * DAY_MS, "amount_minor": 100, "currency": "EUR"}
    outcomes = Pipeline(new).run(Batch.of_payments([json.dumps(payment | {"customer_id": "c"}).encode()]))
    assert (outcomes.columns.margin == new.model.margins(outcomes.columns.features)).all()
    again = _train(few, tmp_path / "again", present, validation_share=0.85)
    assert again.bundle_id == report.bundle_id


def test_where_newer_payments_teach_nothing_the_model_stays(present: Path, tmp_path: Path) -> None:
    """Newer labels that follow nothing change no tree: the bundle has the present model's margins, and says so; the
    rows that the model learned from are still those of the present bundle."""
    noise = _rows(6, 6_000, (BORDER_DAY, DAYS), drifted=False)
    label = noise.label.copy()
    train_part = noise.event_time_ms < 52 * DAY_MS
    label[train_part] = np.random.default_rng(1).permutation(label[train_part])
    report = _train(replace(noise, label=label), tmp_path / "next", present)
    assert report.lineage is not None
    assert report.lineage.made == "kept", report.candidates
    old, new = Bundle.load(present), Bundle.load(report.output)
    assert (new.model.margins(noise.X).view(np.uint32) == old.model.margins(noise.X).view(np.uint32)).all()
    assert new.manifest.training is not None
    assert old.manifest.training is not None
    assert new.manifest.training.refit_rows == old.manifest.training.refit_rows
    assert new.manifest.training.validation_from_ms >= old.manifest.training.validation_until_ms
    assert new.manifest.threshold_score != old.manifest.threshold_score
    # What chose the kept model is still to be learned: few payments after it are enough to go on.
    seen_ms = old.manifest.training.validation_until_ms
    assert new.manifest.training.learned_until_ms == seen_ms
    assert b"learned_until_ms" not in old.manifest_bytes
    later = _rows(8, 8_000, (BORDER_DAY, DAYS + 8), drifted=True)
    newest = later.event_time_ms >= new.manifest.training.validation_until_ms
    again = _train(later, tmp_path / "again", report.output, validation_share=0.9)
    assert again.lineage is not None
    assert again.training.validation_from_ms >= new.manifest.training.validation_until_ms
    assert again.training.train_rows > newest.sum()
    assert again.training.learned_until_ms == (seen_ms if again.lineage.made == "kept" else None)


OTHER_SET = FEATURE_SET.replace("window: 7d", "window: 14d")
LATER = _rows(7, 6_000, (BORDER_DAY, DAYS), drifted=True)


def _few_frauds(rows: TrainingRows, count: int) -> TrainingRows:
    frauds = np.flatnonzero(rows.label == 1)
    label = rows.label.copy()
    label[frauds] = 0
    label[frauds[np.linspace(0, len(frauds) - 1, count).astype(int)]] = 1
    return replace(rows, label=label)


def _no_frauds_before(rows: TrainingRows, day: int) -> TrainingRows:
    return replace(rows, label=np.where(rows.event_time_ms < day * DAY_MS, 0, rows.label).astype(np.int8))


REFUSED: dict[str, tuple[TrainingRows, str, str]] = {
    "features": (LATER, OTHER_SET, "feature set cards has fingerprint .* a model learns on with the same features"),
    "nothing newer": (EARLIER, FEATURE_SET, "no row of known label is newer than what the present model has seen"),
    "nothing to learn": (
        _joined(EARLIER, _no_frauds_before(LATER, 55)),
        FEATURE_SET,
        "with 0 frauds from .* on can teach nothing new",
    ),
    "few frauds": (_few_frauds(LATER, 60), FEATURE_SET, "20 frauds in the held-back rows .* can not tell two models"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_continued_is_refused(present: Path, tmp_path: Path, case: str) -> None:
    """The refusal names what is missing and the way out; nothing is written."""
    rows, feature_set, message = REFUSED[case]
    with pytest.raises(TrainError, match=message):
        _train(rows, tmp_path / "next", present, feature_set=feature_set)
    assert not (tmp_path / "next").exists()


def test_a_model_of_which_nobody_knows_what_it_has_seen_is_refused(present: Path, tmp_path: Path) -> None:
    """A bundle without a training window, as an import is, and one of which a round has several trees, can not be
    continued."""
    bundle = Bundle.load(present)
    assert bundle.golden is not None
    golden = np.ascontiguousarray(bundle.golden[:, :-1])
    common: dict[str, Any] = {
        "name": "cards", "created_at": "x", "feature_set_yaml": FEATURE_SET, "policy_yaml": POLICY,
        "threshold_score": 0.5,
    }  # fmt: skip
    write_bundle(
        tmp_path / "imported", model=(present / "model.ubj").read_bytes(), golden=(golden, bundle.golden[:, -1].copy()),
        **common,
    )  # fmt: skip
    with pytest.raises(TrainError, match="does not say which payments its model has seen"):
        _train(LATER, tmp_path / "next", tmp_path / "imported")
    forest = xgb.train(
        {"objective": "binary:logistic", "num_parallel_tree": 3, "max_depth": 2, "nthread": 1, "seed": 1},
        xgb.DMatrix(EARLIER.X, EARLIER.fraud.astype(np.float32), feature_names=bundle.feature_set.names, nthread=1), 2,
    )  # fmt: skip
    margins = forest.inplace_predict(golden, predict_type="margin").astype(np.float32)
    write_bundle(
        tmp_path / "forest", model=bytes(forest.save_raw("ubj")), golden=(golden, margins),
        training=bundle.manifest.training, **common,
    )  # fmt: skip
    with pytest.raises(TrainError, match="6 trees in 2 rounds"):
        _train(LATER, tmp_path / "next", tmp_path / "forest")
