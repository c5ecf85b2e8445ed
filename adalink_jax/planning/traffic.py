"""Counts the bytes that a compiled program reads from and writes to a device's memory.

Each instruction outside of fusions reads its operands and writes its result. Of an array that is only sliced (a layer of a stack) the
slice counts, of an array that is updated in place the update, and an array in the chip's fast memory (TPU) does not count.
"""

from adalink_jax.planning.hlo import Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "iota", "partition-id", "replica-id", "opt-barrier", "all-gather-done", "all-reduce-done", "async-done", "copy-done",
    "collective-permute-done", "slice-done",
}  # fmt: skip
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
        return _read_by_fusion(body, inputs) + _written_by_fusion(body, instruction)
    return sum(map(_in_memory, inputs)) + _in_memory(instruction)


def _in_memory(instruction: Instruction) -> int:
    return sum(array.nbytes for array in instruction.arrays if not array.on_chip)


def _read_by_fusion(body: dict[str, Instruction], inputs: list[Instruction]) -> int:
    total = 0
    for parameter in (i for i in body.values() if i.opcode == "parameter"):
        read = _in_memory(inputs[int(parameter.value)])
        users = _users(body, parameter.name)
        if read == 0:
            continue
        if users and all(user.opcode in _SLICES and user.operands[0] == name for user, name in users):
            total += sum(user.nbytes for user, _ in users)
        elif not all(user.opcode == "dynamic-update-slice" and user.operands[0] == name for user, name in users):
            total += read
    return total


def _users(body: dict[str, Instruction], name: str) -> list[tuple[Instruction, str]]:
    """`(instruction, the operand's name)` for every instruction that reads `name`, directly or through bitcasts."""
    users = []
    for instruction in body.values():
        if name in instruction.operands:
            users += _users(body, instruction.name) if instruction.opcode == "bitcast" else [(instruction, name)]
    return users


def _written_by_fusion(body: dict[str, Instruction], fusion: Instruction) -> int:
    if _in_memory(fusion) == 0:
        return 0
    root = next(i for i in body.values() if i.root)
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        while result.opcode == "bitcast":
            result = body[result.operands[0]]
        updated = result.opcode == "dynamic-update-slice"
        total += body[result.operands[1]].nbytes if updated else result.nbytes
    return total
