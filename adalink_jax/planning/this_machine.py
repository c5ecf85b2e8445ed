"""What the machine has on which this process runs: its memory, and its speed, measured.

A plan for it needs no table of chips, and knows CPUs too.
"""

import os
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from adalink_jax.parallel.accelerators import Accelerator, Topology, accelerator_of

SLOWER = 1.5  # a real step than the roofline of the measured speed (docs/results/speed.md)
_MEASURED_FOR = 0.3  # seconds
_WIDTHS = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # of the square matrices that are multiplied
_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def this_machine() -> Topology:
    """All local devices as a topology, whose chip has the memory that is free and the speed that is measured: float32 products of square
    matrices, and the sum of a large array."""
    device, number = jax.local_devices()[0], jax.local_device_count()
    platform, known = device.platform, accelerator_of(device.device_kind)
    width = _WIDTHS[platform]
    matrix = jnp.full((width, width), 1e-3)
    summed = jnp.ones(2**26)  # 256 MiB
    flops = 2 * width**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix)
    bandwidth = summed.nbytes / _seconds(jax.jit(jnp.sum), summed)
    memory = _host_memory() if platform == "cpu" else _device_memory(device)
    links = (known.link_bandwidth, known.links, known.network_bandwidth) if known else (bandwidth, 1, bandwidth)
    chip = Accelerator(
        "here", platform, memory // (number if platform == "cpu" else 1), bandwidth, flops, *links, number, number, ()
    )
    return Topology(f"this machine ({number} x {device.device_kind})", chip, str(number), 1)


def _seconds(function: Callable, *arguments: jax.Array) -> float:
    """The shortest time of one call."""
    function(*arguments).block_until_ready()
    times, end = [], time.perf_counter() + _MEASURED_FOR
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        function(*arguments).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times)


def _device_memory(device: jax.Device) -> int:  # pyright: ignore[reportInvalidTypeForm]  # a variable to pyright
    return int((device.memory_stats() or {})["bytes_limit"])


def _host_memory() -> int:
    """Bytes of the host's memory that a new process may use."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [pages]
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        free = {line.split(":")[0]: line.split()[1] for line in meminfo.read_text(encoding="utf-8").splitlines()}
        limits.append(int(free["MemAvailable"]) * 1024)
    if _CGROUP.exists() and (text := _CGROUP.read_text(encoding="utf-8").strip()).isdigit():
        limits.append(int(text))
    return min(limits)
