"""Raw memory for kernels: numbers and C functions at addresses, arrays over addresses, prefetching.

The event log lives in many mapped segments, which no single array can span, so its kernels read through addresses. In
the same way one small array of addresses stands for a whole state: passing 40 arrays to a kernel costs 8 µs a call,
one costs 0.2. The code that takes the addresses keeps the memory alive (features/engine_memory.py and
features/log_segments.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.np import arrayobj

from schemas.kernel_decorators import callee

# Typed as Any: to a type checker an intrinsic has the arguments of its typing function.
intrinsic: Any = extending.intrinsic
njit: Any = numba.njit  # `_nrt` is not in its published signature
_tools: Any = cgutils
_types: Any = types
_arrays: Any = arrayobj

CACHE_LINE = 64


def entry(function: Any) -> Any:
    """Compile a function that allocates nothing and that Python calls: without reference counts, without the GIL,
    cached on disk."""
    return njit(cache=True, nogil=True, _nrt=False, error_model="numpy")(function)


def kernel(function: Any) -> Any:
    """The same, for kernels alone to call."""
    return callee(nogil=True, _nrt=False, error_model="numpy")(function)


def inlined(function: Any) -> Any:
    """The same, as part of its callers: a state is 20 arrays, and passing them costs more than most of the work done
    with them."""
    return callee(nogil=True, _nrt=False, forceinline=True, error_model="numpy")(function)


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


def _swap(kind: Any) -> Any:
    def typed(_context: Any, _value: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bswap(args[0])

        return kind(kind), generate

    return typed


@intrinsic
def swap64(context, value):  # type: ignore[no-untyped-def]
    """`value`, an int64, with its bytes in the other order."""
    return _swap(types.int64)(context, value)


@intrinsic
def swap32(context, value):  # type: ignore[no-untyped-def]
    """The lower half of `value` as a uint32 with its bytes in the other order."""
    return _swap(types.uint32)(context, value)


@intrinsic
def poke_float(_context, _address, _value):  # type: ignore[no-untyped-def]
    """Write a float32 to `address`, a multiple of 4."""

    def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.FloatType().as_pointer()), align=4)
        return target.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def call(_context, _function, _first, _second, _third, _fourth, _fifth):  # type: ignore[no-untyped-def]
    """Call the C function at an address with up to five whole numbers or pointers (0 for those that it does not have);
    gives the word that it returns, of which an int is the lower half. As the address comes as an argument, a kernel
    that calls it can be cached on disk.

    Every 64-bit calling convention passes these in registers, or in places that the caller clears.
    """

    def generate(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        signature = ir.FunctionType(word, [word] * 5)
        return builder.call(builder.inttoptr(args[0], signature.as_pointer()), list(args[1:]))

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def prefetch(_context, _address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at `address`; any address is allowed, because nothing is read."""

    def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte_pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        function = _tools.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), word(0), word(3), word(1)])
        return target.get_dummy_value()

    return types.void(types.int64), generate


@dataclass(frozen=True)
class ArrayLayout:
    """How kernels see an array: the type of its entries, and how many stand in a row (0: the array is flat)."""

    dtype: type[np.generic]
    width: int = 0


def layouts(arrays: type[Any]) -> dict[str, ArrayLayout]:
    """The layout of every array of a NamedTuple, from its fields' annotations: Annotated[…, ArrayLayout(…)]."""
    hints = get_type_hints(arrays, include_extras=True)
    return {
        name: next(note for note in hints[name].__metadata__ if isinstance(note, ArrayLayout))
        for name in arrays._fields
    }


def addresses_of(arrays: Any) -> list[tuple[int, int]]:
    """(address, length) of each array of a NamedTuple, for `viewer`. Raises ValueError for one that does not lie in
    memory as its layout says: a kernel would read and write outside it."""
    for name, layout in layouts(type(arrays)).items():
        array = getattr(arrays, name)
        shape = (len(array), layout.width) if layout.width else (len(array),)
        if array.dtype != layout.dtype or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{name}: {array.dtype} {array.shape} where {layout} must be, without gaps")
    return [(array.ctypes.data, len(array)) for array in arrays]


def viewer(arrays: type[Any], first: int) -> Any:
    """A function for kernels: the arrays of the NamedTuple `arrays` whose (address, length) pairs stand from pair
    `first` on at an address. Made of the fields themselves, so that no offset is written by hand.

    Unlike numba.carray it may be called in a function without reference counts.
    """
    declared = list(layouts(arrays).values())
    kinds = [
        _types.Array(numba.from_dtype(np.dtype(layout.dtype)), 2 if layout.width else 1, "C") for layout in declared
    ]
    returned = _types.BaseTuple.from_types(kinds, arrays)
    word = ir.IntType(64)

    def typed(_context: Any, _address: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pairs = builder.inttoptr(args[0], word.as_pointer())

            def load(k: int) -> Any:
                return builder.load(builder.gep(pairs, [word(k)], source_etype=word), typ=word, align=8)

            made = []
            for k, (kind, layout) in enumerate(zip(kinds, declared, strict=True), first):
                sizes = [load(2 * k + 1), *([word(layout.width)] if layout.width else [])]
                made.append(_array_at(target, builder, kind, load(2 * k), sizes))
            return target.make_tuple(builder, returned, made)

        return returned(types.int64), generate

    return intrinsic(typed)


def _array_at(target: Any, builder: Any, kind: Any, address: Any, sizes: list[Any]) -> Any:
    made = _arrays.make_array(kind)(target, builder)
    item, word = target.get_abi_sizeof(target.get_data_type(kind.dtype)), ir.IntType(64)
    strides = [builder.mul(sizes[1], word(item)), word(item)] if len(sizes) > 1 else [word(item)]
    _arrays.populate_array(
        made,
        data=builder.inttoptr(address, made.data.type),
        shape=_tools.pack_array(builder, sizes),
        strides=_tools.pack_array(builder, strides),
        itemsize=word(item),
        meminfo=None,
    )
    return made._getvalue()


@entry
def copy_dirty_pages(source, target, dirty, pages_max, page_bytes, reach_bytes, bytes_max):  # type: ignore[no-untyped-def]
    """Copy the pages that are marked in `dirty`, and `reach_bytes` behind each, from address to address, and clear
    their marks; how many there were, at most `pages_max`."""
    copied = 0
    for g in range(len(dirty)):
        if copied >= pages_max:
            break
        if g + 16 < len(dirty) and dirty[g + 16]:
            for line in range(0, page_bytes, CACHE_LINE):
                prefetch(source + (g + 16) * page_bytes + line)
        if dirty[g]:
            dirty[g] = 0
            copied += 1
            start = g * page_bytes
            for at in range(start, min(start + page_bytes + reach_bytes, bytes_max), 8):
                poke64(target + at, peek64(source + at))
    return copied


def aligned_zeros(count: int, dtype: Any) -> npt.NDArray[Any]:
    """Zeros that begin at a cache line: an entity slot of 64 bytes then is one line, not two."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count * size + CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + count * size].view(dtype)
