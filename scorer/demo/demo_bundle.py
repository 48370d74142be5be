"""The demo's trained bundle, which comes with the program, and its payments: simulated and seeded, the same everywhere.

`python -m tests.demo_bundle` trains the bundle again; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from schemas.bundle_id import bundle_id
from scorer.operate.record_sender import Outgoing, outgoing_pairs
from scorer.runtime import assets
from scorer.simulate import World

CUSTOMERS = 2000
TRAINING_SEED, LIVE_SEED = 11, 12
# A demo must not depend on today: the same seed and start give the same first payments.
LIVE_START_MS = 1_735_689_600_000  # 2025-01-01
FOLDER = "deploy/examples/demo"


def demo_bundle() -> Path:
    """The folder of the demo's bundle."""
    return assets.path(f"{FOLDER}/bundle")


def demo_bundle_id() -> str:
    """Its id, `Bundle.load(demo_bundle()).id` without the model's kernels: importing those is most of a start."""
    manifest = (demo_bundle() / "manifest.json").read_bytes()
    return bundle_id(json.loads(manifest)["name"], manifest)


def live_blocks(world: World) -> Iterator[Outgoing]:
    """Simulated payments as the sender takes them."""
    for batch in world.stream(LIVE_START_MS):
        known = batch.label_known_at_ms[batch.label_known_at_ms >= 0]
        yield Outgoing(batch.keys(), batch.to_json(), batch.event_time_ms, outgoing_pairs(batch.labels_json(), known))
