"""Counts the bytes that a compiled program reads from and writes to a device's memory.

Each instruction outside of fusions reads its operands and writes its result. Of an array that is only sliced (a layer of a stack) the
slice counts, of an array that is updated in place the update, and an array in the chip's fast memory (TPU) does not count. A collective that
continues while fusions compute something else is handed through them: it counts once, where it starts.
"""

from adalink_jax.planning.collectives import chain_of
from adalink_jax.planning.hlo import Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "iota", "partition-id", "replica-id", "opt-barrier", "all-gather-done", "all-reduce-done", "async-done", "copy-done",
    "collective-permute-done", "slice-done",
}  # fmt: skip
_ALIAS = "output_to_operand_aliasing={{}: (0, {})}"  # of a fusion inside of another that only reads its operand in other tiles
_START, _DONE = 'custom_call_target="AsyncCollectiveStart"', 'custom_call_target="AsyncCollectiveDone"'
_SLICES = {"dynamic-slice", "slice", "gather"}


def bytes_moved(program: Program) -> int:
    """Bytes to and from a device's memory in one call of `program`."""
    return sum(
        times * _moved(program, instruction, program.computations[home])
        for instruction, home, times, fused in program.runs
        if not fused and instruction.opcode not in _FREE
    )


def _moved(program: Program, instruction: Instruction, home: dict[str, Instruction]) -> int:
    inputs = [home[name] for name in instruction.operands]
    if instruction.opcode in _SLICES:
        return 2 * _in_memory(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(inputs[1])
    if instruction.opcode == "fusion":
        body = program.computations[instruction.called["calls"][0]]
        root = next(i for i in body.values() if i.root)
        if _START in root.text:
            return sum(_in_memory(body[name]) for piece in root.operands for name in (piece, *body[piece].operands))
        return 0 if _DONE in root.text else _read_by_fusion(program, body, inputs) + _written_by_fusion(body, root)
    return sum(map(_in_memory, inputs)) + _in_memory(instruction)


def _in_memory(instruction: Instruction) -> int:
    return sum(array.stored_bytes for array in instruction.arrays if not array.on_chip)


def _read_by_fusion(program: Program, body: dict[str, Instruction], inputs: list[Instruction]) -> int:
    parameters = (i for i in body.values() if i.opcode == "parameter")
    return sum(
        _read(program, body, parameter.name, _in_memory(inputs[int(parameter.value)])) for parameter in parameters
    )


def _read(program: Program, body: dict[str, Instruction], name: str, size: int) -> int:
    """Bytes that a fusion reads of an array of `size` bytes: of slices of it alone, where it uses nothing else."""
    total = 0
    for user, operand in _users(body, name):
        if user.opcode == "tuple" or chain_of(user):
            continue  # handed through
        if user.opcode in _SLICES and user.operands[0] == operand:
            total += user.stored_bytes
        elif user.opcode == "fusion":
            inner = program.computations[user.called["calls"][0]]
            numbers = [str(number) for number, input in enumerate(user.operands) if input == operand]
            names = [i.name for i in inner.values() if i.opcode == "parameter" and i.value in numbers]
            total += sum(_read(program, inner, inner_name, size) for inner_name in names)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != operand:
            return size
    return min(total, size)


def _users(body: dict[str, Instruction], name: str) -> list[tuple[Instruction, str]]:
    """`(instruction, the operand's name)` for every instruction that reads `name`, directly or through what has no array of its own."""
    users = []
    for instruction in body.values():
        if name in instruction.operands:
            in_place = instruction.opcode == "bitcast" or _ALIAS in instruction.text
            users += _users(body, instruction.name) if in_place else [(instruction, name)]
    return users


def _written_by_fusion(body: dict[str, Instruction], root: Instruction) -> int:
    results = zip(root.arrays, root.operands) if root.opcode == "tuple" else [(root.arrays[0], root.name)]
    total = 0
    for array, name in results:
        result = body[name]
        while result.opcode == "bitcast":
            result = body[result.operands[0]]
        if array.on_chip or result.opcode == "parameter" or chain_of(result):
            continue
        updated = result.opcode == "dynamic-update-slice"
        total += body[result.operands[1]].stored_bytes if updated else result.stored_bytes
    return total
