"""The cache of compiled kernels: what is in it may be wrong, and then it is made again."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import pytest

from scorer.model.vector import jit_compiler

NUMBER = "define i64 @number() {\n  ret i64 41\n}\n"


def _number() -> int:
    jit_compiler._loaded.clear()
    return int(
        ctypes.CFUNCTYPE(ctypes.c_int64)(jit_compiler.addresses(NUMBER, ("number",), jit_compiler.host())["number"])()
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit_compiler, "_loaded", {})
    monkeypatch.setenv(jit_compiler.CACHE_VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.mark.parametrize("what", ["no object code", "another function", "empty"])
def test_cached_code_that_does_not_load_is_compiled_again(folder: Path, what: str) -> None:
    """A file whose hash is right and whose code is not loaded: the kernel works, and the file is replaced."""
    assert _number() == 41
    (file,) = folder.iterdir()
    good = file.read_bytes()
    other = jit_compiler._compile(NUMBER.replace("number", "other"), jit_compiler.host())
    code = {"no object code": b"not an object", "another function": other, "empty": b""}[what]
    file.write_bytes(hashlib.sha256(code).digest() + code)
    assert _number() == 41
    assert file.read_bytes() == good


def test_other_passes_are_another_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code made with other options of the compiler is not taken for this one's."""
    assert _number() == 41
    monkeypatch.setattr(jit_compiler, "_OPTIONS", "others")
    assert _number() == 41
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("what", ["writable", "link"])
def test_a_file_that_others_could_have_written_is_not_loaded(folder: Path, tmp_path: Path, what: str) -> None:
    """Code in a file that others may write to, or behind a link, is not run: the kernel is compiled again."""
    assert _number() == 41
    (file,) = folder.iterdir()
    code = jit_compiler._compile(NUMBER.replace("41", "666"), jit_compiler.host())
    planted = tmp_path / "planted"
    planted.write_bytes(hashlib.sha256(code).digest() + code)
    if what == "link":
        file.unlink()
        file.symlink_to(planted)
    else:
        file.write_bytes(planted.read_bytes())
        assert _number() == 666  # the user's own file is trusted
        file.chmod(0o666)
    assert _number() == 41


def test_an_unknown_home_costs_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home there is no cache on disk, and kernels are compiled in memory all the same."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(jit_compiler, "_loaded", {})
    monkeypatch.delenv(jit_compiler.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert _number() == 41
