"""The table of accelerators: what planning, MFU and launching know of chips and of the slices that are available.

Figures are per device of JAX, from the vendors' data sheets; TPU link and network bandwidths are from "How to Scale Your Model" (2025),
part 2. A device is a chip, except on TPU7x, whose chips are two devices (of a chip's 192 GiB, 7,380 GB/s, 2,307 TFLOP/s, 1,200 GB/s
of links in both directions, 100 Gbit/s of network). `memory` of a TPU is what its compiler allows a program; of a GPU it is 92 % of the
card, which JAX takes with XLA_PYTHON_CLIENT_MEM_FRACTION=.92.
"""

import contextlib
import contextvars
import dataclasses
import math
import re
from collections.abc import Iterator

from adalink_jax.errors import UserError

GiB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of chip.

    Attributes:
      name: its name in topologies.
      platform: "tpu", "gpu" or "cpu".
      memory: bytes of a device that a program may use.
      memory_bandwidth: bytes per second of a device.
      peak_flops: dense bfloat16 matrix FLOPs per second of a device.
      link_bandwidth: bytes per second that a device sends to devices of its slice (TPU: one link, one way) or node.
      links: links along which a ring sends at once (TPU: both directions of one axis of the torus).
      network_bandwidth: bytes per second that a device sends out of its slice or node.
      chips_per_host: chips of one host, in slices of several hosts.
      chips_of_lone_host: the most chips of a host that is the only one of its slice.
      slices: available TPU topologies; () for GPUs, which come in any number.
      devices_per_chip: devices of JAX on a chip.
      chips_linked: GPUs that NVLink joins; None for those of one host.
    """

    name: str
    platform: str
    memory: int
    memory_bandwidth: float
    peak_flops: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    chips_per_host: int
    chips_of_lone_host: int
    slices: tuple[str, ...]
    devices_per_chip: int = 1
    chips_linked: int | None = None


ACCELERATORS = {
    chip.name: chip
    for chip in (
        Accelerator("v4", "tpu", int(30.75 * GiB), 1.228e12, 275e12, 45e9, 2, 6.25e9, 4, 4, _CUBES),
        Accelerator("v5e", "tpu", int(15.75 * GiB), 819e9, 197e12, 45e9, 2, 3.125e9, 4, 8, _FLAT),
        Accelerator("v5p", "tpu", int(95.74 * GiB), 2.765e12, 459e12, 90e9, 2, 6.25e9, 4, 4, (*_CUBES, "16x16x16")),
        Accelerator("v6e", "tpu", int(31.25 * GiB), 1.64e12, 918e12, 90e9, 2, 12.5e9, 4, 8, _FLAT),
        Accelerator(
            "tpu7x",
            "tpu",
            int(94.75 * GiB),
            3.69e12,
            1153.5e12,
            50e9,
            2,
            6.25e9,
            4,
            4,
            ("1x1x1", *_CUBES, "16x16x16"),
            2,
        ),
        Accelerator("a100", "gpu", int(0.92 * 80e9), 2.039e12, 312e12, 300e9, 1, 25e9, 8, 8, ()),
        Accelerator("h100", "gpu", int(0.92 * 80e9), 3.35e12, 989e12, 450e9, 1, 50e9, 8, 8, ()),
        Accelerator("h200", "gpu", int(0.92 * 141e9), 4.8e12, 989e12, 450e9, 1, 50e9, 8, 8, ()),
        Accelerator("b200", "gpu", int(0.92 * 180e9), 7.7e12, 2250e12, 900e9, 1, 50e9, 8, 8, ()),
        Accelerator("gb200", "gpu", int(0.92 * 186e9), 8e12, 2500e12, 900e9, 1, 50e9, 4, 4, (), chips_linked=72),
    )
}
CPU = "cpu"
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}


_stood_for: contextvars.ContextVar[Accelerator | None] = contextvars.ContextVar("stood_for", default=None)


@contextlib.contextmanager
def standing_for(chip: Accelerator | None) -> Iterator[None]:
    """Within it CPUs stand for devices with this chip, as in the plan of a job for GPUs that are not here."""
    token = _stood_for.set(chip)
    try:
        yield
    finally:
        _stood_for.reset(token)


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The chip that JAX calls `device_kind`, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3", or that CPUs stand for; None if the
    table has none."""
    if device_kind == CPU:
        return _stood_for.get()
    words = re.findall(r"\w+", device_kind.lower())
    return ACCELERATORS.get(_TPU_KINDS.get(device_kind, "")) or next(
        (chip for name, chip in ACCELERATORS.items() if chip.platform == "gpu" and name in words), None
    )


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a job.

    Attributes:
      text: the topology as typed.
      accelerator: the chip; None for CPU devices, whose speed is unknown.
      shape: shape of one slice, such as "4x8"; the number of devices for GPUs and CPUs.
      num_slices: slices joined by a network.
    """

    text: str
    accelerator: Accelerator | None
    shape: str
    num_slices: int

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return self.num_slices * math.prod(map(int, self.shape.split("x")))

    @property
    def devices(self) -> int:
        """Number of devices of JAX on all chips."""
        return self.chips * (self.accelerator.devices_per_chip if self.accelerator else 1)

    @property
    def hosts(self) -> int:
        """Number of hosts in all slices; CPU devices are on one.

        Raises:
          UserError: for GPUs that do not fill their hosts.
        """
        if self.accelerator is None:
            return 1
        of_slice = self.chips // self.num_slices
        if of_slice <= self.accelerator.chips_of_lone_host:
            return self.num_slices
        if of_slice % self.accelerator.chips_per_host:
            raise UserError(
                f"{self.text} does not fill its hosts, which have {self.accelerator.chips_per_host} chips each."
            )
        return self.num_slices * of_slice // self.accelerator.chips_per_host

    @property
    def chips_per_host(self) -> int:
        """Number of chips on each host of this topology."""
        return self.chips // self.hosts

    @property
    def axes(self) -> int:
        """Number of axes of a slice's torus along which chips have neighbours; 1 without a torus."""
        return max(1, sum(int(n) > 1 for n in self.shape.split("x"))) if "x" in self.shape else 1

    @property
    def platform(self) -> str:
        """Kind of device: "tpu", "gpu" or "cpu"."""
        return self.accelerator.platform if self.accelerator else CPU

    def one_host(self) -> "Topology":
        """One whole host of the same chips, or these if they are fewer.

        Raises:
          UserError: see `hosts`.
        """
        if self.accelerator is None or self.hosts == 1:
            return self
        chips = self.chips_per_host
        fitting = [shape for shape in self.accelerator.slices if math.prod(map(int, shape.split("x"))) == chips]
        return parse_topology(f"{self.accelerator.name}:{(fitting or [chips])[0]}")

    def larger(self) -> list[str]:
        """Returns larger topologies of the same chip, smallest first."""
        size = math.prod(map(int, self.shape.split("x")))
        if self.accelerator is None or not self.accelerator.slices:
            return [f"{self.text.split(':')[0]}:{size * factor}" for factor in (2, 4, 8, 16)]
        sizes = {s: math.prod(map(int, s.split("x"))) for s in self.accelerator.slices}
        tail = f"*{self.num_slices}" if self.num_slices > 1 else ""
        return [f"{self.accelerator.name}:{s}{tail}" for s, n in sizes.items() if n > size]


def parse_topology(text: str) -> Topology:
    """Parses `v5e:4x8`, `v5e:16x16*2` (two slices), `h100:8`, `cpu:8`.

    Raises:
      UserError: for another form, or an unavailable slice; names the available ones.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text, re.ASCII)
    if not match or match[1] not in (CPU, *ACCELERATORS):
        raise UserError(
            f"The topology {text!r} must be CHIP:SHAPE, such as v5e:4x8, v5p:4x4x4, v5e:16x16*2 (two slices), h100:8 or cpu:8; "
            f"chips: {', '.join(ACCELERATORS)}, cpu."
        )
    name, shape, slices = match[1], match[2], int(match[3] or 1)
    chip = ACCELERATORS.get(name)
    if chip and chip.slices and shape not in chip.slices:
        raise UserError(f"There is no slice {name}:{shape}; there are {', '.join(chip.slices)}, and *N joins several.")
    if not (chip and chip.slices) and ("x" in shape or slices > 1 or int(shape) < 1):
        raise UserError(f"The topology {text!r} must be {name}:N, for N devices.")
    if slices < 1:
        raise UserError(f"The topology {text!r} has no slice.")
    return Topology(text, chip, shape, slices)
