"""Small models and batches that several tests share."""

import json
import os
import subprocess
import sys

import small_digits

from adalink_jax.contract.tiny import (
    VOCAB,
    init,
    random_batch,
    tiny_pali,
    tiny_paligemma,
    tiny_pix2struct,
    tiny_t5,
    tiny_t5gemma,
    tiny_t5gemma2,
)
from adalink_jax.data import digits

__all__ = [
    "VOCAB",
    "adalink_here",
    "hold_in_another_process",
    "init",
    "random_batch",
    "tiny_pali",
    "tiny_paligemma",
    "tiny_pix2struct",
    "tiny_t5",
    "tiny_t5gemma",
    "tiny_t5gemma2",
    "with_devices",
]


def adalink_here(*arguments):
    """The command line of an `adalink` whose bundled tasks have as many scenes as those of this process."""
    return [sys.executable, small_digits.__file__, json.dumps(digits.SCENES), *arguments]


def hold_in_another_process(folder):
    """A process that holds the lock of `folder` until it is killed or its input ends."""
    program = (
        "import sys\nfrom etils import epath\nfrom adalink_jax.files import locks\n"
        f"with locks.hold_folder(epath.Path({str(folder)!r})):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def with_devices(count):
    """The environment of a process with so many devices, whose programs are compiled as those of this one."""
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"}
