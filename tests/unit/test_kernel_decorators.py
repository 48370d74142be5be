"""Kernels without a wrapper: for kernels as any other, from Python as safe as any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numba.core.codegen import JITCodeLibrary

from schemas.kernel_decorators import callee

ROOT = Path(__file__).resolve().parents[2]


@callee(nogil=True)
def _squared(x: int) -> int:
    return x * x


@nb.njit
def _sum_of_squares(values: Any) -> int:
    total = 0
    for value in values:
        total += _squared(value)
    return total


def test_a_callee_gives_kernels_and_python_the_same() -> None:
    """Called by a kernel it is compiled without a wrapper; called from Python it gets one, and does not call address
    0, which would end the process."""
    assert _sum_of_squares(np.arange(5)) == 30
    assert _squared(7) == 49
    assert _squared(1.5) == 2.25
    assert _sum_of_squares(np.arange(5.0)) == 30.0


def test_a_callee_shows_what_it_wraps() -> None:
    """Tools and readers of a traceback find the function itself."""
    made: Any = _squared
    assert (made.__name__, made.__module__, made.py_func(3)) == ("_squared", __name__, 9)


@nb.njit
def _of_constants() -> int:
    return _squared(3) + _squared(4) + _squared(np.int64(5))


def test_constants_are_no_kernels_of_their_own() -> None:
    """A call with a constant runs the kernel of any number: each kernel is part of the minute that a first start
    compiles."""
    made: Any = _squared
    assert _of_constants() == 50
    assert not any("Literal" in str(kind) for signature in made.dispatcher.signatures for kind in signature)


def test_a_callee_is_no_machine_code_of_its_own() -> None:
    """Only what Python calls is optimised and written as machine code; what it calls is part of it. With each callee
    written too, and again in each of its callers, a first start compiled a sixth longer."""
    made: Any = _squared
    assert _sum_of_squares(np.arange(5)) == 30
    for overload in made.dispatcher.overloads.values():
        library: JITCodeLibrary = overload.library
        function = overload.fndesc.llvm_func_name
        assert any(item.name == function for item in library.get_defined_functions())
        assert function.encode() not in library._get_compiled_object()
    entry: Any = _sum_of_squares
    for overload in entry.overloads.values():
        assert overload.fndesc.llvm_func_name.encode() in overload.library._get_compiled_object()


KERNELS = """
import numba as nb
from schemas.kernel_decorators import callee

@callee(nogil=True)
def checked(x):
    if x < 0:
        raise ValueError("negative", x)
    return 3 * x

@callee(nogil=True)
def tripled(x):
    return checked(x) + 0

@nb.njit(cache=True)
def one(x):
    return tripled(x) + 1

@nb.njit(cache=True)
def two(x):
    return tripled(x) + 2
"""
CALL = """
from cached_kernels import {name} as kernel, tripled
print(kernel(2), sum(kernel.stats.cache_hits.values()), sum(tripled.dispatcher.stats.cache_hits.values()))
try:
    kernel(-1)
except ValueError as exc:
    print(exc.args)
"""


def test_a_callee_of_the_cache_serves_another_caller(tmp_path: Path) -> None:
    """A caller that is compiled in another process links the callee as the cache has it, and from then on is whole:
    values and errors are those of a first compilation."""
    (tmp_path / "cached_kernels.py").write_text(KERNELS)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(name: str) -> list[str]:
        command = [sys.executable, "-c", CALL.format(name=name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    refused = "('negative', -1)"
    assert run("one") == ["7 0 0", refused]
    assert run("two") == ["8 0 1", refused]
    assert run("two") == ["8 1 0", refused]
