"""The collectives of a compiled program: kind, size, and which devices take part."""

import dataclasses
import re

import numpy as np

from adalink_jax.planning.hlo import Instruction, Program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      nbytes: size in bytes of the whole array on one device: the result of an all-gather, the operand of the other kinds.
      times: how often it runs in one call of the program.
      group: number of devices that take part together.
      slices: number of slices that a group spans.
      dtypes: dtypes of its arrays.
      source: the operation that it comes from, by JAX's name.
    """

    kind: str
    nbytes: int
    times: int
    group: int
    slices: int
    dtypes: tuple[str, ...]
    source: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends each time it runs, by a ring algorithm."""
        share = (self.group - 1) / max(1, self.group)
        return self.nbytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(program: Program, devices: int, slices: int = 1) -> list[Collective]:
    """The collectives of a program, without those of a single device.

    Args:
      program: the compiled program.
      devices: number of devices it runs on.
      slices: number of slices; each has consecutive devices.
    """
    out = [
        _between_slices(instruction, times, slices)
        for instruction, _, times, _ in program.runs
        if instruction.opcode == "send" and _TRANSFER.search(instruction.text)
    ]
    runs = [run for run in program.runs if run[0].opcode.removesuffix("-start") in KINDS]
    # On TPUs a collective may be split into a chain of pieces, each inside a fusion that computes something else meanwhile. The
    # text of each piece is that of the whole collective. A chain runs as often as its rarest piece, the start.
    rarest: dict[tuple, int] = {}
    for instruction, _, times, _ in runs:
        if chain := chain_of(instruction):
            rarest[chain] = min(times, rarest.get(chain, times))
    counted = set()
    for instruction, home, times, _ in runs:
        kind, chain = instruction.opcode.removesuffix("-start"), chain_of(instruction)
        if chain in counted:
            continue
        if chain:
            counted.add(chain)
            times = rarest[chain]
        inputs = [a for name in instruction.operands for a in program.computations[home][name].arrays]
        input_bytes = sum(a.nbytes for a in inputs)
        output_bytes = instruction.nbytes - (input_bytes if instruction.opcode == "all-gather-start" else 0)
        group, spanned = _groups(instruction, devices, slices)
        if group < 2:
            continue
        source = re.search(r'op_name="([^"]*)"', instruction.text)
        out.append(
            Collective(
                kind, output_bytes if kind == "all-gather" else input_bytes, times, group, spanned,
                tuple(sorted({a.dtype for a in inputs})), source[1] if source else "",
            )
        )  # fmt: skip
    return out


def by_kind(sent: list[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> `count` and `bytes` of one call of the program."""
    out: dict[str, dict[str, float]] = {}
    for collective in sent:
        row = out.setdefault(collective.kind, {"count": 0, "bytes": 0})
        row["count"] += collective.times
        row["bytes"] += collective.times * collective.nbytes
    return dict(sorted(out.items()))


_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def _between_slices(send: Instruction, times: int, slices: int) -> Collective:
    """The part of a collective between slices, which a TPU's host sends: of what each chip has after the part within its slice."""
    payload = send.arrays[0]
    kind = _TRANSFER.findall(send.text)[0].lower().replace("_", "-")
    return Collective(kind, payload.nbytes, times, slices, slices, (payload.dtype,), "between slices")


def chain_of(instruction: Instruction) -> tuple[str, str] | None:
    """What identifies the collective that an instruction is a piece of, on TPUs; None if it is a whole one, or none."""
    ids = re.search(r'channel_id=(\d+).*?chain_id="(\d+)"', instruction.text)
    return (ids[1], ids[2]) if ids else None


def _groups(instruction: Instruction, devices: int, slices: int) -> tuple[int, int]:
    """The number of devices of a group, and of slices that it spans."""
    text = instruction.text
    per_slice = devices // slices
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        ids = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)", "{" + pairs[1])]
        moved = [pair for pair in ids if pair[0] != pair[1]]
        return (2, max(1 + (a // per_slice != b // per_slice) for a, b in moved)) if moved else (1, 1)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        groups = [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    elif iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        order = np.arange(devices).reshape(source)
        order = order.transpose(tuple(map(int, iota[3].split(",")))) if iota[3] else order
        groups = order.reshape(shape).tolist()
    elif mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        axes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])]
        chosen = re.findall(r"'(\w+)'", mesh[2])
        order = np.arange(devices).reshape([size for _, size in axes])
        places = [i for i, (name, _) in enumerate(axes) if name in chosen]
        others = [i for i in range(len(axes)) if i not in places]
        groups = order.transpose(others + places).reshape(-1, int(np.prod([axes[i][1] for i in places]))).tolist()
    else:
        groups = [list(range(devices))]
    return len(groups[0]), max(len({i // per_slice for i in group}) for group in groups)
