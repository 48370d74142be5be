"""The batch kernel: 64 rows in byte lanes through perfect trees of one depth.

For every node of a tree the 64 rank bytes of its plane are subtracted, saturating, from the threshold byte: the sign
bit says "goes right". Sign bits are then chosen level by level, b ^ (c & (a ^ b)), one instruction on AVX-512 and NEON;
no branch, no dependent load until the leaf. Leaves are added tree after tree, in the model's own precision.
"""

from __future__ import annotations

from scorer.model.vector.kernel_builder import GROUP, LANES, Text, function, splat
from scorer.model.vector.rank_kernel import lookup

_B = f"<{LANES} x i8>"
_W = f"<{LANES // 2} x i16>"
_F, _G, _I = f"<{GROUP} x float>", f"<{GROUP} x double>", f"<{GROUP} x i32>"
_PERMUTED_DEPTH = 7  # leaves of deeper trees are gathered

DECLARATIONS = f"""
declare {_B} @llvm.ssub.sat.v{LANES}i8({_B}, {_B})
declare {_G} @llvm.masked.gather.v{GROUP}f64.v{GROUP}p0(<{GROUP} x ptr>, i32, <{GROUP} x i1>, {_G})
"""
PERMUTE = f"declare {_F} @llvm.x86.avx512.permvar.sf.512({_F}, {_I})\n"


def batch(depth: int, permute: bool, real: str) -> str:
    """`@batch(rows, count, desc, out)`: adds the trees' leaves to out `real` [count], 64 rows at a time."""
    t = Text()
    stride, trees = t.word("row_stride"), t.word("trees")
    nodes, leaves = t.pointer("nodes"), t.pointer("leaves")
    bytes_ = t.let(f"shl i64 {t.word('planes')}, 6")
    planes = t.let(f"alloca i8, i64 {bytes_}, align 64")
    vector = f"<{GROUP} x {real}>"
    sums = t.let(f"alloca [{LANES} x {real}], align 64")
    t.do(f"store <{LANES} x {real}> zeroinitializer, ptr {sums}, align 64")
    groups = LANES // GROUP
    with t.loop("block", 0, "%count", LANES) as block:
        left = t.let(f"sub i64 %count, {block.index}")
        whole = t.let(f"icmp sge i64 {left}, {LANES}")
        rows = t.let(f"select i1 {whole}, i64 {LANES}, i64 {left}")
        first = t.at("float", "%rows", t.let(f"mul i64 {block.index}, {stride}"))
        t.do(f"call void @rank_block(ptr {first}, i64 {rows}, ptr %desc, ptr {planes})")
        own = t.at(real, "%out", block.index)
        _copy(t, "in", real, own, sums, rows)
        begin = [t.load(vector, t.at(real, sums, g * GROUP), 64) for g in range(groups)]
        tree = t.loop("tree", 0, trees)
        totals = [tree.carry(vector, value) for value in begin]
        with tree:
            base = t.let(f"shl i64 {tree.index}, {depth}")
            index = _leaf_index(t, depth, t.at("[2 x i32]", nodes, base), planes)
            values = _leaf_values(t, depth, permute, real, t.at(real, leaves, base), index)
            tree.keep(*[t.let(f"fadd {vector} {a}, {b}") for a, b in zip(totals, values, strict=True)])
        for g in range(groups):
            t.do(f"store {vector} {totals[g]}, ptr {t.at(real, sums, g * GROUP)}, align 64")
        _copy(t, "out", real, sums, own, rows)
    t.do("ret void")
    return function("void @batch(ptr %rows, i64 %count, ptr %desc, ptr %out)", t)


