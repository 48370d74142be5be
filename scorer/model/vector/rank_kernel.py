"""Kernels' first step: the ranks of 64 rows, as bytes, one plane per (feature, where NaN goes, block of 254 cuts).

A value's rank is the number of the feature's cuts that are <= it, so `x < cut[j]` is `rank <= j`: exact, since ranks
are made by comparing floats. The search goes down a tree of cuts in breadth-first order (q = 2q + (x >= cut[q])), all
lanes in step, without a branch; missing entries are NaN, which no x reaches. Where a 512-bit register can be looked up
by index (AVX-512), the first 256 cuts are read by permutes of registers; anything else is a masked gather, which LLVM
lowers as the CPU allows.
"""

from __future__ import annotations

from scorer.model.vector.kernel_builder import GROUP, LANES, Text, function, splat

_F, _I = f"<{GROUP} x float>", f"<{GROUP} x i32>"
_PERMUTED_LEVELS = 8

DECLARATIONS = f"""
declare {_F} @llvm.masked.gather.v{GROUP}f32.v{GROUP}p0(<{GROUP} x ptr>, i32, <{GROUP} x i1>, {_F})
declare {_I} @llvm.masked.gather.v{GROUP}i32.v{GROUP}p0(<{GROUP} x ptr>, i32, <{GROUP} x i1>, {_I})
declare {_I} @llvm.smax.v{GROUP}i32({_I}, {_I})
declare {_I} @llvm.smin.v{GROUP}i32({_I}, {_I})
"""
PERMUTE = f"declare {_F} @llvm.x86.avx512.vpermi2var.ps.512({_F}, {_I}, {_F})\n"

ONE = splat("i32", GROUP, 1)
ALL = splat("i1", GROUP, "true")
NAN = splat("float", GROUP, "0x7FF8000000000000")


def bit_set(t: Text, value: str, bit: int) -> str:
    """<16 x i1>: whether `bit` of each lane of `value` is set."""
    part = t.let(f"and {_I} {value}, {splat('i32', GROUP, 1 << bit)}")
    return t.let(f"icmp ne {_I} {part}, zeroinitializer")


def lookup(t: Text, registers: list[str], index: str) -> str:
    """registers[index] per lane, where `registers` are 2^k vectors of 16 floats; only the low bits of `index` count."""
    parts = [
        t.let(f"call {_F} @llvm.x86.avx512.vpermi2var.ps.512({_F} {a}, {_I} {index}, {_F} {b})")
        for a, b in zip(registers[0::2], registers[1::2], strict=True)
    ]
    bit = 5
    while len(parts) > 1:
        chosen = bit_set(t, index, bit)
        parts = [
            t.let(f"select <{GROUP} x i1> {chosen}, {_F} {b}, {_F} {a}")
            for a, b in zip(parts[0::2], parts[1::2], strict=True)
        ]
        bit += 1
    return parts[0]


def gather_cuts(t: Text, table: str, index: str, active: str = ALL) -> str:
    places = t.let(f"getelementptr float, ptr {table}, {_I} {index}")
    return t.let(
        f"call {_F} @llvm.masked.gather.v{GROUP}f32.v{GROUP}p0(<{GROUP} x ptr> {places}, i32 4, "
        f"<{GROUP} x i1> {active}, {_F} {NAN})"
    )


def step(t: Text, q: str, x: str, cut: str) -> str:
    """2q + (x >= cut)."""
    right = t.let(f"fcmp oge {_F} {x}, {cut}")
    twice = t.let(f"shl {_I} {q}, {ONE}")
    odd = t.let(f"or {_I} {twice}, {ONE}")
    return t.let(f"select <{GROUP} x i1> {right}, {_I} {odd}, {_I} {twice}")


