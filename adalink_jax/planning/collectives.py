"""What a compiled program sends between devices."""

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
      nbytes: bytes of the whole array on one device: what an all-gather gives, what the others take.
      times: how often it runs in one call of the program.
      group: devices that take part together.
      slices: slices that a group spans.
      dtypes: dtypes of its arrays.
      source: the operation that it was made for, as JAX names it.
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
        """Bytes that a device sends each time, by a ring."""
        share = (self.group - 1) / max(1, self.group)
        return self.nbytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(program: Program, devices: int, slices: int = 1) -> list[Collective]:
    """All collectives of a program on `devices` in `slices` groups of neighbours; those of one device are left out."""
    found = [
        _between_slices(instruction, times, slices)
        for instruction, _, times, _ in program.runs
        if instruction.opcode == "send" and _TRANSFER.search(instruction.text)
    ]
    runs = [run for run in program.runs if run[0].opcode.removesuffix("-start") in KINDS]
    # On TPUs a collective may be cut into a chain of pieces, each inside a fusion that computes something else meanwhile;
    # every piece is written as if it were the whole. A chain runs as often as its rarest piece, its start.
    rarest: dict[tuple, int] = {}
    for instruction, _, times, _ in runs:
        if chain := _chain(instruction):
            rarest[chain] = min(times, rarest.get(chain, times))
    counted = set()
    for instruction, home, times, _ in runs:
        kind, chain = instruction.opcode.removesuffix("-start"), _chain(instruction)
        if chain in counted:
            continue
        if chain:
            counted.add(chain)
            times = rarest[chain]
        inputs = [a for name in instruction.operands for a in program.computations[home][name].arrays]
        taken = sum(a.nbytes for a in inputs)
        given = instruction.nbytes - (taken if instruction.opcode == "all-gather-start" else 0)
        group, spanned = _groups(instruction, devices, slices)
        if group < 2:
            continue
        source = re.search(r'op_name="([^"]*)"', instruction.text)
        found.append(
            Collective(
                kind, given if kind == "all-gather" else taken, times, group, spanned,
                tuple(sorted({a.dtype for a in inputs})), source[1] if source else "",
            )
        )  # fmt: skip
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> `count` and `bytes` (of `nbytes`, times included) in one step."""
    out: dict[str, dict[str, float]] = {}
    for each in found:
        row = out.setdefault(each.kind, {"count": 0, "bytes": 0})
        row["count"] += each.times
        row["bytes"] += each.times * each.nbytes
    return dict(sorted(out.items()))


_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def _between_slices(send: Instruction, times: int, slices: int) -> Collective:
    """What a TPU's host sends to other slices: the part of a collective between them, of what each chip holds after its slice's."""
    payload = send.arrays[0]
    kind = _TRANSFER.search(send.text)[1].lower().replace("_", "-")
    return Collective(kind, payload.nbytes, times, slices, slices, (payload.dtype,), "between slices")


def _chain(instruction: Instruction) -> tuple[str, str] | None:
    found = re.search(r'channel_id=(\d+).*?chain_id="(\d+)"', instruction.text)
    return (found[1], found[2]) if found else None


def _groups(instruction: Instruction, devices: int, slices: int) -> tuple[int, int]:
    """Size of a group, and slices that it spans."""
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
