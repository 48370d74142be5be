"""Rows on which a model is tried when there are none of its own: the same rows for the same model."""

from __future__ import annotations

import numpy as np

from scorer.model import CompiledModel

_SEED = 20_250_101


def sample_rows(model: CompiledModel, count: int) -> np.ndarray:
    """float32 [count, k]: values at and around the model's cuts, far ones, and missing ones."""
    rng = np.random.default_rng(_SEED)
    table = model.table
    rows = rng.normal(size=(count, model.feature_count)).astype(np.float32)
    for column in range(rows.shape[1]):
        cuts = table.threshold[table.feature == column]
        cuts = cuts[np.isfinite(cuts)]
        if not len(cuts):
            continue
        with np.errstate(over="ignore"):
            pool = np.concatenate(
                [cuts, np.nextafter(cuts, np.float32(np.inf)), np.nextafter(cuts, np.float32(-np.inf))]
            )
        rows[:, column] = rng.choice(pool, count)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[rng.random(rows.shape) < 0.02] = np.float32(3e38)
    return rows
