"""The sigmoid: exact operations, small error, monotone, and its inverse for thresholds."""

from __future__ import annotations

import decimal
import math
import warnings

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scorer.model import margin_for_score, sigmoid

LN2 = 0.6931471805599453


def _grid() -> np.ndarray:
    """float32 margins: the whole range, dense near 0, and both sides of every border of the range reduction."""
    borders = np.array([(k + 0.5) * LN2 for k in range(-1076, 1076)], dtype=np.float32)
    near = np.concatenate(
        [borders, np.nextafter(borders, np.float32(np.inf)), np.nextafter(borders, np.float32(-np.inf))]
    )
    tiny = np.float32(2.0) ** np.arange(-149, 0, dtype=np.float32)
    switches = np.float32([-745.2, -746.0, -700.0, -699.99994, 36.7, 36.8, 709.8, 746.0, 0.0])
    wide = np.linspace(-760, 760, 20_001, dtype=np.float32)
    close = np.linspace(-40, 40, 20_001, dtype=np.float32)
    return np.unique(np.concatenate([near, tiny, -tiny, switches, wide, close]))


def _exact(margin: np.float32) -> decimal.Decimal:
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -9_999, 9_999
        return 1 / (1 + (-decimal.Decimal(float(margin))).exp())


def test_sigmoid_is_within_two_units_in_the_last_place() -> None:
    """The score is the true sigmoid within 2 units in the last place, from the subnormals to 1."""
    grid = _grid()[::7]
    scores = sigmoid(grid)
    worst = max(
        abs(decimal.Decimal(float(score)) - _exact(margin)) / decimal.Decimal(math.ulp(float(score)))
        for margin, score in zip(grid, scores, strict=True)
    )
    assert worst <= 2, f"{worst} units in the last place"


def test_sigmoid_never_falls() -> None:
    """A higher margin never has a lower score, across every border of the range reduction."""
    assert (np.diff(sigmoid(_grid())) >= 0).all()


@given(st.integers(-0x43000000, 0x43000000), st.integers(1, 64))
def test_sigmoid_never_falls_between_neighbours(start: int, count: int) -> None:
    """Runs of adjacent float32 margins have scores that never fall."""
    ranks = np.arange(start, start + count, dtype=np.int64)
    bits = np.where(ranks >= 0, ranks, (-ranks) | 0x80000000).astype(np.uint32)
    assert (np.diff(sigmoid(bits.view(np.float32))) >= 0).all()


def test_extremes_are_quiet() -> None:
    """Infinities and the largest floats give 0 and 1, NaN gives NaN, and nothing warns."""
    margins = np.array([-np.inf, -3.4e38, 3.4e38, np.inf, np.nan, 0.0, -0.0], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = sigmoid(margins)
    assert scores[:4].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert np.isnan(scores[4])
    assert scores[5] == scores[6] == 0.5


def test_known_bits() -> None:
    """These scores have these bits on every machine; a change here changes stored decisions."""
    margins = np.array([-4.75, -0.1, 0.3, 1.0, 7.5, -30.0, -720.5], dtype=np.float32)
    assert [score.hex() for score in sigmoid(margins).tolist()] == KNOWN


# One per platform would defeat the purpose: these were computed once, and hold everywhere.
KNOWN = [
    "0x1.191129aaba494p-7",
    "0x1.e66bdb1467b97p-2",
    "0x1.261d54774efcap-1",
    "0x1.764d4f5d5a2bdp-1",
    "0x1.ffb78bd3aa3b9p-1",
    "0x1.a56e0c2ac7cbfp-44",
    "0x0.00005cf08fff0p-1022",
]


@given(st.floats(0.0, 1.0))
def test_margin_for_score_is_the_smallest(score: float) -> None:
    """Comparing margins decides exactly as comparing scores does."""
    margin = margin_for_score(score)
    assert sigmoid(np.array([margin]))[0] >= score
    if margin > -np.finfo(np.float32).max:
        assert sigmoid(np.array([np.nextafter(margin, np.float32(-np.inf))]))[0] < score


def test_margin_for_a_score_of_zero_is_finite() -> None:
    """A threshold of 0 flags everything, and still is a number that JSON can hold."""
    assert margin_for_score(0.0) == -np.finfo(np.float32).max
