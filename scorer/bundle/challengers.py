"""Champion and challengers: a bundle that decides as before and carries others' models, which score in shadow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scorer.bundle.bundle import Bundle, NewChallenger, write_bundle
from scorer.bundle.bundle_errors import BundleGateError, BundleMismatchError
from scorer.bundle.bundle_folder import checked
from scorer.bundle.manifest import CHALLENGER_ID_MAX, CHALLENGERS_MAX, FEATURE_SET, POLICY
from scorer.errors import UsageError


def with_challengers(
    champion: Path, others: Sequence[Path], output: Path, *, created_at: str, student: Path | None = None
) -> Bundle:
    """Write the champion's bundle with the models of `others` as its challengers (in place of those it had).

    `student`: one more, which also decides when a deadline leaves no time for the champion's model; where both flag the
    same share of payments, from its own bundle's threshold on, which meets that share. Each challenger is named by its
    bundle's id. Raises BundleError, BundleMismatchError when another's features are not the champion's, UsageError for
    none or too many.
    """
    if student is not None:
        others = [*others, student]
    if not 1 <= len(others) <= CHALLENGERS_MAX:
        raise UsageError(f"{len(others)} challengers: a bundle carries 1 to {CHALLENGERS_MAX}")
    bundle = Bundle.load(champion)
    shadows, own = [], None
    for path in others:
        other = Bundle.load(path)
        if other.feature_set.fingerprint != bundle.feature_set.fingerprint:
            raise BundleMismatchError(
                f"{other.id} has feature set {other.feature_set.fingerprint[:12]}, the champion {bundle.id} has "
                f"{bundle.feature_set.fingerprint[:12]}; a challenger sees the champion's features"
            )
        name = other.manifest.model_file
        data = checked(path, name, other.manifest.files[name])
        if len(other.id) > CHALLENGER_ID_MAX:
            raise UsageError(
                f"{path}: the bundle is called {other.id}, {len(other.id)} characters; a challenger may have "
                f"{CHALLENGER_ID_MAX}: train or compile it anew under a shorter --name"
            )
        if path is student and bundle.policy.flag.share is not None and other.policy.flag == bundle.policy.flag:
            own = other.manifest.threshold_score
        training = other.manifest.training
        seen_until_ms = None if training is None else training.validation_until_ms
        curve = other.manifest.calibration
        shadows.append(NewChallenger(other.id, data, Path(name).suffix, curve, _rows(other), seen_until_ms))
    if len({item.id for item in shadows}) < len(shadows):
        raise UsageError("two challengers are the same bundle")
    golden = _rows(bundle)
    if golden is None:
        raise BundleGateError(f"{bundle.id} has no golden rows, written by an older version; train or import it anew")
    manifest = bundle.manifest
    read = {name: checked(champion, name, manifest.files[name]) for name in (manifest.model_file, FEATURE_SET, POLICY)}
    return write_bundle(
        output,
        name=manifest.name,
        created_at=created_at,
        model=read[manifest.model_file],
        model_file=manifest.model_file,
        feature_set_yaml=read[FEATURE_SET].decode(),
        policy_yaml=read[POLICY].decode(),
        threshold_score=manifest.threshold_score,
        saving_min=manifest.saving_min,
        calibration=manifest.calibration,
        golden=golden,
        challengers=shadows,
        student=None if student is None else shadows[-1].id,
        student_threshold_score=own,
        training=manifest.training,
        lineage=manifest.lineage,
        metrics=manifest.metrics,
        versions=manifest.versions,
    )


def _rows(bundle: Bundle) -> tuple[np.ndarray, np.ndarray] | None:
    golden = bundle.golden
    return None if golden is None else (np.ascontiguousarray(golden[:, :-1]), golden[:, -1].copy())
