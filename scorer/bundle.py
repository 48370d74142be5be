"""The bundle: a folder that holds all a worker needs to decide, and proves what it is before it is used.

    manifest.json          sha256 of all other files, feature fingerprint, threshold, training window, metrics, versions
    model.ubj | model.json the xgboost model
    feature_set.yaml       what the model sees
    policy.yaml            what decides, besides the score

Data only: nothing in a bundle is ever executed. Files are read once, hashed, and used from those bytes, so that what
was checked is what serves. A bundle is identified by "<name>-<first 12 hex digits of its manifest's sha256>".

    BundleError                     (FraudScorerError)
    ├── BundleContentError          a file is missing, unknown, not a plain file, too large, or has another hash
    ├── BundleManifestError         the manifest cannot be read, or is of another format version
    ├── BundleMismatchError         two parts contradict each other; the message names both sides
    └── BundleExistsError           something stands where the bundle is to be written
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from features.feature_set import FeatureSet, FeatureSetError
from scorer.errors import FraudScorerError
from scorer.model import CompiledModel, ModelError, margin_for_score
from scorer.model.document import MODEL_BYTES_MAX
from scorer.policy import Policy, PolicyError

FORMAT_VERSION = 1
MANIFEST, FEATURE_SET, POLICY = "manifest.json", "feature_set.yaml", "policy.yaml"
MODELS = ("model.ubj", "model.json")
# A list of a policy may carry a million values; the rest are kilobytes.
_BYTES_MAX = {MANIFEST: 4 << 20, FEATURE_SET: 4 << 20, POLICY: 64 << 20} | dict.fromkeys(MODELS, MODEL_BYTES_MAX)
# Five names can be right; the listing of a wrong folder must not be unbounded.
_ENTRIES_MAX = 64

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class BundleError(FraudScorerError):
    """A bundle cannot be loaded or written."""


class BundleContentError(BundleError):
    """The folder does not hold what its manifest says."""

    exit_code = 3


class BundleManifestError(BundleError):
    """The manifest is not readable as one."""


class BundleMismatchError(BundleError):
    """Parts of the bundle contradict each other."""

    exit_code = 3


class BundleExistsError(BundleError):
    """The place to write to is taken; bundles are never overwritten."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingWindow(_Strict):
    """Where the model's data came from: epoch ms of event time, `until` exclusive, and rows of known label."""

    train_from_ms: int
    train_until_ms: int
    train_rows: int = Field(ge=0)
    train_frauds: int = Field(ge=0)
    validation_from_ms: int
    validation_until_ms: int
    validation_rows: int = Field(ge=0)
    validation_frauds: int = Field(ge=0)
    label_gap_ms: int = Field(ge=0)
    seed: int


class Calibration(_Strict):
    """How a sigmoid becomes the score. `identity`: the sigmoid of the margin is the score."""

    kind: Literal["identity"] = "identity"


class Manifest(_Strict):
    """manifest.json. Field order there is alphabetical; the file's own sha256 names the bundle."""

    format_version: int
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    created_at: str = Field(min_length=1, max_length=64)
    files: dict[str, Sha256] = Field(max_length=8)
    feature_fingerprint: Sha256
    feature_names: list[str] = Field(min_length=1, max_length=65_536)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    # The float32 the model starts from on the machine whose gate it passed: logf may differ by a bit elsewhere.
    base_margin: Finite
    threshold_score: Finite = Field(ge=0, le=1)
    # The smallest float32 margin whose score reaches threshold_score; decisions compare margins.
    threshold_margin: Finite
    calibration: Calibration = Calibration()
    training: TrainingWindow | None = None
    metrics: dict[str, Finite] = Field(default_factory=dict, max_length=256)
    versions: dict[str, str] = Field(default_factory=dict, max_length=64)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("base_margin", "threshold_margin"):
            value = getattr(self, name)
            # Compared by range first: beyond float32 the conversion itself would warn.
            if abs(value) > float(np.finfo(np.float32).max) or float(np.float32(value)) != value:
                raise ValueError(f"{name} is not a float32")
        models = [name for name in MODELS if name in self.files]
        wanted = {FEATURE_SET, POLICY, *models}
        if len(models) != 1 or set(self.files) != wanted:
            raise ValueError(f"files are {sorted(self.files)}; wanted {FEATURE_SET}, {POLICY} and one of {MODELS}")
        return self

    def to_bytes(self) -> bytes:
        """The manifest as written: sorted keys, two spaces, one newline at the end."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Bundle:
    """A loaded, checked bundle. Immutable and shareable between threads."""

    id: str
    manifest: Manifest
    model: CompiledModel
    feature_set: FeatureSet
    policy: Policy

    @property
    def threshold_margin(self) -> np.float32:
        """Payments whose margin is at least this are flagged by their score."""
        return np.float32(self.manifest.threshold_margin)

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Load and check the folder at `path` (which may itself be a symlink to it).

        Raises BundleContentError, BundleManifestError or BundleMismatchError, each naming both sides.
        """
        folder = Path(path)
        names = _listing(folder)
        if MANIFEST not in names:
            raise BundleContentError(f"{folder} has no {MANIFEST}; it is not a bundle")
        raw = _read(folder, MANIFEST)
        manifest = _parse_manifest(raw, folder)
        expected = {MANIFEST, *manifest.files}
        if extra := sorted(names - expected):
            raise BundleContentError(f"{folder} holds {extra[0]!r}, which its manifest does not name; take it out")
        if missing := sorted(expected - names):
            raise BundleContentError(f"{folder} lacks {missing[0]!r}, which its manifest names; copy the bundle again")
        contents = {name: _checked(folder, name, digest) for name, digest in manifest.files.items()}
        return _assemble(manifest, raw, contents)


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
    training: TrainingWindow | None = None,
    metrics: dict[str, float] | None = None,
    versions: dict[str, str] | None = None,
) -> Bundle:
    """Write a bundle to the folder `output` (which must not exist) and return it, loaded back and checked.

    All or nothing: the files are written and synced in a folder beside it, loaded from there, and renamed in one step.
    `created_at` is data, so the same inputs give the same bytes and the same id. Raises BundleError.
    """
    contents = {model_file: model, FEATURE_SET: feature_set_yaml.encode(), POLICY: policy_yaml.encode()}
    try:
        feature_set = FeatureSet.from_yaml(feature_set_yaml)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            created_at=created_at,
            files={key: hashlib.sha256(data).hexdigest() for key, data in contents.items()},
            feature_fingerprint=feature_set.fingerprint,
            feature_names=feature_set.names,
            currency=feature_set.currency,
            base_margin=float(CompiledModel.from_bytes(model).base_margin),
            threshold_score=threshold_score,
            threshold_margin=float(margin_for_score(threshold_score)),
            training=training,
            metrics=metrics or {},
            versions=versions or {},
        )
    except (ValidationError, FeatureSetError, ModelError) as error:
        raise BundleManifestError(f"no bundle can be made of this: {_reason(error)}") from error
    contents[MANIFEST] = manifest.to_bytes()
    _refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for key, data in contents.items():
            _write_synced(temporary / key, data)
        temporary.chmod(0o755)  # mkdtemp makes it private; a worker often runs as another user
        _sync_folder(temporary)
        bundle = Bundle.load(temporary)
        _refuse_existing(output)
        try:
            temporary.rename(output)
        except OSError as error:
            raise BundleExistsError(f"{output} appeared while the bundle was written ({error.strerror})") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(output.parent)
    return bundle


