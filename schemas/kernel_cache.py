"""Where numba keeps compiled kernels: one folder for each state of the sources, in a place that only we can write.

Beside the source, where numba keeps them by default, files of an earlier release are unpickled before they are compared
with anything, and a kernel does not see that a file it calls has changed. And what is read is run: who may write the
folder may run code as this user. So every package passes here first, before numba is imported, and numba gets
`<base>/kernels-<digest>`; the digest is that of `schemas.kernel_sources`.

    base    NUMBA_CACHE_DIR when an operator set it; else <user's cache>/fraud-scorer/numba; else <temporary
            folder>/fraud-scorer-<uid>; else a fresh folder that goes when the process ends. The first that is safe
            (`schemas.folder_trust`) and can be written.

A folder that is safe, complete and read-only (built beforehand, mounted) is used through links in a fresh private
folder: numba insists on writing, and what it adds stays there.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Final

from schemas.folder_trust import make_private, unsafe_content, unsafe_reason
from schemas.kernel_sources import digest

VARIABLE: Final = "NUMBA_CACHE_DIR"
PREFIX: Final = "kernels-"
KEPT_MAX: Final = 24  # folders of other releases and checkouts; about 5 MB each
_DIGEST_DIGITS: Final = 32

# Open for the life of the process: its lock tells others that the folder is in use.
_held: list[int] = []


class UnsafeCacheError(RuntimeError):
    """No folder for compiled kernels can be trusted here."""


def ensure() -> None:
    """Sets NUMBA_CACHE_DIR to the folder of these sources. Raises UnsafeCacheError where there is no safe place."""
    name = PREFIX + digest(Path(__file__).resolve().parents[1])
    folder = str(_folder(name))
    os.environ[VARIABLE] = folder
    if (config := sys.modules.get("numba.core.config")) is not None:  # numba came first: it has read the variable
        config.CACHE_DIR = folder  # type: ignore[attr-defined]


def _folder(name: str) -> Path:
    temporary = Path(tempfile.gettempdir()).resolve() / f"fraud-scorer-{os.geteuid()}"
    named = _named_base()
    for base in (named, _user_base(), temporary):
        if base is None:
            continue
        try:
            return _usable(base, name)
        except OSError as error:
            if base == named:
                warnings.warn(f"{VARIABLE} is not used: {error}", RuntimeWarning, stacklevel=3)
    return _fresh(name)


def _named_base() -> Path | None:
    """The operator's folder. A parent process of ours passes on the folder it chose: then the one above."""
    if not (named := os.environ.get(VARIABLE)):
        return None
    base = Path(named).resolve()
    ours = base.name.startswith(PREFIX) and len(base.name) == len(PREFIX) + _DIGEST_DIGITS
    return base.parent if ours else base


def _user_base() -> Path | None:
    # An unknown home leaves the tilde, which would become a folder of that name.
    usual = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = os.path.expanduser(usual)  # noqa: PTH111 - pathlib raises for an unknown home
    return None if base.startswith("~") else Path(base).resolve() / "fraud-scorer" / "numba"


def _usable(base: Path, name: str) -> Path:
    """The folder `name` in `base`, made where it is missing, or links to it where it is read-only.

    Raises OSError when it is not safe, can't be written and is not there, or can't be locked.
    """
    folder = base / name
    if (why := unsafe_reason(base)) is not None:
        raise PermissionError(why)
    if made := not folder.is_dir():
        make_private(folder)
    if (why := unsafe_reason(folder) or unsafe_content(folder)) is not None:
        raise PermissionError(why)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return _linked(folder)
    _hold(folder)
    if made:
        _prune(base, name)
    return folder


def _linked(folder: Path) -> Path:
    private = _fresh(folder.name)
    for place, _, names in os.walk(folder):
        beside = private / Path(place).relative_to(folder)
        beside.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            (beside / name).symlink_to(Path(place) / name)
    return private


def _fresh(name: str) -> Path:
    """A new private folder of this name, removed when this process ends."""
    above = Path(tempfile.gettempdir()).resolve()
    if (why := unsafe_reason(above / "fraud-scorer")) is not None:
        raise UnsafeCacheError(
            f"no safe folder for compiled kernels: {why}. Set {VARIABLE} to a folder that only this user may write, "
            f"below folders that no other user may write"
        )
    private = Path(tempfile.mkdtemp(prefix="fraud-scorer-", dir=above))
    atexit.register(_remove, private, os.getpid())
    (private / name).mkdir(mode=0o700)
    return private / name


def _remove(private: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork of this process ends with the same list of calls
        shutil.rmtree(private, ignore_errors=True)


def _hold(folder: Path) -> None:
    """Marks the folder as in use by this process. Raises OSError when another one is removing it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), folder.lstat()):
            raise FileNotFoundError(f"{folder} was removed by another process")
        os.utime(handle)  # the order in which folders go
    except OSError:
        os.close(handle)
        raise
    _held.append(handle)


def _prune(base: Path, name: str) -> None:
    """Removes the folders of other releases that were not used for longest, but never one in use."""
    others = [entry for entry in base.glob(f"{PREFIX}*") if entry.name != name]
    others.sort(key=lambda entry: entry.lstat().st_mtime, reverse=True)
    for folder in others[KEPT_MAX:]:
        with contextlib.suppress(OSError):  # in use, or gone already
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
