"""The bundle: what it refuses, with both sides named, and how it is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.bundle import (
    Bundle,
    BundleContentError,
    BundleError,
    BundleExistsError,
    BundleManifestError,
    BundleMismatchError,
    write_bundle,
)
from scorer.model import margin_for_score
from tests.golden_rows import golden_rows

xgb = pytest.importorskip("xgboost")

FEATURE_SET = """
name: cards
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}
"""
OTHER_FEATURE_SET = FEATURE_SET.replace("window: 1h", "window: 2h")
WIDER_FEATURE_SET = FEATURE_SET + "  - {name: day, payment: day_of_week}\n"
POLICY = "name: cards\nflag: {score: 0.5}\n"


def _model_bytes(features: int = 3) -> bytes:
    rows = np.random.default_rng(0).normal(size=(200, features)).astype(np.float32)
    data = xgb.DMatrix(rows, (np.arange(200) % 5 == 0).astype(np.float32), nthread=1)
    return bytes(xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 3).save_raw("ubj"))


@pytest.fixture(scope="module")
def model() -> bytes:
    return _model_bytes()


def _write(output: Path, model: bytes, /, **changed: Any) -> Bundle:
    arguments: dict[str, Any] = {
        "name": "cards",
        "created_at": "2025-01-01T00:00:00Z",
        "model": model,
        "feature_set_yaml": FEATURE_SET,
        "policy_yaml": POLICY,
        "threshold_score": 0.5,
        "metrics": {"auc": 0.9},
        "versions": {"xgboost": "3"},
    }
    arguments["golden"] = golden_rows(model)
    return write_bundle(output, **(arguments | changed))


@pytest.fixture
def folder(tmp_path: Path, model: bytes) -> Path:
    output = tmp_path / "bundle"
    _write(output, model)
    return output


def _manifest(folder: Path, **changes: Any) -> None:
    """Rewrite manifest fields, as someone would who wants the bundle to pass."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _replace(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and give the manifest its new hash: only what the files mean can refuse this."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    _manifest(folder, files=files | {name: hashlib.sha256(data).hexdigest()})


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _link(folder: Path, name: str, target: Path) -> None:
    target.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def _subfolder(folder: Path) -> None:
    (folder / "more").mkdir()


