"""`bundle compile --report`: what it prints of a lever is what the lever does, and what it cannot know it does not
say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scorer.bundle import Bundle, write_bundle
from scorer.bundle.challengers import with_challengers
from scorer.bundle.gate import verify
from scorer.compress import lever_report, levers, model_figures
from scorer.compress.held_out import Payments
from scorer.compress.lever_report import LeverFigures, LeverReport, report
from scorer.compress.model_figures import ratio
from scorer.errors import UsageError
from scorer.training import average_precision
from scorer.training.ranking import resampled_precisions

xgb = pytest.importorskip("xgboost")

FEATURES = "".join(f"  - {{name: f{i}, entity: customer, aggregate: count, window: {i + 1}h}}\n" for i in range(5))
FEATURE_SET = (
    "name: cards\ncurrency: EUR\nentities: {customer: [customer_id]}\nfeatures:\n"
    f"  - {{name: amount, payment: amount}}\n{FEATURES}"
)
SHARE = "name: cards\nflag: {share: 0.05}\n"
COST = "name: cards\nflag: {cost: {currency: EUR, review: 1, good_customer: 2}}\n"


def _data(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 6)).astype(np.float32)
    X[rng.random(X.shape) < 0.1] = np.nan
    risk = np.nan_to_num(X[:, 0]) * 1.5 + np.nan_to_num(X[:, 1] * X[:, 2]) + rng.normal(scale=0.7, size=rows)
    return X, risk > 2.5


def _bundle(folder: Path, policy: str, saving_min: float | None = None, trees: int = 60) -> Path:
    X, truth = _data(1, 5_000)
    parameters = {"objective": "binary:logistic", "max_depth": 5, "eta": 0.1, "nthread": 1}
    booster = xgb.train(parameters, xgb.DMatrix(X, truth.astype(np.float32), nthread=1), trees)
    write_bundle(
        folder, name="cards", created_at="2025-01-01T00:00:00Z", model=bytes(booster.save_raw("ubj")),
        feature_set_yaml=FEATURE_SET, policy_yaml=policy, threshold_score=0.4, saving_min=saving_min,
        golden=(X[:50], booster.inplace_predict(X[:50], predict_type="margin").astype(np.float32)),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("report") / "bundle", SHARE)


DATA = _data(2, 6_000)
LATER = slice(3_000, None)


@pytest.fixture(scope="module")
def found(folder: Path) -> LeverReport:
    return report(folder, *DATA, loss=0.01, seed=1)


def _lever(found: LeverReport, name: str) -> LeverFigures:
    (one,) = (figures for figures in found.levers if figures.lever == name)
    return one


def test_a_reported_lever_is_the_lever(found: LeverReport, folder: Path, tmp_path: Path) -> None:
    """What stands in the report of a lever is what the command makes of the same rows: trees, nodes, size deflated,
    average precision, flags; and the loss is the difference, with an interval that draws both alike."""
    X, truth = DATA[0][LATER], DATA[1][LATER]
    done = levers.quantise(folder, tmp_path / "q", np.ascontiguousarray(X), truth, bits=8, created_at="x")
    one = _lever(found, "leaves of 8 bits")
    assert (one.trees, one.nodes, one.flagged) == (done.after.trees, done.after.nodes, done.after.flagged)
    assert one.deflated_ratio == pytest.approx(done.after.deflated_bytes / done.before.deflated_bytes)
    assert one.average_precision == pytest.approx(done.after.average_precision)
    assert one.lost == pytest.approx(done.before.average_precision - done.after.average_precision)
    assert one.lost_interval is not None
    assert one.lost_interval[0] <= one.lost <= one.lost_interval[1]
    old, new = (Bundle.load(path).model.margins(X).astype(np.float64) for path in (folder, tmp_path / "q"))
    assert one.margin_distance_max == pytest.approx(np.abs(new - old).max())
    assert one.margin_distance_mean == pytest.approx(np.abs(new - old).mean())
    count = int((old >= Bundle.load(folder).threshold_margin).sum())
    tops = [set(np.argsort(-side, kind="stable")[:count].tolist()) for side in (old, new)]
    assert one.decisions_changed == pytest.approx(len(tops[0] ^ tops[1]), abs=3)  # leaves on a grid tie
    assert [_lever(found, f"leaves of {bits} bits").margin_distance_max for bits in lever_report.BITS] == sorted(
        (_lever(found, f"leaves of {bits} bits").margin_distance_max for bits in lever_report.BITS), reverse=True
    )
    assert _lever(found, "as it is").lost == 0


def test_what_costs_too_much_pays_in_nothing(found: LeverReport) -> None:
    """A lever pays in what it makes smaller by a tenth, unless it costs more than the loss that is allowed; where its
    interval holds more than that, nothing is shown."""
    for one in found.levers:
        assert one.lost is not None
        # Times of the same work scatter: they count where there is less to do.
        early = one.lever == "early exit"
        share = one.detail["mean_trees"] / one.trees if early else one.nodes / _lever(found, "as it is").nodes
        faster = share <= 0.9 and min(one.batch_time_ratio, one.single_time_ratio) <= 0.9
        worth = faster or one.deflated_ratio <= 0.9
        if one.lost > 0.01:
            assert one.pays == "no"
        elif one.lost_interval is not None and one.lost_interval[1] > 0.01:
            assert one.pays == ("not shown" if worth else "no")
        else:
            assert ("size" in one.pays) == (one.deflated_ratio <= 0.9)
            assert ("time" in one.pays) == faster
    assert _lever(found, "student, 20 trees of depth 3").pays == "no"
    assert "size" in _lever(found, "leaves of 8 bits").pays


def test_few_frauds_do_not_show_that_a_lever_pays(folder: Path) -> None:
    """With a dozen frauds a loss may be small by chance: a lever whose interval reaches beyond --loss is not
    recommended."""
    X, truth = DATA
    kept = ~truth | (np.cumsum(truth) % 40 == 0)
    few = report(folder, np.ascontiguousarray(X[kept]), truth[kept], loss=0.01, seed=1)
    doubtful = [
        one for one in few.levers
        if one.lost is not None and one.lost <= 0.01 and one.lost_interval is not None and one.lost_interval[1] > 0.01
    ]  # fmt: skip
    assert any(one.pays == "not shown" for one in doubtful)
    assert {one.pays for one in doubtful} <= {"not shown", "no"}


def test_the_commands_make_what_the_report_shows(found: LeverReport, folder: Path, tmp_path: Path) -> None:
    """Pruning and the first trees choose, calibrate and measure on the same rows as in the report."""
    pruned = levers.prune(folder, tmp_path / "p", *DATA, loss=0.005, created_at="x", accept=True)
    first = levers.shorten(folder, tmp_path / "f", *DATA, trees=20, created_at="x")
    thresholds = {one.name: one.threshold_score for one in found.degraded}
    assert Bundle.load(tmp_path / "f").manifest.threshold_score == pytest.approx(thresholds["first 20 trees"])
    for done, name in ((pruned, "pruned within 0.005 AP"), (first, "first 20 trees")):
        one = _lever(found, name)
        assert (one.trees, one.nodes, one.flagged) == (done.after.trees, done.after.nodes, done.after.flagged)
        assert one.average_precision == done.after.average_precision


def test_without_labels_it_says_what_changes_and_no_more(folder: Path) -> None:
    """Margins, decisions, size and time are there; average precision, recall and the like are not, in no part of it."""
    found = report(folder, DATA[0], None, loss=0.01, seed=1)
    assert found.frauds is None
    for one in found.levers:
        assert (one.average_precision, one.lost, one.lost_interval) == (None, None, None)
    for each in found.degraded:
        assert (each.recall, each.precision, each.average_precision) == (None, None, None)
    assert any("No row has a label" in note for note in found.notes)
    pruned = _lever(found, "pruned within 5% of decisions")
    own = _lever(found, "as it is")
    assert pruned.nodes < own.nodes
    assert pruned.decisions_changed <= 0.1 * own.flagged  # 5 % on the half that chose
    same = report(folder, *DATA, loss=0.01, seed=1)
    quantised = (_lever(each, "leaves of 6 bits") for each in (found, same))
    assert len({(one.margin_distance_max, one.decisions_changed, one.nodes) for one in quantised}) == 1


def test_early_exit_changes_no_decision_and_exports_no_bit(found: LeverReport) -> None:
    """Early exit takes fewer trees and decides alike; xgboost, C and Python have the bundle's margins, bit for bit;
    what treelite adds in another order differs in the last places."""
    early = _lever(found, "early exit")
    assert early.decisions_changed == 0
    assert early.detail["mean_trees"] < early.trees
    exports = {one.name.split(",")[0]: one for one in found.exports}
    assert (exports["own evaluator"].time_ratio, exports["own evaluator"].margin_distance_max) == (1.0, 0.0)
    names = ["xgboost", "exported Python"] + (["exported C99"] if shutil.which("cc") else [])
    for name in names:
        assert exports[name].unavailable is None
        assert exports[name].margin_distance_max == 0.0
        assert exports[name].bytes
    assert exports["treelite's interpreter"].margin_distance_max < 1e-4
    assert [one.rows for one in found.batches] == sorted(one.rows for one in found.batches)
    assert found.batches[-1].time_ratio == 1.0
    assert found.batches[0].time_ratio > 1.0


def test_students_are_shown_at_their_own_threshold_and_at_the_models(
    found: LeverReport, folder: Path, tmp_path: Path
) -> None:
    """From its own threshold on a student flags the policy's share of the rows; by the model's another one. A student
    that the bundle has is among them, as it decides."""
    by_name = {one.name: one for one in found.degraded}
    assert "the bundle's student" not in by_name
    students = [name for name in by_name if f"{name}, by the model's threshold" in by_name]
    assert len(students) == len(lever_report.STUDENTS) + len(lever_report.FIRST)
    for name in students:
        assert by_name[name].flagged_share == pytest.approx(0.05, abs=0.005)
    shares = [by_name[f"{name}, by the model's threshold"].flagged_share for name in students]
    assert max(abs(share - 0.05) for share in shares) > 0.01
    levers.shorten(folder, tmp_path / "small", *DATA, trees=5, created_at="x")
    both = with_challengers(folder, [], tmp_path / "both", created_at="x", student=tmp_path / "small")
    own = {one.name: one for one in report(tmp_path / "both", *DATA, loss=0.01, seed=1).degraded}
    _, _, flags = both.degraded(np.ascontiguousarray(DATA[0][LATER]))
    assert flags is not None
    assert own["the bundle's student"].flagged_share == flags.mean()
    assert own["the bundle's student"].threshold_score == both.student_threshold_score


def test_the_first_trees_are_the_models_own(folder: Path, tmp_path: Path) -> None:
    """The lever keeps the first trees bit for bit, gives their scores the meaning of the whole model's, and makes a
    bundle that passes the gate; more trees than there are, or none, are refused."""
    done = levers.shorten(folder, tmp_path / "first", *DATA, trees=12, created_at="x")
    source = xgb.Booster({"nthread": 1})
    source.load_model(folder / "model.ubj")
    X = DATA[0][LATER]
    wanted = source.predict(xgb.DMatrix(X, nthread=1), output_margin=True, iteration_range=(0, 12))
    small, whole = Bundle.load(tmp_path / "first"), Bundle.load(folder)
    assert (small.model.margins(X).view(np.uint32) == wanted.view(np.uint32)).all()
    assert done.after.trees == 12
    scores = [bundle.scores(bundle.model.margins(X)) for bundle in (small, whole)]
    risky = scores[1] > 0.5
    assert scores[0][risky].mean() == pytest.approx(scores[1][risky].mean(), rel=0.1)
    assert scores[0].mean() == pytest.approx(scores[1].mean(), rel=0.1)
    assert verify(tmp_path / "first").passed
    for trees in (0, 61):
        with pytest.raises(UsageError, match=f"--first-trees {trees}: .* has 60 trees"):
            levers.shorten(folder, tmp_path / "none", *DATA, trees=trees, created_at="x")


def test_what_a_policy_by_cost_rules_out_is_named(tmp_path: Path) -> None:
    """Early exit and exported code know no amount: their reason stands in the report, and the rest is measured."""
    found = report(_bundle(tmp_path / "cost", COST, saving_min=0.0, trees=20), *DATA, loss=0.01, seed=1)
    assert "flags by cost" in str(_lever(found, "early exit").unavailable)
    without = {one.name: one.unavailable for one in found.exports if one.unavailable is not None}
    assert set(without) >= {"exported Python"}
    assert all("flags by cost" in reason or "no C compiler" in reason for reason in without.values())
    assert _lever(found, "leaves of 8 bits").unavailable is None


def test_segments_are_named_where_nothing_counts_them(tmp_path: Path) -> None:
    """Early exit knows one threshold alone; of the other levers, in the report and by themselves, a note says that the
    figures are by the common threshold."""
    segments = "segments: [{name: online, field: channel, values: [ecom], score: 0.2}]\n"
    folder = _bundle(tmp_path / "segments", SHARE + segments, trees=20)
    found = report(folder, *DATA, loss=0.01, seed=1)
    assert "has segments" in str(_lever(found, "early exit").unavailable)
    assert any("without the policy's segments (online)" in note for note in found.notes)
    (note,) = levers.quantise(folder, tmp_path / "q", *DATA, bits=8, created_at="x").notes
    assert "without the policy's segments (online)" in note


@pytest.mark.parametrize(
    ("rows", "truth", "loss", "message"),
    [
        (DATA[0][:300], DATA[1][:300], 0.01, "300 rows are too few to choose and to measure on: 400 at least"),
        (DATA[0], np.zeros(6_000, bool), 0.01, "0 frauds in a half of the rows, 5 at least"),
        (DATA[0][:, :4].copy(), DATA[1], 0.01, "the rows have 4 features, the bundle 6"),
        (DATA[0], DATA[1], 1.5, "--loss 1.5"),
    ],
)
def test_rows_that_cannot_measure_are_refused(
    folder: Path, rows: np.ndarray, truth: np.ndarray, loss: float, message: str
) -> None:
    """The refusal says what is missing, and the way out."""
    with pytest.raises(UsageError, match=message):
        report(folder, rows, truth, loss=loss, seed=1)


def test_a_ratio_of_times_is_one_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the work gives a ratio of three, also when the machine does something else in one turn, and the first
    turn, which compiles, takes long."""
    clock = SimpleNamespace(now_s=0.0, turns=0)

    def work(seconds: float) -> None:
        clock.turns += 1
        clock.now_s += seconds + (30.0 if clock.turns in (1, 2, 6) else 0.0)

    monkeypatch.setattr(model_figures, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    assert ratio(lambda: work(0.25), lambda: work(0.75), turns=5) == 3.0


def test_resampled_precisions_are_those_of_repeated_rows() -> None:
    """A draw is the average precision of the rows, each as often as it was drawn; equal rankings have equal draws."""
    rng = np.random.default_rng(5)
    truth, scores = rng.random(60) < 0.3, rng.permutation(60).astype(np.float64)
    drawn = resampled_precisions(truth, (scores, scores, -scores), 20, seed=9)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    weights = np.random.default_rng(9)
    for row in drawn:
        times = weights.poisson(1.0, 60)
        again = np.repeat(np.arange(60), times)
        assert row[0] == pytest.approx(average_precision(truth[again], scores[again]))


def test_the_document_is_plain(found: LeverReport) -> None:
    """--json has every part, and nothing that JSON cannot hold."""
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert set(document) == {
        "bundle", "rows", "payments_decided", "frauds", "allowed", "levers", "batches", "exports", "degraded", "notes",
    }  # fmt: skip
    assert replace(found, notes=[]).document()["notes"] == []


def test_by_cost_the_amounts_decide(tmp_path: Path) -> None:
    """Of a policy by cost the report shows the decisions that are made: what the rule flags with each amount, of the
    model, of its student and of what a lever makes of it. Without amounts a note says that it does not."""
    folder = _bundle(tmp_path / "cost", COST, saving_min=0.0, trees=20)
    X, truth = DATA
    amounts = np.random.default_rng(3).lognormal(2, 2, len(X))
    levers.shorten(folder, tmp_path / "small", *DATA, trees=5, created_at="x")
    both = with_challengers(folder, [], tmp_path / "both", created_at="x", student=tmp_path / "small")
    found = report(tmp_path / "both", X, truth, loss=0.01, seed=1, payments=Payments.all_of(X, amounts))
    here = np.ascontiguousarray(X[LATER])
    rule = both.policy_runner().cost
    assert rule is not None
    flags = rule.flags(both.scores(both.model.margins(here)), amounts[LATER])
    assert _lever(found, "as it is").flagged == flags.sum() != (both.model.margins(here) >= both.threshold_margin).sum()
    assert _lever(found, "as it is").decisions_changed == 0
    by_name = {one.name: one for one in found.degraded}
    assert by_name["the model, in time"].recall == pytest.approx(flags[truth[LATER]].mean())
    by_student = rule.flags(both.degraded(here)[1], amounts[LATER])
    assert by_name["the bundle's student"].flagged_share == by_student.mean()
    assert {one.threshold_score for one in found.degraded} == {None}
    assert not any("model's threshold" in name for name in by_name)
    assert not any("no amounts are known" in note for note in found.notes)
    assert any("no amounts are known" in note for note in report(folder, *DATA, loss=0.01, seed=1).notes)
    payments = Payments.all_of(X, amounts)
    done = levers.quantise(folder, tmp_path / "q", X, truth, bits=6, created_at="x", payments=payments)
    made = Bundle.load(tmp_path / "q")
    sides = [rule.flags(one.scores(one.model.margins(X)), amounts) for one in (both, made)]
    assert done.decisions_changed == (sides[0] != sides[1]).sum()
    assert (done.before.flagged, done.after.flagged) == tuple(side.sum() for side in sides)
    assert made.manifest.threshold_score == np.sort(made.scores(made.model.margins(X)))[-sides[1].sum()]
