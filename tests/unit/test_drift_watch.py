"""Drift against the bundle's golden rows: none on the same payments, named by feature where one has moved."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.worker.drift_watch import BINS, ROWS_KEPT, Histograms

RNG = np.random.default_rng(7)


def drawn(rows: int, shift: float = 0.0, missing: float = 0.0) -> np.ndarray:
    """A continuous column, one of three categories, one that is always 0, one with missing values."""
    values = np.column_stack([
        RNG.normal(shift, 1, rows), RNG.integers(0, 3, rows), np.zeros(rows), RNG.normal(0, 1, rows)
    ]).astype(np.float32)  # fmt: skip
    values[RNG.random(rows) < missing, 3] = np.nan
    return values


def test_the_same_population_has_no_drift() -> None:
    """256 golden rows and 5,000 live ones of one population: the index stays near its noise, far below 0.1."""
    columns = Histograms(drawn(256))
    columns.add(drawn(5_000))
    assert columns.stability().max() < 0.1


def test_a_feature_that_moved_is_drift_and_the_others_are_not() -> None:
    """Shifted by one standard deviation: above 0.25, for that feature alone."""
    columns = Histograms(drawn(256))
    columns.add(drawn(5_000, shift=1.0))
    index = columns.stability()
    assert index[0] > 0.25
    assert index[1:].max() < 0.1


def test_values_that_are_missing_count_as_drift_and_as_missing() -> None:
    """Half of a feature's values are gone: it has drifted, and its share of missing values is one half."""
    columns = Histograms(drawn(256))
    columns.add(drawn(5_000, missing=0.5))
    assert columns.stability()[3] > 0.25
    assert columns.missing()[3] == pytest.approx(0.5, abs=0.03)
    assert columns.missing()[:3].tolist() == [0, 0, 0]


def test_the_index_equals_its_formula() -> None:
    """Sum over bins of (live - known) * ln(live / known), with half a row added to each bin."""
    reference, live = drawn(256), drawn(1_000, shift=0.5)
    columns = Histograms(reference)
    columns.add(live)
    edges = np.quantile(reference[:, 0], np.linspace(0, 1, BINS + 1)[1:-1], method="inverted_cdf")
    expected = 0.0
    bins = [*zip([-np.inf, *edges], [*edges, np.inf], strict=True), (np.nan, np.nan)]
    for low, high in bins:
        p = (((live[:, 0] > low) & (live[:, 0] <= high)).sum() + 0.5) / (len(live) + 0.5 * (BINS + 1))
        q = (((reference[:, 0] > low) & (reference[:, 0] <= high)).sum() + 0.5) / (256 + 0.5 * (BINS + 1))
        expected += (p - q) * np.log(p / q)
    assert columns.stability()[0] == pytest.approx(expected)


def test_old_payments_count_less_and_less() -> None:
    """A population that changed for good is the only one that counts after a while, and the counts are bounded."""
    columns = Histograms(drawn(256))
    columns.add(drawn(ROWS_KEPT, shift=2.0))
    for _ in range(100):
        columns.add(drawn(1_000))
        assert columns.rows <= ROWS_KEPT + 1_000
    assert columns.stability()[0] < 0.1
