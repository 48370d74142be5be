"""The gate: the checks that a bundle must pass before it is activated. Loading is the first; here are the others and
the report.

Each check gives a sentence, passed or not; the gate is passed when all checks are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorer.bundle.bundle import Bundle
from scorer.bundle.bundle_errors import BundleError
from scorer.bundle.bundle_folder import checked
from scorer.bundle.sample_rows import sample_rows
from scorer.errors import PromiseBroken
from scorer.model import CompiledModel, ModelError
from scorer.model.calibration import Calibration
from scorer.model.lightgbm_text import is_lightgbm
from scorer.model.model_errors import library_reason
from scorer.model.treelite_checkpoint import is_checkpoint
from scorer.model.xgboost_document import is_ubj

RANDOM_ROWS = 2_000
# treelite's interpreter starts at 0 and adds xgboost's base last: each of the additions may round by half a unit in the
# last place of the largest partial sum.
_UNIT = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class _Subject:
    """A model of the bundle and what it is checked against: the champion's, or a challenger's."""

    model: CompiledModel
    source: Callable[[], bytes]
    base_margin: float
    calibration: Calibration
    golden: np.ndarray | None

    def scores(self, margins: np.ndarray) -> np.ndarray:
        return self.calibration.apply(margins, self.model.link)


@dataclass(frozen=True)
class Verdict:
    """What the gate found; `bundle` is None when it could not be loaded."""

    checks: tuple[Check, ...]
    bundle: Bundle | None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def require(self, folder: Path) -> None:
        """Raise PromiseBroken with the first check that failed; `folder` is the bundle's, for the message."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise PromiseBroken(f"{folder} fails its gate ({failed[0].name}): {failed[0].detail}")


def verify(path: str | Path, *, trusted_keys: Iterable[str] | None = None, rows: int = RANDOM_ROWS) -> Verdict:
    """Load the bundle and run every check on it. Raises nothing for a bad bundle: the verdict has the reason."""
    keys = tuple(trusted_keys or ())
    try:
        bundle = Bundle.load(path, trusted_keys=keys)
    except BundleError as error:
        return Verdict((Check("load", False, str(error)),), None)
    manifest = bundle.manifest
    signed = f"by {', '.join(bundle.signed_by)}" if bundle.signed_by else "no signature, and no trusted key was given"
    champion = _Subject(
        bundle.model,
        lambda: _source(bundle, Path(path), manifest.model_file),
        manifest.base_margin,
        manifest.calibration,
        bundle.golden,
    )
    checks = [
        Check("files", True, f"{len(manifest.files)} files have the sha256 that the manifest states"),
        Check("signature", True, signed),
        Check("feature set", True, f"fingerprint {manifest.feature_fingerprint[:12]} is that of feature_set.yaml"),
        *_checks(champion, rows),
        _run("calibration", lambda: _calibration(champion, bundle.threshold_margin, manifest.threshold_score)),
        _run("explanations", lambda: _explanations(champion, sample_rows(champion.model, rows))),
    ]
    # A challenger decides nothing, but its margins go to the audit trail: the same checks apply.
    for info, shadow in zip(manifest.challengers, bundle.challengers, strict=True):
        file = manifest.challenger_file(info.id)
        subject = _Subject(
            shadow.model,
            lambda file=file: _source(bundle, Path(path), file),  # type: ignore[misc]
            info.base_margin,
            shadow.calibration,
            shadow.golden,
        )
        decides = info.id == manifest.student
        ends = (np.float32(bundle.student_threshold_margin), bundle.student_threshold_score) if decides else ()
        checks += [
            Check(f"challenger {info.id}: {check.name}", check.passed, check.detail)
            for check in (
                *_checks(subject, rows),
                _run("calibration", lambda subject=subject, ends=ends: _calibration(subject, *ends)),  # type: ignore[misc]
            )
        ]
    return Verdict(tuple(checks), bundle)


def _checks(subject: _Subject, rows: int) -> list[Check]:
    """The checks of every model, champion or challenger."""
    golden, sample = subject.golden, sample_rows(subject.model, rows)
    return [
        Check(
            "golden rows",
            golden is not None,
            f"{len(golden)} rows have the source model's margins, bit for bit" if golden is not None
            else "the bundle has no golden rows; train it with this version, or write them with bundle compile",
        ),
        _run("vector and plain", lambda: _plain(subject, sample)),
        _run("treelite", lambda: _treelite(subject, sample)),
        _run("scores", lambda: _scores(subject, sample)),
    ]  # fmt: skip


