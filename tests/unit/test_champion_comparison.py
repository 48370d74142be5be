"""Champion and challenger on matured labels: what is known is counted, what is not known is bounded and named."""

from __future__ import annotations

import re
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.backtest import Decided, paired_estimates
from scorer.backtest.champion_comparison import Comparison, Counted, compare, inspected_of
from scorer.backtest.comparison_findings import Seen
from scorer.backtest.comparison_page import write_comparison
from scorer.backtest.decided_payments import BacktestError
from scorer.policy import FlagCost, money_saved
from tests.selected_labels import DAY_MS, DAYS, World

COST = FlagCost(currency="EUR", review=1, good_customer=2)
AS_OF_MS = DAYS * DAY_MS


def _compare(
    world: World, decided: Decided, drawn: np.ndarray | None = None, **more: Any
) -> tuple[Comparison, np.ndarray]:
    """The comparison, and which payments it counts."""
    inspected = np.zeros(len(decided), bool) if drawn is None else drawn
    asked = {"from_ms": None, "as_of_ms": AS_OF_MS, "delay_ms": 10 * DAY_MS}
    window = Counted.of(decided, inspected=inspected, **(asked | {key: more.pop(key) for key in asked if key in more}))
    common = {"genuine": False, "rounds": 300} | more
    return compare(decided, world.shadow, "champion", window=window, inspected=inspected, **common), window.counted


def _finding(result: Comparison, name: str) -> tuple[bool, str]:
    (found,) = (one for one in result.findings if one.name == name)
    return found.warning, found.text


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(1)


def test_with_all_labels_the_figures_are_counted(world: World) -> None:
    """Frauds, good payments and money are those of the payments that one model flags alone, recounted plainly; the
    challenger, which sees a kind of fraud more, is recommended."""
    result, counted = _compare(world, world.decided, cost=COST)
    truth = world.fraud
    only, lost = counted & world.challenger & ~world.champion, counted & world.champion & ~world.challenger
    wanted = {
        "frauds_caught": (truth & only).sum() - (truth & lost).sum(),
        "good_payments_stopped": (~truth & only).sum() - (~truth & lost).sum(),
        "fraud_money_caught": world.amount[truth & only].sum() - world.amount[truth & lost].sum(),
        "good_money_blocked": world.amount[~truth & only].sum() - world.amount[~truth & lost].sum(),
        "money_saved": np.diff(
            [
                money_saved(COST, truth, flags & counted, world.amount).sum()
                for flags in (world.champion, world.challenger)
            ]
        )[0],
    }
    labelled = counted.sum()  # all of them have a label, but those of the last days
    assert result.payments == labelled
    for name, value in wanted.items():
        # The labels of a few payments come later than as_of: the others of their cell stand for them.
        assert result.figures[name].value == pytest.approx(value, rel=0.03), name
        assert result.figures[name].interval is not None
        assert result.figures[name].interval[0] < value < result.figures[name].interval[1]
    assert [cell.how for cell in result.cells] == [None, "labels", "labels", None]
    assert sum(cell.payments for cell in result.cells) == labelled
    assert (result.deciding, result.action) == ("money_saved", "activate")
    assert result.average_precision["complete"]
    assert result.average_precision["interval"][0] > 0
    assert _finding(result, "selection bias")[0] is False


def test_labels_of_flagged_payments_alone_give_no_verdict(world: World) -> None:
    """Where only what the champion flags is investigated, labelled payments alone show the better challenger as far
    worse. The report warns, calls that biased, gives bounds that hold the truth, and asks for a random sample."""
    result, counted = _compare(world, world.labelled(world.champion))
    truth, figure = world.difference(counted), result.figures["frauds_caught"]
    assert truth > 30
    naive = result.naive["frauds_caught"]
    assert naive.value is not None
    assert naive.interval is not None
    assert naive.interval[1] < 0 < truth
    warning, text = _finding(result, "selection bias")
    assert warning
    assert "biased" in text
    assert f"{naive.value:+,.0f} frauds caught" in text
    assert figure.value is None
    assert figure.lowest < truth < figure.highest
    assert result.action == "inspect"
    assert result.break_even is not None
    assert result.break_even["frauds"] == -naive.value
    assert 30 <= result.inspect <= result.break_even["payments"]
    assert _finding(result, "feedback loop")[0]
    assert not result.average_precision["complete"]


