"""The kernel for few rows: one payment against all nodes at once.

A row's rank bytes, up to 256 planes, fit four 512-bit registers. One look-up by index fetches the bytes that 64 nodes
compare, one comparison decides them all: a tree of depth 6 becomes 64 bits. Eight trees are then walked together by
shifting those bits, and the leaves added one after the other. Four rows share the reading of the table when there are
that many.

Needs AVX-512 VBMI; elsewhere the plain walk of scorer.model.scalar_kernels serves few rows.
"""

from __future__ import annotations

from scorer.model.vector.kernel_builder import GROUP, LANES, Text, function, splat
from scorer.model.vector.rank_kernel import NAN, ONE, byte_code, gather_cuts, step

PLANES_MAX = 256  # an index is a byte
ROWS_TOGETHER = 4
DEPTH_MIN = 3  # eight nodes a tree: eight trees fill a register
_CHUNK_TREES = 256  # their bits stay in the first-level cache
_B, _F, _I = f"<{LANES} x i8>", f"<{GROUP} x float>", f"<{GROUP} x i32>"
_TOGETHER = 8
_Q = f"<{_TOGETHER} x i64>"

DECLARATIONS = f"declare {_B} @llvm.x86.avx512.vpermi2var.qi.512({_B}, {_B}, {_B})\n"


def row_planes() -> str:
    """`@row_planes(row, desc, bytes)`: the row's rank byte in every plane; 16 features at a time, then 16 planes."""
    t = Text()
    t.do(f"%ranks = alloca [{PLANES_MAX + GROUP} x i32], align 64")
    column, size, offset = t.pointer("column"), t.pointer("size"), t.pointer("offset")
    cuts, levels = t.pointer("cuts"), t.word("levels_max")
    with t.loop("some", 0, t.word("features_padded"), GROUP) as some:
        columns = t.load(_I, t.at("i32", column, some.index), 64)
        sizes = t.load(_I, t.at("i32", size, some.index), 64)
        offsets = t.load(_I, t.at("i32", offset, some.index), 64)
        x = gather_cuts(t, "%row", columns)
        loop = t.loop("search", 0, levels)
        q = loop.carry(_I, ONE)
        with loop:
            active = t.let(f"icmp slt {_I} {q}, {sizes}")
            place = t.let(f"add {_I} {offsets}, {q}")
            following = step(t, q, x, gather_cuts(t, cuts, place, active))
            loop.keep(t.let(f"select <{GROUP} x i1> {active}, {_I} {following}, {_I} {q}"))
        rank = t.let(f"sub {_I} {q}, {sizes}")
        missing = t.let(f"fcmp uno {_F} {x}, {x}")
        rank = t.let(f"select <{GROUP} x i1> {missing}, {_I} {splat('i32', GROUP, -1)}, {_I} {rank}")
        t.do(f"store {_I} {rank}, ptr {t.at('i32', '%ranks', some.index)}, align 64")
    feature, base, absent = t.pointer("plane_feature"), t.pointer("plane_base"), t.pointer("plane_missing")
    with t.loop("plane", 0, t.word("planes_padded"), GROUP) as plane:
        features = t.load(_I, t.at("i32", feature, plane.index), 64)
        places = t.let(f"getelementptr i32, ptr %ranks, {_I} {features}")
        rank = t.let(
            f"call {_I} @llvm.masked.gather.v{GROUP}i32.v{GROUP}p0(<{GROUP} x ptr> {places}, i32 4, "
            f"<{GROUP} x i1> {splat('i1', GROUP, 'true')}, {_I} zeroinitializer)"
        )
        code = byte_code(t, rank, t.load(_I, t.at("i32", base, plane.index), 64))
        missing = t.let(f"icmp slt {_I} {rank}, zeroinitializer")
        absent_codes = t.load(_I, t.at("i32", absent, plane.index), 64)
        code = t.let(f"select <{GROUP} x i1> {missing}, {_I} {absent_codes}, {_I} {code}")
        narrow = t.let(f"trunc {_I} {code} to <{GROUP} x i8>")
        t.do(f"store <{GROUP} x i8> {narrow}, ptr {t.at('i8', '%bytes', plane.index)}, align 16")
    t.do("ret void")
    return function("internal void @row_planes(ptr %row, ptr %desc, ptr noalias %bytes)", t)