def early(depth: int, permute: bool) -> str:
    """`@early(rows, count, desc, out)`: 64 rows at a time, until all 64 are decided by the bounds of some stage.

    out float32 [count] holds the base margin, and is given back as the number of trees that were added: positive where
    the row is flagged, negative where not.
    """
    t = Text()
    stride, stages = t.word("row_stride"), t.word("stages")
    nodes, leaves = t.pointer("nodes"), t.pointer("leaves")
    stage_end, bounds = t.pointer("stage_end"), t.pointer("stage_bounds")
    planes = t.let(f"alloca i8, i64 {t.let('shl i64 ' + t.word('planes') + ', 6')}, align 64")
    sums = t.let(f"alloca [{LANES} x float], align 64")
    t.do(f"store <{LANES} x float> zeroinitializer, ptr {sums}, align 64")
    groups = LANES // GROUP
    with t.loop("block", 0, "%count", LANES) as block:
        left = t.let(f"sub i64 %count, {block.index}")
        whole = t.let(f"icmp sge i64 {left}, {LANES}")
        rows = t.let(f"select i1 {whole}, i64 {LANES}, i64 {left}")
        first = t.at("float", "%rows", t.let(f"mul i64 {block.index}, {stride}"))
        t.do(f"call void @rank_block(ptr {first}, i64 {rows}, ptr %desc, ptr {planes})")
        own = t.at("float", "%out", block.index)
        _copy(t, "in", "float", own, sums, rows)
        begin = [t.load(_F, t.at("float", sums, g * GROUP), 64) for g in range(groups)]
        before = t.block
        t.do("br label %stage")
        t.label("stage")
        phis_at = len(t.lines)
        t.do("")
        last = t.let(f"sext i32 {t.load('i32', t.at('i32', stage_end, '%s'), 4)} to i64")
        tree = t.loop("tree", "%from", last)
        totals = [tree.carry(_F, f"%t{g}") for g in range(groups)]
        with tree:
            base = t.let(f"shl i64 {tree.index}, {depth}")
            index = _leaf_index(t, depth, t.at("[2 x i32]", nodes, base), planes)
            values = _leaf_values(t, depth, permute, "float", t.at("float", leaves, base), index)
            tree.keep(*[t.let(f"fadd {_F} {a}, {b}") for a, b in zip(totals, values, strict=True)])
        pair = t.at("[2 x float]", bounds, "%s")
        below = _spread_float(t, t.load("float", pair, 4))
        above = _spread_float(t, t.load("float", t.at("float", pair, 1), 4))
        flags, open_rows = [], "0"
        for total in totals:
            flags.append(t.let(f"fcmp oge {_F} {total}, {above}"))
            low = t.let(f"fcmp oge {_F} {total}, {below}")
            high = t.let(f"fcmp olt {_F} {total}, {above}")
            between = t.let(f"bitcast <{GROUP} x i1> {t.let(f'and <{GROUP} x i1> {low}, {high}')} to i{GROUP}")
            open_rows = t.let(f"or i{GROUP} {open_rows}, {between}")
        following = t.let("add i64 %s, 1")
        more = t.let(f"icmp slt i64 {following}, {stages}")
        waiting = t.let(f"icmp ne i{GROUP} {open_rows}, 0")
        t.do(f"br i1 {t.let(f'and i1 {more}, {waiting}')}, label %stage, label %decided")
        pairs = [("i64", "%s", "0", following), ("i64", "%from", "0", last)]
        pairs += [(_F, f"%t{g}", begin[g], totals[g]) for g in range(groups)]
        t.lines[phis_at] = "\n".join(f"  {n} = phi {k} [{a}, %{before}], [{b}, %{t.block}]" for k, n, a, b in pairs)
        t.label("decided")
        took = t.let(f"sitofp i64 {last} to float")
        positive, negative = _spread_float(t, took), _spread_float(t, t.let(f"fneg float {took}"))
        for g in range(groups):
            result = t.let(f"select <{GROUP} x i1> {flags[g]}, {_F} {positive}, {_F} {negative}")
            t.do(f"store {_F} {result}, ptr {t.at('float', sums, g * GROUP)}, align 64")
        _copy(t, "out", "float", sums, own, rows)
    t.do("ret void")
    return function("void @early(ptr %rows, i64 %count, ptr %desc, ptr %out)", t)


def _spread_float(t: Text, value: str) -> str:
    first = t.let(f"insertelement {_F} poison, float {value}, i64 0")
    return t.let(f"shufflevector {_F} {first}, {_F} poison, {_I} zeroinitializer")


