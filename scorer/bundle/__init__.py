"""The bundle: a folder with everything a worker needs to decide, verified before it is used.

    manifest.json       sha256 of all other files, feature fingerprint, threshold, calibration, training window, metrics
    manifest.sig        Ed25519 signatures of the manifest (may be absent)
    model.ubj | .json   the xgboost model; model.txt: LightGBM; model.tl: a treelite checkpoint
    feature_set.yaml    what the model sees
    policy.yaml         what decides, besides the score
    golden.f32          rows and the source model's margins (little-endian float32 [rows, features + 1])
    challenger-ID.ubj   models that score in shadow

Data only: nothing in a bundle is ever executed. The room may touch model, policy and feature sets, files, and the URL
of a bundle that is fetched; it knows no Kafka and no Postgres.
"""

from __future__ import annotations

from scorer.bundle.bundle import Bundle, Challenger, NewChallenger, write_bundle
from scorer.bundle.bundle_errors import (
    BundleContentError,
    BundleError,
    BundleExistsError,
    BundleGateError,
    BundleManifestError,
    BundleMismatchError,
    BundleSignatureError,
)
from scorer.bundle.manifest import Lineage, Manifest, TrainingWindow
from scorer.model.calibration import Calibration

__all__ = [
    "Bundle",
    "BundleContentError",
    "BundleError",
    "BundleExistsError",
    "BundleGateError",
    "BundleManifestError",
    "BundleMismatchError",
    "BundleSignatureError",
    "Calibration",
    "Challenger",
    "Lineage",
    "Manifest",
    "NewChallenger",
    "TrainingWindow",
    "write_bundle",
]
