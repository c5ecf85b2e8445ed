"""The memory of freed arrays stays in a process that computes on a CPU."""

import os
import subprocess
import sys

import pytest

from adalink_jax.cli import host_memory

BLOCK = 64  # MB

PROGRAM = f"""
import resource
from adalink_jax.cli import host_memory
print(host_memory.keep_freed_pages())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    bytearray(b"x" * 1) * ({BLOCK} << 20)  # allocated, written and freed
print(faults() - before)
"""


def page_faults(**environment: str) -> tuple[bool, int]:
    """Whether a process keeps freed pages, and how many it requests for a block like one that it has freed."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | environment
    out = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    kept, faults = out.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_freed_pages_are_used_again_on_a_cpu_only():
    pages = (BLOCK << 20) // os.sysconf("SC_PAGE_SIZE")
    kept, faults = page_faults(JAX_PLATFORMS="cpu")
    assert kept and faults < pages / 100
    assert not page_faults(JAX_PLATFORMS="tpu,cpu")[0]


def test_an_accelerator_s_device_file_means_no_cpu_run(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(host_memory, "_ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*",))
    assert not host_memory.keep_freed_pages()
