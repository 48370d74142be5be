"""Kernels without a wrapper: for kernels as any other, from Python as safe as any other."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from schemas.kernel_decorators import callee


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
