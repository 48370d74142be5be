"""Loading a bundle from its location: a local folder directly, any other URL through fsspec into a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import fsspec

from scorer.bundle import Bundle
from scorer.bundle.bundle_errors import BundleContentError

# A bundle is a handful of files; a wrong URL must not fill the disk.
FILES_MAX = 64
BYTES_MAX = 2 << 30


def load_bundle(location: str | Path, *, trusted_keys: Sequence[str] = ()) -> Bundle:
    """Load and check the bundle at a folder or an fsspec URL such as s3://bundles/cards-3f9c2a11d07b.

    With `trusted_keys` one of them must have signed it. Raises BundleError; everything that Bundle.load checks is
    checked of the copy that was fetched.
    """
    text = str(location)
    if "://" not in text:
        return Bundle.load(text, trusted_keys=trusted_keys)
    if text.startswith("file://"):
        return Bundle.load(text.removeprefix("file://"), trusted_keys=trusted_keys)
    with tempfile.TemporaryDirectory(prefix="fraud-scorer-bundle-") as folder:
        _copy(text, Path(folder))
        return Bundle.load(folder, trusted_keys=trusted_keys)


def _copy(url: str, folder: Path) -> None:
    try:
        fs, root = fsspec.core.url_to_fs(url)
        found = {str(path): info for path, info in fs.find(root, detail=True).items()}
        if not found:
            raise BundleContentError(f"there is no bundle at {url}: it holds no file")
        size = sum(int(info.get("size") or 0) for info in found.values())
        if len(found) > FILES_MAX or size > BYTES_MAX:
            raise BundleContentError(f"{url} holds {len(found)} files of {size} bytes; it is not a bundle")
        for path in found:
            target = folder / path.removeprefix(root).lstrip("/")
            if not target.resolve().is_relative_to(folder.resolve()):
                raise BundleContentError(f"{url} holds a file outside of itself; it is not a bundle")
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(path, str(target))
    except (OSError, ValueError, ImportError) as exc:
        raise BundleContentError(f"the bundle at {url} cannot be fetched: {exc}") from exc
