"""Golden rows for bundles of tests: random rows and the margins that the model's own library gives them."""

from __future__ import annotations

import numpy as np
import treelite
import xgboost as xgb

from scorer.model.treelite_checkpoint import is_checkpoint


def golden_rows(model: bytes, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Rows float32 [count, k] and margins float32 [count] of an xgboost file or a treelite checkpoint."""
    rng = np.random.default_rng(9)
    if is_checkpoint(model):
        forest = treelite.Model.deserialize_bytes(model)
        rows = rng.normal(size=(count, forest.num_feature)).astype(np.float32)
        margins = treelite.gtil.predict(forest, rows, nthread=1, pred_margin=True).reshape(count, -1)[:, -1]
        return rows, margins.astype(np.float32)
    booster = xgb.Booster({"nthread": 1})
    booster.load_model(bytearray(model))
    rows = rng.normal(size=(count, booster.num_features())).astype(np.float32)
    rows[::7, 0] = np.nan
    return rows, booster.inplace_predict(rows, predict_type="margin").astype(np.float32)
