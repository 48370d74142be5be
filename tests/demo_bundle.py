"""Trains the demo's bundle: `python -m tests.demo_bundle [FOLDER]`, by default the one that ships with the program.

A minute and a half of CPU. To be done, and the result committed, when the demo's feature set, policy, simulated world
or the recipe of training changes; tests/integration/test_demo_bundle.py compares.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.demo.demo_bundle import CUSTOMERS, FOLDER, TRAINING_SEED
from scorer.files.file_columns import json_block
from scorer.replay import chained, training_table
from scorer.simulate import World
from scorer.training import TrainingRows, TrainingSettings, train

ROOT = Path(__file__).resolve().parents[1]
PAYMENTS = 150_000
START_MS = 1_704_067_200_000  # 2024-01-01
# Payments without a label count as genuine after this long, as in production.
LABEL_DELAY_MS = 7 * 86_400_000


def train_demo_bundle(target: Path) -> str:
    """Simulate history, compute its features as the live engine does, train, write `target`. Gives the bundle's id."""
    feature_yaml = (ROOT / FOLDER / "feature_set.yaml").read_text(encoding="utf-8")
    table = training_table(
        FeatureSet.from_yaml(feature_yaml),
        chained(starmap(json_block, _history(World(TRAINING_SEED, customers=CUSTOMERS)))),
    )
    known_at = np.where(table.label_known_at_ms < 0, table.event_time_ms + LABEL_DELAY_MS, table.label_known_at_ms)
    trained = train(
        TrainingRows(table.features, np.maximum(table.label, 0).astype(np.int8), table.event_time_ms, known_at),
        feature_yaml,
        (ROOT / FOLDER / "policy.yaml").read_text(encoding="utf-8"),
        target,
        # Of the recipes that train compares the first is the best here, and the only one boosted: a third of the time.
        TrainingSettings(name="demo", created_at="2024-01-01T00:00:00Z", seed=TRAINING_SEED, search_s_max=0),
    )
    return trained.bundle_id


def _history(world: World) -> Iterator[Any]:
    count = 0
    for batch in world.stream(START_MS):
        yield batch.keys(), batch.to_json(), batch.labels_json(), batch.label, batch.label_known_at_ms
        count += len(batch)
        if count >= PAYMENTS:
            return


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / FOLDER / "bundle"
    fresh = folder.with_name(f"{folder.name}.new")
    print(train_demo_bundle(fresh), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
