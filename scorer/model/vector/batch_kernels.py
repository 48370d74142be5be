"""The kernels of 64 rows in byte lanes: all trees of one depth (`batch`), or as many as a decision takes (`early`).

For every node of a tree the 64 rank bytes of its plane are subtracted, saturating, from the threshold byte: the sign
bit says "goes right". Sign bits are then chosen level by level, b ^ (c & (a ^ b)), one instruction on AVX-512 and NEON;
no branch, no dependent load until the leaf. Leaves are added tree after tree, in the model's own precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from scorer.model.vector.kernel_builder import (
    BYTES,
    DOUBLE,
    FLOAT,
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    INTS,
    PTR,
    KernelBuilder,
    i64,
    splat,
    zero,
)
from scorer.model.vector.kernel_layout import GROUP, LANES, SCORING_WORDS
from scorer.model.vector.rank_kernel import ALL, lookup

ARGUMENTS = {"rows": PTR, "count": I64, "descriptor": PTR, "out": PTR}
NODE = ir.ArrayType(I32, 2)
_PAIRS = ir.VectorType(I16, LANES // 2)
_PERMUTED_DEPTH = 7  # leaves of deeper trees are gathered


@dataclass
class _Block:
    """64 rows: their planes, what out held for them, and what it shall hold; vectors of GROUP rows."""

    planes: Any
    begin: list[Any]
    result: list[Any] = field(default_factory=list)


@contextmanager
def _blocks(k: KernelBuilder, real: Any) -> Iterator[_Block]:
    """For every 64 rows: rank them, load what out holds, run the body, store the `result` that it set."""
    rows, count, descriptor, out = k.arguments
    stride = k.word("row_stride")
    planes = k.stack(I8, k.shl(k.word("planes"), i64(6)))
    sums = k.stack(ir.ArrayType(real, LANES))
    k.store(zero(ir.VectorType(real, LANES)), sums, align=64)
    vector = ir.VectorType(real, GROUP)
    with k.loop("block", 0, count, LANES) as block:
        left = k.sub(count, block.index)
        present = k.select(k.icmp_signed(">=", left, i64(LANES)), i64(LANES), left)
        first = k.at(FLOAT, rows, k.mul(block.index, stride))
        k.invoke_kernel("rank_block", first, present, descriptor, planes)
        own = k.at(real, out, block.index)
        copy_rows(k, "copy_in", real, own, sums, present)
        at_hand = _Block(planes, [k.read(vector, k.at(real, sums, lane), 64) for lane in range(0, LANES, GROUP)])
        yield at_hand
        for group, value in enumerate(at_hand.result):
            k.store(value, k.at(real, sums, group * GROUP), align=64)
        copy_rows(k, "copy_out", real, sums, own, present)


def batch(module: Any, depth: int, permute: bool, real: Any) -> None:
    """`batch(rows, count, descriptor, out)`: adds the trees' leaves to out `real` [count], 64 rows at a time."""
    k = KernelBuilder(module, "batch", ARGUMENTS, SCORING_WORDS)
    trees = k.word("trees")
    add_tree = _tree_adder(k, depth, permute, real)
    with _blocks(k, real) as block:
        with k.loop("tree", 0, trees, carry=block.begin) as tree:
            tree.carry_on(*add_tree(tree.index, block.planes, tree.carried))
        block.result = tree.carried
    k.ret_void()


