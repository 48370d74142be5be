"""The feature engine equals a plain rescan of every event, however its input is ordered, cut or interrupted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from engine_oracle import Oracle
from engine_streams import FACTORS, PROOF, T0, built, feed, give_labels, payments, pieces, run
from hypothesis import given, settings
from hypothesis import strategies as st

from features.engine_image import Image
from features.feature_set import CIRCULAR, FeatureSet
from features.window_engine import WindowEngine

# `ENGINE_EXAMPLES=5000 pytest tests/properties/test_engine_equals_oracle.py` is the long form.
EXAMPLES = int(os.environ.get("ENGINE_EXAMPLES", "60"))

cuts = st.lists(st.integers(1, 59), max_size=6)


def agree(actual: np.ndarray, expected: np.ndarray) -> None:
    for column, name in enumerate(PROOF.names):
        atol = 1e-7 if PROOF.features[column].aggregate in CIRCULAR else 1e-9  # they come in steps of 2^-24
        np.testing.assert_allclose(actual[:, column], expected[:, column], rtol=2e-6, atol=atol, err_msg=name)


@settings(max_examples=EXAMPLES, deadline=None)
@given(payments(60), cuts)
def test_every_feature_equals_a_rescan_of_all_events(steps: list[dict[str, Any]], cuts: list[int]) -> None:
    """Every aggregate and option gives what rescanning all events gives, late payments and corrected labels
    included."""
    rows, labels = built(steps)
    oracle = Oracle(PROOF, labels, FACTORS)
    expected = np.array([oracle.features(row) for row in rows], dtype=np.float32)
    agree(run(rows, labels, cuts), expected)


def test_a_neighbour_is_never_mistaken_for_the_key_that_takes_its_place() -> None:
    """Keys come and go, and others take their slots: known frauds of neighbours are those of the neighbours alone, also
    beyond a snapshot."""
    declared = FeatureSet.from_yaml("""
name: t
currency: EUR
allowed_lateness: 20s
label_horizon: 1m
entities: {customer: [customer_id], terminal: [terminal_id]}
features:
  - {name: tills, entity: customer, aggregate: neighbour_frauds, of: terminal, window: 60s}
  - {name: customers, entity: terminal, aggregate: neighbour_frauds, of: customer, window: 20s, latest: 4}
""")
    random, count = np.random.default_rng(4), 800
    rows = [
        {
            "payment_id": f"p{k}", "t": T0 + 500 * k - int(late), "amount": 100, "currency": "EUR",
            "customer_id": f"c{random.integers(k // 60, k // 60 + 9)}", "terminal_id": f"t{random.integers(0, 90)}",
        }
        for k, late in enumerate(random.choice([0, 0, 0, 7_000], count))
    ]  # fmt: skip
    labels = [(f"p{k}", T0 + 500 * k + int(random.integers(0, 40_000)), True) for k in range(0, count, 3)]
    oracle = Oracle(declared, labels, {"EUR": 1.0})
    expected = np.array([oracle.features(row) for row in rows], dtype=np.float32)
    engine = WindowEngine(declared, segment_shift=6)
    give_labels(engine, labels)
    found = [feed(engine, rows[:400])]
    assert engine.counts().keys < 100  # many more have come and gone
    capture = engine.capture()
    capture.copy()
    image = capture.finish()
    assert image is not None
    found.append(feed(WindowEngine.restore(declared, image), rows[400:]))
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert expected.max() > 10


def test_a_decayed_deviation_is_that_of_the_amounts_however_large_they_are() -> None:
    """Fifty million give or take a cent, after a large one that has faded and beside late ones: the deviation is right
    to a thousandth. Amounts that are all alike have one of exactly 0, and a key that is silent keeps its own."""
    declared = FeatureSet.from_yaml("""
name: t
currency: EUR
allowed_lateness: 1h
entities: {customer: [customer_id]}
features:
  - {name: mean, entity: customer, aggregate: decayed_mean, of: amount, half_life: 1m}
  - {name: std, entity: customer, aggregate: decayed_std, of: amount, half_life: 1m, include_current: true}
""")
    random = np.random.default_rng(6)
    amounts = [900_000_000_000, *(5_000_000_000 + random.integers(-1, 2, 400)).tolist()]
    late = random.choice([0, 0, 0, 100_000], len(amounts)).tolist()
    rows = [
        {"payment_id": f"p{k}", "t": T0 + 30_000 * (k + 300 * (k > 0)) - late[k] * (k > 9), "amount": amount,
         "currency": "EUR", "customer_id": "c"}
        for k, amount in enumerate(amounts)
    ]  # fmt: skip
    alike = [{**row, "payment_id": f"q{k}", "amount": 333, "customer_id": "d"} for k, row in enumerate(rows)]
    silent = [{**rows[-1], "payment_id": "last", "t": T0 + 400 * 86_400_000}]
    oracle = Oracle(declared, [], {"EUR": 1.0})
    mixed = [row for pair in zip(rows, alike, strict=True) for row in pair] + silent
    expected = np.array([oracle.features(row) for row in mixed], dtype=np.float32)
    found = run(mixed, [], feature_set=declared)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found[20::2, 1], expected[20::2, 1], rtol=1e-3)
    assert 0.005 < expected[-3, 1] < 0.015
    assert (found[1::2, 1] == 0).all()
    assert found[-1, 0] == expected[-1, 0] == 5e7


@settings(max_examples=EXAMPLES, deadline=None)
@given(payments(120), cuts)
def test_batch_borders_change_no_bit(steps: list[dict[str, Any]], cuts: list[int]) -> None:
    """One payment at a time, random cuts and one batch give the same bits."""
    rows, labels = built(steps)
    whole = run(rows, labels)
    np.testing.assert_array_equal(run(rows, labels, cuts), whole)
    np.testing.assert_array_equal(run(rows, labels, range(len(rows))), whole)


@settings(max_examples=EXAMPLES, deadline=None)
@given(payments(120), st.lists(st.integers(1, 119), min_size=1, max_size=4), st.integers(0, 3))
def test_snapshot_and_restore_at_any_point_change_no_bit(
    steps: list[dict[str, Any]], stops: list[int], meanwhile: int
) -> None:
    """An engine restored from a snapshot, taken while payments went on, goes on with the same bits."""
    rows, labels = built(steps)
    whole = run(rows, labels)
    engine = WindowEngine(PROOF, segment_shift=6)
    give_labels(engine, labels)
    out = []
    for piece in pieces(rows, stops):
        capture = engine.capture()
        cut = min(meanwhile, len(piece))
        if cut:
            out.append(feed(engine, piece[:cut]))  # the bulk is copied in the middle of this, or after it
        capture.copy()
        if piece[cut:]:
            out.append(feed(engine, piece[cut:]))
        image = capture.finish()
        if image is None:  # the arrays have grown: begin again
            capture = engine.capture()
            capture.copy()
            image = capture.finish()
        assert image is not None
        frozen = Image(image.meta, {name: array.copy() for name, array in image.arrays.items()})
        engine = WindowEngine.restore(PROOF, frozen)
    np.testing.assert_array_equal(np.concatenate(out), whole)
