"""The kernel of trees that are too deep to pad: their upper levels in byte lanes, the rest of the way node by node.

A walk reads the same rank bytes as the lanes do, so a node is eight bytes and a step one compare:
`left + (rank > threshold)`, without a branch; a leaf leads to itself. Eight rows walk side by side and hide each
other's loads. Several blocks of 64 rows pass over a tree before the next tree is read: a thousand deep trees are larger
than the near caches, one of them is not. A row's leaves are still added tree after tree.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from scorer.model.vector.batch_kernels import ARGUMENTS, NODE, copy_rows, leaf_index
from scorer.model.vector.kernel_builder import FLOAT, I8, I32, I64, PTR, KernelBuilder, i64
from scorer.model.vector.kernel_layout import DEEP_SIDE_BY_SIDE, DEEP_TOP, LANES, SCORING_WORDS


def deep(module: Any, real: Any) -> None:
    """`deep(rows, count, descriptor, out)`: adds the trees' leaves to out `real` [count]."""
    k = KernelBuilder(module, "deep", ARGUMENTS, SCORING_WORDS)
    rows, count, _, out = k.arguments
    at_once, planes, trees = k.word("rows_at_once"), k.word("planes"), k.word("trees")
    stride, nodes, steps = k.word("row_stride"), k.word("nodes", PTR), k.word("steps", PTR)
    ranks, sums = k.stack(I8, k.mul(planes, at_once)), k.stack(real, at_once)
    leaf = k.stack(ir.ArrayType(I8, LANES))
    with k.loop("part", 0, k.sdiv(k.add(count, k.sub(at_once, i64(1))), at_once)) as part:
        first = k.mul(part.index, at_once)
        present = _least(k, k.sub(count, first), at_once)
        own = k.at(real, out, first)
        with k.loop("rank", 0, present, LANES) as block:
            start = k.at(FLOAT, rows, k.mul(k.add(first, block.index), stride))
            here = _least(k, k.sub(present, block.index), i64(LANES))
            k.invoke_kernel("rank_block", start, here, k.arguments[2], k.at(I8, ranks, k.mul(block.index, planes)))
        copy_rows(k, "copy_in", real, own, sums, present)
        with k.loop("tree", 0, trees) as tree:
            base = k.shl(tree.index, i64(DEEP_TOP))
            top, entries = k.at(NODE, nodes, base), k.at(I32, k.word("entries", PTR), base)
            below = k.read_index(k.at(I32, steps, tree.index))
            with k.loop("block", 0, present, LANES) as block:
                block_ranks = k.at(I8, ranks, k.mul(block.index, planes))
                k.store(leaf_index(k, DEEP_TOP, top, block_ranks), leaf, align=LANES)
                here = _least(k, k.sub(present, block.index), i64(LANES))
                # Walks beyond the last row start at entries too, and are not copied out.
                with k.loop("row", 0, here, DEEP_SIDE_BY_SIDE) as row:
                    _walks(k, real, row.index, below, leaf, entries, block_ranks, k.at(real, sums, block.index))
        copy_rows(k, "copy_out", real, sums, own, present)
    k.ret_void()


def _walks(k: KernelBuilder, real: Any, row: Any, steps: Any, leaf: Any, entries: Any, ranks: Any, sums: Any) -> None:
    """Add the leaves of DEEP_SIDE_BY_SIDE rows of a block."""
    nodes, values = k.word("walk_nodes", PTR), k.word("walk_values", PTR)
    lanes = range(DEEP_SIDE_BY_SIDE)
    places = [k.add(row, i64(lane)) for lane in lanes]
    starts = [k.zext(k.read(I8, k.at(I8, leaf, place), 1), I64) for place in places]
    starts = [k.zext(k.read(I32, k.at(I32, entries, start), 4), I64) for start in starts]
    own = [k.at(I8, ranks, place) for place in places]
    with k.loop("step", 0, steps, carry=starts) as step:
        following = []
        for node, bytes_ in zip(step.carried, own, strict=True):
            word = k.read(I64, k.at(I64, nodes, node), 8)
            plane = k.and_(k.lshr(word, i64(8)), i64(0xFFFFFF))
            right = k.icmp_signed(">", k.read(I8, k.at(I8, bytes_, plane), 1), k.trunc(word, I8))
            following.append(k.add(k.lshr(word, i64(32)), k.zext(right, I64)))
        step.carry_on(*following)
    align = 8 if isinstance(real, ir.DoubleType) else 4
    for place, node in zip(places, step.carried, strict=True):
        total = k.at(real, sums, place)
        k.store(k.fadd(k.read(real, total, align), k.read(real, k.at(real, values, node), align)), total, align=align)


def _least(k: KernelBuilder, a: Any, b: Any) -> Any:
    return k.select(k.icmp_signed("<", a, b), a, b)


__all__ = ["deep"]
