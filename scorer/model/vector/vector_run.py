"""`VectorRun`: consecutive trees in byte-lane form with the kernels of their depth, and the call of such a kernel."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from scorer.model.tree_table import Table
from scorer.model.vector import jit_compiler, kernel_modules
from scorer.model.vector.lane_tables import Descriptor, Ranks, describe, describe_deep, with_stages
from scorer.model.vector.native_call import call_kernel

_ROWS = types.Array(types.float32, 2, "C", readonly=True)
_OUT = types.Array(types.float32, 1, "C")
_OUT_WIDE = types.Array(types.float64, 1, "C")


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
    call_kernel(kernel, (rows, rows.shape[0], descriptor, out))  # type: ignore[call-arg]


class VectorRun:
    """Some consecutive trees in byte lanes. Holds the arrays that its descriptor points at."""

    def __init__(self, table: Table, ranks: Ranks, first: int, last: int, machine: jit_compiler.Host) -> None:
        """Trees first … last - 1 of `table`. Raises jit_compiler.JitUnavailableError where LLVM cannot compile here."""
        self._descriptor = describe(table, ranks, first, last)
        self.first, self.trees = first, last - first
        text, names = kernel_modules.scoring(self._descriptor.depth, self._descriptor.planes, table.wide, machine)
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


class DeepRun:
    """Some consecutive trees of any depth: upper levels in byte lanes, the rest walked."""

    def __init__(self, table: Table, ranks: Ranks, first: int, last: int, machine: jit_compiler.Host) -> None:
        """Trees first … last - 1 of `table`. Raises jit_compiler.JitUnavailableError where LLVM cannot compile here."""
        self._descriptor = describe_deep(table, ranks, first, last)
        self.first, self.trees = first, last - first
        text = kernel_modules.deep(table.wide, machine.permutes)
        self.kernel = jit_compiler.addresses(text, ("deep",), machine)["deep"]
        self.descriptor = self._descriptor.address
        self.byte_count = self._descriptor.byte_count


class EarlyRun:
    """All trees of a table in byte lanes, with the stages of an early exit."""

    def __init__(self, run: VectorRun, ends: np.ndarray, bounds: np.ndarray, machine: jit_compiler.Host) -> None:
        """ends int32 [stages], bounds float32 [stages, 2]. Raises jit_compiler.JitUnavailableError."""
        self._descriptor = with_stages(run.table, ends, bounds)
        text = kernel_modules.early(run.table.depth, machine.permutes)
        self.kernel = jit_compiler.addresses(text, ("early",), machine)["early"]
        self.descriptor = self._descriptor.address


__all__ = ["DeepRun", "EarlyRun", "VectorRun", "run"]
