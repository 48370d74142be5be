"""The kernel of contributions: eight rows at a time down and up every tree; scorer.model.contributions has the formula.

Down: P[child] = P[parent] x a factor chosen by whether the row went this way (leaf values are in the leaves' factors).
Up:   P[parent] = P[left] + P[right], and the split's feature gets sum over q of share x P[child], for both children.
"""

from __future__ import annotations

from scorer.model.vector.kernel_builder import Text, function, splat

ROWS = 8
WORDS = (
    "row_stride",
    "points",  # quadrature points
    "trees",
    "tree",  # int32 [trees, 2]: first node and nodes
    # int32 [n, 4]: left child (counted in its tree; 0 for a leaf), slot of the feature, the node that the former split
    # on it led to (-1 for none), 1 where missing goes left
    "nodes",
    "threshold",  # float32 [n]
    # float64 [n, points, 3]: row goes this way; it does not; it did not at the feature's former split already
    "factors",
    "shares",  # float64 [n, points, 2]: row goes this way; it does not
    "features",  # slots: features that some tree splits on
    "columns",  # int32 [slots]
    "out_stride",
)
FEATURES_MAX = 2_048  # 64 bytes of sums and 32 of values a slot, on the stack
_D, _F, _M = f"<{ROWS} x double>", f"<{ROWS} x float>", f"<{ROWS} x i1>"


def _word(t: Text, name: str, kind: str = "i64") -> str:
    place = t.let(f"getelementptr i64, ptr %desc, i64 {WORDS.index(name)}")
    return t.let(f"load {kind}, ptr {place}, !invariant.load !0")


def _spread(t: Text, kind: str, value: str) -> str:
    first = t.let(f"insertelement <{ROWS} x {kind}> poison, {kind} {value}, i64 0")
    return t.let(f"shufflevector <{ROWS} x {kind}> {first}, <{ROWS} x {kind}> poison, <{ROWS} x i32> zeroinitializer")


def _double(t: Text, table: str, index: str) -> str:
    return _spread(t, "double", t.load("double", t.at("double", table, index), 8))


def contributions() -> str:
    """`@contributions(rows, count, desc, out, scratch)`: added to out float64 [count, out_stride].

    scratch float64 [nodes of the largest tree x (8 points + 1)], 64-byte aligned.
    """
    t = Text()
    stride, out_stride = _word(t, "row_stride"), _word(t, "out_stride")
    features, columns = _word(t, "features"), _word(t, "columns", "ptr")
    trees, tree_table = _word(t, "trees"), _word(t, "tree", "ptr")
    xs = t.let(f"alloca {_F}, i64 {features}, align 64")
    sums = t.let(f"alloca {_D}, i64 {features}, align 64")
    with t.loop("zero", 0, features) as zero:
        t.do(f"store {_F} zeroinitializer, ptr {t.at(_F, xs, zero.index)}, align 32")
    with t.loop("block", 0, "%count", ROWS) as block:
        left = t.let(f"sub i64 %count, {block.index}")
        whole = t.let(f"icmp sge i64 {left}, {ROWS}")
        count = t.let(f"select i1 {whole}, i64 {ROWS}, i64 {left}")
        rows = t.at("float", "%rows", t.let(f"mul i64 {block.index}, {stride}"))
        with t.loop("feature", 0, features) as feature:
            column = t.let(f"sext i32 {t.load('i32', t.at('i32', columns, feature.index), 4)} to i64")
            with t.loop("copy", 0, count) as copy:
                place = t.let(f"add i64 {column}, {t.let(f'mul i64 {copy.index}, {stride}')}")
                value = t.load("float", t.at("float", rows, place), 4)
                t.do(f"store float {value}, ptr {t.at('float', t.at(_F, xs, feature.index), copy.index)}, align 4")
            t.do(f"store {_D} zeroinitializer, ptr {t.at(_D, sums, feature.index)}, align 64")
        with t.loop("tree", 0, trees) as tree:
            place = t.at("i32", tree_table, t.let(f"shl i64 {tree.index}, 1"))
            first = t.let(f"sext i32 {t.load('i32', place, 4)} to i64")
            nodes = t.let(f"sext i32 {t.load('i32', t.at('i32', place, 1), 4)} to i64")
            t.do(f"call void @one_tree(i64 {first}, i64 {nodes}, ptr %desc, ptr {xs}, ptr {sums}, ptr %scratch)")
        out = t.at("double", "%out", t.let(f"mul i64 {block.index}, {out_stride}"))
        with t.loop("give", 0, features) as give:
            column = t.let(f"sext i32 {t.load('i32', t.at('i32', columns, give.index), 4)} to i64")
            with t.loop("row", 0, count) as row:
                place = t.let(f"add i64 {column}, {t.let(f'mul i64 {row.index}, {out_stride}')}")
                target = t.at("double", out, place)
                value = t.load("double", t.at("double", t.at(_D, sums, give.index), row.index), 8)
                before = t.load("double", target, 8)
                total = t.let(f"fadd double {before}, {value}")
                t.do(f"store double {total}, ptr {target}, align 8")
    t.do("ret void")
    main = function("void @contributions(ptr %rows, i64 %count, ptr %desc, ptr %out, ptr %scratch)", t)
    return _one_tree() + main


