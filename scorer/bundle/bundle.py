"""`Bundle`: a loaded, checked bundle, and how it is read and written.

Files are read once, hashed, and used from those bytes, so that what was checked is what serves. A bundle is identified
by "<name>-<first 12 hex digits of its manifest's sha256>".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from features.feature_set import FeatureSet, FeatureSetError
from schemas.bundle_id import bundle_id
from scorer.bundle.bundle_errors import BundleContentError, BundleGateError, BundleManifestError, BundleMismatchError
from scorer.bundle.bundle_folder import checked, listing, read, write_folder
from scorer.bundle.manifest import (
    FEATURE_SET,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    POLICY,
    SIGNATURE,
    ChallengerInfo,
    Lineage,
    Manifest,
    TrainingWindow,
)  # fmt: skip
from scorer.bundle.signature import require_trusted, signers
from scorer.model import CompiledModel, ModelError
from scorer.model.calibration import Calibration
from scorer.policy import CostRule, Policy, PolicyError, PolicyRunner


@dataclass(frozen=True)
class Challenger:
    """A model that scores in shadow: its margins are audited and decide nothing."""

    id: str
    model: CompiledModel
    calibration: Calibration
    golden: np.ndarray | None = None
    """float32 [rows, features + 1]: inputs and the source model's margins."""


@dataclass(frozen=True)
class NewChallenger:
    """A challenger to be written: its id, its model's bytes and their suffix, its calibration, its golden rows, and
    until when payments had a part in its training, epoch ms (None: not known)."""

    id: str
    model: bytes
    suffix: str = ".ubj"
    calibration: Calibration = field(default_factory=Calibration)
    golden: tuple[np.ndarray, np.ndarray] | None = None
    seen_until_ms: int | None = None


