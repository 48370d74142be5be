"""Where numba keeps compiled kernels when neither of its own places can be written: a private folder.

numba wants to write beside the source or below the user's cache, and a kernel declared with cache=True fails to import
where it can do neither: a service account without a home, on an installation that it may not change. Every package
passes here first, before numba is imported. The cache holds code, so the folder belongs to this user alone.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
_PACKAGES = ("schemas", "features", "scorer")


def ensure() -> None:
    """Set NUMBA_CACHE_DIR where numba would find no place of its own; an operator's own setting stays."""
    if os.environ.get(VARIABLE) or _user_cache_writable() or _packages_writable():
        return
    folder = str(_private_folder())
    os.environ[VARIABLE] = folder
    if (config := sys.modules.get("numba.core.config")) is not None:  # numba came first: it has read the variable
        config.CACHE_DIR = folder  # type: ignore[attr-defined]


def _user_cache_writable() -> bool:
    # As numba finds it (appdirs); an unknown home leaves the tilde, which would become a folder of that name.
    usual = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = os.path.expanduser(usual)  # noqa: PTH111 - pathlib raises for an unknown home
    return not base.startswith("~") and _writable(Path(base) / "numba")


def _packages_writable() -> bool:
    root = Path(__file__).resolve().parents[1]
    folders = {source.parent for name in _PACKAGES for source in (root / name).rglob("*.py")}
    return all(_writable(folder / "__pycache__") for folder in folders)


def _writable(folder: Path) -> bool:
    """Whether the folder can be written, or made: nothing is made to find out."""
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError:  # a place on the way that may not be looked into
        return False
    effective = os.access in os.supports_effective_ids
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective)


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"fraud-scorer-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700)
    except OSError:
        # It is there from an earlier start, or somebody else has taken the name.
        try:
            found = folder.lstat()
        except OSError:
            found = None
        mine = found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if found is None or not mine or found.st_mode & 0o077:
            folder = Path(tempfile.mkdtemp(prefix="fraud-scorer-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
