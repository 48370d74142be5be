"""Calibration: a curve that never falls, fitted to what happened, with a threshold on margins that decides as scores
do.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scorer.model import ModelInputError
from scorer.model.calibration import Calibration, calibration_error, fit_isotonic, fit_platt
from scorer.model.link_function import sigmoid

MARGINS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12, unique=True).map(sorted)
EXTREMES = np.array([-3.4e38, -746, -1e-45, -0.0, 0.0, 1e-45, 36.9, 746, 3.4e38], dtype=np.float32)


@st.composite
def _curves(draw: st.DrawFn) -> Calibration:
    kind = draw(st.sampled_from(["identity", "platt", "isotonic"]))
    if kind == "identity":
        return Calibration()
    if kind == "platt":
        return Calibration(kind="platt", slope=draw(st.floats(1e-3, 100)), intercept=draw(st.floats(-50, 50)))
    margins = draw(MARGINS)
    scores = sorted(draw(st.lists(st.floats(0, 1), min_size=len(margins), max_size=len(margins))))
    return Calibration(kind="isotonic", margins=tuple(margins), scores=tuple(scores))


@settings(max_examples=150, deadline=None)
@given(curve=_curves(), seed=st.integers(0, 2**32 - 1), link=st.sampled_from(["logistic", "identity"]))
def test_scores_never_fall_and_stay_probabilities(curve: Calibration, seed: int, link: str) -> None:
    """Whatever the curve, a higher margin never has a lower score, neighbours in float32 included; scores stay in [0,
    1].
    """
    rng = np.random.default_rng(seed)
    some = rng.normal(scale=10, size=200).astype(np.float32)
    knots = np.array(curve.margins or (0.0,), dtype=np.float32)
    near = np.concatenate([knots, np.nextafter(knots, np.float32(np.inf)), np.nextafter(knots, np.float32(-np.inf))])
    margins = np.unique(np.concatenate([some, np.nextafter(some, np.float32(np.inf)), near, EXTREMES]))
    scores = curve.apply(margins, link)
    assert (np.diff(scores) >= 0).all()
    assert scores[0] >= 0
    assert scores[-1] <= 1


@settings(max_examples=150, deadline=None)
@given(curve=_curves(), score=st.floats(0, 1))
def test_margin_for_decides_as_scores_do(curve: Calibration, score: float) -> None:
    """The margin for a score is the smallest that reaches it; a score that none reaches is refused."""
    try:
        margin = curve.margin_for(score, "logistic")
    except ModelInputError:
        assert curve.apply(np.array([3.4e38], np.float32), "logistic")[0] < score
        return
    assert curve.apply(np.array([margin]), "logistic")[0] >= score
    if margin > -np.finfo(np.float32).max:
        assert curve.apply(np.array([np.nextafter(margin, np.float32(-np.inf))]), "logistic")[0] < score


@pytest.mark.parametrize("slope", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("intercept", [-3.0, 0.0, 1.0])
def test_platt_finds_the_line(slope: float, intercept: float) -> None:
    """Outcomes drawn from a line are given back by the fit, and the error of calibration falls to that of chance."""
    rng = np.random.default_rng(3)
    margins = rng.normal(scale=2, size=100_000).astype(np.float32)
    chance = sigmoid((slope * margins + intercept).astype(np.float32))
    target = (rng.random(len(chance)) < chance).astype(float)
    curve = fit_platt(margins, target)
    assert curve.slope == pytest.approx(slope, rel=0.05)
    assert curve.intercept == pytest.approx(intercept, abs=0.05)
    assert calibration_error(curve.apply(margins, "logistic"), target) < 0.006


@settings(max_examples=60, deadline=None)
@given(
    margins=st.lists(st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 2.0, 7.0]), min_size=2, max_size=40),
    data=st.data(),
)
def test_isotonic_pools_as_defined(margins: list[float], data: st.DataObject) -> None:
    """Pools' values equal the min-max definition of isotonic regression: the greatest least mean over runs."""
    target = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=len(margins), max_size=len(margins)))
    )
    x = np.array(margins, dtype=np.float32)
    values = np.unique(x)
    if len(values) < 2:
        with pytest.raises(ModelInputError):
            fit_isotonic(x, target)
        return
    curve = fit_isotonic(x, target)
    groups = [target[x == value] for value in values]

    def mean(a: int, b: int) -> float:
        return float(np.concatenate(groups[a : b + 1]).mean())

    n = len(groups)
    wanted = [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    pools = sorted(set(np.round(wanted, 9)))
    assert sorted(set(np.round(curve.scores or (), 9))) == pytest.approx(pools)


def test_a_margin_that_says_nothing_is_left_as_it_is() -> None:
    """Where frauds have the lower margins no rising line fits; the identity stays."""
    rng = np.random.default_rng(1)
    margins = rng.normal(size=5_000).astype(np.float32)
    target = (rng.random(5_000) < sigmoid(-3 * margins)).astype(float)
    assert fit_platt(margins, target).kind == "identity"


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "platt"},
        {"kind": "platt", "slope": -1.0, "intercept": 0.0},
        {"kind": "platt", "slope": float("nan"), "intercept": 0.0},
        {"kind": "identity", "slope": 1.0},
        {"kind": "isotonic", "margins": [0.0, 0.0], "scores": [0.1, 0.2]},
        {"kind": "isotonic", "margins": [0.0, 1.0], "scores": [0.2, 0.1]},
        {"kind": "isotonic", "margins": [0.0, 1.0], "scores": [0.2, 1.1]},
        {"kind": "isotonic", "margins": [0.0, 1.0, 2.0], "scores": [0.2, 0.3]},
        {"kind": "isotonic", "margins": [0.0], "scores": [0.2]},
        {"kind": "beta"},
    ],
)
def test_a_curve_that_is_none_is_refused(document: dict[str, object]) -> None:
    """A manifest cannot hold a curve that falls, has a hole, or is not a number."""
    with pytest.raises(ValidationError):
        Calibration.model_validate(document)