def _one_tree() -> str:
    t = Text()
    points = _word(t, "points")
    node_table, thresholds = _word(t, "nodes", "ptr"), _word(t, "threshold", "ptr")
    factors, shares = _word(t, "factors", "ptr"), _word(t, "shares", "ptr")
    # One byte a node, after the products: bit r says that row r took every split of the node's last feature its way.
    width = t.let(f"mul i64 %nodes, {points}")
    ways = t.at(_D, "%scratch", width)
    with t.loop("root", 0, points) as root:
        t.do(f"store {_D} {splat('double', ROWS, 1.0)}, ptr {t.at(_D, '%scratch', root.index)}, align 64")

    def products(node: str) -> str:
        return t.at(_D, "%scratch", t.let(f"mul i64 {node}, {points}"))

    def facts(node: str) -> list[str]:
        own = t.let(f"add i64 {node}, %first")
        place = t.at("[4 x i32]", node_table, own)
        return [own] + [t.let(f"sext i32 {t.load('i32', t.at('i32', place, k), 4)} to i64") for k in range(4)]

    def above(node: str) -> str:
        """The ways of the former split on the same feature; all rows where there is none."""
        place = t.let(f"select i1 {t.let(f'icmp slt i64 {node}, 0')}, i64 0, i64 {node}")
        value = t.load("i8", t.at("i8", ways, place), 1)
        none = t.let(f"icmp slt i64 {node}, 0")
        return t.let(f"bitcast i8 {t.let(f'select i1 {none}, i8 -1, i8 {value}')} to {_M}")

    with t.loop("down", 0, "%nodes") as down:
        own, left, slot, former, missing_left = facts(down.index)
        leaf = t.let(f"icmp eq i64 {left}, 0")
        t.do(f"br i1 {leaf}, label %down.next, label %down.split")
        t.label("down.split")
        x = t.load(_F, t.at(_F, "%xs", slot), 32)
        threshold = _spread(t, "float", t.load("float", t.at("float", thresholds, own), 4))
        smaller = t.let(f"fcmp olt {_F} {x}, {threshold}")
        missing = t.let(f"fcmp uno {_F} {x}, {x}")
        default = _spread(t, "i1", t.let(f"trunc i64 {missing_left} to i1"))
        goes_left = t.let(f"select {_M} {missing}, {_M} {default}, {_M} {smaller}")
        before = above(former)
        right_way = t.let(f"xor {_M} {goes_left}, {splat('i1', ROWS, 'true')}")
        parent = products(down.index)
        right = t.let(f"add i64 {left}, 1")
        children = []
        for child, way in ((left, goes_left), (right, right_way)):
            merged = t.let(f"and {_M} {way}, {before}")
            t.do(f"store i8 {t.let(f'bitcast {_M} {merged} to i8')}, ptr {t.at('i8', ways, child)}, align 1")
            start = t.let(f"mul i64 {t.let(f'add i64 {child}, %first')}, {points}")
            children.append((products(child), merged, t.at("[3 x double]", factors, start)))
        with t.loop("down_point", 0, points) as point:
            value = t.load(_D, t.at(_D, parent, point.index), 64)
            for target, merged, table in children:
                row = t.at("[3 x double]", table, point.index)
                hot, cold, still = (_double(t, row, str(k)) for k in range(3))
                other = t.let(f"select {_M} {before}, {_D} {cold}, {_D} {still}")
                factor = t.let(f"select {_M} {merged}, {_D} {hot}, {_D} {other}")
                product = t.let(f"fmul {_D} {value}, {factor}")
                t.do(f"store {_D} {product}, ptr {t.at(_D, target, point.index)}, align 64")
        t.do("br label %down.next")
        t.label("down.next")

    with t.loop("up", 0, "%nodes") as up:
        node = t.let(f"sub i64 {t.let('sub i64 %nodes, 1')}, {up.index}")
        own, left, slot, former, _ = facts(node)
        leaf = t.let(f"icmp eq i64 {left}, 0")
        t.do(f"br i1 {leaf}, label %up.next, label %up.split")
        t.label("up.split")
        before = above(former)
        right = t.let(f"add i64 {left}, 1")
        children = []
        for child in (left, right):
            merged = t.let(f"bitcast i8 {t.load('i8', t.at('i8', ways, child), 1)} to {_M}")
            start = t.let(f"mul i64 {t.let(f'add i64 {child}, %first')}, {points}")
            children.append((products(child), merged, t.at("[2 x double]", shares, start)))
        parent = products(node)
        loop = t.loop("up_point", 0, points)
        total = loop.carry(_D, "zeroinitializer")
        with loop:
            values = []
            kept = total
            for source, merged, table in children:
                value = t.load(_D, t.at(_D, source, loop.index), 64)
                row = t.at("[2 x double]", table, loop.index)
                share = t.let(f"select {_M} {merged}, {_D} {_double(t, row, '0')}, {_D} {_double(t, row, '1')}")
                kept = t.let(f"fadd {_D} {kept}, {t.let(f'fmul {_D} {share}, {value}')}")
                values.append(value)
            both = t.let(f"fadd {_D} {values[0]}, {values[1]}")
            t.do(f"store {_D} {both}, ptr {t.at(_D, parent, loop.index)}, align 64")
            loop.keep(kept)
        # A row that left the feature's way above already: the split here changes nothing for it.
        gained = t.let(f"select {_M} {before}, {_D} {total}, {_D} zeroinitializer")
        target = t.at(_D, "%sums", slot)
        before_this = t.load(_D, target, 64)
        t.do(f"store {_D} {t.let(f'fadd {_D} {before_this}, {gained}')}, ptr {target}, align 64")
        t.do("br label %up.next")
        t.label("up.next")
    t.do("ret void")
    return function(
        "internal void @one_tree(i64 %first, i64 %nodes, ptr %desc, ptr %xs, ptr %sums, ptr noalias %scratch)", t
    )
