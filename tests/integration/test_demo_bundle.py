"""The bundle that ships for the demo is what training makes today."""

from __future__ import annotations

from pathlib import Path

from scorer.bundle import Bundle
from scorer.demo import demo_bundle
from tests.demo_bundle import train_demo_bundle


def test_the_shipped_bundle_is_what_training_makes(tmp_path: Path) -> None:
    """Simulated history, features, threshold and margins come out as in the bundle that ships: what a user starts with
    has no other origin than this repository. Features bit for bit; threshold and margins too, with the libraries that
    the bundle names."""
    train_demo_bundle(tmp_path / "bundle")
    shipped, trained = Bundle.load(demo_bundle()), Bundle.load(tmp_path / "bundle")
    assert trained.manifest.feature_fingerprint == shipped.manifest.feature_fingerprint
    assert shipped.golden is not None
    assert trained.golden is not None
    # A golden row is the features and, last, the margin.
    assert shipped.golden[:, :-1].tobytes() == trained.golden[:, :-1].tobytes()
    if _libraries(trained) == _libraries(shipped):  # another release of xgboost grows other trees from the same rows
        assert shipped.golden[:, -1].tobytes() == trained.golden[:, -1].tobytes()
        assert trained.manifest.threshold_score == shipped.manifest.threshold_score


def _libraries(bundle: Bundle) -> set[tuple[str, str]]:
    return {item for item in bundle.manifest.versions.items() if item[0] in {"xgboost", "xgboost-cpu", "numpy"}}