def rank_block(permute: bool) -> str:
    """`@rank_block(rows, count, desc, planes)`: planes of `count` <= 64 rows; lanes beyond hold anything."""
    t = Text()
    groups = LANES // GROUP
    t.do(f"%column = alloca [{LANES} x float], align 64")
    t.do(f"store <{LANES} x float> zeroinitializer, ptr %column, align 64")
    stride, features, table = t.word("row_stride"), t.word("features"), t.pointer("feature_table")
    cuts, plane_table = t.pointer("cuts"), t.pointer("plane_table")
    with t.loop("feature", 0, features) as feature:
        start = t.let(f"mul i64 {feature.index}, 6")

        def fact(number: int) -> str:
            place = t.at("i32", table, t.let(f"add i64 {start}, {number}"))
            return t.let(f"sext i32 {t.load('i32', place, 4)} to i64")

        first_row = t.at("float", "%rows", fact(0))
        levels, own_cuts = fact(1), t.at("float", cuts, fact(2))
        first_plane, planes = fact(3), fact(4)
        with t.loop("copy", 0, "%count") as copy:
            source = t.at("float", first_row, t.let(f"mul i64 {copy.index}, {stride}"))
            t.do(f"store float {t.load('float', source, 4)}, ptr {t.at('float', '%column', copy.index)}, align 4")
        xs = [t.load(_F, t.at("float", "%column", g * GROUP), 64) for g in range(groups)]
        if permute:
            ranks = _permuted_search(t, levels, own_cuts, xs)
        else:
            ranks = _gathered_search(t, "search", [ONE] * groups, 0, levels, own_cuts, xs)
        size = t.let(f"shl i64 1, {levels}")
        size32 = t.let(f"trunc i64 {size} to i32")
        spread = _spread(t, size32)
        ranks = [t.let(f"sub {_I} {q}, {spread}") for q in ranks]
        missing = [t.let(f"fcmp uno {_F} {x}, {x}") for x in xs]
        last = t.let(f"add i64 {first_plane}, {planes}")
        with t.loop("plane", first_plane, last) as plane:
            place = t.at("i32", plane_table, t.let(f"shl i64 {plane.index}, 1"))
            base = _spread(t, t.load("i32", place, 4))
            absent = _spread(t, t.load("i32", t.at("i32", place, 1), 4))
            target = t.at("i8", "%planes", t.let(f"shl i64 {plane.index}, 6"))
            for g in range(groups):
                code = byte_code(t, ranks[g], base)
                code = t.let(f"select <{GROUP} x i1> {missing[g]}, {_I} {absent}, {_I} {code}")
                narrow = t.let(f"trunc {_I} {code} to <{GROUP} x i8>")
                t.do(f"store <{GROUP} x i8> {narrow}, ptr {t.at('i8', target, g * GROUP)}, align 16")
    t.do("ret void")
    return function("internal void @rank_block(ptr %rows, i64 %count, ptr %desc, ptr noalias %planes)", t)


def byte_code(t: Text, rank: str, base: str) -> str:
    """clamp(rank - base, 0, 254) - 127."""
    code = t.let(f"sub {_I} {rank}, {base}")
    code = t.let(f"call {_I} @llvm.smax.v{GROUP}i32({_I} {code}, {_I} zeroinitializer)")
    code = t.let(f"call {_I} @llvm.smin.v{GROUP}i32({_I} {code}, {_I} {splat('i32', GROUP, 254)})")
    return t.let(f"add {_I} {code}, {splat('i32', GROUP, -127)}")


def _spread(t: Text, value: str) -> str:
    first = t.let(f"insertelement {_I} poison, i32 {value}, i64 0")
    return t.let(f"shufflevector {_I} {first}, {_I} poison, {_I} zeroinitializer")


def _gathered_search(
    t: Text, name: str, begin: list[str], done: int, levels: str, cuts: str, xs: list[str]
) -> list[str]:
    loop = t.loop(name, done, levels)
    qs = [loop.carry(_I, q) for q in begin]
    with loop:
        loop.keep(*[step(t, q, x, gather_cuts(t, cuts, q)) for q, x in zip(qs, xs, strict=True)])
    return qs


def _permuted_search(t: Text, levels: str, cuts: str, xs: list[str]) -> list[str]:
    """The search for each number of levels up to 8 unrolled, cuts in registers; beyond, gathers go on from there."""
    arms: list[tuple[str, list[str]]] = []
    cases = " ".join(f"i64 {n}, label %levels{n}" for n in range(1, _PERMUTED_LEVELS))
    t.do(f"switch i64 {levels}, label %levels{_PERMUTED_LEVELS} [{cases}]")
    for count in range(1, _PERMUTED_LEVELS + 1):
        t.label(f"levels{count}")
        registers = [t.load(_F, t.at("float", cuts, c * GROUP), 64) for c in range(max(2, (1 << count) // GROUP))]
        qs = [ONE] * len(xs)
        for level in range(count):
            used = registers[:2] if level < 5 else registers[(1 << level) // GROUP : (2 << level) // GROUP]
            qs = [step(t, q, x, lookup(t, used, q)) for q, x in zip(qs, xs, strict=True)]
        if count == _PERMUTED_LEVELS:
            qs = _gathered_search(t, "deeper", qs, _PERMUTED_LEVELS, levels, cuts, xs)
        arms.append((t.block, qs))
        t.do("br label %found")
    t.label("found")
    return [t.let(f"phi {_I} " + ", ".join(f"[{qs[g]}, %{block}]" for block, qs in arms)) for g in range(len(xs))]
