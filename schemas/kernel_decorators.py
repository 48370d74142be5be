"""Decorators for kernels that read arrays and make none: compiled without reference counts.

Numba counts the references of every array that a kernel passes on, with two atomic operations each; split into small
readers, the screening kernel took twice its time for that. A kernel without counts must make no array, and may call
one that does only if that is an `array_maker`: a callee takes over its caller's setting otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba as nb

F = TypeVar("F", bound=Callable[..., Any])
_njit: Final[Any] = nb.njit  # its type knows no `_nrt`

reader: Callable[[F], F] = _njit(cache=True, nogil=True, _nrt=False)
inlined_reader: Callable[[F], F] = _njit(cache=True, nogil=True, forceinline=True, _nrt=False)
array_maker: Callable[[F], F] = _njit(cache=True, nogil=True, _nrt=True)