def test_assuming_that_the_rest_is_genuine_does_not_hide_it(world: World) -> None:
    """With --genuine-after, too: frauds known among flagged payments alone look like investigated ones alone, so what
    has no label is not taken for genuine."""
    result, _ = _compare(world, world.labelled(world.champion), genuine=True)
    assert result.figures["frauds_caught"].value is None
    assert result.action == "inspect"
    assert "not taken for genuine" in _finding(result, "selection bias")[1]


def test_where_frauds_are_reported_the_rest_is_genuine(world: World) -> None:
    """Where all frauds are reported and nothing else has a label, --genuine-after gives the true difference."""
    result, counted = _compare(world, world.labelled(world.fraud | world.champion), genuine=True)
    figure = result.figures["frauds_caught"]
    assert result.cells[1].how == "assumed"
    assert figure.value == pytest.approx(world.difference(counted), abs=3)
    assert result.action == "activate"
    assert "count as genuine" in _finding(result, "selection bias")[1]


def test_a_champion_that_misses_nothing_is_not_suspected() -> None:
    """Where approved payments were confirmed as genuine, that all frauds were flagged is known, and no warning."""
    world = World.of(4, second_kind=0.0)
    label = (world.fraud & world.champion).astype(np.int8)
    table = world.decided.table
    column = table.column_names.index("label")
    decided = Decided(table.set_column(column, "label", pa.array(label, pa.int8())), [], "EUR", {"EUR": 1.0})
    # Labels that take 4 days at most.
    result, _ = _compare(world, decided, delay_ms=20 * DAY_MS)
    assert not _finding(result, "selection bias")[0]
    assert result.figures["frauds_caught"].value is not None


def test_a_random_sample_corrects_the_bias() -> None:
    """Of thirty worlds, forty inspected payments that the challenger alone flags give estimates that are right on
    average, and 95 % intervals that hold the truth nearly always; labelled payments alone never do."""
    errors, held, biased = [], 0, 0
    for seed in range(30):
        world = World.of(seed, payments=12_000)
        before, counted = _compare(world, world.labelled(world.champion))
        drawn = inspected_of(world.decided, set(before.sample(40, seed)))
        result, _ = _compare(world, world.labelled(world.champion | drawn), drawn)
        assert result.cells[1].how == "sample"
        assert result.cells[1].inspected < 0.7 * result.cells[1].payments
        truth, figure, naive = world.difference(counted), result.figures["frauds_caught"], before.naive["frauds_caught"]
        assert figure.value is not None
        assert figure.interval is not None
        assert naive.interval is not None
        errors.append(figure.value - truth)
        held += figure.interval[0] <= truth <= figure.interval[1]
        biased += naive.interval[1] < truth
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(len(errors))
    assert held >= 27
    assert biased == 30


def test_a_model_that_learns_from_its_own_flags_never_learns_the_rest() -> None:
    """The feedback loop, four generations long: trained on what the one before it flagged, the rest taken for genuine,
    each model misses the second kind of fraud as the first one did; with one approved payment in fifty inspected at
    random, which stands for fifty, it is found. The report names the loop where labels are the champion's own."""
    recall = {}
    for share in (0.0, 0.02):
        flags_by = None
        for generation in range(4):
            rng = np.random.default_rng(10 + generation)
            kind = rng.choice(3, 20_000, p=[0.96, 0.02, 0.02])
            X = rng.normal(size=(20_000, 2)).astype(np.float32)
            X[kind > 0, kind[kind > 0] - 1] += 3.0
            score = X[:, 0] if flags_by is None else flags_by.predict(xgb.DMatrix(X, nthread=1))
            flagged = score >= np.quantile(score, 0.97)
            inspected = ~flagged & (rng.random(20_000) < share)
            label, weight = (kind > 0) & (flagged | inspected), np.ones(20_000)
            if share:  # without an assumption: flagged payments, and the sample for all others
                weight = np.where(flagged, 1.0, np.where(inspected, 1.0 / share, 0.0))
            rows = weight > 0
            data = xgb.DMatrix(X[rows], label[rows].astype(np.float32), weight=weight[rows], nthread=1)
            flags_by = xgb.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": 1}, data, 40)
        recall[share] = float(flagged[kind == 2].mean())
    assert recall[0.0] < 0.15
    assert recall[0.02] > 0.4
    world = World.of(5)
    warning, text = _finding(_compare(world, world.labelled(world.champion))[0], "feedback loop")
    assert warning
    assert "100.0% of the known frauds" in text
    assert not _finding(_compare(world, world.decided)[0], "feedback loop")[0]


