"""Reads the text of a compiled program: which instructions run, and how often.

XLA's cost analysis counts the body of a loop once. Here every instruction has the number of times that it runs in one call of the
program: the product of the trip counts of the loops around it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    "f8e4m3fn": 8,
    "f8e5m2": 8,
} | {
    f"{kind}{bits}": bits for kind, sizes in (("s", (2, 4, 8, 16, 32, 64)), ("u", (2, 4, 8, 16, 32, 64)),
                                              ("f", (16, 32, 64)), ("bf", (16,)), ("c", (64, 128))) for bits in sizes
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^{}]*\})?")
_TILED = re.compile(r"^\{([\d,]+):T\(([\d,]+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def nbytes(self) -> int:
        """Its size in bytes; every unknown dtype is taken for an 8-bit one."""
        return _BITS.get(self.dtype, 8) * math.prod(self.dims) // 8

    @property
    def stored_bytes(self) -> int:
        """Its size in a TPU's memory, where the layout's tile fills up the last dimensions: `{1,0:T(8,128)}` of [9, 64] takes [16, 128]."""
        layout = _TILED.search(self.layout)
        if layout is None or not self.dims:
            return self.nbytes
        order, tile = ([int(n) for n in text.split(",")] for text in layout.groups())
        dims = list(self.dims)
        for dim, size in zip(order, reversed(tile)):
            dims[dim] = -(-dims[dim] // size) * size
        return _BITS.get(self.dtype, 8) * math.prod(dims) // 8

    @property
    def on_chip(self) -> bool:
        """Whether it is in the chip's fast memory (TPU memory space 1) instead of HBM."""
        return "S(1)" in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      opcode: such as "dot" or "while".
      arrays: its result; a tuple's arrays are flattened.
      operands: names of instructions of the same computation.
      value: text of a constant, or number of a parameter; "" for other opcodes.
      text: the rest of the line, with the attributes.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    value: str
    text: str
    root: bool

    @property
    def nbytes(self) -> int:
        """Size of the result in bytes."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def stored_bytes(self) -> int:
        """Size of the result in a TPU's memory."""
        return sum(array.stored_bytes for array in self.arrays)

    @property
    def called(self) -> dict[str, list[str]]:
        """Attribute -> names of the computations that it calls."""
        return {key: re.findall(r"[\w.-]+", names) for key, names in _CALLED.findall(self.text)}

    @property
    def index(self) -> int:
        """The element that a `get-tuple-element` takes."""
        return int(re.findall(r"\bindex=(\d+)", self.text)[0])


class Program:
    """The text of `compiled.as_text()`, parsed.

    Args:
      text: the text.
      open_trips: trip count of loops that end by their data, such as the one over the tokens of an output; None refuses them.

    Attributes:
      computations: computation -> instruction's name -> instruction, in the program's order.
      entry: name of the entry computation.
    """

    def __init__(self, text: str, open_trips: int | None = None):
        self._open_trips = open_trips
        self.computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head[2], {})
                if head[1]:
                    self.entry = head[2]
            elif parts := _INSTRUCTION.match(line):
                instruction = _parse(parts[2], parts[3], bool(parts[1]))
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> list[tuple[Instruction, str, int, bool]]:
        """`(instruction, its computation, times, inside a fusion)` for every instruction that runs."""
        return list(self._walk(self.entry, 1, False))

    def _walk(self, name: str, times: int, fused: bool) -> Iterator[tuple[Instruction, str, int, bool]]:
        for instruction in self.computations[name].values():
            yield instruction, name, times, fused
            inner = fused or instruction.opcode == "fusion"
            for key, called in instruction.called.items():
                if key == "to_apply" and instruction.opcode != "call":
                    continue  # the scalar function of a reduction
                inner_times = times * (self._trips(instruction, name) if instruction.opcode == "while" else 1)
                for computation in called:
                    if computation in self.computations:
                        yield from self._walk(computation, inner_times, inner)

    def _trips(self, loop: Instruction, home: str) -> int:
        """The trip count of a loop: stated by the compiler (CPU, GPU), or derived from the condition `counter < limit` (TPU)."""
        if stated := _TRIPS.search(loop.text):
            return int(stated[1])
        condition = self.computations[loop.called["condition"][0]]
        test = next(i for i in condition.values() if i.root)
        if test.opcode == "compare" and "direction=LT" in test.text:
            start, limit = (self._value(condition[name], condition, loop, home) for name in test.operands)
            stride = self._stride(condition[test.operands[0]], loop)
            if start is not None and limit is not None and stride is not None:
                return max(0, -(-(limit - start) // stride))
        if self._open_trips is not None:
            return self._open_trips
        raise ValueError(f"The trip count of the loop {loop.name} cannot be derived from the compiled program.")

    def _value(
        self, instruction: Instruction, computation: dict[str, Instruction], loop: Instruction, home: str
    ) -> int | None:
        """The integer that an instruction of a loop's condition has when the loop starts; None if it is not known."""
        while instruction.opcode in ("copy", "bitcast"):
            instruction = computation[instruction.operands[0]]
        if instruction.opcode == "constant":
            return int(instruction.value) if instruction.value.lstrip("-").isdigit() else None
        caller = self.computations[home]
        if instruction.opcode != "get-tuple-element" or computation is caller:
            return None
        initial = caller[loop.operands[0]]
        if initial.opcode != "tuple":
            return None
        return self._value(caller[initial.operands[instruction.index]], caller, loop, home)

    def _stride(self, counter: Instruction, loop: Instruction) -> int | None:
        """What one iteration of a loop adds to its counter; None if it is not known."""
        if counter.opcode != "get-tuple-element":
            return None
        body = self.computations[loop.called["body"][0]]
        root = next(i for i in body.values() if i.root)
        frontier, total = [root.operands[counter.index]], 0
        while frontier:
            term = body[frontier.pop()]
            if term.opcode == "constant":
                total += int(term.value)
            elif term.opcode in ("add", "copy", "bitcast"):
                frontier += term.operands
            elif term.opcode != "get-tuple-element" or term.index != counter.index:
                return None
        return total or None


def _parse(name: str, rest: str, root: bool) -> Instruction:
    shape, rest = _split_shape(rest)
    end = _closing(rest)
    opcode, _, inside = rest[:end].partition("(")
    arrays = tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    value = inside if opcode.strip() in ("constant", "parameter") else ""
    return Instruction(name, opcode.strip(), arrays, operands, value, rest[end:], root)


def _split_shape(rest: str) -> tuple[str, str]:
    if not rest.startswith("("):
        shape, _, rest = rest.partition(" ")
        return shape, rest
    end = _closing(rest)
    return rest[: end + 1], rest[end + 2 :]


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one of `text`; its length if none does."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if c == ")" and depth == 0:
            return i
    return len(text)
