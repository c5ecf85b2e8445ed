"""Reading a compiled program's text: which instructions run, and how often.

XLA's own cost analysis counts the body of a loop once; here every instruction carries the number of times that it runs in
one call of the program, the product of the trip counts of the loops around it.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind, sizes in (("s", (2, 4, 8, 16, 32, 64)), ("u", (2, 4, 8, 16, 32, 64)),
                                              ("f", (16, 32, 64)), ("bf", (16,)), ("c", (64, 128))) for bits in sizes
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^{}]*\})?")
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
        """Its bytes; dtypes of 8 bits, whatever their format, count 1."""
        size = _BITS.get(self.dtype, 8)
        for n in self.dims:
            size *= n
        return size // 8

    @property
    def on_chip(self) -> bool:
        """Whether it lives in the chip's own fast memory (TPU memory space 1), not in HBM."""
        return "S(1)" in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: of the instruction.
      arrays: its result, flat.
      operands: names of instructions of the same computation.
      value: of a constant, or the number of a parameter, as text; "" of others.
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
        """Bytes of the result."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def called(self) -> dict[str, list[str]]:
        """Attribute -> the computations that it names."""
        return {key: re.findall(r"[\w.-]+", names) for key, names in _CALLED.findall(self.text)}

    @property
    def index(self) -> int:
        """Which element of a tuple a `get-tuple-element` takes."""
        return int(re.search(r"\bindex=(\d+)", self.text)[1])


class Program:
    """The text of `compiled.as_text()`, parsed.

    Attributes:
      computations: name -> instruction name -> instruction, in order.
      entry: name of the computation that is the program.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head[2], {})
                if head[1]:
                    self.entry = head[2]
            elif found := _INSTRUCTION.match(line):
                instruction = _parse(found[2], found[3], bool(found[1]))
                current[instruction.name] = instruction

    @functools.cached_property
    def runs(self) -> list[tuple[Instruction, str, int, bool]]:
        """`(instruction, its computation, times, inside a fusion)` of every instruction that runs."""
        return list(self._walk(self.entry, 1, False))

    def _walk(self, name: str, times: int, fused: bool) -> Iterator[tuple[Instruction, str, int, bool]]:
        for instruction in self.computations[name].values():
            yield instruction, name, times, fused
            inner = fused or instruction.opcode == "fusion"
            for key, called in instruction.called.items():
                if key == "to_apply" and instruction.opcode != "call":
                    continue  # the scalar function of a reduction
                often = times * (self._trips(instruction, name) if instruction.opcode == "while" else 1)
                for each in called:
                    if each in self.computations:
                        yield from self._walk(each, often, inner)

    def _trips(self, loop: Instruction, home: str) -> int:
        """How often a loop's body runs: said by the compiler (CPU, GPU), or read from `counter < limit` (TPU)."""
        if found := _TRIPS.search(loop.text):
            return int(found[1])
        condition = self.computations[loop.called["condition"][0]]
        test = next(i for i in condition.values() if i.root)
        if test.opcode == "compare" and "direction=LT" in test.text:
            start, limit = (self._value(condition[name], condition, loop, home) for name in test.operands)
            stride = self._stride(condition[test.operands[0]], loop)
            if None not in (start, limit, stride):
                return max(0, -(-(limit - start) // stride))
        raise ValueError(f"The number of turns of the loop {loop.name} cannot be read from the compiled program.")

    def _value(self, of: Instruction, where: dict, loop: Instruction, home: str) -> int | None:
        """The integer that `of`, in a loop's condition, is when the loop starts."""
        while of.opcode in ("copy", "bitcast"):
            of = where[of.operands[0]]
        if of.opcode == "constant":
            return int(of.value) if of.value.lstrip("-").isdigit() else None
        if of.opcode != "get-tuple-element" or where is self.computations[home]:
            return None
        caller = self.computations[home]
        before = caller[loop.operands[0]]
        return self._value(caller[before.operands[of.index]], caller, loop, home) if before.opcode == "tuple" else None

    def _stride(self, counter: Instruction, loop: Instruction) -> int | None:
        """What a turn of a loop adds to its counter."""
        if counter.opcode != "get-tuple-element":
            return None
        body = self.computations[loop.called["body"][0]]
        root = next(i for i in body.values() if i.root)
        frontier, total = [root.operands[counter.index]], 0
        while frontier:
            each = body[frontier.pop()]
            if each.opcode == "constant":
                total += int(each.value)
            elif each.opcode in ("add", "copy", "bitcast"):
                frontier += each.operands
            elif each.opcode != "get-tuple-element" or each.index != counter.index:
                return None
        return total or None


def _parse(name: str, rest: str, root: bool) -> Instruction:
    shape, rest = _split_shape(rest)
    opcode, _, rest = rest.partition("(")
    depth, end = 1, 0
    for end, c in enumerate(rest):  # noqa: B007
        depth += (c == "(") - (c == ")")
        if depth == 0:
            break
    arrays = tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    opcode, inside = opcode.strip(), rest[:end]
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    return Instruction(
        name, opcode, arrays, operands, inside if opcode in ("constant", "parameter") else "", rest[end:], root
    )


def _split_shape(rest: str) -> tuple[str, str]:
    if not rest.startswith("("):
        shape, _, rest = rest.partition(" ")
        return shape, rest
    depth = 0
    for i, c in enumerate(rest):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return rest[: i + 1], rest[i + 2 :]
    return rest, ""