def test_a_challenger_that_sees_noise_is_not_taken() -> None:
    """A challenger whose own flags are noise is rejected where all labels are there, and after a sample without one
    fraud in it, whose rate is bounded exactly and not taken for 0."""
    world = World.of(3, second_kind=0.0)
    result, _ = _compare(world, world.decided)
    assert result.action == "keep"
    few, _ = _compare(world, world.labelled(world.champion))
    drawn = inspected_of(world.decided, set(few.sample(60, 1)))
    assert (world.fraud & drawn).sum() < paired_estimates.SAMPLE_FRAUDS_MIN
    sampled, counted = _compare(world, world.labelled(world.champion | drawn), drawn)
    figure = sampled.figures["frauds_caught"]
    assert figure.lowest < figure.highest
    assert figure.interval is not None
    assert figure.interval[0] < world.difference(counted) < figure.interval[1]


def test_a_sample_that_is_half_judged_does_not_count(world: World) -> None:
    """Inspected payments without a label yet are named, and the sample stands for nothing until nearly all have one."""
    few, _ = _compare(world, world.labelled(world.champion))
    drawn = inspected_of(world.decided, set(few.sample(80, 1)))
    half = drawn & world.fraud
    result, _ = _compare(world, world.labelled(world.champion | half), drawn)
    assert result.cells[1].how == "bounds"
    assert _finding(result, "inspected sample")[0]


def test_a_model_of_unknown_training_is_warned_about(world: World) -> None:
    """The report names the model, and --from as the way out; with known days it says which payments are left out."""
    warning, text = _finding(_compare(world, world.decided, seen=Seen(None, ("older",)))[0], "training days")
    assert warning
    assert "which payments older learned from" in text
    assert "--from" in text
    warning, text = _finding(_compare(world, world.decided, seen=Seen(DAY_MS))[0], "training days")
    assert not warning
    assert "before 1970-01-02T00:00:00+00:00 are left out" in text


def test_a_capacity_s_work_is_reported_of_both(world: World) -> None:
    """With the challenger's own least saving the report has how many payments a day each model flags."""
    limited = replace(world, shadow=replace(world.shadow, threshold_score=None, saving_min=2.5))
    result, counted = _compare(limited, world.decided, cost=COST)
    days = len(np.unique(world.decided.day[counted]))
    wanted = [int(flags[counted].sum()) / days for flags in (world.champion, world.challenger)]
    assert list(result.flagged_a_day.values()) == wanted
    text = _finding(result, "equal work")[1]
    assert "expected saving of 2.50 EUR" in text
    assert f"champion flags {wanted[0]:,.1f} payments a day, the challenger {wanted[1]:,.1f}" in text


