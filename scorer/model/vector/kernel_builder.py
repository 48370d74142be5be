"""Writing LLVM IR as text: fresh names, the descriptor that kernels read, the declarations they share."""

from __future__ import annotations

from dataclasses import dataclass, field

LANES = 64  # rows of one block: one byte each fills a 512-bit register, or four 128-bit ones
GROUP = 16  # float32 lanes of a 512-bit register

# The descriptor: int64 words, pointers among them, that a kernel is handed. Order is the interface with lane_tables.py.
WORDS = (
    "row_stride",  # float32 from one row to the next
    "features",  # features that some tree splits on
    "feature_table",  # int32 [features, 6]: column, levels, offset of its cuts, first plane, planes, unused
    "plane_table",  # int32 [planes, 2]: first cut of the block, byte of a missing value
    "cuts",  # float32: per feature its cuts in breadth-first order of the search tree, from index 1
    "planes",
    "trees",
    "nodes",  # int32 [trees, 2^depth, 2]: byte offset of the plane, threshold byte four times; index 0 unused
    "leaves",  # float32 or float64 [trees, 2^depth]
    "node_plane",  # uint8 [trees * 2^depth, padded to 64]
    "node_threshold",  # int8, as node_plane
    "mask_vectors",  # node_plane's length / 64
    "features_padded",  # features, padded to 16
    "column",  # int32 [features_padded]
    "size",  # int32 [features_padded]: 2^levels
    "offset",  # int32 [features_padded]
    "levels_max",
    "planes_padded",  # planes, padded to 16
    "plane_feature",  # int32 [planes_padded]
    "plane_base",  # int32 [planes_padded]
    "plane_missing",  # int32 [planes_padded]
    "stages",  # early exit: how often it is asked who is decided
    "stage_end",  # int32 [stages]: trees added by then
    "stage_bounds",  # float32 [stages, 2]: a sum below the first is decided, and one at or above the second
)


@dataclass
class Text:
    """Lines of one function, and names that are used once."""

    lines: list[str] = field(default_factory=list)
    count: int = 0
    block: str = "entry"

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def let(self, expression: str) -> str:
        """Emit `name = expression` and return the name."""
        name = self.name()
        self.lines.append(f"  {name} = {expression}")
        return name

    def do(self, statement: str) -> None:
        self.lines.append(f"  {statement}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def word(self, name: str) -> str:
        """The descriptor's word `name` as i64."""
        place = self.let(f"getelementptr i64, ptr %desc, i64 {WORDS.index(name)}")
        return self.let(f"load i64, ptr {place}, !invariant.load !0")

    def pointer(self, name: str) -> str:
        """The descriptor's word `name` as a pointer."""
        place = self.let(f"getelementptr i64, ptr %desc, i64 {WORDS.index(name)}")
        return self.let(f"load ptr, ptr {place}, !invariant.load !0")

    def at(self, kind: str, pointer: str, index: str | int) -> str:
        return self.let(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def load(self, kind: str, pointer: str, align: int) -> str:
        return self.let(f"load {kind}, ptr {pointer}, align {align}")

    def loop(self, name: str, begin: str | int, end: str, step: int = 1) -> Loop:
        return Loop(self, name, begin, end, step)


class Loop:
    """`for index in range(begin, end, step)` as a context; loop-carried values through `carry` before and `keep`
    inside.
    """

    def __init__(self, text: Text, name: str, begin: str | int, end: str, step: int) -> None:
        self.text, self.id, self.begin, self.end, self.step = text, name, begin, end, step
        self.index = f"%{name}.i"
        self._carried: list[tuple[str, str, str]] = []
        self._kept: list[str] = []

    def carry(self, kind: str, initial: str) -> str:
        """A value that goes from one turn to the next; after the loop the same name holds the last one."""
        name = f"%{self.id}.c{len(self._carried)}"
        self._carried.append((name, kind, initial))
        return name

    def keep(self, *values: str) -> None:
        self._kept = list(values)

    def __enter__(self) -> Loop:
        text, before = self.text, self.text.block
        text.do(f"br label %{self.id}.head")
        text.label(f"{self.id}.head")
        self._head_at = len(text.lines)
        self._before = before
        text.do("")  # phis are put here when the latch is known
        going = text.let(f"icmp slt i64 {self.index}, {self.end}")
        text.do(f"br i1 {going}, label %{self.id}.body, label %{self.id}.end")
        text.label(f"{self.id}.body")
        return self

    def __exit__(self, *_: object) -> None:
        text, latch = self.text, self.text.block
        following = text.let(f"add nuw nsw i64 {self.index}, {self.step}")
        text.do(f"br label %{self.id}.head")
        phis = [f"  {self.index} = phi i64 [{self.begin}, %{self._before}], [{following}, %{latch}]"]
        for (name, kind, initial), value in zip(self._carried, self._kept, strict=True):
            phis.append(f"  {name} = phi {kind} [{initial}, %{self._before}], [{value}, %{latch}]")
        text.lines[self._head_at] = "\n".join(phis)
        text.label(f"{self.id}.end")


def splat(kind: str, lanes: int, value: int | float | str) -> str:
    """A constant vector."""
    return "<" + ", ".join([f"{kind} {value}"] * lanes) + ">"


def function(signature: str, text: Text, attributes: str = "") -> str:
    return f"define {signature} {attributes}nounwind {{\nentry:\n" + "\n".join(text.lines) + "\n}\n"
