"""The feature engine equals a plain rescan of every event, however its input is ordered, cut or interrupted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from engine_oracle import Oracle
from engine_streams import FACTORS, PROOF, built, feed, give_labels, payments, pieces, run
from hypothesis import given, settings
from hypothesis import strategies as st

from features.engine_image import Image
from features.window_engine import WindowEngine

# `ENGINE_EXAMPLES=5000 pytest tests/properties/test_engine_equals_oracle.py` is the long form.
EXAMPLES = int(os.environ.get("ENGINE_EXAMPLES", "60"))

cuts = st.lists(st.integers(1, 59), max_size=6)


def agree(actual: np.ndarray, expected: np.ndarray) -> None:
    for column, name in enumerate(PROOF.names):
        np.testing.assert_allclose(actual[:, column], expected[:, column], rtol=2e-6, atol=1e-9, err_msg=name)


@settings(max_examples=EXAMPLES, deadline=None)
@given(payments(60), cuts)
def test_every_feature_equals_a_rescan_of_all_events(steps: list[dict[str, Any]], cuts: list[int]) -> None:
    """Every aggregate and option gives what rescanning all events gives, late payments and corrected labels
    included."""
    rows, labels = built(steps)
    oracle = Oracle(PROOF, labels, FACTORS)
    expected = np.array([oracle.features(row) for row in rows], dtype=np.float32)
    agree(run(rows, labels, cuts), expected)


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
