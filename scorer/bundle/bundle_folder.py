"""Reading and writing a bundle's folder: plain files only, each read once, bounded, never through a symlink."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scorer.bundle.bundle_errors import BundleContentError, BundleExistsError
from scorer.bundle.manifest import FEATURE_SET, GOLDEN, MANIFEST, POLICY, SIGNATURE
from scorer.model.xgboost_document import MODEL_BYTES_MAX

# A list of a policy may carry a million values; 65,536 golden rows of 1,024 features are 256 MiB; the rest are
# kilobytes.
_BYTES_MAX = {MANIFEST: 4 << 20, FEATURE_SET: 4 << 20, POLICY: 64 << 20, SIGNATURE: 64 << 10, GOLDEN: 256 << 20}
# A bundle has a dozen files at most; the listing of a wrong folder must not be unbounded.
_ENTRIES_MAX = 64

T = TypeVar("T")


def listing(folder: Path) -> set[str]:
    """The names in a bundle's folder. Raises BundleContentError for anything but plain files."""
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


def bytes_max(name: str) -> int:
    """How large a bundle's file of this name may be."""
    return _BYTES_MAX.get(name, MODEL_BYTES_MAX)


def read(folder: Path, name: str) -> bytes:
    """A file's bytes. Raises BundleContentError."""
    limit = bytes_max(name)
    try:
        # O_NOFOLLOW: the kernel refuses a symlink put there after the listing. O_NONBLOCK: no wait on a pipe.
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


def checked(folder: Path, name: str, digest: str) -> bytes:
    """A file's bytes, which must have this sha256. Raises BundleContentError."""
    data = read(folder, name)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BundleContentError(f"{name!r} was changed: it has sha256 {found}, the manifest says {digest}")
    return data


def refuse_existing(output: Path) -> None:
    """Raise BundleExistsError where `output` exists."""
    if os.path.lexists(output):
        raise BundleExistsError(f"{output} exists already; bundles are never overwritten, choose another place")


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file, on disk when this returns."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_folder(output: Path, contents: dict[str, bytes], check: Callable[[Path], T]) -> T:
    """Write `contents` to the folder `output`, all or nothing; returns the result of `check`.

    Written and synced in a temporary folder next to it, checked there, and renamed in one step. Raises
    BundleExistsError, or what `check` raises.
    """
    refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for key, data in contents.items():
            write_synced(temporary / key, data)
        temporary.chmod(0o755)  # mkdtemp makes it private; a worker often runs as another user
        sync_folder(temporary)
        result = check(temporary)
        refuse_existing(output)
        try:
            temporary.rename(output)
        except OSError as error:
            raise BundleExistsError(f"{output} appeared while the bundle was written ({error.strerror})") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(output.parent)
    return result
