"""Bundles by URL, and only from those we trust."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from scorer.bundle import Bundle, BundleError
from scorer.bundle.bundle_location import load_bundle
from tests.unit.test_bundle import _model_bytes, _write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "bundle", _model_bytes())
    return tmp_path / "bundle"


def test_an_object_store_serves_as_a_folder_does(folder: Path) -> None:
    """A bundle fetched by URL is the very bundle of the folder."""
    store = fsspec.filesystem("memory")
    for file in folder.iterdir():
        store.pipe_file(f"/bundles/one/{file.name}", file.read_bytes())
    assert load_bundle("memory://bundles/one").id == load_bundle(folder.as_uri()).id == Bundle.load(folder).id


def test_what_is_no_bundle_is_refused_by_name() -> None:
    """A URL without a bundle behind it is an error that names it."""
    with pytest.raises(BundleError, match="memory://bundles/none"):
        load_bundle("memory://bundles/none")
    with pytest.raises(BundleError, match="nosuch://x"):
        load_bundle("nosuch://x")


def test_an_unsigned_bundle_is_refused_where_keys_are_trusted(folder: Path) -> None:
    """With trusted keys a bundle that none of them signed does not load."""
    with pytest.raises(BundleError, match="sign"):
        load_bundle(folder, trusted_keys=["ed25519:" + "A" * 43 + "="])
