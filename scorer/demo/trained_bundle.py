"""The demo's bundle and payments: simulated, seeded, the same on every machine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Bundle, BundleError
from scorer.bundle.manifest import FORMAT_VERSION
from scorer.errors import FraudScorerError
from scorer.files.file_columns import json_block
from scorer.operate.record_sender import Outgoing, outgoing_pairs
from scorer.replay import chained, training_table
from scorer.runtime import assets
from scorer.simulate import World

CUSTOMERS = 2000
TRAINING_SEED, LIVE_SEED = 11, 12
TRAINING_PAYMENTS = 150_000
# A demo must not depend on today: the same seed and start give the same bundle and the same first payments.
TRAINING_START_MS = 1_704_067_200_000  # 2024-01-01
LIVE_START_MS = 1_735_689_600_000  # 2025-01-01
# Payments without a label count as genuine after this long, as in production.
LABEL_DELAY_MS = 7 * 86_400_000

Report = Callable[[str], None]


def demo_bundle(cache: Path, report: Report) -> Path:
    """The demo's bundle: trained on simulated history on the first start, cached by what it was made of."""
    feature_yaml = assets.path("deploy/examples/demo/feature_set.yaml").read_text(encoding="utf-8")
    policy_yaml = assets.path("deploy/examples/demo/policy.yaml").read_text(encoding="utf-8")
    feature_set = FeatureSet.from_yaml(feature_yaml)
    policy_hash = hashlib.sha256(policy_yaml.encode()).hexdigest()
    target = cache / (
        f"demo-{feature_set.fingerprint[:12]}-{policy_hash[:8]}-{TRAINING_SEED}-{TRAINING_PAYMENTS}-{_makers()[:8]}"
    )
    if target.exists():
        try:
            Bundle.load(target)
            return target
        except BundleError as exc:
            raise FraudScorerError(f"the cached demo bundle is damaged ({exc}); remove {target}") from exc
    from scorer.training import TrainingRows, TrainingSettings, train  # noqa: PLC0415 - xgboost is an extra

    report(f"First start: computing features of {TRAINING_PAYMENTS:,} simulated payments (compiling kernels first)")
    last = [0.0]

    def progress(count: int) -> None:
        if time.monotonic() - last[0] > 2.0:
            last[0] = time.monotonic()
            report(f"  {count:,} payments")

    table = training_table(
        feature_set,
        chained(starmap(json_block, history_blocks(World(TRAINING_SEED, customers=CUSTOMERS)))),
        progress=progress,
    )
    known_at = np.where(table.label_known_at_ms < 0, table.event_time_ms + LABEL_DELAY_MS, table.label_known_at_ms)
    report("Training the model (xgboost, early stopping on later days)")
    trained = train(
        TrainingRows(table.features, np.maximum(table.label, 0).astype(np.int8), table.event_time_ms, known_at),
        feature_yaml,
        policy_yaml,
        target,
        TrainingSettings(name="demo", created_at="2024-01-01T00:00:00Z", seed=TRAINING_SEED),
    )
    report(
        f"Bundle {trained.bundle_id}: {trained.trees} trees, "
        f"average precision {trained.metrics['average_precision']:.3f} on held-out days"
    )
    return target


def _makers() -> str:
    """sha256 of the code that makes bundles and payments: a bundle of another release is not taken for this one's."""
    digest = hashlib.sha256(str(FORMAT_VERSION).encode())
    for part in ("bundle", "training", "simulate"):
        for source in sorted((Path(__file__).parents[1] / part).rglob("*.py")):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def history_blocks(world: World) -> Iterator[Any]:
    """Simulated history as the training table takes it."""
    count = 0
    for batch in world.stream(TRAINING_START_MS):
        yield batch.keys(), batch.to_json(), batch.labels_json(), batch.label, batch.label_known_at_ms
        count += len(batch)
        if count >= TRAINING_PAYMENTS:
            return


def live_blocks(world: World) -> Iterator[Outgoing]:
    """Simulated payments as the sender takes them."""
    for batch in world.stream(LIVE_START_MS):
        known = batch.label_known_at_ms[batch.label_known_at_ms >= 0]
        yield Outgoing(batch.keys(), batch.to_json(), batch.event_time_ms, outgoing_pairs(batch.labels_json(), known))
