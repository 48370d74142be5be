"""Kernels' first step: the ranks of 64 rows, as bytes, one plane per (feature, where NaN goes, block of 254 cuts).

A value's rank is the number of the feature's cuts that are <= it, so `x < cut[j]` is `rank <= j`: exact, since ranks
are made by comparing floats. The search goes down a tree of cuts in breadth-first order (q = 2q + (x >= cut[q])), all
lanes in step, without a branch; missing entries are NaN, which no x reaches. Where a 512-bit register can be looked up
by index (AVX-512), the first 256 cuts are read by permutes of registers; anything else is a masked gather, which LLVM
lowers as the CPU allows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from scorer.model.vector.kernel_builder import (
    FLOAT,
    FLOATS,
    I1,
    I8,
    I32,
    I64,
    INTS,
    PTR,
    KernelBuilder,
    i64,
    splat,
    zero,
)
from scorer.model.vector.kernel_layout import CUTS_A_PLANE, GROUP, LANES, SCORING_WORDS

_PERMUTED_LEVELS = 8

ONE = splat(I32, GROUP, 1)
ALL = splat(I1, GROUP, 1)
_NAN = splat(FLOAT, GROUP, float("nan"))


def rank_block(module: Any, permute: bool) -> None:
    """`rank_block(rows, count, descriptor, planes)`: planes of `count` <= 64 rows; lanes beyond hold anything."""
    arguments = {"rows": PTR, "count": I64, "descriptor": PTR, "planes": PTR}
    k = KernelBuilder(module, "rank_block", arguments, SCORING_WORDS, internal=True)
    rows, count, _, out = k.arguments
    out.add_attribute("noalias")
    column = k.stack(ir.ArrayType(FLOAT, LANES))
    k.store(zero(ir.VectorType(FLOAT, LANES)), column, align=64)
    stride, features, table = k.word("row_stride"), k.word("features"), k.word("feature_table", PTR)
    cuts, plane_table = k.word("cuts", PTR), k.word("plane_table", PTR)
    with k.loop("feature", 0, features) as feature:
        start = k.mul(feature.index, i64(6))
        own_column, levels, first_cut, first_plane, planes = (
            k.read_index(k.at(I32, table, k.add(start, i64(number)))) for number in range(5)
        )
        first_row, own_cuts = k.at(FLOAT, rows, own_column), k.at(FLOAT, cuts, first_cut)
        with k.loop("copy", 0, count) as copy:
            source = k.at(FLOAT, first_row, k.mul(copy.index, stride))
            k.store(k.read(FLOAT, source, 4), k.at(FLOAT, column, copy.index), align=4)
        xs = [k.read(FLOATS, k.at(FLOAT, column, lane), 64) for lane in range(0, LANES, GROUP)]
        if permute:
            found = _permuted_search(k, levels, own_cuts, xs)
        else:
            found = _gathered_search(k, "search", [ONE] * len(xs), i64(0), levels, own_cuts, xs)
        size = k.spread(k.trunc(k.shl(i64(1), levels), I32))
        ranks = [k.sub(q, size) for q in found]
        missing = [k.is_nan(x) for x in xs]
        with k.loop("plane", first_plane, k.add(first_plane, planes)) as plane:
            place = k.at(I32, plane_table, k.shl(plane.index, i64(1)))
            base, absent = (k.spread(k.read(I32, k.at(I32, place, number), 4)) for number in range(2))
            target = k.at(I8, out, k.shl(plane.index, i64(6)))
            for group, (rank, none) in enumerate(zip(ranks, missing, strict=True)):
                code = k.select(none, absent, byte_code(k, rank, base))
                k.store(k.trunc(code, ir.VectorType(I8, GROUP)), k.at(I8, target, group * GROUP), align=16)
    k.ret_void()


def byte_code(k: KernelBuilder, rank: Any, base: Any) -> Any:
    """clamp(rank - base, 0, 254) - 127 per lane: a rank as a signed byte of the plane that begins at cut `base`."""
    code = k.intrinsic(f"llvm.smax.v{GROUP}i32", INTS, k.sub(rank, base), zero(INTS))
    code = k.intrinsic(f"llvm.smin.v{GROUP}i32", INTS, code, splat(I32, GROUP, CUTS_A_PLANE))
    return k.add(code, splat(I32, GROUP, -127))


def search_step(k: KernelBuilder, q: Any, x: Any, cut: Any) -> Any:
    """2q + (x >= cut)."""
    right = k.fcmp_ordered(">=", x, cut)
    twice = k.shl(q, ONE)
    return k.select(right, k.or_(twice, ONE), twice)


def gather_cuts(k: KernelBuilder, table: Any, index: Any, active: Any = ALL) -> Any:
    """The floats at `index` of a table; NaN where a lane is not active."""
    return k.gather(FLOAT, k.lane_addresses(FLOAT, table, index), active, _NAN)


def lookup(k: KernelBuilder, registers: list[Any], index: Any) -> Any:
    """registers[index] per lane, where `registers` are 2^k vectors of 16 floats; only the low bits of `index` count."""
    parts = [
        k.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", FLOATS, a, index, b)
        for a, b in zip(registers[0::2], registers[1::2], strict=True)
    ]
    bit = 5
    while len(parts) > 1:
        upper = k.icmp_signed("!=", k.and_(index, splat(I32, GROUP, 1 << bit)), zero(INTS))
        parts = [k.select(upper, b, a) for a, b in zip(parts[0::2], parts[1::2], strict=True)]
        bit += 1
    return parts[0]


def _gathered_search(
    k: KernelBuilder, name: str, begin: list[Any], done: Any, levels: Any, cuts: Any, xs: list[Any]
) -> list[Any]:
    with k.loop(name, done, levels, carry=begin) as level:
        level.carry_on(*[search_step(k, q, x, gather_cuts(k, cuts, q)) for q, x in zip(level.carried, xs, strict=True)])
    return level.carried


def _permuted_search(k: KernelBuilder, levels: Any, cuts: Any, xs: list[Any]) -> list[Any]:
    """The search for each number of levels up to 8 unrolled, cuts in registers; beyond, gathers go on from there."""
    found = ir.Block(k.function, "found")
    arms = [k.append_basic_block(f"levels{count}") for count in range(1, _PERMUTED_LEVELS + 1)]
    switch = k.switch(levels, arms[-1])
    ends: list[tuple[list[Any], Any]] = []
    for count, arm in enumerate(arms, start=1):
        if arm is not arms[-1]:
            switch.add_case(i64(count), arm)
        k.position_at_end(arm)
        registers = [k.read(FLOATS, k.at(FLOAT, cuts, c * GROUP), 64) for c in range(max(2, (1 << count) // GROUP))]
        qs = [ONE] * len(xs)
        for level in range(count):
            used = registers[:2] if level < 5 else registers[(1 << level) // GROUP : (2 << level) // GROUP]
            qs = [search_step(k, q, x, lookup(k, used, q)) for q, x in zip(qs, xs, strict=True)]
        if arm is arms[-1]:
            qs = _gathered_search(k, "deeper", qs, i64(_PERMUTED_LEVELS), levels, cuts, xs)
        ends.append((qs, k.block))
        k.branch(found)
    k.function.blocks.append(found)
    k.position_at_end(found)
    results = [k.phi(INTS) for _ in xs]
    for qs, block in ends:
        for result, q in zip(results, qs, strict=True):
            result.add_incoming(q, block)
    return results


__all__ = ["ALL", "ONE", "byte_code", "gather_cuts", "lookup", "rank_block", "search_step"]
