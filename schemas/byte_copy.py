"""Copying bytes in kernels: one call of C's memmove, where a loop would go byte by byte."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

# Typed as Any: to a type checker an intrinsic has the arguments of its typing function.
intrinsic: Any = extending.intrinsic
_tools: Any = cgutils


@intrinsic
def move(_context, _target, _source, _size):  # type: ignore[no-untyped-def]
    """Copy `size` bytes between addresses; the two may overlap (C's memmove)."""

    def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [byte_pointer, byte_pointer, ir.IntType(64), ir.IntType(1)])
        function = _tools.get_or_insert_function(builder.module, signature, "llvm.memmove.p0.p0.i64")
        builder.call(function, [*(builder.inttoptr(args[k], byte_pointer) for k in (0, 1)), args[2], ir.IntType(1)(0)])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
