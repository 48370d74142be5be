"""The figures of a backtest against their definitions, written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.backtest import backtest_figures as figures
from scorer.training import area_under_roc, average_precision, card_precision

ROW = st.tuples(
    st.integers(0, 2), st.integers(0, 5), st.booleans(), st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.floats(0, 100)
)
ROWS = st.lists(ROW, min_size=1, max_size=40)
Row = tuple[int, int, bool, float, float]


def _columns(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    day, customer, truth, scores, amount = zip(*rows, strict=True)
    return np.array(day), np.array(customer), np.array(truth, dtype=bool), np.array(scores), np.array(amount)


@given(ROWS, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_recall_at_a_false_positive_rate(rows: list[Row], rate: float) -> None:
    """The best recall of all thresholds whose share of flagged genuine payments is within the rate."""
    _, _, truth, scores, _ = _columns(rows)
    if not truth.any():
        assert np.isnan(figures.recall_at(truth, scores, rate))
        return
    best = 0.0
    for threshold in [*np.unique(scores), 2.0]:
        flagged = scores >= threshold
        if (flagged & ~truth).sum() <= int(rate * (~truth).sum()):
            best = max(best, (flagged & truth).sum() / truth.sum())
    assert figures.recall_at(truth, scores, rate) == pytest.approx(best)


@given(ROWS, st.integers(1, 5))
def test_a_team_looks_at_the_best_of_each_day(rows: list[Row], alerts: int) -> None:
    """Precision and recall of the n highest scores a day, equal scores in the order of the payments."""
    day, _, truth, scores, _ = _columns(rows)
    looked: list[bool] = []
    for today in np.unique(day):
        of_day = [(-s, i, t) for i, (d, t, s) in enumerate(zip(day, truth, scores, strict=True)) if d == today]
        looked += [bool(t) for _, _, t in sorted(of_day)[:alerts]]
    precision, recall = figures.precision_of_top(day, truth, scores, alerts)
    assert precision == pytest.approx(sum(looked) / len(looked))
    assert recall == pytest.approx(sum(looked) / max(1, truth.sum()))


@given(ROWS)
def test_intervals_over_days_draw_whole_days(rows: list[Row]) -> None:
    """Days that bring the same leave no doubt; a sum and its negative, drawn alike, have mirrored intervals."""
    day, _, _, _, amount = _columns(rows)
    day = np.append(day, np.arange(100, 110))  # enough days to draw from
    amount = np.append(amount, np.arange(10.0))
    each = 1.0 / np.bincount(day)[day]
    found = figures.day_intervals(day, {"a": each, "b": amount, "c": -amount}, rounds=30, seed=1)
    assert found["a"] == pytest.approx((len(np.unique(day)),) * 2)
    assert found["b"] == pytest.approx((-found["c"][1], -found["c"][0]))
    assert figures.day_intervals(day, {"a": each}, rounds=0, seed=1) == {}
    few = day >= 101
    assert figures.day_intervals(day[few], {"a": each[few]}, rounds=30, seed=1) == {}


@given(ROWS)
def test_average_precision_of_drawn_customers(rows: list[Row]) -> None:
    """Each draw is the average precision of its customers' payments, as often as each was drawn."""
    _, customer, truth, scores, _ = _columns(rows)
    drawn = figures.average_precisions_drawn(customer, truth, scores, rounds=3, seed=4)
    random, who = np.random.default_rng(4), np.unique(customer)
    for value in drawn:
        picked = [np.flatnonzero(customer == who[i]) for i in random.integers(0, len(who), len(who))]
        several = np.concatenate(picked)
        assert value == pytest.approx(average_precision(truth[several], scores[several]), nan_ok=True)


@given(ROWS, st.integers(1, 4))
def test_card_precision_by_hand(rows: list[Row], k: int) -> None:
    """Each day the k customers with the highest score; found ones leave; ties by the smaller customer number."""
    day, customer, truth, scores, _ = _columns(rows)
    found: set[int] = set()
    expected = []
    for today in np.unique(day):
        best: dict[int, float] = {}
        fraud: dict[int, bool] = {}
        for d, c, t, s in zip(day, customer, truth, scores, strict=True):
            if d == today and c not in found:
                best[c] = max(best.get(c, -1.0), s)
                fraud[c] = fraud.get(c, False) or bool(t)
        top = sorted(best, key=lambda c: (-best[c], c))[:k]
        hits = {c for c in top if fraud[c]}
        expected.append(len(hits) / k)
        found |= hits
    assert card_precision(day, customer, scores, truth, k) == pytest.approx(expected)


@given(ROWS)
def test_every_step_of_the_sweep_is_what_its_threshold_does(rows: list[Row]) -> None:
    """Recall, precision, money and alerts of a step are recounted by flagging at its threshold."""
    day, _, truth, scores, amount = _columns(rows)
    for step in figures.sweep(day, truth, scores, amount):
        flagged = scores >= step["threshold"]
        assert step["flagged_a_day"] == pytest.approx(flagged.sum() / len(np.unique(day)))
        assert step["recall"] == pytest.approx((flagged & truth).sum() / max(1, truth.sum()))
        assert step["precision"] == pytest.approx((flagged & truth).sum() / flagged.sum())
        assert step["money_caught"] == pytest.approx(amount[flagged & truth].sum())
        assert step["money_blocked"] == pytest.approx(amount[flagged & ~truth].sum())


def test_intervals_hold_the_figures_of_drawn_customers() -> None:
    """One draw equals the plain metrics over the drawn customers' payments, repeated as often as they were drawn."""
    rng = np.random.default_rng(4)
    customer, truth = rng.integers(0, 12, 200), rng.random(200) < 0.3
    scores, amount = np.round(rng.random(200) + truth * 0.3, 1), rng.random(200)
    flagged = scores > 0.8
    found = figures.intervals(customer, truth, scores, flagged, amount, rounds=1, seed=8)
    drawn = np.random.default_rng(8).integers(0, 12, 12)
    rows = np.concatenate([np.flatnonzero(customer == who) for who in drawn])
    assert found["average_precision"][0] == pytest.approx(average_precision(truth[rows], scores[rows]))
    assert found["auc"][0] == pytest.approx(area_under_roc(truth[rows], scores[rows]))
    assert found["recall"][1] == pytest.approx((truth & flagged)[rows].sum() / truth[rows].sum())
    assert found["money_caught"][0] == pytest.approx(amount[rows][(truth & flagged)[rows]].sum())


def test_psi_sees_shifts_and_gaps() -> None:
    """Equal distributions give next to nothing, a shift or new gaps a large index; no data gives NaN."""
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=20_000), rng.normal(size=20_000)
    assert figures.psi(before, after) < 0.01
    assert figures.psi(before, after + 1) > 0.25
    gaps = after.copy()
    gaps[: len(gaps) // 2] = np.nan
    assert figures.psi(before, gaps) > 0.25
    assert np.isnan(figures.psi(before, after[:0]))
