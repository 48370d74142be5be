"""The kernel of contributions: eight rows at a time down and up every tree; scorer.model.contributions has the formula.

Down: P[child] = P[parent] x a factor chosen by whether the row went this way (leaf values are in the leaves' factors).
Up:   P[parent] = P[left] + P[right], and the split's feature gets sum over q of share x P[child], for both children.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from scorer.model.vector.kernel_builder import DOUBLE, FLOAT, I1, I8, I32, I64, PTR, KernelBuilder, i64, splat, zero
from scorer.model.vector.kernel_layout import CONTRIBUTION_WORDS

_ROWS = 8
_DOUBLES, _FLOATS, _FLAGS = (ir.VectorType(element, _ROWS) for element in (DOUBLE, FLOAT, I1))


def contributions(module: Any) -> None:
    """`contributions(rows, count, descriptor, out, scratch)`: added to out float64 [count, out_stride].

    scratch float64 [nodes of the largest tree x (8 points + 1)], 64-byte aligned.
    """
    _one_tree(module)
    arguments = {"rows": PTR, "count": I64, "descriptor": PTR, "out": PTR, "scratch": PTR}
    k = KernelBuilder(module, "contributions", arguments, CONTRIBUTION_WORDS)
    rows, count, descriptor, out, scratch = k.arguments
    stride, out_stride = k.word("row_stride"), k.word("out_stride")
    features, columns = k.word("features"), k.word("columns", PTR)
    trees, tree_table = k.word("trees"), k.word("tree", PTR)
    xs, sums = k.stack(_FLOATS, features), k.stack(_DOUBLES, features)
    with k.loop("zero", 0, features) as slot:
        k.store(zero(_FLOATS), k.at(_FLOATS, xs, slot.index), align=32)
    with k.loop("block", 0, count, _ROWS) as block:
        left = k.sub(count, block.index)
        present = k.select(k.icmp_signed(">=", left, i64(_ROWS)), i64(_ROWS), left)
        own_rows = k.at(FLOAT, rows, k.mul(block.index, stride))
        with k.loop("load", 0, features) as slot:
            column = k.read_index(k.at(I32, columns, slot.index))
            with k.loop("load_row", 0, present) as row:
                place = k.add(column, k.mul(row.index, stride))
                value = k.read(FLOAT, k.at(FLOAT, own_rows, place), 4)
                k.store(value, k.at(FLOAT, k.at(_FLOATS, xs, slot.index), row.index), align=4)
            k.store(zero(_DOUBLES), k.at(_DOUBLES, sums, slot.index), align=64)
        with k.loop("tree", 0, trees) as tree:
            place = k.at(I32, tree_table, k.shl(tree.index, i64(1)))
            first, nodes = (k.read_index(k.at(I32, place, number)) for number in range(2))
            k.invoke_kernel("one_tree", first, nodes, descriptor, xs, sums, scratch)
        own_out = k.at(DOUBLE, out, k.mul(block.index, out_stride))
        with k.loop("store", 0, features) as slot:
            column = k.read_index(k.at(I32, columns, slot.index))
            with k.loop("store_row", 0, present) as row:
                target = k.at(DOUBLE, own_out, k.add(column, k.mul(row.index, out_stride)))
                value = k.read(DOUBLE, k.at(DOUBLE, k.at(_DOUBLES, sums, slot.index), row.index), 8)
                k.store(k.fadd(k.read(DOUBLE, target, 8), value), target, align=8)
    k.ret_void()


@dataclass(frozen=True)
class _Node:
    """Values of one node of the tree that is walked."""

    own: Any
    """Its number among all trees' nodes."""
    left: Any
    slot: Any
    former: Any
    missing_left: Any


