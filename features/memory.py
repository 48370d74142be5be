"""Raw memory for kernels: numbers at addresses, arrays over addresses, prefetching.

The event log lives in many mapped segments, which no single array can span, so its kernels read through addresses. The
same means lets one small array of addresses stand for a whole state: handing 40 arrays to a kernel costs 8 µs a call,
one costs 0.2. Whoever builds the addresses keeps the memory alive (features/state.py and features/segments.py).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.np import arrayobj

# Typed as Any: to a type checker an intrinsic has the arguments of its typing function.
intrinsic: Any = extending.intrinsic
njit: Any = numba.njit  # `_nrt` is not in its published signature
_tools: Any = cgutils
_types: Any = types
_arrays: Any = arrayobj

CACHE_LINE = 64


def kernel(function: Any) -> Any:
    """Compile a function that allocates nothing: without reference counts, without the GIL, cached on disk."""
    return njit(cache=True, nogil=True, _nrt=False, error_model="numpy")(function)


def inlined(function: Any) -> Any:
    """The same, as part of its callers: a state is 20 arrays, and handing those on costs more than most of what is done
    with them."""
    return njit(cache=True, nogil=True, _nrt=False, forceinline=True, error_model="numpy")(function)


def _load(kind: Any, bits: int) -> Any:
    def typed(_context: Any, _address: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            # Rows of the log are packed; x86-64 and ARM64 load from any address at full speed.
            where = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            return builder.load(where, typ=ir.IntType(bits), align=1)

        return kind(types.int64), generate

    return typed


def _store(kind: Any, bits: int) -> Any:
    def typed(_context: Any, _address: Any, _value: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], ir.IntType(bits).as_pointer()), align=1)
            return target.get_dummy_value()

        return types.void(types.int64, kind), generate

    return typed


@intrinsic
def peek64(context, address):  # type: ignore[no-untyped-def]
    """The int64 at `address`."""
    return _load(types.int64, 64)(context, address)


@intrinsic
def poke64(context, address, value):  # type: ignore[no-untyped-def]
    """Write an int64 to `address`."""
    return _store(types.int64, 64)(context, address, value)


@intrinsic
def peek32(context, address):  # type: ignore[no-untyped-def]
    """The uint32 at `address`."""
    return _load(types.uint32, 32)(context, address)


@intrinsic
def poke32(context, address, value):  # type: ignore[no-untyped-def]
    """Write a uint32 to `address`."""
    return _store(types.uint32, 32)(context, address, value)


@intrinsic
def peek8(context, address):  # type: ignore[no-untyped-def]
    """The uint8 at `address`."""
    return _load(types.uint8, 8)(context, address)


@intrinsic
def poke8(context, address, value):  # type: ignore[no-untyped-def]
    """Write a uint8 to `address`."""
    return _store(types.uint8, 8)(context, address, value)


@intrinsic
def poke_float(_context, _address, _value):  # type: ignore[no-untyped-def]
    """Write a float32 to `address`, a multiple of 4."""

    def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.FloatType().as_pointer()), align=4)
        return target.get_dummy_value()

    return types.void(types.int64, types.float32), generate


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


@intrinsic
def prefetch(_context, _address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at `address`; any address is allowed, for nothing is read."""

    def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte_pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        function = _tools.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), word(0), word(3), word(1)])
        return target.get_dummy_value()

    return types.void(types.int64), generate


def _view(kind: Any, shape: int) -> Any:
    array = _types.Array(kind, shape, "C")

    def generate(target: Any, builder: Any, address: Any, sizes: list[Any]) -> Any:
        made = _arrays.make_array(array)(target, builder)
        item, word = target.get_abi_sizeof(target.get_data_type(kind)), ir.IntType(64)
        strides = [builder.mul(sizes[1], word(item)), word(item)] if shape > 1 else [word(item)]
        _arrays.populate_array(
            made,
            data=builder.inttoptr(address, made.data.type),
            shape=_tools.pack_array(builder, sizes),
            strides=_tools.pack_array(builder, strides),
            itemsize=word(item),
            meminfo=None,
        )
        return made._getvalue()

    return array, generate


@intrinsic
def array_at(_context, _address, _length, kind):  # type: ignore[no-untyped-def]
    """The memory at `address` as an array [length] of `kind` (np.int64 …). Unlike numba.carray it may be made, and
    left, in a function without reference counts."""
    array, generate = _view(kind.dtype, 1)
    return array(types.int64, types.int64, kind), lambda target, builder, _signature, args: generate(
        target, builder, args[0], [args[1]]
    )


@intrinsic
def rows_at(_context, _address, _length, _width, kind):  # type: ignore[no-untyped-def]
    """The same as an array [length, width]."""
    array, generate = _view(kind.dtype, 2)
    return array(types.int64, types.int64, types.int64, kind), lambda target, builder, _signature, args: generate(
        target, builder, args[0], [args[1], args[2]]
    )


@kernel
def copy_granules(source, target, dirty, granules_max, granule_bytes, reach_bytes, bytes_max):  # type: ignore[no-untyped-def]
    """Copy granules that are marked in `dirty`, and `reach_bytes` behind each, from address to address, and take their
    marks away; how many there were, at most `granules_max`."""
    copied = 0
    for g in range(len(dirty)):
        if copied >= granules_max:
            break
        if g + 16 < len(dirty) and dirty[g + 16]:
            for line in range(0, granule_bytes, CACHE_LINE):
                prefetch(source + (g + 16) * granule_bytes + line)
        if dirty[g]:
            dirty[g] = 0
            copied += 1
            start = g * granule_bytes
            for at in range(start, min(start + granule_bytes + reach_bytes, bytes_max), 8):
                poke64(target + at, peek64(source + at))
    return copied


def aligned_zeros(count: int, dtype: Any) -> npt.NDArray[Any]:
    """Zeros that begin at a cache line: a strip of 64 bytes then is one line, not two."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count * size + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + count * size].view(dtype)