TAMPERED: dict[str, tuple[Callable[[Path], Any], type[BundleError], str]] = {
    "model changed": (
        lambda f: _flip(f / "model.ubj"),
        BundleContentError,
        "model.ubj.*was changed.*sha256 .*manifest says",
    ),
    "feature set changed": (
        lambda f: _flip(f / "feature_set.yaml"),
        BundleContentError,
        "feature_set.yaml.*was changed",
    ),
    "policy changed": (lambda f: _flip(f / "policy.yaml"), BundleContentError, "policy.yaml.*was changed"),
    "extra file": (lambda f: (f / "hook.py").write_text("x"), BundleContentError, "'hook.py'.*does not name"),
    "hidden file": (lambda f: (f / ".notes").write_text("x"), BundleContentError, "'.notes'.*does not name"),
    "missing file": (lambda f: (f / "policy.yaml").unlink(), BundleContentError, "lacks 'policy.yaml'"),
    "missing manifest": (lambda f: (f / "manifest.json").unlink(), BundleContentError, "has no manifest.json"),
    "symlink": (lambda f: _link(f, "policy.yaml", f.parent / "p"), BundleContentError, "'policy.yaml'.*symlink"),
    "symlinked manifest": (lambda f: _link(f, "manifest.json", f.parent / "m"), BundleContentError, "symlink"),
    "folder inside": (_subfolder, BundleContentError, "'more'.*not a plain file"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), BundleContentError, "'pipe'.*not a plain file"),
    "many files": (lambda f: [(f / f"{i}").touch() for i in range(100)], BundleContentError, "more than 64 files"),
    "manifest is no JSON": (lambda f: (f / "manifest.json").write_text("{"), BundleManifestError, "not JSON"),
    "manifest is a list": (
        lambda f: (f / "manifest.json").write_text("[]"),
        BundleManifestError,
        "format_version None",
    ),
    "later format": (
        lambda f: _manifest(f, format_version=2, news=1),
        BundleManifestError,
        "format_version 2.*reads 1",
    ),
    "unknown field": (lambda f: _manifest(f, hook="x"), BundleManifestError, "hook"),
    "path outside": (lambda f: _manifest(f, files={"../model.ubj": "0" * 64}), BundleManifestError, "files are"),
    "unknown file named": (
        lambda f: _manifest(f, files=json.loads((f / "manifest.json").read_text())["files"] | {"a.so": "0" * 64}),
        BundleManifestError,
        r"a\.so",
    ),
    "metric is NaN": (lambda f: _manifest(f, metrics={"auc": float("nan")}), BundleManifestError, "metrics"),
    "threshold is no float32": (lambda f: _manifest(f, threshold_margin=0.1), BundleManifestError, "not a float32"),
    "threshold beyond float32": (lambda f: _manifest(f, threshold_margin=1e300), BundleManifestError, "not a float32"),
    "threshold margin moved": (
        lambda f: _manifest(f, threshold_margin=9.0),
        BundleMismatchError,
        "threshold margin: the manifest says 9.0, threshold_score says ",
    ),
    "threshold score moved": (
        lambda f: _manifest(f, threshold_score=1.0, threshold_margin=36.736801147460938),
        BundleMismatchError,
        "threshold score: the manifest says 1.0, policy.yaml says 0.5",
    ),
    "base margin moved": (lambda f: _manifest(f, base_margin=0.5), BundleContentError, "base margin 0.5"),
    "currency moved": (lambda f: _manifest(f, currency="USD"), BundleMismatchError, "manifest says USD.*says EUR"),
    "fingerprint": (
        lambda f: _replace(f, "feature_set.yaml", OTHER_FEATURE_SET.encode()),
        BundleMismatchError,
        "feature fingerprint: the manifest says [0-9a-f]{64}, feature_set.yaml says [0-9a-f]{64}",
    ),
    "names": (
        lambda f: _manifest(f, feature_names=["a", "b", "c"]),
        BundleMismatchError,
        "feature names: .*'a'.*'amount'",
    ),
    "model of other width": (
        lambda f: _replace(f, "model.ubj", _model_bytes(4)),
        BundleMismatchError,
        "feature count: the manifest says 3, model.ubj says 4",
    ),
    "policy of another score": (
        lambda f: _replace(f, "policy.yaml", b"name: cards\nflag: {score: 0.9}\n"),
        BundleMismatchError,
        "manifest says 0.5, policy.yaml says 0.9",
    ),
    "policy of other features": (
        lambda f: _replace(
            f,
            "policy.yaml",
            b"name: cards\nflag: {score: 0.5}\nrules: [{name: r, when: [{feature: nope, above: 1}], reason: R}]\n",
        ),
        BundleMismatchError,
        "nope",
    ),
    "model is a pickle": (
        lambda f: _replace(f, "model.ubj", b"\x80\x04\x95boom."),
        BundleContentError,
        "neither JSON nor UBJ",
    ),
    "policy is not UTF-8": (
        lambda f: _replace(f, "policy.yaml", b"\xff\xfe"),
        BundleContentError,
        "policy.yaml is not UTF-8",
    ),
    "feature set builds objects": (
        lambda f: _replace(f, "feature_set.yaml", b"!!python/object/apply:os.system ['true']"),
        BundleContentError,
        "not readable as YAML",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_bundle_is_refused(folder: Path, case: str) -> None:
    """Every way of changing a bundle ends in its own error, which names what was stated and what was found."""
    tamper, error, message = TAMPERED[case]
    tamper(folder)
    with pytest.raises(error, match=message):
        Bundle.load(folder)


def test_loads_what_was_written(folder: Path, model: bytes) -> None:
    """A bundle loads to the model, feature set, policy and threshold that it was written with."""
    bundle = Bundle.load(folder)
    assert bundle.model.feature_count == 3
    assert bundle.feature_set.names == bundle.manifest.feature_names == ["amount", "hour", "customer_count_1h"]
    assert bundle.policy.flag.score == 0.5
    assert bundle.threshold_margin == margin_for_score(0.5)
    assert bundle.manifest.metrics == {"auc": 0.9}
    names = ["feature_set.yaml", "golden.f32", "manifest.json", "model.ubj", "policy.yaml"]
    assert sorted(p.name for p in folder.iterdir()) == names
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert bundle.id == f"cards-{digest[:12]}"
    assert (folder / "model.ubj").read_bytes() == model


def test_same_inputs_same_bundle(tmp_path: Path, model: bytes) -> None:
    """The same inputs give the same bytes and id in another folder; another time gives another id."""
    one, two = _write(tmp_path / "one", model), _write(tmp_path / "two", model)
    assert one.id == two.id
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert _write(tmp_path / "three", model, created_at="2025-01-02T00:00:00Z").id != one.id


def test_a_symlink_to_a_bundle_is_followed(folder: Path) -> None:
    """`current -> bundle-7` is how people switch: the folder itself may be a symlink, its files may not."""
    link = folder.parent / "current"
    link.symlink_to(folder)
    assert Bundle.load(link).id == Bundle.load(folder).id


@pytest.mark.parametrize("place", ["file", "missing"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, place: str) -> None:
    """A file, or nothing, at the path is a BundleContentError and not an OSError."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleContentError, match="cannot be read as a folder"):
        Bundle.load(tmp_path / place)


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling symlink"])
def test_nothing_is_overwritten(tmp_path: Path, model: bytes, kind: str) -> None:
    """Whatever stands at the output stays as it is."""
    output = tmp_path / "bundle"
    if kind == "file":
        output.write_text("mine")
    elif kind == "dangling symlink":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.mkdir()
        if kind == "folder":
            (output / "mine").write_text("mine")
    with pytest.raises(BundleExistsError, match="never overwritten"):
        _write(output, model)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"model": b"no model"}, BundleManifestError),
        ({"feature_set_yaml": "name: 1"}, BundleManifestError),
        ({"name": "Bad Name"}, BundleManifestError),
        ({"model_file": "model.pkl"}, BundleManifestError),
        ({"threshold_score": 1.5}, BundleManifestError),
        ({"metrics": {"auc": float("nan")}}, BundleManifestError),
        ({"policy_yaml": "name: cards\nflag: {score: 0.6}\n"}, BundleMismatchError),
        ({"feature_set_yaml": WIDER_FEATURE_SET}, BundleMismatchError),
    ],
    ids=["model", "feature set", "name", "pickle", "threshold", "metric", "policy score", "feature count"],
)
def test_a_bundle_that_would_not_load_is_not_written(
    tmp_path: Path, model: bytes, changed: dict[str, Any], error: type[BundleError]
) -> None:
    """Writing checks what loading checks, and leaves nothing behind when it refuses."""
    with pytest.raises(error):
        _write(tmp_path / "bundle", model, **changed)
    assert not list(tmp_path.iterdir())
