"""The bundle by its gate, its feature set beside the settings, and the keys that its declarations need."""

from __future__ import annotations

from pathlib import Path

from features.feature_set import FeatureSetError
from scorer.bundle import Bundle, gate
from scorer.bundle.bundle_errors import BundleError
from scorer.bundle.bundle_location import load_bundle
from scorer.errors import FraudScorerError
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.pipeline.card_keys import cards_of
from scorer.runtime.settings import PREFIX, Settings


def check_bundle(found: Diagnosis, settings: Settings, location: str | None) -> Bundle | None:
    """Load it and run its gate; then sharding and keys. None where it cannot be loaded."""
    if location is None:
        found.skip("bundle", "no --bundle was given; without it windows, keys and memory are not looked at")
        return None
    found.checked += ["bundle", "keys"]
    bundle = _gated(found, settings, location)
    if bundle is None:
        return None
    try:
        bundle.feature_set.check_sharding(settings.worker.shard_key, settings.worker.shards)
    except FeatureSetError as exc:
        found.error("bundle", str(exc), f"set {PREFIX}WORKER__SHARDS and {PREFIX}WORKER__SHARD_KEY to what fits")
    try:
        cards_of(bundle.feature_set, settings.pseudonym_keys)
    except FraudScorerError as exc:
        found.error("keys", str(exc), f"set {PREFIX}CARDS__KEYS_FILE")
    return bundle


def _gated(found: Diagnosis, settings: Settings, location: str) -> Bundle | None:
    if "://" in location and not location.startswith("file://"):
        try:
            return load_bundle(location, trusted_keys=settings.bundle.trusted_keys)
        except BundleError as exc:
            found.error("bundle", str(exc), "give another bundle, or repair this one")
            return None
    folder = Path(location.removeprefix("file://"))
    try:
        verdict = gate.verify(folder, trusted_keys=settings.bundle.trusted_keys)
    except FraudScorerError as exc:  # a trusted key that is none
        found.error("bundle", str(exc), f"correct {PREFIX}BUNDLE__TRUSTED_KEYS")
        return None
    for check in verdict.checks:
        if not check.passed:
            found.error(
                "bundle",
                f"{folder} fails its gate ({check.name}): {check.detail}",
                "copy or train it again; `fraud-scorer bundle verify` shows every check",
            )
    return verdict.bundle
