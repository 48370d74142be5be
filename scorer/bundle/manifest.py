"""manifest.json: the contract of what a bundle states about itself."""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scorer.model.calibration import Calibration, Finite

FORMAT_VERSION = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
FEATURE_SET, POLICY, GOLDEN = "feature_set.yaml", "policy.yaml", "golden.f32"
MODELS = ("model.ubj", "model.json", "model.txt", "model.tl")
CHALLENGERS_MAX, CHALLENGER_ID_MAX = 4, 62
_CHALLENGER_GOLDEN = "golden-{}.f32"
_CHALLENGER = re.compile(r"^challenger-([a-z0-9_-]{1,62})\.(ubj|json|txt|tl)$")

# Years 1 to 9999: the range of dates.
EpochMs = Annotated[int, Field(ge=-62_135_596_800_000, le=253_402_300_799_999)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
NAME_PATTERN: Final = r"^[a-z][a-z0-9_-]{0,62}$"
CREATED_AT_MAX: Final = 64
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingWindow(_Strict):
    """Where the model's data came from: epoch ms of event time, `until` exclusive, and rows of known label."""

    train_from_ms: EpochMs
    train_until_ms: EpochMs
    train_rows: Count
    train_frauds: Count
    validation_from_ms: EpochMs
    validation_until_ms: EpochMs
    validation_rows: Count
    validation_frauds: Count
    label_gap_ms: Count
    seed: int = Field(ge=-(2**63), le=2**64 - 1)
    # Rows of the second fit, whose model is the one written: all that was known on the day of training, validation
    # included. 0: the model that was measured was written.
    refit_rows: Count = 0
    refit_frauds: Count = 0
    # Of a model that `train --continue` kept: its trees learned from payments before this alone. Later ones chose it
    # and its calibration, and are still to be learned. None: it has learned from all up to validation_until_ms.
    learned_until_ms: EpochMs | None = None


class Lineage(_Strict):
    """The bundle that this one was learned on from (`train --continue`), and how its model was made."""

    bundle: str = Field(pattern=r"^[a-z0-9_-]{1,76}$")
    manifest_sha256: Sha256
    # How many of the model's trees, the first ones, are that bundle's: all (kept), some (continued), none (anew).
    made: Literal["kept", "continued", "anew"]
    trees_kept: Count
    # Both on the held-back rows, which neither had seen: of that bundle's model, and of the one chosen, as measured.
    average_precision_before: Finite
    average_precision: Finite


class ChallengerInfo(_Strict):
    """A model that scores in shadow: same features, own file and calibration."""

    id: str = Field(pattern=r"^[a-z0-9_-]{1,62}$")
    base_margin: Finite
    calibration: Calibration = Calibration()
    # Rows of golden-ID.f32, as the champion's golden.f32.
    golden_rows: int = Field(default=0, ge=0, le=65_536)
    # Epoch ms: payments before it had a part in its training, those held back to choose by included. None: its bundle
    # did not say so, or was written as a challenger by an older version.
    seen_until_ms: EpochMs | None = None

    @property
    def golden_file(self) -> str:
        """The file of its golden rows."""
        return _CHALLENGER_GOLDEN.format(self.id)


class Manifest(_Strict):
    """manifest.json. Field order there is alphabetical; the file's own sha256 names the bundle."""

    format_version: int
    name: str = Field(pattern=NAME_PATTERN)
    created_at: str = Field(min_length=1, max_length=CREATED_AT_MAX)
    files: dict[str, Sha256] = Field(max_length=16)
    feature_fingerprint: Sha256
    feature_names: list[str] = Field(min_length=1, max_length=65_536)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    # The float32 the model starts from on the machine whose gate it passed: logf may differ by a bit elsewhere.
    base_margin: Finite
    threshold_score: Finite = Field(ge=0, le=1)
    # The smallest float32 margin whose score reaches threshold_score; decisions compare margins.
    threshold_margin: Finite
    # Of a policy by cost: a payment is flagged when its expected saving (major units of `currency`) is above this. The
    # threshold then is the score from which as many payments were flagged on validation: what compares models.
    saving_min: Finite | None = Field(default=None, ge=0)
    calibration: Calibration = Calibration()
    # Rows of golden.f32: inputs and the source model's own margins, which the compiled model must give bit for bit.
    golden_rows: int = Field(default=0, ge=0, le=65_536)
    challengers: list[ChallengerInfo] = Field(default_factory=list, max_length=CHALLENGERS_MAX)
    # The challenger that decides when a deadline leaves no time for the model; without one, lists and rules alone do.
    student: str | None = None
    # The student's own score from which it flags, where the policy flags a share: that of its bundle, found on its own
    # scores. A poor student's scores lie otherwise: by the champion's threshold it flagged many times the share.
    student_threshold_score: Finite | None = Field(default=None, ge=0, le=1)
    training: TrainingWindow | None = None
    lineage: Lineage | None = None
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
        wanted = {FEATURE_SET, POLICY, *models} | ({GOLDEN} if self.golden_rows else set())
        wanted |= {item.golden_file for item in self.challengers if item.golden_rows}
        shadows = {match[1]: name for name in self.files if (match := _CHALLENGER.match(name))}
        if [item.id for item in self.challengers] != sorted({item.id for item in self.challengers}):
            raise ValueError("challengers are listed in the order of their ids, each once")
        if self.student is not None and self.student not in {item.id for item in self.challengers}:
            raise ValueError(f"the student {self.student} is none of the challengers")
        if self.student is None and self.student_threshold_score is not None:
            raise ValueError("student_threshold_score without a student")
        if set(shadows) != {item.id for item in self.challengers}:
            raise ValueError(
                f"challengers are {[c.id for c in self.challengers]}, their files {sorted(shadows.values())}"
            )
        if len(models) != 1 or set(self.files) - set(shadows.values()) != wanted:
            raise ValueError(f"files are {sorted(self.files)}; wanted {sorted(wanted)} and one of {MODELS}")
        return self

    @property
    def model_file(self) -> str:
        """The file of the model that decides."""
        return next(name for name in MODELS if name in self.files)

    def challenger_file(self, challenger: str) -> str:
        """The file of a challenger."""
        return next(name for name in self.files if (match := _CHALLENGER.match(name)) and match[1] == challenger)

    def to_bytes(self) -> bytes:
        """The manifest as written: sorted keys, two spaces, one newline at the end."""
        document = self.model_dump(mode="json")
        if (
            self.student is None
        ):  # absent as before there were students: the same bundle keeps its id, older versions read it
            del document["student"]
        for name in ("saving_min", "student_threshold_score", "lineage"):
            if document[name] is None:  # likewise
                del document[name]
        if document["training"] is not None and document["training"]["learned_until_ms"] is None:  # likewise
            del document["training"]["learned_until_ms"]
        for item in document["challengers"]:
            if item["seen_until_ms"] is None:  # likewise
                del item["seen_until_ms"]
        return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