def some_rows(depth: int, wide: bool, rows: int, real: str) -> str:
    """`@rowsN(rows, desc, out)`: adds the trees' leaves to out `real` [N]; `wide` for more than 128 planes."""
    t = Text()
    bits = 1 << depth
    chunk_words = _CHUNK_TREES * bits // 64
    t.do(f"%bytes = alloca [{rows * PLANES_MAX} x i8], align 64")
    t.do(f"%masks = alloca [{rows * chunk_words} x i64], align 64")
    stride, vectors = t.word("row_stride"), t.word("mask_vectors")
    node_plane, node_threshold, leaves = t.pointer("node_plane"), t.pointer("node_threshold"), t.pointer("leaves")
    tables: list[list[str]] = []
    for r in range(rows):
        row = t.at("float", "%rows", t.let(f"mul i64 {stride}, {r}"))
        bytes_ = t.at("i8", "%bytes", r * PLANES_MAX)
        t.do(f"call void @row_planes(ptr {row}, ptr %desc, ptr {bytes_})")
        tables.append([t.load(_B, t.at("i8", bytes_, k * LANES), 64) for k in range(4 if wide else 2)])
    begin = [t.load(real, t.at(real, "%out", r), 4) for r in range(rows)]
    chunk = t.loop("chunk", 0, vectors, chunk_words)
    totals = [chunk.carry(real, value) for value in begin]
    with chunk:
        left = t.let(f"sub i64 {vectors}, {chunk.index}")
        whole = t.let(f"icmp sge i64 {left}, {chunk_words}")
        words = t.let(f"select i1 {whole}, i64 {chunk_words}, i64 {left}")
        with t.loop("vector", 0, words) as vector:
            place = t.let(f"shl i64 {t.let(f'add i64 {chunk.index}, {vector.index}')}, 6")
            index = t.load(_B, t.at("i8", node_plane, place), 64)
            threshold = t.load(_B, t.at("i8", node_threshold, place), 64)
            for r in range(rows):
                rank = _look_up(t, tables[r], index)
                right = t.let(f"icmp sgt {_B} {rank}, {threshold}")
                mask = t.let(f"bitcast <{LANES} x i1> {right} to i64")
                target = t.at("i64", t.at("i64", "%masks", r * chunk_words), vector.index)
                t.do(f"store i64 {mask}, ptr {target}, align 8")
        first_tree = t.let(f"udiv i64 {t.let(f'mul i64 {chunk.index}, 64')}, {bits}")
        trees = t.let(f"udiv i64 {t.let(f'mul i64 {words}, 64')}, {bits}")
        eight = t.loop("eight", 0, trees, _TOGETHER)
        sums = [eight.carry(real, value) for value in totals]
        with eight:
            tree = t.let(f"add i64 {first_tree}, {eight.index}")
            own = t.at(real, leaves, t.let(f"shl i64 {tree}, {depth}"))
            kept = []
            for r in range(rows):
                masks = t.at("i64", "%masks", r * chunk_words)
                leaf = _walk(t, depth, t.at("i8", masks, t.let(f"mul i64 {eight.index}, {bits // 8}")))
                total = sums[r]
                for k in range(_TOGETHER):
                    place = t.at(real, own, t.let(f"extractelement {_Q} {leaf}, i64 {k}"))
                    total = t.let(f"fadd {real} {total}, {t.load(real, place, 4)}")
                kept.append(total)
            eight.keep(*kept)
        chunk.keep(*sums)
    for r in range(rows):
        t.do(f"store {real} {totals[r]}, ptr {t.at(real, '%out', r)}, align 4")
    t.do("ret void")
    return function(f"internal void @rows{rows}(ptr %rows, ptr %desc, ptr %out)", t)


def _look_up(t: Text, table: list[str], index: str) -> str:
    halves = [
        t.let(f"call {_B} @llvm.x86.avx512.vpermi2var.qi.512({_B} {a}, {_B} {index}, {_B} {b})")
        for a, b in zip(table[0::2], table[1::2], strict=True)
    ]
    if len(halves) == 1:
        return halves[0]
    upper = t.let(f"icmp slt {_B} {index}, zeroinitializer")
    return t.let(f"select <{LANES} x i1> {upper}, {_B} {halves[1]}, {_B} {halves[0]}")


def _walk(t: Text, depth: int, masks: str) -> str:
    """<8 x i64>: places of eight trees' leaves, counted from the first tree's first leaf."""
    bits = 1 << depth
    words = max(1, bits // 64)
    kind = f"i{min(bits, 64)}"
    loaded = t.load(f"<{_TOGETHER * words} x {kind}>", masks, min(bits, 64) // 8)
    if words == 1:
        word = [t.let(f"zext <{_TOGETHER} x {kind}> {loaded} to {_Q}") if kind != "i64" else loaded]
    else:
        word = []
        for w in range(words):
            lanes = ", ".join(f"i32 {k * words + w}" for k in range(_TOGETHER))
            word.append(
                t.let(
                    f"shufflevector <{_TOGETHER * words} x i64> {loaded}, <{_TOGETHER * words} x i64> poison, "
                    f"<{_TOGETHER} x i32> <{lanes}>"
                )
            )
    one = splat("i64", _TOGETHER, 1)
    q = one
    for level in range(depth):
        shift = q if level < 6 else t.let(f"and {_Q} {q}, {splat('i64', _TOGETHER, 63)}")
        if level < 7:
            source = word[0] if level < 6 else word[1]
        else:
            upper = t.let(f"icmp ne {_Q} {t.let(f'and {_Q} {q}, ' + splat('i64', _TOGETHER, 64))}, zeroinitializer")
            source = t.let(f"select <{_TOGETHER} x i1> {upper}, {_Q} {word[3]}, {_Q} {word[2]}")
        moved = t.let(f"lshr {_Q} {source}, {shift}")
        right = t.let(f"and {_Q} {moved}, {one}")
        q = t.let(f"or {_Q} {t.let(f'shl {_Q} {q}, {one}')}, {right}")
    starts = "<" + ", ".join(f"i64 {k * bits - bits}" for k in range(_TOGETHER)) + ">"
    return t.let(f"add {_Q} {q}, {starts}")


def few(real: str) -> str:
    """`@few(rows, count, desc, out)`: adds the trees' leaves to out `real` [count], four rows at a time, then one."""
    t = Text()
    stride = t.word("row_stride")
    fours = t.let(f"and i64 %count, {-ROWS_TOGETHER}")
    for name, begin, end, together in (("fours", "0", fours, ROWS_TOGETHER), ("ones", fours, "%count", 1)):
        with t.loop(name, begin, end, together) as loop:
            rows = t.at("float", "%rows", t.let(f"mul i64 {loop.index}, {stride}"))
            t.do(f"call void @rows{together}(ptr {rows}, ptr %desc, ptr {t.at(real, '%out', loop.index)})")
    t.do("ret void")
    return function("void @few(ptr %rows, i64 %count, ptr %desc, ptr %out)", t)


__all__ = ["DECLARATIONS", "DEPTH_MIN", "NAN", "PLANES_MAX", "few", "row_planes", "some_rows"]
