"""The kernels of few rows: one payment against all nodes at once.

A row's rank bytes, up to 256 planes, fit four 512-bit registers. One look-up by index fetches the bytes that 64 nodes
compare, one comparison decides them all: a tree of depth 6 becomes 64 bits. Eight trees are then walked together by
shifting those bits, and the leaves added one after the other. Four rows share the reading of the table when there are
that many.

Needs AVX-512 VBMI; elsewhere the plain walk of scorer.model.scalar_kernels serves few rows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from scorer.model.vector.kernel_builder import (
    BYTES,
    FLOAT,
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
from scorer.model.vector.kernel_layout import GROUP, LANES, ROW_PLANES_MAX, SCORING_WORDS
from scorer.model.vector.rank_kernel import ALL, ONE, byte_code, gather_cuts, search_step

_ROWS_TOGETHER = 4
_CHUNK_TREES = 256  # their bits stay in the first-level cache
_TREES_TOGETHER = 8
_WORDS = ir.VectorType(I64, _TREES_TOGETHER)


def few(module: Any, depth: int, wide: bool, real: Any) -> None:
    """`few(rows, count, descriptor, out)`: adds the trees' leaves to out `real` [count], four rows at a time, then one.

    `wide` for more than 128 planes.
    """
    _row_planes(module)
    for together in (1, _ROWS_TOGETHER):
        _some_rows(module, depth, wide, together, real)
    arguments = {"rows": PTR, "count": I64, "descriptor": PTR, "out": PTR}
    k = KernelBuilder(module, "few", arguments, SCORING_WORDS)
    rows, count, descriptor, out = k.arguments
    stride = k.word("row_stride")
    fours = k.and_(count, i64(-_ROWS_TOGETHER))
    for begin, end, together in ((0, fours, _ROWS_TOGETHER), (fours, count, 1)):
        with k.loop(f"by_{together}", begin, end, together) as turn:
            first = k.at(FLOAT, rows, k.mul(turn.index, stride))
            k.invoke_kernel(f"rows{together}", first, descriptor, k.at(real, out, turn.index))
    k.ret_void()


def _row_planes(module: Any) -> None:
    """`row_planes(row, descriptor, bytes)`: the row's rank byte in every plane; 16 features at a time, then 16
    planes.
    """
    arguments = {"row": PTR, "descriptor": PTR, "bytes": PTR}
    k = KernelBuilder(module, "row_planes", arguments, SCORING_WORDS, internal=True)
    row, _, out = k.arguments
    out.add_attribute("noalias")
    ranks = k.stack(ir.ArrayType(I32, ROW_PLANES_MAX + GROUP))
    column, size, offset = k.word("column", PTR), k.word("size", PTR), k.word("offset", PTR)
    cuts, levels = k.word("cuts", PTR), k.word("levels_max")
    with k.loop("features", 0, k.word("features_padded"), GROUP) as features:
        columns, sizes, offsets = (
            k.read(INTS, k.at(I32, table, features.index), 64) for table in (column, size, offset)
        )
        x = gather_cuts(k, row, columns)
        with k.loop("search", 0, levels, carry=[ONE]) as search:
            q = search.carried[0]
            active = k.icmp_signed("<", q, sizes)
            following = search_step(k, q, x, gather_cuts(k, cuts, k.add(offsets, q), active))
            search.carry_on(k.select(active, following, q))
        rank = k.select(k.is_nan(x), splat(I32, GROUP, -1), k.sub(search.carried[0], sizes))
        k.store(rank, k.at(I32, ranks, features.index), align=64)
    feature, base, missing = k.word("plane_feature", PTR), k.word("plane_base", PTR), k.word("plane_missing", PTR)
    with k.loop("planes", 0, k.word("planes_padded"), GROUP) as planes:
        own, bases, absent = (k.read(INTS, k.at(I32, table, planes.index), 64) for table in (feature, base, missing))
        rank = k.gather(I32, k.lane_addresses(I32, ranks, own), ALL, zero(INTS))
        code = k.select(k.icmp_signed("<", rank, zero(INTS)), absent, byte_code(k, rank, bases))
        k.store(k.trunc(code, ir.VectorType(I8, GROUP)), k.at(I8, out, planes.index), align=16)
    k.ret_void()


def _some_rows(module: Any, depth: int, wide: bool, together: int, real: Any) -> None:
    """`rowsN(rows, descriptor, out)`: adds the trees' leaves to out `real` [N]; chunk after chunk of trees, first the
    bits of all nodes, then the walks.
    """
    arguments = {"rows": PTR, "descriptor": PTR, "out": PTR}
    k = KernelBuilder(module, f"rows{together}", arguments, SCORING_WORDS, internal=True)
    rows, descriptor, out = k.arguments
    bits = 1 << depth
    chunk_words = _CHUNK_TREES * bits // 64
    rank_bytes = k.stack(ir.ArrayType(I8, together * ROW_PLANES_MAX))
    masks = k.stack(ir.ArrayType(I64, together * chunk_words))
    stride, vectors = k.word("row_stride"), k.word("mask_vectors")
    node_plane, node_threshold = k.word("node_plane", PTR), k.word("node_threshold", PTR)
    leaves = k.word("leaves", PTR)
    tables: list[list[Any]] = []
    for row in range(together):
        own = k.at(I8, rank_bytes, row * ROW_PLANES_MAX)
        k.invoke_kernel("row_planes", k.at(FLOAT, rows, k.mul(stride, i64(row))), descriptor, own)
        tables.append([k.read(BYTES, k.at(I8, own, part * LANES), 64) for part in range(4 if wide else 2)])
    own_masks = [k.at(I64, masks, row * chunk_words) for row in range(together)]
    begin = [k.read(real, k.at(real, out, row), 4) for row in range(together)]
    with k.loop("chunk", 0, vectors, chunk_words, carry=begin) as chunk:
        left = k.sub(vectors, chunk.index)
        words = k.select(k.icmp_signed(">=", left, i64(chunk_words)), i64(chunk_words), left)
        with k.loop("vector", 0, words) as vector:
            place = k.shl(k.add(chunk.index, vector.index), i64(6))
            index, threshold = (k.read(BYTES, k.at(I8, table, place), 64) for table in (node_plane, node_threshold))
            for table, own in zip(tables, own_masks, strict=True):
                right = k.icmp_signed(">", _look_up(k, table, index), threshold)
                k.store(k.bitcast(right, I64), k.at(I64, own, vector.index), align=8)
        first_tree = k.udiv(k.mul(chunk.index, i64(64)), i64(bits))
        trees = k.udiv(k.mul(words, i64(64)), i64(bits))
        with k.loop("eight", 0, trees, _TREES_TOGETHER, carry=chunk.carried) as eight:
            own_leaves = k.at(real, leaves, k.shl(k.add(first_tree, eight.index), i64(depth)))
            kept = []
            for before, own in zip(eight.carried, own_masks, strict=True):
                total = before
                leaf = _walk(k, depth, k.at(I8, own, k.mul(eight.index, i64(bits // 8))))
                for tree in range(_TREES_TOGETHER):
                    place = k.at(real, own_leaves, k.extract_element(leaf, i64(tree)))
                    total = k.fadd(total, k.read(real, place, 4))
                kept.append(total)
            eight.carry_on(*kept)
        chunk.carry_on(*eight.carried)
    for row, total in enumerate(chunk.carried):
        k.store(total, k.at(real, out, row), align=4)
    k.ret_void()


def _look_up(k: KernelBuilder, table: list[Any], index: Any) -> Any:
    """table[index] per byte, where `table` is two or four vectors of 64 bytes."""
    halves = [
        k.intrinsic("llvm.x86.avx512.vpermi2var.qi.512", BYTES, a, index, b)
        for a, b in zip(table[0::2], table[1::2], strict=True)
    ]
    if len(halves) == 1:
        return halves[0]
    return k.select(k.icmp_signed("<", index, zero(BYTES)), halves[1], halves[0])


def _walk(k: KernelBuilder, depth: int, masks: Any) -> Any:
    """<8 x i64>: places of eight trees' leaves, counted from the first tree's first leaf."""
    bits = 1 << depth
    words = max(1, bits // 64)
    element = ir.IntType(min(bits, 64))
    loaded = k.read(ir.VectorType(element, _TREES_TOGETHER * words), masks, min(bits, 64) // 8)
    if words == 1:
        word = [k.zext(loaded, _WORDS)]
    else:
        word = [k.pick(loaded, range(w, _TREES_TOGETHER * words, words)) for w in range(words)]
    one = q = splat(I64, _TREES_TOGETHER, 1)
    for level in range(depth):
        # A word holds the nodes of levels 0 to 5; level 6 is the second word, level 7 the third and fourth.
        shift = q if level < 6 else k.and_(q, splat(I64, _TREES_TOGETHER, 63))
        if level < 7:
            source = word[0] if level < 6 else word[1]
        else:
            upper = k.icmp_signed("!=", k.and_(q, splat(I64, _TREES_TOGETHER, 64)), zero(_WORDS))
            source = k.select(upper, word[3], word[2])
        right = k.and_(k.lshr(source, shift), one)
        q = k.or_(k.shl(q, one), right)
    starts = ir.Constant(_WORDS, [tree * bits - bits for tree in range(_TREES_TOGETHER)])
    return k.add(q, starts)


__all__ = ["few"]