def _run(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        passed, detail = check()
    except (ModelError, BundleError) as error:
        passed, detail = False, str(error)
    return Check(name, passed, detail)


def _source(bundle: Bundle, path: Path, name: str) -> bytes:
    return checked(path, name, bundle.manifest.files[name])


def _plain(subject: _Subject, rows: np.ndarray) -> tuple[bool, str]:
    plan = subject.model.plan
    plain = CompiledModel.from_bytes(subject.source(), base_margin=subject.base_margin, vector=False)
    wanted = plain.margins(rows).view(np.uint32)
    counts = (len(rows), 1, 7, 16)
    different = sum(int((subject.model.margins(rows[:n]).view(np.uint32) != wanted[:n]).sum()) for n in counts)
    kind = (
        f"{plan.vector_trees} of {subject.model.tree_count} trees in byte lanes" if plan.vector_trees else plan.reason
    )
    return different == 0, f"{different} of {len(rows)} random rows differ ({kind})"


def _treelite(subject: _Subject, rows: np.ndarray) -> tuple[bool, str]:
    try:
        import treelite  # noqa: PLC0415 - of the extra `train`: a second opinion, where it is installed
    except ModuleNotFoundError:
        return True, "not compared, treelite is not installed here: pip install 'fraud-scorer[train]'"
    try:
        return _compared(treelite, subject, rows)
    except treelite.TreeliteError as error:
        return False, library_reason(error)


def _compared(treelite: Any, subject: _Subject, rows: np.ndarray) -> tuple[bool, str]:
    data = subject.source()
    if is_lightgbm(data):
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # treelite wants a path; the bytes that were checked, not the file's
            copy = Path(folder) / "model.txt"
            copy.write_bytes(data)
            model = treelite.frontend.load_lightgbm_model(copy)
    elif is_checkpoint(data):
        # treelite's reader trusts lengths; ours has read and checked the same bytes before.
        model = treelite.Model.deserialize_bytes(data)
    elif is_ubj(data):
        model = treelite.frontend.from_xgboost_ubjson(data)
    else:
        model = treelite.frontend.from_xgboost_json(data)
    theirs = treelite.gtil.predict(model, rows, nthread=1, pred_margin=True).reshape(len(rows), -1)[:, -1]
    ours = subject.model.margins(rows)
    table = subject.model.table
    if table.base_margin == 0 and not (is_ubj(data) or data[:1] == b"{"):
        different = int((theirs.astype(np.float32) != ours).sum())
        return different == 0, f"{different} of {len(rows)} random rows differ from treelite's interpreter"
    largest = abs(float(table.base_margin)) + sum(
        float(np.abs(part).max()) for part in np.split(table.value, table.root[1:])
    )
    allowed = (table.tree_count + 2) * _UNIT * largest
    worst = float(np.abs(theirs.astype(np.float64) - ours).max())
    return (
        worst <= allowed,
        f"largest distance {worst:.3g} on {len(rows)} random rows, {allowed:.3g} by order of additions",
    )


def _scores(subject: _Subject, rows: np.ndarray) -> tuple[bool, str]:
    margins = subject.model.margins(rows)
    scores = subject.scores(margins)
    finite, inside = np.isfinite(margins), (scores >= 0) & (scores <= 1)
    if finite.all() and inside.all():
        return True, f"{len(rows)} random rows score from {scores.min():.3g} to {scores.max():.3g}, no NaN"
    return False, f"{int((~finite).sum())} margins are not finite, {int((~inside).sum())} scores are not in [0, 1]"


def _calibration(subject: _Subject, margin: np.float32 | None = None, threshold: float = 0.0) -> tuple[bool, str]:
    """`margin` and the score `threshold` decide the same; a challenger has neither."""
    ends = [] if margin is None else [float(margin)]
    grid = np.unique(np.concatenate([np.linspace(-40, 40, 4_001), np.linspace(-2, 2, 2_001), ends])).astype(np.float32)
    scores = subject.scores(grid)
    rises = bool((np.diff(scores) >= 0).all())
    agree = margin is None or bool(((scores >= threshold) == (grid >= margin)).all())
    kind = subject.calibration.kind
    if rises and agree:
        also = "" if margin is None else f"; score >= {threshold:.6g} where margin >= {margin!r}"
        return True, f"{kind}: never falls{also}"
    return False, f"{kind}: " + ("the threshold on margins decides otherwise" if rises else "the score falls somewhere")


def _explanations(subject: _Subject, rows: np.ndarray) -> tuple[bool, str]:
    few = rows[:64]
    sums = subject.model.contributions(few).sum(axis=1)
    margins = subject.model.margins(few).astype(np.float64)
    worst = float((np.abs(sums - margins) / np.maximum(1.0, np.abs(margins))).max())
    return worst <= 1e-5, f"contributions sum to the margin within {worst:.2g} of it"