def early(module: Any, depth: int, permute: bool) -> None:
    """`early(rows, count, descriptor, out)`: 64 rows at a time, until all 64 are decided by the bounds of some stage.

    out float32 [count] holds the base margin, and is given back as the number of trees that were added: positive where
    the row is flagged, negative where not.
    """
    k = KernelBuilder(module, "early", ARGUMENTS, SCORING_WORDS)
    stages, stage_end, bounds = k.word("stages"), k.word("stage_end", PTR), k.word("stage_bounds", PTR)
    add_tree = _tree_adder(k, depth, permute, FLOAT)
    with _blocks(k, FLOAT) as block:
        before, head, decided = k.block, k.append_basic_block("stage"), ir.Block(k.function, "decided")
        k.branch(head)
        k.position_at_end(head)
        stage, first, sums = k.phi(I64), k.phi(I64), [k.phi(FLOATS) for _ in block.begin]
        last = k.read_index(k.at(I32, stage_end, stage))
        with k.loop("tree", first, last, carry=sums) as tree:
            tree.carry_on(*add_tree(tree.index, block.planes, tree.carried))
        pair = k.at(ir.ArrayType(FLOAT, 2), bounds, stage)
        below, above = (k.spread(k.read(FLOAT, k.at(FLOAT, pair, side), 4)) for side in range(2))
        flags, undecided = [], ir.Constant(ir.IntType(GROUP), 0)
        for total in tree.carried:
            flags.append(k.fcmp_ordered(">=", total, above))
            between = k.and_(k.fcmp_ordered(">=", total, below), k.fcmp_ordered("<", total, above))
            undecided = k.or_(undecided, k.bitcast(between, ir.IntType(GROUP)))
        following = k.add(stage, i64(1))
        go_on = k.and_(
            k.icmp_signed("<", following, stages), k.icmp_signed("!=", undecided, ir.Constant(ir.IntType(GROUP), 0))
        )
        begin, kept = [i64(0), i64(0), *block.begin], [following, last, *tree.carried]
        for phi, initial, value in zip([stage, first, *sums], begin, kept, strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(value, k.block)
        k.cbranch(go_on, head, decided)
        k.function.blocks.append(decided)
        k.position_at_end(decided)
        took = k.sitofp(last, FLOAT)
        positive, negative = k.spread(took), k.spread(k.fneg(took))
        block.result = [k.select(flag, positive, negative) for flag in flags]
    k.ret_void()


def copy_rows(k: KernelBuilder, name: str, real: Any, source: Any, target: Any, count: Any) -> None:
    """Copy `count` elements."""
    with k.loop(name, 0, count) as copy:
        k.store(k.read(real, k.at(real, source, copy.index), 4), k.at(real, target, copy.index), align=4)


def _tree_adder(k: KernelBuilder, depth: int, permute: bool, real: Any) -> Any:
    """A function that emits one tree: (tree, planes, sums) -> sums with the tree's leaves added."""
    nodes, leaves = k.word("nodes", PTR), k.word("leaves", PTR)

    def add(tree: Any, planes: Any, sums: list[Any]) -> list[Any]:
        base = k.shl(tree, i64(depth))
        index = leaf_index(k, depth, k.at(NODE, nodes, base), planes)
        values = _leaf_values(k, depth, permute, real, k.at(real, leaves, base), index)
        return [k.fadd(total, value) for total, value in zip(sums, values, strict=True)]

    return add


def leaf_index(k: KernelBuilder, depth: int, nodes: Any, planes: Any) -> Any:
    """<64 x i8>: each row's leaf."""

    def goes_right(node: int) -> Any:
        place = k.at(NODE, nodes, node)
        ranks = k.read(BYTES, k.at(I8, planes, k.zext(k.read(I32, place, 4), I64)), 64)
        threshold = k.bitcast(k.spread(k.read(I32, k.at(I32, place, 1), 4)), BYTES)
        return k.intrinsic(f"llvm.ssub.sat.v{LANES}i8", BYTES, threshold, ranks)

    def level(node: int, above: list[Any]) -> Any:
        """The sign bits of the node, among node's descendants len(above) levels down, that `above` leads to."""
        if not above:
            return goes_right(node)
        left, right = level(2 * node, above[1:]), level(2 * node + 1, above[1:])
        return k.xor(k.and_(k.xor(right, left), above[0]), left)

    bits: list[Any] = []
    for _ in range(depth):
        bits.append(level(1, bits))
    index = None
    for place, bit in enumerate(bits):
        sign = k.and_(bit, splat(I8, LANES, 128))
        # Shifting pairs of bytes: bit 7 of each byte moves at most 7 places and stays in its byte.
        pairs = k.lshr(k.bitcast(sign, _PAIRS), splat(I16, LANES // 2, 8 - depth + place))
        moved = k.bitcast(pairs, BYTES)
        index = moved if index is None else k.or_(index, moved)
    return index


def _leaf_values(k: KernelBuilder, depth: int, permute: bool, real: Any, leaves: Any, index: Any) -> list[Any]:
    """The leaves' values, GROUP rows a vector: looked up in registers where they fit, gathered elsewhere."""
    registers = []
    if permute and real is not DOUBLE and depth <= _PERMUTED_DEPTH:
        registers = [k.read(FLOATS, k.at(FLOAT, leaves, lane), 32) for lane in range(0, max(GROUP, 1 << depth), GROUP)]
    values = []
    for first in range(0, LANES, GROUP):
        wide = k.zext(k.pick(index, range(first, first + GROUP)), INTS)
        if len(registers) == 1:
            values.append(k.intrinsic("llvm.x86.avx512.permvar.sf.512", FLOATS, registers[0], wide))
        elif registers:
            values.append(lookup(k, registers, wide))
        else:
            addresses = k.lane_addresses(real, leaves, wide)
            values.append(k.gather(real, addresses, ALL, zero(ir.VectorType(real, GROUP))))
    return values


__all__ = ["ARGUMENTS", "NODE", "batch", "copy_rows", "early", "leaf_index"]
