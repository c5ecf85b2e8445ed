"""What the compiled adapter step sends between devices, counted in XLA's own programs for CPU and for TPU."""

import os
import subprocess
import sys

import pytest
from helpers import with_devices

CPU = ("cpu:8,1", "cpu:8,2", "cpu:8,1,fsdp", "cpu:8,2,fsdp,scanned")
TPU = ("v5e:2x4,1", "v5e:2x4,2,scanned", "v5e:2x4,1,fsdp", "v5e:2x4,2,fsdp")


@pytest.mark.parametrize("cases", [pytest.param(CPU, id="cpu"), pytest.param(TPU, id="tpu", marks=pytest.mark.slow)])
def test_only_the_adapter_s_gradient_crosses_devices_once_a_step_in_float32(cases):
    """Activations are bfloat16, the frozen leaves float32; see contract_program.py for what is asked of each case."""
    env = with_devices(8)
    program = os.path.join(os.path.dirname(__file__), "contract_program.py")
    done = subprocess.run([sys.executable, program, *cases], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bytes reduced once") == len(cases)