def _copy(t: Text, name: str, real: str, source: str, target: str, count: str) -> None:
    with t.loop(f"copy_{name}", 0, count) as copy:
        value = t.load(real, t.at(real, source, copy.index), 4)
        t.do(f"store {real} {value}, ptr {t.at(real, target, copy.index)}, align 4")


def _leaf_index(t: Text, depth: int, nodes: str, planes: str) -> str:
    """<64 x i8>: each row's leaf."""

    def goes_right(node: int) -> str:
        offset = t.let(f"load i32, ptr {t.at('[2 x i32]', nodes, node)}, align 4")
        wide = t.let(f"zext i32 {offset} to i64")
        ranks = t.load(_B, t.at("i8", planes, wide), 64)
        word = t.load("i32", t.at("i32", t.at("[2 x i32]", nodes, node), 1), 4)
        first = t.let(f"insertelement {_I} poison, i32 {word}, i64 0")
        spread = t.let(f"shufflevector {_I} {first}, {_I} poison, {_I} zeroinitializer")
        threshold = t.let(f"bitcast {_I} {spread} to {_B}")
        return t.let(f"call {_B} @llvm.ssub.sat.v{LANES}i8({_B} {threshold}, {_B} {ranks})")

    def choose(condition: str, right: str, left: str) -> str:
        differs = t.let(f"xor {_B} {right}, {left}")
        masked = t.let(f"and {_B} {differs}, {condition}")
        return t.let(f"xor {_B} {masked}, {left}")

    def level(node: int, above: list[str]) -> str:
        """The sign bits of the node, among node's descendants len(above) levels down, that `above` leads to."""
        if not above:
            return goes_right(node)
        left, right = level(2 * node, above[1:]), level(2 * node + 1, above[1:])
        return choose(above[0], right, left)

    bits: list[str] = []
    for _ in range(depth):
        bits.append(level(1, bits))
    index = ""
    mask = splat("i8", LANES, 128)
    for place, bit in enumerate(bits):
        part = t.let(f"and {_B} {bit}, {mask}")
        shift = 8 - depth + place
        # Shifting pairs of bytes: bit 7 of each byte moves at most 7 places and stays in its byte.
        wide = t.let(f"bitcast {_B} {part} to {_W}")
        moved = t.let(f"lshr {_W} {wide}, {splat('i16', LANES // 2, shift)}")
        narrow = t.let(f"bitcast {_W} {moved} to {_B}")
        index = t.let(f"or {_B} {index}, {narrow}") if index else narrow
    return index


def _leaf_values(t: Text, depth: int, permute: bool, real: str, leaves: str, index: str) -> list[str]:
    values = []
    by_register = permute and real == "float" and depth <= _PERMUTED_DEPTH
    registers = (
        [t.load(_F, t.at("float", leaves, c * GROUP), 32) for c in range(max(1, (1 << depth) // GROUP))]
        if by_register
        else []
    )
    for g in range(LANES // GROUP):
        lanes = ", ".join(f"i32 {g * GROUP + k}" for k in range(GROUP))
        part = t.let(f"shufflevector {_B} {index}, {_B} poison, <{GROUP} x i32> <{lanes}>")
        wide = t.let(f"zext <{GROUP} x i8> {part} to {_I}")
        if by_register and len(registers) == 1:
            values.append(t.let(f"call {_F} @llvm.x86.avx512.permvar.sf.512({_F} {registers[0]}, {_I} {wide})"))
        elif by_register:
            values.append(lookup(t, registers, wide))
        else:
            places = t.let(f"getelementptr {real}, ptr {leaves}, {_I} {wide}")
            suffix = f"v{GROUP}f{32 if real == 'float' else 64}.v{GROUP}p0"
            values.append(
                t.let(
                    f"call <{GROUP} x {real}> @llvm.masked.gather.{suffix}(<{GROUP} x ptr> {places}, i32 4, "
                    f"<{GROUP} x i1> {splat('i1', GROUP, 'true')}, <{GROUP} x {real}> zeroinitializer)"
                )
            )
    return values


__all__ = ["DECLARATIONS", "PERMUTE", "batch", "early"]
