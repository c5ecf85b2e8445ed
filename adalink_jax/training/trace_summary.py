"""What a profiler trace says: the operations that took the most time on the devices, and the share of collectives."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from jax.profiler import ProfileData

from adalink_jax.errors import UserError

_COLLECTIVE = re.compile(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|nccl", re.IGNORECASE)
_CONTAINERS = ("while", "conditional", "call")  # their operations are counted themselves


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the compiled programs, over all devices and steps of a trace.

    Attributes:
      name: XLA's.
      seconds: its time on all devices.
      times: how often it ran.
      share: of the time of all operations.
    """

    name: str
    seconds: float
    times: int
    share: float


@dataclasses.dataclass(frozen=True)
class TraceSummary:
    """The dearest operations of a trace, the dearest first, and the share of the collectives in the time of all."""

    operations: Sequence[Operation]
    collectives: float
    files: int


def summarise(folder: epath.Path, processes: Sequence[int], count: int = 10) -> TraceSummary:
    """Reads the `*.xplane.pb` files of `folder`, where JAX wrote them, one per process (of several in `process_0`, ...).

    Args:
      folder: of the trace.
      processes: those that wrote theirs whole.
      count: the most operations.

    Raises:
      UserError: if there is no file, or no operation of a device in them.
    """
    seconds, times = collections.defaultdict[str, float](float), collections.Counter[str]()
    parts = ("", *(f"process_{index}/" for index in processes))
    files = [path for part in parts for path in sorted(folder.glob(f"{part}plugins/profile/*/*.xplane.pb"))]
    for path in files:
        for name, duration in _operations(ProfileData.from_serialized_xspace(path.read_bytes())):
            seconds[name] += duration
            times[name] += 1
    total = sum(seconds.values())
    if not total:
        raise UserError(f"{folder} has no trace with operations of a device; ask for more steps.")
    dearest = sorted(seconds.items(), key=lambda item: -item[1])
    operations = [Operation(name, s, times[name], s / total) for name, s in dearest[:count]]
    return TraceSummary(
        operations, sum(s for name, s in seconds.items() if _COLLECTIVE.search(name)) / total, len(files)
    )


def _operations(trace: Any) -> Iterator[tuple[str, float]]:
    """`(name, seconds)` of each run of an operation. TPUs have a line of them; GPUs and CPUs name theirs in a field of an event."""
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name if line.name == "XLA Ops" else dict(event.stats).get("hlo_op")
                if name and line.name != "XLA Modules" and not str(name).startswith(_CONTAINERS):
                    yield str(name).split(" = ")[0].lstrip("%"), event.duration_ns / 1e9
