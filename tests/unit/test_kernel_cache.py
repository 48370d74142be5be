"""Where compiled kernels are kept: by release, in folders that no other user can write, or not at all."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import kernel_cache, source_digest

ROOT = Path(__file__).resolve().parents[2]
SUM = (
    "import numba as nb\nfrom features.addend import {name}\n\n@nb.njit(cache=True)\ndef total(x):\n    return {call}\n"
)
KERNEL = "import numba as nb\n\n@nb.njit(cache=True)\ndef addend(x):\n    return x + {number}\n"
PROGRAM = """
import os
{first}
import schemas
from features.addition import total
print(total(40), os.environ["NUMBA_CACHE_DIR"])
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package `schemas` beside a small `features` with one kernel that calls another file's."""
    root = tmp_path / "installed"
    shutil.copytree(ROOT / "schemas", root / "schemas", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "features").mkdir()
    (root / "features" / "__init__.py").write_text("import schemas\n")
    (root / "features" / "addition.py").write_text(SUM.format(name="addend", call="addend(x)"))
    (root / "features" / "addend.py").write_text(KERNEL.format(number=1))
    return root


def _run(installed: Path, *, first: str = "", **variables: str) -> tuple[str, Path]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH")}
    environment = kept | {"HOME": "/dev/null/none", "TMPDIR": str(installed.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        cwd=installed, env=environment | variables, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer, folder = done.stdout.split()
    return answer, Path(folder)


def _compiled(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.nbc")}


@pytest.mark.parametrize("first", ["", "import numba"])
def test_an_account_without_home_keeps_kernels_to_itself(installed: Path, tmp_path: Path, first: str) -> None:
    """No home that can be written: kernels go to a private folder below the temporary one and are used again."""
    answer, folder = _run(installed, first=first)
    assert answer == "41"
    assert folder.parent == tmp_path / f"fraud-scorer-{os.geteuid()}"
    assert [place.stat().st_mode & 0o777 for place in (folder, folder.parent)] == [0o700, 0o700]
    compiled = _compiled(folder)
    assert compiled
    assert _run(installed, first=first) == ("41", folder)
    assert _compiled(folder) == compiled


def test_a_changed_file_that_a_kernel_calls_is_noticed(installed: Path) -> None:
    """The called function changes in its own file: the caller gives the new result, not the one compiled before."""
    assert _run(installed)[0] == "41"
    (installed / "features" / "addend.py").write_text(KERNEL.format(number=2))
    assert _run(installed)[0] == "42"


def test_an_index_of_another_release_is_not_read(installed: Path) -> None:
    """An upgrade over an installation whose caches name modules that are gone: it starts, and gives its own results."""
    _, before = _run(installed)
    beside = installed / "features" / "__pycache__"
    beside.mkdir()
    for index in list(before.rglob("*.nbi")):
        stale = pickle.dumps(pickle.loads(index.read_bytes())) + b"cfeatures.state\nState\n."
        index.write_bytes(stale)
        (beside / index.name).write_bytes(stale)
    # The lines of the kernels stay, so that their names in a cache stay.
    (installed / "features" / "addition.py").write_text(SUM.format(name="addend", call="addend(x) + 1"))
    answer, after = _run(installed)
    assert answer == "42"
    assert after.parent == before.parent
    assert after != before


@pytest.mark.parametrize("what", ["name taken", "folder above", "kernel inside", "link inside"])
def test_what_another_user_could_have_written_is_not_run(installed: Path, tmp_path: Path, what: str) -> None:
    """Others may write the folder, one above it, or a file in it: nothing of it is loaded, a fresh folder serves."""
    own = tmp_path / "shared" / "own"
    own.mkdir(parents=True)
    own.chmod(0o755)
    _, folder = _run(installed, NUMBA_CACHE_DIR=str(own))
    folder.chmod(0o755)
    compiled = _compiled(folder)
    (index, *_) = folder.rglob("*.nbi")
    if what == "link inside":
        index.rename(tmp_path / "elsewhere")
        index.symlink_to(tmp_path / "elsewhere")
    else:
        {"name taken": folder, "folder above": own.parent, "kernel inside": index}[what].chmod(0o777)
    answer, used = _run(installed, NUMBA_CACHE_DIR=str(own))
    assert answer == "41"
    assert used.parent == tmp_path / f"fraud-scorer-{os.geteuid()}"
    assert _compiled(folder) == compiled


def test_a_private_folder_taken_by_another_user_is_left_alone(installed: Path, tmp_path: Path) -> None:
    """The name in the temporary folder is taken and open to all: a folder of this process alone serves and goes."""
    taken = tmp_path / f"fraud-scorer-{os.geteuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    _, used = _run(installed)
    assert used.parent.parent == tmp_path
    assert used.parent != taken
    assert not used.exists()
    assert not list(taken.iterdir())


def test_without_a_safe_place_nothing_is_run(installed: Path, tmp_path: Path) -> None:
    """Even the temporary folder can be written by others: the import is refused, with the place and the way out."""
    tmp_path.chmod(0o777)
    with pytest.raises(AssertionError, match=r"UnsafeCacheError.*mode 0777.*NUMBA_CACHE_DIR"):
        _run(installed)


def test_a_cache_built_beforehand_serves_read_only(installed: Path, tmp_path: Path) -> None:
    """Built and mounted read-only: nothing of it is compiled again; a kernel that is missing there still works."""
    built = tmp_path / "built"
    _, folder = _run(installed, NUMBA_CACHE_DIR=str(built))
    for place in (*built.rglob("*"), built):
        place.chmod(0o555 if place.is_dir() else 0o444)
    compiled = _compiled(built)
    # Root may write whatever the mode: for it alone the answer of a read-only file system is given here.
    denied = "os.access = lambda place, mode, **_: not mode & os.W_OK\n" if os.geteuid() == 0 else ""
    no_compiling = "import numba.core.caching\nnumba.core.caching.IndexDataCacheFile.save = None"
    answer, used = _run(installed, first=denied + no_compiling, NUMBA_CACHE_DIR=str(built))
    assert (answer, used.name) == ("41", folder.name)
    assert not used.exists()
    more = "import schemas\nfrom features.addition import total\nassert total(1.5) == 2.5"
    assert _run(installed, first=denied + more, NUMBA_CACHE_DIR=str(built))[0] == "41"
    assert _compiled(built) == compiled


def test_a_child_process_shares_its_parents_folder(installed: Path, tmp_path: Path) -> None:
    """The variable that a parent set leads a child of the same release to the same folder."""
    _, folder = _run(installed, NUMBA_CACHE_DIR=str(tmp_path / "own"))
    assert folder.parent == tmp_path / "own"
    assert _run(installed, NUMBA_CACHE_DIR=str(folder)) == ("41", folder)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    held = len(kernel_cache._held)
    yield tmp_path / "own"
    while len(kernel_cache._held) > held:
        os.close(kernel_cache._held.pop())


def test_folders_of_old_releases_go_but_never_one_in_use(base: Path) -> None:
    """Of many releases the folders used last stay, and one that a running process holds."""
    base.mkdir()
    names = [f"{kernel_cache.PREFIX}{number:032x}" for number in range(kernel_cache.KEPT_MAX + 4)]
    for age, name in enumerate(names):
        (base / name).mkdir()
        os.utime(base / name, (time.time() - age, time.time() - age))
    in_use = base / names[-1]
    kernel_cache._hold(in_use)
    os.utime(in_use, (1, 1))
    new = kernel_cache._folder(f"{kernel_cache.PREFIX}{'f' * 32}")
    assert sorted(base.iterdir()) == sorted([*(base / name for name in names[: kernel_cache.KEPT_MAX]), in_use, new])


def test_the_digest_covers_what_kernels_import_and_costs_little() -> None:
    """Every file with a kernel and the files it imports count; reading them is short beside the start of a process that
    has kernels, which imports Numba."""
    sources = source_digest._sources(ROOT)
    reached = source_digest._with_imports(sources)
    assert {"features.hashing", "features.engine_kernel", "schemas.byte_codes", "schemas.currencies"} <= reached
    assert {name for name, text in sources.items() if b"njit(" in text} <= reached
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import numba"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    seconds = []
    for _ in range(5):
        begun_s = time.process_time()
        source_digest.digest(ROOT)
        seconds.append(time.process_time() - begun_s)
    assert min(seconds) < start_s / 6, (seconds, start_s)