def test_labels_that_are_late_are_waited_for(world: World) -> None:
    """By default payments younger than what 95 % of the labels took are left out, and the report says how long that is;
    a count of all payments as if they had no fraud without a label would find too few."""
    result, counted = _compare(world, world.decided, delay_ms=None)
    known_at, at = (world.decided.numbers(name) for name in ("label_known_at", "event_time"))
    assert np.quantile((known_at - at)[: len(at) // 2], 0.9) < result.delay_ms < np.quantile(known_at - at, 0.99)
    assert f"{result.delay_ms / DAY_MS:.3g} days" in _finding(result, "label delay")[1]
    assert result.left_out == (~counted).sum() > 0
    assert world.decided.time_ms[counted].max() <= AS_OF_MS - result.delay_ms
    last = counted & (world.decided.time_ms > AS_OF_MS - result.delay_ms - DAY_MS)
    early = world.decided.known_by(AS_OF_MS)
    assert (early.label[last] >= 0).mean() > 0.9
    assert (early.label[~counted] >= 0).mean() < 0.8


def test_segments_count_how_many_were_looked_at() -> None:
    """A challenger that is worse in one channel alone is recommended with that channel named; where models are as good
    everywhere, hardly any segment of many worlds is called better or worse."""
    wrong = total = 0
    for seed in range(12):
        world = World.of(100 + seed, payments=8_000)
        # The truth has nothing to do with either model.
        rng = np.random.default_rng(seed)
        label = (rng.random(8_000) < 0.3).astype(np.int8)
        table = world.decided.table
        column = table.column_names.index("label")
        decided = Decided(table.set_column(column, "label", pa.array(label, pa.int8())), [], "EUR", {"EUR": 1.0})
        result, _ = _compare(world, decided)
        wrong += sum(one.verdict != "not shown" for one in result.segments)
        total += len(result.segments)
    assert total > 60
    assert wrong <= 3


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "too young": ({"delay_ms": 90 * DAY_MS}, "no payment of the window is older than the 90 days that labels take"),
    "no labels": ({"as_of_ms": 1, "delay_ms": None}, "no payment of the older half of the window has a label"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_compared_is_refused(world: World, case: str) -> None:
    """The refusal says what is missing."""
    more, message = CASES[case]
    with pytest.raises(BacktestError, match=message):
        _compare(world, world.decided, **more)


def test_models_that_never_differ_and_ids_of_other_payments_are_refused(world: World) -> None:
    """Nothing to compare, and a sample of other payments, get their reason."""
    same = World(
        world.fraud, world.first_kind, world.champion, world.champion, world.amount, world.decided,
        type(world.shadow)("same", world.decided, 0.5),
    )  # fmt: skip
    with pytest.raises(BacktestError, match="flag the same"):
        _compare(same, same.decided)
    with pytest.raises(BacktestError, match="none of the 1 inspected payments is among those decided"):
        inspected_of(world.decided, {"stranger"})


def test_few_days_recommend_nothing(world: World) -> None:
    """A difference over a few days is not taken for one, however many payments there are."""
    result, _ = _compare(world, world.decided, from_ms=45 * DAY_MS)
    assert result.days < 10
    assert result.action == "wait"


def test_the_page_names_what_labels_cannot_say(world: World, tmp_path: Path) -> None:
    """The page holds advice, both figures, and every finding; it loads nothing and holds no payment's id."""
    result, _ = _compare(world, world.labelled(world.champion))
    write_comparison(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for name in ("label delay", "selection bias", "feedback loop", "stopped payments"):
        assert name in page
    assert "Inspect a random sample first" in page
    assert not re.findall(r"https?://|<script|src=", page)
    assert not re.findall(r"\bp\d{1,5}\b", page)


@settings(deadline=None)  # other work on the machine is no failure
@given(st.integers(1, 300), st.data())
def test_the_exact_interval_of_a_rate(count: int, data: st.DataObject) -> None:
    """At both ends of Clopper's and Pearson's interval what was seen, or anything further out, has a chance of 2.5
    %."""
    hits = data.draw(st.integers(0, count))
    low, high = paired_estimates.rate_interval(hits, count)

    def tail(rate: float, *, upper: bool) -> float:
        ks = range(hits, count + 1) if upper else range(hits + 1)
        return float(sum(comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in ks))

    assert 0.0 <= low <= hits / count <= high <= 1.0
    if hits:
        assert tail(low, upper=True) == pytest.approx(0.025, rel=1e-3)
    if hits < count:
        assert tail(high, upper=False) == pytest.approx(0.025, rel=1e-3)