@dataclass(frozen=True)
class Bundle:
    """A loaded, checked bundle. Immutable and shareable between threads."""

    id: str
    manifest: Manifest
    model: CompiledModel
    feature_set: FeatureSet
    policy: Policy
    challengers: tuple[Challenger, ...] = ()
    signed_by: tuple[str, ...] = ()
    """Public keys with a valid signature; whether one must be trusted is decided by `load`."""
    golden: np.ndarray | None = None
    """float32 [rows, features + 1]: inputs and the source model's margins."""
    student: Challenger | None = None
    """One of the challengers, small: it decides when a deadline leaves no time for the model."""
    manifest_bytes: bytes = b""
    """The manifest as it was read: what a signature is made over."""

    @property
    def threshold_margin(self) -> np.float32:
        """Payments whose margin is at least this are flagged by their score."""
        return np.float32(self.manifest.threshold_margin)

    def policy_runner(self) -> PolicyRunner:
        """The policy bound to the features, the threshold and the costs of this bundle."""
        cost, least = self.policy.flag.cost, self.manifest.saving_min
        rule = None if cost is None or least is None else CostRule.of(cost, least, self.feature_set)
        return PolicyRunner(
            self.policy, self.feature_set.names, float(self.threshold_margin), rule, self.segment_margins(self.policy)
        )

    def segment_margins(self, policy: Policy) -> list[float]:
        """From which margin on each segment of `policy` flags. Raises ModelInputError for a score that no margin
        reaches."""
        curve, link = self.manifest.calibration, self.model.link
        return [float(curve.margin_for(segment.score, link)) for segment in policy.segments]

    def scores(self, margins: np.ndarray) -> np.ndarray:
        """float64 [n]: the calibrated probability of fraud for margins float32 [n]."""
        return self.manifest.calibration.apply(margins, self.model.link)

    def shadow_margins(self, features: np.ndarray) -> np.ndarray:
        """float32 [n, challengers]: the challengers' margins of rows float32 [n, k], in the order of `challengers`."""
        out = np.empty((len(features), len(self.challengers)), dtype=np.float32)
        for column, challenger in enumerate(self.challengers):
            out[:, column] = challenger.model.margins(features)
        return out

    def degraded(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The result without the model (no time for it) of rows float32 [n, k]: margins float32 [n], scores
        float64 [n], and bool [n], which of them reach the threshold.

        The student's. Without one the margin is that before the model's first tree, which is only the rate of fraud:
        then the last is None.
        """
        if self.student is None:
            margins = np.full(len(features), self.model.base_margin, dtype=np.float32)
            return margins, self.scores(margins), None
        margins = self.student.model.margins(features)
        scores = self.student.calibration.apply(margins, self.student.model.link)
        return margins, scores, margins >= np.float32(self.student_threshold_margin)

    @property
    def student_threshold_margin(self) -> float:
        """The student's margin from which on its score reaches its threshold; NaN without a student."""
        if self.student is None:
            return float("nan")
        return float(self.student.calibration.margin_for(self.student_threshold_score, self.student.model.link))

    @property
    def student_threshold_score(self) -> float:
        """The score from which the student flags: its own where the manifest states one, else the bundle's."""
        own = self.manifest.student_threshold_score
        return self.manifest.threshold_score if own is None else own

    @classmethod
    def load(cls, path: str | Path, *, trusted_keys: Iterable[str] | None = None, wanted: str | None = None) -> Bundle:
        """Load and check the folder at `path` (which may itself be a symlink to it).

        With `wanted` it must have that id.

        With `trusted_keys` ("ed25519:BASE64") a bundle that none of them signed is refused; without, a signature must
        fit if there is one. Golden rows must give the stored margins, bit for bit. Raises BundleContentError,
        BundleManifestError, BundleMismatchError, BundleSignatureError or BundleGateError.
        """
        folder = Path(path)
        names = listing(folder)
        if MANIFEST not in names:
            raise BundleContentError(f"{folder} has no {MANIFEST}; it is not a bundle")
        raw = read(folder, MANIFEST)
        signature = read(folder, SIGNATURE) if SIGNATURE in names else None
        keys = tuple(trusted_keys or ())
        if keys:  # before anything else of the bundle is read
            require_trusted(raw, signature, keys)
        manifest = parse_manifest(raw, folder, wanted=wanted)
        expected = {MANIFEST, *manifest.files}
        if extra := sorted(names - expected - {SIGNATURE}):
            raise BundleContentError(f"{folder} holds {extra[0]!r}, which its manifest does not name; remove it")
        if missing := sorted(expected - names):
            raise BundleContentError(f"{folder} lacks {missing[0]!r}, which its manifest names; copy the bundle again")
        contents = {name: checked(folder, name, digest) for name, digest in manifest.files.items()}
        return _assemble(manifest, raw, contents, tuple(signers(raw, signature)) if signature is not None else ())


def write_bundle(
    output: Path,
    *,
    name: str,
    created_at: str,
    model: bytes,
    model_file: str = "model.ubj",
    feature_set_yaml: str,
    policy_yaml: str,
    threshold_score: float,
    saving_min: float | None = None,
    calibration: Calibration | None = None,
    golden: tuple[np.ndarray, np.ndarray] | None,
    challengers: Sequence[NewChallenger] = (),
    student: str | None = None,
    student_threshold_score: float | None = None,
    training: TrainingWindow | None = None,
    lineage: Lineage | None = None,
    metrics: dict[str, float] | None = None,
    versions: dict[str, str] | None = None,
) -> Bundle:
    """Write a bundle to the folder `output` (which must not exist) and return it, loaded back and checked.

    `golden`: rows float32 [n, k] and the margins float32 [n] that the source model itself gave them; none is a
    BundleGateError, as the gate would refuse the bundle. `student`: id of the challenger that decides in degraded mode,
    from `student_threshold_score` on (None: from the bundle's threshold).
    All or nothing. `created_at` is data, so the same inputs give the same bytes and the same id. Raises BundleError.
    """
    if golden is None or not len(golden[0]):
        raise BundleGateError(
            "a bundle needs golden rows: rows of features and the margins that the source model gave them"
        )
    contents = {model_file: model, FEATURE_SET: feature_set_yaml.encode(), POLICY: policy_yaml.encode()}
    for item in challengers:
        contents[f"challenger-{item.id}{item.suffix}"] = item.model
        if item.golden is not None:
            contents[f"golden-{item.id}.f32"] = np.column_stack(item.golden).astype("<f4").tobytes()
    contents[GOLDEN] = np.column_stack(golden).astype("<f4").tobytes()
    curve = calibration or Calibration()
    try:
        feature_set = FeatureSet.from_yaml(feature_set_yaml)
        compiled = CompiledModel.from_bytes(model)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            created_at=created_at,
            files={key: hashlib.sha256(data).hexdigest() for key, data in contents.items()},
            feature_fingerprint=feature_set.fingerprint,
            feature_names=feature_set.names,
            currency=feature_set.currency,
            base_margin=float(compiled.base_margin),
            threshold_score=threshold_score,
            saving_min=saving_min,
            threshold_margin=float(curve.margin_for(threshold_score, compiled.link)),
            calibration=curve,
            golden_rows=len(golden[0]),
            challengers=[
                ChallengerInfo(
                    id=item.id,
                    base_margin=float(CompiledModel.from_bytes(item.model).base_margin),
                    calibration=item.calibration,
                    golden_rows=0 if item.golden is None else len(item.golden[0]),
                    seen_until_ms=item.seen_until_ms,
                )
                for item in sorted(challengers, key=lambda item: item.id)
            ],
            student=student,
            student_threshold_score=student_threshold_score,
            training=training,
            lineage=lineage,
            metrics=metrics or {},
            versions=versions or {},
        )
    except (ValidationError, FeatureSetError, ModelError) as error:
        raise BundleManifestError(f"no bundle can be written: {_reason(error)}") from error
    contents[MANIFEST] = manifest.to_bytes()
    return write_folder(output, contents, Bundle.load)


