"""From a model file to a bundle: read, match names, place columns, compare margins with the library's own, write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.feature_set import FeatureSet
from scorer.bundle import Bundle, write_bundle
from scorer.bundle.sample_rows import sample_rows
from scorer.model import CompiledModel, ModelFormatError
from scorer.model.lightgbm_text import is_lightgbm
from scorer.model.treelite_checkpoint import is_checkpoint
from scorer.model.xgboost_document import MODEL_BYTES_MAX
from scorer.model_import.checkpoint_source import read_checkpoint
from scorer.model_import.golden_file import GoldenFile, read_golden
from scorer.model_import.import_errors import ModelImportError, SourceMarginsError
from scorer.model_import.library_margins import library_margins, library_version
from scorer.model_import.lightgbm_source import read_lightgbm
from scorer.model_import.missing_value import HOW_TO_SAY, MissingValue
from scorer.model_import.source_model import Placement, SourceModel, position_of
from scorer.model_import.xgboost_source import read_xgboost
from scorer.policy import Policy
from scorer.training.ranking import threshold_for_share
from scorer.training.training_libraries import versions

GOLDEN_ROWS = 256
# A share of fewer rows than this is a guess.
SHARE_ROWS_MIN = 1_000
_SAMPLED_ROWS = 2_000
_CHECKPOINT = (
    "a checkpoint does not tell which library made it: give --golden ROWS with a column score, which is that library's "
    "own (predict_proba(X)[:, 1])"
)
# A score that was given may be a float32's, and a margin a double's.
_SCORE_DISTANCE_MAX, _MARGIN_DISTANCE_MAX = 2e-6, 1e-6


@dataclass(frozen=True)
class ImportOptions:
    """What the file itself does not say."""

    name: str
    created_at: str
    missing: MissingValue | None = None
    columns: list[str] | None = None
    """Names of the model's columns in its order, in place of those in the file."""
    same_order: bool = False
    """The file has no names: its columns are the feature set's, in that order."""
    all_rounds: bool = False
    """Keep the rounds after the best one."""
    golden: Path | None = None


@dataclass(frozen=True)
class Imported:
    """What was made."""

    bundle: Bundle
    kind: str
    trees: int
    rounds_kept: int
    rounds_in_file: int
    reordered: bool
    missing: str
    compared_with: str
    rows_compared: int
    distance: dict[str, float] = field(default_factory=dict)
    """Largest distance from each column of the golden file that was compared."""


def read_source(path: Path) -> SourceModel:
    """A model file by its content. Raises ModelImportError, ModelFormatError or ModelUnsupportedError."""
    try:
        with path.open("rb") as file:
            data = file.read(MODEL_BYTES_MAX + 1)
    except OSError as error:
        raise ModelImportError(f"--model {path} cannot be read: {error.strerror}") from error
    if len(data) > MODEL_BYTES_MAX:
        raise ModelFormatError(f"{path.name} is larger than the {MODEL_BYTES_MAX} bytes allowed")
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or data[:2] == b"PK" or data[:1] == b"\x78":
        raise ModelImportError(
            f"{path.name} looks like a pickle or joblib file. Loading one runs its code, so none ever is: write "
            "booster.save_model('model.ubj') (xgboost), booster.save_model('model.txt') (LightGBM), or, from "
            "scikit-learn, treelite.sklearn.import_model(model).serialize('model.tl')"
        )
    if is_lightgbm(data):
        return read_lightgbm(data)
    return read_checkpoint(data) if is_checkpoint(data) else read_xgboost(data)


def import_model(
    model: Path, feature_set_yaml: str, policy_yaml: str, output: Path, options: ImportOptions
) -> Imported:
    """Write the bundle, or nothing. Raises ModelImportError, SourceMarginsError, ModelError or BundleError."""
    feature_set, policy = FeatureSet.from_yaml(feature_set_yaml), Policy.from_yaml(policy_yaml)
    policy.check(feature_set.names)
    source = read_source(model)
    placement = _placement(source, feature_set.names, options)
    rounds = source.rounds if options.all_rounds or source.best_rounds is None else source.best_rounds
    data = source.placed(placement, rounds)
    compiled = CompiledModel.from_bytes(data)
    missing = options.missing or MissingValue("nan")
    given = None if options.golden is None else read_golden(options.golden, feature_set.names)
    if source.kind == "treelite" and (given is None or given.score is None):  # treelite's own margins prove nothing
        raise ModelImportError(_CHECKPOINT)
    missing.check(None if given is None else given.rows, feature_set.names)
    rows = sample_rows(compiled, _SAMPLED_ROWS)
    if given is not None:
        rows = np.concatenate([given.rows, rows])
    theirs = _source_margins(source, rows, given, placement, missing, rounds)
    ours = compiled.margins(rows[: len(theirs)])
    _require_equal(ours, theirs, source.kind, given)
    curve = source.calibration
    distance = {} if given is None else _compare_given(given, ours, curve.apply(ours, compiled.link))
    real = len(theirs) if given is None else len(given.rows)
    scores = curve.apply(ours[:real], compiled.link)
    few = np.unique(np.linspace(0, real - 1, min(GOLDEN_ROWS, real)).astype(np.int64))
    library, version = _library(source)
    bundle = write_bundle(
        output,
        name=options.name,
        created_at=options.created_at,
        model=data,
        model_file=source.bundle_file,
        feature_set_yaml=feature_set_yaml,
        policy_yaml=policy_yaml,
        threshold_score=_threshold(policy, scores if given is not None else None),
        calibration=curve,
        golden=(np.ascontiguousarray(rows[few]), theirs[few]),
        versions=versions()
        | {
            "imported": f"{source.kind}, sha256 {hashlib.sha256(source.data).hexdigest()}",
            "missing": str(missing),
            library: version,
        },
    )
    return Imported(
        bundle=bundle,
        kind=source.kind,
        trees=compiled.tree_count,
        rounds_kept=rounds,
        rounds_in_file=source.rounds,
        reordered=bool((placement.position != np.arange(len(placement.position))).any()),
        missing=str(missing),
        compared_with=f"{library} {version}",
        rows_compared=len(theirs),
        distance=distance,
    )


