"""Which functions stand together in one LLVM module, as the text that scorer.model.vector.jit_compiler compiles.

A text is kept once made: building it takes some ms, and every model of one depth has the same.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from scorer.model.vector import batch_kernels, contribution_kernel, deep_kernel, row_kernels
from scorer.model.vector.jit_compiler import Host
from scorer.model.vector.kernel_builder import DOUBLE, FLOAT
from scorer.model.vector.kernel_layout import ROW_PLANES_MAX
from scorer.model.vector.rank_kernel import rank_block


def scoring(depth: int, planes: int, wide: bool, machine: Host) -> tuple[str, tuple[str, ...]]:
    """The module for trees of one depth, and the functions it exports: `batch`, and `few` where the CPU can.

    `wide`: leaves are float64.
    """
    tables = 0 if planes > ROW_PLANES_MAX or not machine.permutes_bytes else 1 if planes <= ROW_PLANES_MAX // 2 else 2
    return _scoring(depth, tables, wide, machine.permutes), ("batch", "few") if tables else ("batch",)


@cache
def _scoring(depth: int, tables: int, wide: bool, permute: bool) -> str:
    """`tables`: pairs of registers that hold a row's bytes; 0 for no row kernel."""
    module, real = ir.Module("scoring"), DOUBLE if wide else FLOAT
    rank_block(module, permute)
    batch_kernels.batch(module, depth, permute, real)
    if tables:
        row_kernels.few(module, depth, tables == 2, real)
    return _text(module)


@cache
def early(depth: int, permute: bool) -> str:
    """The module of `early`, for trees of one depth."""
    module = ir.Module("early")
    rank_block(module, permute)
    batch_kernels.early(module, depth, permute)
    return _text(module)


@cache
def deep(wide: bool, permute: bool) -> str:
    """The module of `deep`, for trees of any depth."""
    module = ir.Module("deep")
    rank_block(module, permute)
    deep_kernel.deep(module, DOUBLE if wide else FLOAT)
    return _text(module)


@cache
def contributions() -> str:
    """The module of `contributions`."""
    module = ir.Module("contributions")
    contribution_kernel.contributions(module)
    return _text(module)


def _text(module: ir.Module) -> str:
    module.triple = ""  # the target machine's own
    return str(module)
