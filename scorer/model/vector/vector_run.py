"""`VectorRun`: consecutive trees in byte-lane form, with the kernels of their depth; and the call from numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from scorer.model.tree_table import Table
from scorer.model.vector import batch_kernels, jit_compiler, rank_kernel, row_kernels
from scorer.model.vector.lane_tables import Descriptor, Ranks, describe, with_stages

_ROWS = types.Array(types.float32, 2, "C", readonly=True)
_OUT = types.Array(types.float32, 1, "C")
_OUT_WIDE = types.Array(types.float64, 1, "C")


@intrinsic
def _call(typing_context, address, rows, count, descriptor, out):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Call the C function `void (ptr, i64, ptr, ptr)` at an address: no lookup, no GIL, cacheable by numba."""
    signature = types.void(types.int64, _ROWS, types.int64, types.int64, out)

    def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        proxy: Any = cgutils.create_struct_proxy
        kind = ir.FunctionType(ir.VoidType(), [word, word, word, word])
        function = builder.inttoptr(args[0], kind.as_pointer())
        data = [
            builder.ptrtoint(proxy(of)(context, builder, value=value).data, word)
            for of, value in ((sig.args[1], args[1]), (sig.args[4], args[4]))
        ]
        builder.call(function, [data[0], args[2], args[3], data[1]])
        return context.get_dummy_value()

    return signature, generate


@numba.njit(
    [types.void(_ROWS, out, types.float64, types.int64, types.int64) for out in (_OUT, _OUT_WIDE)],
    cache=True,
    nogil=True,
)
def run(rows, out, base, kernel, descriptor):  # type: ignore[no-untyped-def]
    """out [n] (float32, or float64 for a wide table) = base + the trees of `descriptor`, by the function at address
    `kernel`; base NaN: out + them.
    """
    if not np.isnan(base):
        for row in range(rows.shape[0]):
            out[row] = base
    _call(kernel, rows, rows.shape[0], descriptor, out)  # type: ignore[call-arg]


def source(depth: int, planes: int, real: str, machine: jit_compiler.Host) -> tuple[str, tuple[str, ...]]:
    """The module for trees of one depth, and the functions it exports."""
    permute = machine.permutes
    parts = [rank_kernel.DECLARATIONS, batch_kernels.DECLARATIONS]
    if permute:
        parts += [rank_kernel.PERMUTE, batch_kernels.PERMUTE]
    parts += [rank_kernel.rank_block(permute), batch_kernels.batch(depth, permute, real)]
    names: tuple[str, ...] = ("batch",)
    if machine.permutes_bytes and planes <= row_kernels.PLANES_MAX:
        wide = planes > row_kernels.PLANES_MAX // 2
        parts += [row_kernels.DECLARATIONS, row_kernels.row_planes()]
        parts += [row_kernels.some_rows(depth, wide, rows, real) for rows in (1, row_kernels.ROWS_TOGETHER)]
        parts.append(row_kernels.few(real))
        names = ("batch", "few")
    return "\n".join([*parts, "!0 = !{}"]), names


class VectorRun:
    """Some consecutive trees in byte lanes. Holds the arrays that its descriptor points at."""

    def __init__(self, table: Table, ranks: Ranks, first: int, last: int, machine: jit_compiler.Host) -> None:
        """Trees first … last - 1 of `table`. Raises jit_compiler.JitUnavailableError where LLVM cannot compile here."""
        self._descriptor = describe(table, ranks, first, last)
        self.first, self.trees = first, last - first
        text, names = source(
            self._descriptor.depth, self._descriptor.planes, "double" if table.wide else "float", machine
        )
        kernels = jit_compiler.addresses(text, names, machine)
        self.descriptor = self._descriptor.address
        self.batch = kernels["batch"]
        self.few = kernels.get("few", 0)
        """The bit kernel's address; 0 where the CPU has none or the model has too many planes for it."""
        self.byte_count = self._descriptor.byte_count

    @property
    def table(self) -> Descriptor:
        """The padded trees."""
        return self._descriptor


class EarlyRun:
    """All trees of a table in byte lanes, with the stages of an early exit."""

    def __init__(self, run: VectorRun, ends: np.ndarray, bounds: np.ndarray, machine: jit_compiler.Host) -> None:
        """ends int32 [stages], bounds float32 [stages, 2]. Raises jit_compiler.JitUnavailableError."""
        self._descriptor = with_stages(run.table, ends, bounds)
        permute = machine.permutes
        parts = [rank_kernel.DECLARATIONS, batch_kernels.DECLARATIONS]
        if permute:
            parts += [rank_kernel.PERMUTE, batch_kernels.PERMUTE]
        parts += [rank_kernel.rank_block(permute), batch_kernels.early(run.table.depth, permute), "!0 = !{}"]
        self.kernel = jit_compiler.addresses("\n".join(parts), ("early",), machine)["early"]
        self.descriptor = self._descriptor.address


__all__ = ["EarlyRun", "VectorRun", "run", "source"]
