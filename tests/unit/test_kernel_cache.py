"""Where compiled kernels are kept for an account that may write nowhere but the temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os
{first}
from features import hashing
assert hashing.__file__.startswith(os.getcwd()), hashing.__file__
print(os.environ["NUMBA_CACHE_DIR"])
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The packages with a plain file where Python would keep its cache: unwritable, for root too."""
    root = tmp_path / "installed"
    for name in ("schemas", "features", "scorer"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for folder in {source.parent for source in (root / name).rglob("*.py")}:
            (folder / "__pycache__").touch()
    return root


def _import(installed: Path, temporary: Path, first: str = "", **variables: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH")}
    environment = kept | {"HOME": "/dev/null/none", "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        cwd=installed, env=environment | variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("first", ["", "import numba"])
def test_an_account_without_home_imports_and_keeps_kernels_to_itself(
    installed: Path, tmp_path: Path, first: str
) -> None:
    """Neither home nor package folder can be written: the import works, kernels go to a private folder, used again."""
    for _ in range(2):
        assert _import(installed, tmp_path, first) == [str(tmp_path / f"fraud-scorer-{os.geteuid()}")]
    folder = tmp_path / f"fraud-scorer-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir())


def test_a_folder_that_others_may_write_is_not_used(installed: Path, tmp_path: Path) -> None:
    """Somebody took the name first: the code in it is not trusted, a fresh folder serves and goes at the end."""
    taken = tmp_path / f"fraud-scorer-{os.geteuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    used = Path(_import(installed, tmp_path)[0])
    assert used.parent == tmp_path
    assert used != taken
    assert not used.exists()
    assert not list(taken.iterdir())


def test_a_folder_named_by_the_operator_stays(installed: Path, tmp_path: Path) -> None:
    """NUMBA_CACHE_DIR as set is NUMBA_CACHE_DIR as used."""
    assert _import(installed, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "own")) == [str(tmp_path / "own")]