def _placement(source: SourceModel, names: list[str], options: ImportOptions) -> Placement:
    if source.kind == "treelite" and options.golden is None:
        raise ModelImportError(_CHECKPOINT)
    columns = options.columns or source.names
    if columns is None and options.same_order:
        columns = list(names)
    if columns is None:
        raise ModelImportError(
            f"the file does not name the model's {source.feature_count} columns. Give --columns FILE, one name a line "
            f"in the order of the training data, or --same-order if that was the feature set's: {', '.join(names)}"
        )
    if len(columns) != source.feature_count:
        raise ModelImportError(
            f"the model has {source.feature_count} columns, and {len(columns)} names are given: {', '.join(columns)}"
        )
    if options.missing is None and not source.tells_missing:
        raise ModelImportError(
            f"the file does not tell what stood for a missing value when the model was trained; give {HOW_TO_SAY}"
        )
    filled = None if options.missing is None else options.missing.filled
    return Placement(list(names), position_of(columns, names), filled)


def _source_margins(
    source: SourceModel,
    rows: np.ndarray,
    given: GoldenFile | None,
    placement: Placement,
    missing: MissingValue,
    rounds: int,
) -> np.ndarray:
    """float32 [n]: the library's margins of the first n rows: of all where it is installed, else those of the file."""
    # placement.position: the column of the feature set that each of the model's columns is.
    as_trained = np.ascontiguousarray(missing.as_trained(rows)[:, placement.position])
    theirs = library_margins(source, as_trained, rounds)
    if theirs is not None:
        return theirs
    if given is None or given.margin is None:
        raise ModelImportError(
            f"{source.kind} is not installed here, so its margins are not known: install it (pip install "
            f"{source.kind.lower()}), or give --golden ROWS with a column margin, which is the library's own"
        )
    with np.errstate(over="ignore"):
        return given.margin.astype(np.float32)


def _library(source: SourceModel) -> tuple[str, str]:
    try:
        return library_version(source)
    except ImportError:
        return "margins", "of the golden file"


def _require_equal(ours: np.ndarray, theirs: np.ndarray, kind: str, given: GoldenFile | None) -> None:
    different = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
    if not len(different):
        return
    row = int(different[0])
    place = f"row {row} of the golden file" if given is not None and row < len(given.rows) else "a generated row"
    raise SourceMarginsError(
        f"the compiled model differs from {kind} on {len(different)} of {len(ours)} rows, first on {place}: "
        f"{float(ours[row])!r} here, {float(theirs[row])!r} there; no bundle was written"
    )


def _compare_given(given: GoldenFile, ours: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Compare the file's own results with these. Raises SourceMarginsError."""
    found = {}
    count = len(given.rows)
    mine = ours[:count].astype(np.float64)
    for name, theirs, values, allowed in (
        ("margin", given.margin, mine, _MARGIN_DISTANCE_MAX * np.maximum(1.0, np.abs(mine))),
        ("score", given.score, scores[:count], np.full(count, _SCORE_DISTANCE_MAX)),
    ):
        if theirs is None:
            continue
        distance = np.abs(theirs - values)
        found[name] = float(distance.max())
        beyond = np.flatnonzero(~(distance <= allowed))
        if len(beyond):
            row = int(beyond[0])
            hint = (
                f" {given.rounded} rows hold numbers that float32 does not have, in which features are computed: take "
                "the rows from `fraud-scorer features`, or round them before the library scores them."
                if given.rounded
                else ""
            )
            raise SourceMarginsError(
                f"the golden file's {name} differs on {len(beyond)} of {count} rows, first on row {row}: "
                f"{values[row]!r} here, {theirs[row]!r} there; no bundle was written.{hint} Is the order of the "
                "columns, the missing value or the best iteration another?"
            )
    return found


def _threshold(policy: Policy, scores: np.ndarray | None) -> float:
    if policy.flag.score is not None:
        return policy.flag.score
    if policy.flag.cost is not None:
        raise ModelImportError(
            "the policy flags by cost, whose limits training finds on amounts that an imported model does not bring: "
            "write flag: {score: …} or flag: {share: …}"
        )
    share = float(policy.flag.share or 0)
    if scores is None or len(scores) < SHARE_ROWS_MIN:
        raise ModelImportError(
            f"the policy flags a share of payments, {share:g}: give --golden with {SHARE_ROWS_MIN:,} rows or more, on "
            "which the score of that share is found, or write flag: {score: …} in the policy"
        )
    return threshold_for_share(scores, share)
