"""llvmlite's IRBuilder with what every kernel needs: descriptor words, vectors, stack arrays, counted loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from llvmlite import ir

from scorer.model.vector.kernel_layout import GROUP, LANES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
PTR = ir.PointerType()
BYTES = ir.VectorType(I8, LANES)
FLOATS, INTS, FLAGS = (ir.VectorType(element, GROUP) for element in (FLOAT, I32, I1))


@cache
def splat(element: Any, lanes: int, value: int | float) -> Any:
    """The constant vector that holds `value` in each of its lanes."""
    return ir.Constant(ir.VectorType(element, lanes), [value] * lanes)


def zero(kind: Any) -> Any:
    """The zero of a type."""
    return ir.Constant(kind, None)


@cache
def i64(value: int) -> Any:
    """An i64 constant."""
    return ir.Constant(I64, value)


def gather_suffix(element: Any) -> str:
    """How LLVM's names of masked gathers end for GROUP lanes of an element type."""
    return f"v{GROUP}{ {I32: 'i32', FLOAT: 'f32', DOUBLE: 'f64'}[element] }.v{GROUP}p0"


class Loop:
    """A loop that is being built: its index, and the values that go from one turn to the next."""

    def __init__(self, index: Any, carried: list[Any]) -> None:
        self.index = index
        self.carried = carried
        """Inside the loop: the values at the turn's begin; after the loop: the last ones."""
        self.following: list[Any] = []

    def carry_on(self, *values: Any) -> None:
        """What `carried` holds in the next turn."""
        self.following = list(values)


class KernelBuilder(ir.IRBuilder):  # type: ignore[misc]  # llvmlite has no types
    """Builds one function `void name(arguments…)` of a module, statement after statement."""

    def __init__(
        self, module: Any, name: str, arguments: dict[str, Any], words: Sequence[str], *, internal: bool = False
    ) -> None:
        """`arguments`: type by name. The one called `descriptor` points at `words` (see kernel_layout)."""
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(arguments.values())), name)
        function.attributes.add("nounwind")
        if internal:
            function.linkage = "internal"
        for argument, given in zip(function.args, arguments, strict=True):
            argument.name = given
        self.arguments = tuple(function.args)
        self._descriptor = self.arguments[list(arguments).index("descriptor")]
        self._words = words
        super().__init__(function.append_basic_block("entry"))

    def word(self, name: str, kind: Any = I64) -> Any:
        """The descriptor's word `name`: an i64, or the pointer that it is."""
        value = self.load(self.at(I64, self._descriptor, self._words.index(name)), typ=kind)
        value.set_metadata("invariant.load", self.module.add_metadata([]))
        return value

    def at(self, element: Any, pointer: Any, index: Any) -> Any:
        """The address of `element` number `index` (an i64, or a Python number) of the array at `pointer`."""
        return self.gep(pointer, [i64(index) if isinstance(index, int) else index], source_etype=element)

    def lane_addresses(self, element: Any, pointer: Any, indices: Any) -> Any:
        """The addresses of GROUP elements: `indices` is <GROUP x i32>."""
        addresses = self.gep(pointer, [indices], source_etype=element)
        addresses.type = ir.VectorType(PTR, GROUP)  # llvmlite gives the pointer's own type; LLVM gives a vector
        return addresses

    def stack(self, element: Any, count: Any = None, align: int = 64) -> Any:
        """Memory for `count` elements (one by default) that the function may use until it returns."""
        memory = self.alloca(element, size=count)
        memory.align = align
        memory.type = PTR  # llvmlite types it by its element, and would refuse to store a vector there
        return memory

    def read(self, kind: Any, pointer: Any, align: int) -> Any:
        """The value of type `kind` at `pointer`."""
        return self.load(pointer, typ=kind, align=align)

    def read_index(self, pointer: Any) -> Any:
        """The int32 at `pointer`, as i64."""
        return self.sext(self.read(I32, pointer, 4), I64)

    def spread(self, value: Any, lanes: int = GROUP) -> Any:
        """The vector that holds `value` in every lane."""
        first = self.insert_element(zero(ir.VectorType(value.type, lanes)), value, i64(0))
        return self.pick(first, [0] * lanes)

    def pick(self, vector: Any, lanes: Sequence[int]) -> Any:
        """The vector of these lanes of `vector`."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.shuffle_vector(vector, zero(vector.type), mask)

    def is_nan(self, value: Any) -> Any:
        """Whether a float (or each lane) is NaN."""
        return self.fcmp_unordered("uno", value, value)

    def intrinsic(self, name: str, result: Any, *operands: Any) -> Any:
        """Call an intrinsic function of LLVM; it is declared where it was not yet."""
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [operand.type for operand in operands]), name)
        return self.call(function, operands)

    def invoke_kernel(self, name: str, *operands: Any) -> None:
        """Call a function that was built before in this module."""
        self.call(self.module.get_global(name), operands)

    def gather(self, element: Any, addresses: Any, active: Any, absent: Any) -> Any:
        """GROUP elements, one from each address; `absent` where a lane is not active."""
        name = f"llvm.masked.gather.{gather_suffix(element)}"
        return self.intrinsic(name, ir.VectorType(element, GROUP), addresses, ir.Constant(I32, 4), active, absent)

    @contextmanager
    def loop(self, name: str, begin: Any, end: Any, step: int = 1, carry: Sequence[Any] = ()) -> Iterator[Loop]:
        """`for index in range(begin, end, step)`; `carry` holds the first turn's carried values."""
        before, head = self.block, self.append_basic_block(f"{name}.head")
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(i64(begin) if isinstance(begin, int) else begin, before)
        carried = [self.phi(value.type) for value in carry]
        for phi, value in zip(carried, carry, strict=True):
            phi.add_incoming(value, before)
        body, after = self.append_basic_block(f"{name}.body"), ir.Block(self.function, f"{name}.end")
        self.cbranch(self.icmp_signed("<", index, end), body, after)
        self.position_at_end(body)
        turn = Loop(index, carried)
        yield turn
        index.add_incoming(self.add(index, i64(step), flags=("nuw", "nsw")), self.block)
        for phi, value in zip(carried, turn.following, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.function.blocks.append(after)
        self.position_at_end(after)
