"""Keeps the pages of freed arrays in the process, for commands that compute on a Linux CPU.

XLA allocates a step's temporaries anew in every step. By default glibc returns such blocks to the kernel when they are freed, and
the next step waits for the kernel to clear their pages again.
"""

import ctypes
import glob
import os
import sys

# Parameters of `mallopt` (glibc's malloc.h), set before the first threads allocate:
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: large blocks are part of the heap
    -1: -1,  # M_TRIM_THRESHOLD: the heap does not shrink
    -8: 1,  # M_ARENA_MAX: all threads share it, so a block that one has freed serves any other
}
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # NVIDIA, AMD, TPU


def keep_freed_pages() -> bool:
    """Makes this process reuse the pages of freed blocks. Its resident memory then stays at the largest amount ever in use.

    Call it before JAX starts. Elsewhere than on Linux with glibc, and with an accelerator, whose arrays are not in the host's
    memory, it changes nothing.

    Returns:
      Whether it did.
    """
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names or not _computes_on_cpu():
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(name, value) for name, value in _SETTINGS.items()])


def _computes_on_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(glob.glob, _ACCELERATORS))
