"""Whether code in a folder may be run: who could have put it there.

Trusted are this user, root, and the owner of `/` (in a container or user namespace that may be neither). A folder is
safe when it and every folder above it belong to one of them and no other user may write there; above it a sticky folder
(/tmp) is safe too, because an entry of another owner can't be replaced in it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def unsafe_reason(folder: Path) -> str | None:
    """Why what is in `folder` may come from another user, with the place; None when it can't. Links are not followed.

    `folder` is an absolute path without links, as `Path.resolve()` gives it. It may be missing: then the places above
    decide.
    """
    for place in (*reversed(folder.parents), folder):
        try:
            found = place.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{place}: {os.strerror(error.errno or 0)}"
        if (why := _unsafe(found, sticky=place != folder)) is not None:
            return f"{place} {why}"
        if not stat.S_ISDIR(found.st_mode):
            return f"{place} is no folder"
    return None


def unsafe_content(folder: Path) -> str | None:
    """The same for everything in a safe `folder`; None at once where only this user may enter it."""
    found = folder.lstat()
    if found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return None
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = Path(place) / name
            try:
                mode = entry.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(mode.st_mode):
                return f"{entry} is a link"
            if (why := _unsafe(mode, sticky=False)) is not None:
                return f"{entry} {why}"
    return None


def make_private(folder: Path) -> None:
    """Makes the folder, and those above it that are missing, for this user alone, whatever the umask."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def trusted_owner(found: os.stat_result) -> bool:
    """Whether it belongs to this user, to root or to the owner of `/`."""
    return found.st_uid in {os.geteuid(), 0} or found.st_uid == Path("/").stat().st_uid


def _unsafe(found: os.stat_result, *, sticky: bool) -> str | None:
    if not trusted_owner(found):
        return f"belongs to user {found.st_uid}"
    if found.st_mode & OTHERS_WRITE and not (sticky and found.st_mode & stat.S_ISVTX):
        return f"has mode {stat.S_IMODE(found.st_mode):04o}: others may write there"
    return None