def _assemble(manifest: Manifest, raw: bytes, contents: dict[str, bytes], signed_by: tuple[str, ...]) -> Bundle:
    try:
        feature_set = FeatureSet.from_yaml(_text(contents[FEATURE_SET], FEATURE_SET))
        policy = Policy.from_yaml(_text(contents[POLICY], POLICY))
    except (FeatureSetError, PolicyError) as error:
        raise BundleContentError(str(error)) from error
    model = _compile(contents, manifest.model_file, manifest.base_margin)

    def same(what: str, stated: Any, found: Any, where: str) -> None:
        if stated != found:
            raise BundleMismatchError(f"{what}: the manifest says {stated}, {where} says {found}")

    same("feature fingerprint", manifest.feature_fingerprint, feature_set.fingerprint, FEATURE_SET)
    same("feature names", manifest.feature_names, feature_set.names, FEATURE_SET)
    same("currency", manifest.currency, feature_set.currency, FEATURE_SET)
    same("feature count", len(manifest.feature_names), model.feature_count, manifest.model_file)
    try:
        margin = float(manifest.calibration.margin_for(manifest.threshold_score, model.link))
    except ModelError as error:
        raise BundleMismatchError(f"threshold_score and calibration: {error}") from error
    same("threshold margin", manifest.threshold_margin, margin, "threshold_score")
    if policy.flag.score is not None:
        same("threshold score", manifest.threshold_score, policy.flag.score, POLICY)
    if (policy.flag.cost is None) != (manifest.saving_min is None):
        raise BundleMismatchError(
            f"saving_min: the manifest says {manifest.saving_min}, {POLICY} flags "
            f"{'by cost' if policy.flag.cost else 'without cost'}; train the bundle anew with this policy"
        )
    if policy.flag.cost is not None and policy.flag.cost.reviews_a_day is None and manifest.saving_min != 0.0:
        raise BundleMismatchError(
            f"saving_min: the manifest says {manifest.saving_min}, {POLICY} has no flag.cost.reviews_a_day, so it is "
            "0; train the bundle anew with this policy"
        )
    if manifest.student_threshold_score is not None and policy.flag.share is None:
        raise BundleMismatchError(
            f"student_threshold_score: the manifest says {manifest.student_threshold_score}, {POLICY} has no "
            "flag.share, by which alone a student has its own; add the student anew (`bundle challenge --student`)"
        )
    try:
        if policy.flag.cost is not None:
            CostRule.of(policy.flag.cost, 0.0, feature_set)
        policy.check(feature_set.names)
    except PolicyError as error:
        raise BundleMismatchError(f"{POLICY} and {FEATURE_SET}: {error}") from error
    challengers = []
    for item in manifest.challengers:
        file = manifest.challenger_file(item.id)
        shadow = _compile(contents, file, item.base_margin)
        same("feature count", len(manifest.feature_names), shadow.feature_count, file)
        rows = _golden(contents, item.golden_file, item.golden_rows, shadow) if item.golden_rows else None
        challengers.append(Challenger(item.id, shadow, item.calibration, rows))
    golden = _golden(contents, GOLDEN, manifest.golden_rows, model) if manifest.golden_rows else None
    student = next((item for item in challengers if item.id == manifest.student), None)
    made = Bundle(
        bundle_id(manifest.name, raw),
        manifest,
        model,
        feature_set,
        policy,
        tuple(challengers),
        signed_by,
        golden,
        student,
        raw,
    )
    try:
        made.segment_margins(policy)
    except ModelError as error:
        raise BundleMismatchError(f"{POLICY}: segments, and calibration: {error}") from error
    try:
        _ = made.student_threshold_margin
    except ModelError as error:
        raise BundleMismatchError(f"threshold_score and the student's calibration: {error}") from error
    return made