def _assemble(manifest: Manifest, raw: bytes, contents: dict[str, bytes]) -> Bundle:
    try:
        feature_set = FeatureSet.from_yaml(_text(contents[FEATURE_SET], FEATURE_SET))
        policy = Policy.from_yaml(_text(contents[POLICY], POLICY))
    except (FeatureSetError, PolicyError) as error:
        raise BundleContentError(str(error)) from error
    model_file = next(name for name in MODELS if name in contents)
    try:
        model = CompiledModel.from_bytes(contents[model_file], base_margin=manifest.base_margin)
    except ModelError as error:
        raise BundleContentError(f"{model_file}: {error}") from error

    def same(what: str, stated: Any, found: Any, where: str) -> None:
        if stated != found:
            raise BundleMismatchError(f"{what}: the manifest says {stated}, {where} says {found}")

    same("feature fingerprint", manifest.feature_fingerprint, feature_set.fingerprint, FEATURE_SET)
    same("feature names", manifest.feature_names, feature_set.names, FEATURE_SET)
    same("currency", manifest.currency, feature_set.currency, FEATURE_SET)
    same("feature count", len(manifest.feature_names), model.feature_count, model_file)
    margin = float(margin_for_score(manifest.threshold_score))
    same("threshold margin", manifest.threshold_margin, margin, "threshold_score")
    if policy.flag.score is not None:
        same("threshold score", manifest.threshold_score, policy.flag.score, POLICY)
    try:
        policy.check(feature_set.names)
    except PolicyError as error:
        raise BundleMismatchError(f"{POLICY} and {FEATURE_SET}: {error}") from error
    bundle_id = f"{manifest.name}-{hashlib.sha256(raw).hexdigest()[:12]}"
    return Bundle(bundle_id, manifest, model, feature_set, policy)


def _parse_manifest(raw: bytes, folder: Path) -> Manifest:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleManifestError(f"{folder / MANIFEST} is not JSON") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    # Looked at before all else: a later format may have fields that this one would call unknown.
    if version != FORMAT_VERSION:
        raise BundleManifestError(
            f"{MANIFEST} in {folder} has format_version {version!r:.40}, this program reads {FORMAT_VERSION}"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise BundleManifestError(f"{folder / MANIFEST}: {_reason(error)}") from error


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


def _listing(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            names: set[str] = set()
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    kind = "a symlink" if entry.is_symlink() else "not a plain file"
                    raise BundleContentError(f"{entry.name!r} in {folder} is {kind}; a bundle holds plain files only")
                names.add(entry.name)
                if len(names) > _ENTRIES_MAX:
                    raise BundleContentError(f"{folder} holds more than {_ENTRIES_MAX} files; it is not a bundle")
            return names
    except OSError as error:
        raise BundleContentError(f"{folder} cannot be read as a folder: {error.strerror}") from error


def _read(folder: Path, name: str) -> bytes:
    limit = _BYTES_MAX[name]
    try:
        # O_NOFOLLOW: the kernel refuses a symlink put there after the listing. O_NONBLOCK: nobody waits on a pipe.
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BundleContentError(f"{name!r} in {folder} is not a plain file")
            data = file.read(limit + 1)
    except OSError as error:
        raise BundleContentError(f"{name!r} in {folder} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise BundleContentError(f"{name!r} in {folder} is larger than the {limit} bytes allowed")
    return data


def _checked(folder: Path, name: str, digest: str) -> bytes:
    data = _read(folder, name)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BundleContentError(f"{name!r} was changed: it has sha256 {found}, the manifest says {digest}")
    return data


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):
        raise BundleExistsError(f"{output} exists already; bundles are never overwritten, choose another place")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
