"""Decorators for kernels: compiled without reference counts where they make no array, and without wrappers where only
other kernels call them.

Numba counts the references of every array that a kernel passes on, with two atomic operations each; split into small
readers, the screening kernel took twice its time for that. A kernel without counts must make no array, and may call
one that does only if that is an `array_maker`: a callee takes over its caller's setting otherwise.

Numba also compiles two wrappers for every kernel, through which Python and C call it. Of the 66 s of CPU that a first
start compiled, 14 went into wrappers that nothing called. So a `Callee` has them only once Python calls it, and until
then it is compiled as part of its callers alone (`schemas.callee_compiler`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, TypeVar

import numba as nb
from numba.core import types
from numba.extending import models, register_model, typeof_impl

from schemas.callee_compiler import AVAILABLE, CalleeCompiler

F = TypeVar("F", bound=Callable[..., Any])
_njit: Final[Any] = nb.njit  # its type knows no `_nrt`
_unliteral: Final[Any] = types.unliteral


class Callee:
    """A kernel for other kernels to call. A call from Python works as well: then it is compiled once more, with the
    wrappers, and cached under a name of its own."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self.py_func, self.__doc__, self.__name__ = function, function.__doc__, function.__name__
        self.__module__, self.__qualname__, self.__wrapped__ = function.__module__, function.__qualname__, function
        self._options = options | {"cache": True}
        compiler = {"pipeline_class": CalleeCompiler} if AVAILABLE else {}
        self.dispatcher = _njit(**self._options, no_cpython_wrapper=True, no_cfunc_wrapper=True, **compiler)(function)
        self._with_wrapper: Any = None

    def __call__(self, *args: Any) -> Any:
        # Never the dispatcher's own: without its wrapper, numba would call address 0. The cache's key does not know
        # about wrappers, but its files have the function's name.
        if self._with_wrapper is None:
            own = self.py_func
            copy = FunctionType(own.__code__, own.__globals__, own.__name__, own.__defaults__, own.__closure__)
            copy.__module__, copy.__qualname__ = own.__module__, f"{own.__qualname__}_from_python"
            self._with_wrapper = _njit(**self._options)(copy)
        return self._with_wrapper(*args)


class _AnyConstant(types.Dispatcher):  # type: ignore[misc]  # numba has no types
    """A call with a constant compiles no kernel of its own: numba would make one for each constant."""

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        kws = {name: _unliteral(kind) for name, kind in kws.items()}
        return super().get_call_type(context, tuple(_unliteral(kind) for kind in args), kws)


register_model(_AnyConstant)(models.OpaqueModel)  # as a Dispatcher's: there is nothing of it at run time


@typeof_impl.register(Callee)
def _as_dispatcher(callee: Callee, _context: Any) -> Any:
    return _AnyConstant(callee.dispatcher)


def callee(**options: Any) -> Callable[[F], F]:
    """A decorator for a kernel that only kernels call, with these options of numba; cached on disk."""

    def decorate(function: F) -> F:
        made: Any = Callee(function, options)
        return made  # type: ignore[no-any-return]

    return decorate


part: Callable[[F], F] = callee(nogil=True)
reader: Callable[[F], F] = callee(nogil=True, _nrt=False)
inlined_reader: Callable[[F], F] = callee(nogil=True, forceinline=True, _nrt=False)
array_maker: Callable[[F], F] = callee(nogil=True, _nrt=True)
