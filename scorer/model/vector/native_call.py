"""Calling a compiled kernel from numba code, by its address."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def call_kernel(typing_context, address, arguments):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Call the function `void (…)` at `address` (int64): no lookup, no GIL, and numba can cache the caller.

    `arguments` is a tuple; an array in it becomes the address of its data, an int64 stays what it is.
    """
    signature = types.void(types.int64, arguments)

    def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        proxy: Any = cgutils.create_struct_proxy
        values = []
        parts: Any = cgutils.unpack_tuple(builder, args[1])  # type: ignore[no-untyped-call]
        for kind, value in zip(sig.args[1], parts, strict=True):
            if isinstance(kind, types.Array):
                values.append(builder.ptrtoint(proxy(kind)(context, builder, value=value).data, word))
            else:
                values.append(value)
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [word] * len(values)).as_pointer())
        builder.call(function, values)
        return context.get_dummy_value()

    return signature, generate


__all__ = ["call_kernel"]