class _Tree:
    """The emitters of `one_tree`: one pass down, one pass up."""

    def __init__(self, module: Any) -> None:
        arguments = {"first": I64, "nodes": I64, "descriptor": PTR, "xs": PTR, "sums": PTR, "scratch": PTR}
        k = self.k = KernelBuilder(module, "one_tree", arguments, CONTRIBUTION_WORDS, internal=True)
        self.first, self.count, _, self.xs, self.sums, self.scratch = k.arguments
        self.scratch.add_attribute("noalias")
        self.points = k.word("points")
        self.nodes, self.thresholds = k.word("nodes", PTR), k.word("threshold", PTR)
        self.factors, self.shares = k.word("factors", PTR), k.word("shares", PTR)
        # One byte a node, after the products: bit r: row r took every split of the node's last feature its way.
        self.ways = k.at(_DOUBLES, self.scratch, k.mul(self.count, self.points))

    def node(self, number: Any) -> _Node:
        k = self.k
        own = k.add(number, self.first)
        place = k.at(ir.ArrayType(I32, 4), self.nodes, own)
        return _Node(own, *(k.read_index(k.at(I32, place, field)) for field in range(4)))

    def products(self, node: Any) -> Any:
        """The address of the node's products, one vector a quadrature point."""
        return self.k.at(_DOUBLES, self.scratch, self.k.mul(node, self.points))

    def table(self, table: Any, width: int, node: Any) -> Any:
        """The address of the node's part of `table` [n, points, width]."""
        k = self.k
        return k.at(ir.ArrayType(DOUBLE, width), table, k.mul(k.add(node, self.first), self.points))

    def former_way(self, former: Any) -> Any:
        """The ways of the former split on the same feature; all rows where there is none."""
        k = self.k
        none = k.icmp_signed("<", former, i64(0))
        value = k.read(I8, k.at(I8, self.ways, k.select(none, i64(0), former)), 1)
        return k.bitcast(k.select(none, ir.Constant(I8, -1), value), _FLAGS)

    def spread_double(self, table: Any, index: int) -> Any:
        return self.k.spread(self.k.read(DOUBLE, self.k.at(DOUBLE, table, index), 8), _ROWS)

    @contextmanager
    def splits(self, name: str, *, upward: bool) -> Iterator[tuple[Any, _Node]]:
        """For every node that is no leaf, children after parents or before them: its number and its values."""
        k = self.k
        with k.loop(name, 0, self.count) as turn:
            number = k.sub(k.sub(self.count, i64(1)), turn.index) if upward else turn.index
            node = self.node(number)
            split, following = k.append_basic_block(f"{name}.split"), ir.Block(k.function, f"{name}.next")
            k.cbranch(k.icmp_signed("==", node.left, i64(0)), following, split)
            k.position_at_end(split)
            yield number, node
            k.branch(following)
            k.function.blocks.append(following)
            k.position_at_end(following)

    def down(self) -> None:
        k = self.k
        with self.splits("down", upward=False) as (number, node):
            x = k.read(_FLOATS, k.at(_FLOATS, self.xs, node.slot), 32)
            threshold = k.spread(k.read(FLOAT, k.at(FLOAT, self.thresholds, node.own), 4), _ROWS)
            default = k.spread(k.trunc(node.missing_left, I1), _ROWS)
            goes_left = k.select(k.is_nan(x), default, k.fcmp_ordered("<", x, threshold))
            goes_right = k.xor(goes_left, splat(I1, _ROWS, 1))
            before = self.former_way(node.former)
            parent = self.products(number)
            children = []
            for child, way in ((node.left, goes_left), (k.add(node.left, i64(1)), goes_right)):
                merged = k.and_(way, before)
                k.store(k.bitcast(merged, I8), k.at(I8, self.ways, child), align=1)
                children.append((self.products(child), merged, self.table(self.factors, 3, child)))
            with k.loop("down_point", 0, self.points) as point:
                value = k.read(_DOUBLES, k.at(_DOUBLES, parent, point.index), 64)
                for target, merged, table in children:
                    row = k.at(ir.ArrayType(DOUBLE, 3), table, point.index)
                    hot, cold, still = (self.spread_double(row, field) for field in range(3))
                    factor = k.select(merged, hot, k.select(before, cold, still))
                    k.store(k.fmul(value, factor), k.at(_DOUBLES, target, point.index), align=64)

    def up(self) -> None:
        k = self.k
        with self.splits("up", upward=True) as (number, node):
            before = self.former_way(node.former)
            children = []
            for child in (node.left, k.add(node.left, i64(1))):
                merged = k.bitcast(k.read(I8, k.at(I8, self.ways, child), 1), _FLAGS)
                children.append((self.products(child), merged, self.table(self.shares, 2, child)))
            parent = self.products(number)
            with k.loop("up_point", 0, self.points, carry=[zero(_DOUBLES)]) as point:
                total, values = point.carried[0], []
                for source, merged, table in children:
                    value = k.read(_DOUBLES, k.at(_DOUBLES, source, point.index), 64)
                    row = k.at(ir.ArrayType(DOUBLE, 2), table, point.index)
                    share = k.select(merged, self.spread_double(row, 0), self.spread_double(row, 1))
                    total = k.fadd(total, k.fmul(share, value))
                    values.append(value)
                k.store(k.fadd(*values), k.at(_DOUBLES, parent, point.index), align=64)
                point.carry_on(total)
            # A row that left the feature's way above already: the split here changes nothing for it.
            gained = k.select(before, point.carried[0], zero(_DOUBLES))
            target = k.at(_DOUBLES, self.sums, node.slot)
            k.store(k.fadd(k.read(_DOUBLES, target, 64), gained), target, align=64)


def _one_tree(module: Any) -> None:
    """`one_tree(first, nodes, descriptor, xs, sums, scratch)`: a tree's contributions of eight rows, added to sums."""
    tree = _Tree(module)
    k = tree.k
    with k.loop("root", 0, tree.points) as point:
        k.store(splat(DOUBLE, _ROWS, 1.0), k.at(_DOUBLES, tree.scratch, point.index), align=64)
    tree.down()
    tree.up()
    k.ret_void()


__all__ = ["contributions"]