def _compile(contents: dict[str, bytes], file: str, base_margin: float) -> CompiledModel:
    try:
        return CompiledModel.from_bytes(contents[file], base_margin=base_margin)
    except ModelError as error:
        raise BundleContentError(f"{file}: {error}") from error


def _golden(contents: dict[str, bytes], file: str, rows: int, model: CompiledModel) -> np.ndarray:
    width = model.feature_count + 1
    if len(contents[file]) != rows * width * 4:
        raise BundleContentError(f"{file} has {len(contents[file])} bytes, wanted {rows} rows x {width} float32")
    golden = np.frombuffer(contents[file], dtype="<f4").reshape(rows, width)
    ours, theirs = model.margins(np.ascontiguousarray(golden[:, :-1])), np.ascontiguousarray(golden[:, -1])
    different = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
    if len(different):
        row = int(different[0])
        raise BundleGateError(
            f"the compiled model differs from its source on {len(different)} of {len(ours)} golden rows, first on row "
            f"{row} of {file}: {ours[row]!r}, stored is {theirs[row]!r}"
        )
    return golden


def parse_manifest(raw: bytes, folder: Path, *, wanted: str | None = None) -> Manifest:
    """The manifest of the bundle in `folder`; with `wanted` it must give that id. Raises BundleManifestError or
    BundleMismatchError.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleManifestError(f"{folder / MANIFEST} is not JSON") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    # Checked first: a later format may have fields that this one would refuse.
    if version != FORMAT_VERSION:
        raise BundleManifestError(
            f"{MANIFEST} in {folder} has format_version {version!r:.40}, this program reads {FORMAT_VERSION}"
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleManifestError(f"{folder / MANIFEST}: {_reason(error)}") from error
    if wanted is not None and bundle_id(manifest.name, raw) != wanted:
        raise BundleMismatchError(f"{folder} holds bundle {bundle_id(manifest.name, raw)}, wanted is {wanted}")
    return manifest


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": ")
    return str(error)


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleContentError(f"{name} is not UTF-8") from error
