"""The training loop transfers a step's batch and its metrics, and nothing else."""

import subprocess
import sys

import loop_program
import pytest
from helpers import with_devices


@pytest.mark.slow
def test_a_step_that_transfers_data_implicitly_fails_on_one_device(tmp_path, capsys):
    loop_program.main(str(tmp_path))
    assert capsys.readouterr().out.splitlines() == ["run: refused", "pack: refused"]


@pytest.mark.slow
def test_a_step_that_transfers_data_implicitly_fails_on_a_mesh(tmp_path):
    env = with_devices(8)
    done = subprocess.run(
        [sys.executable, loop_program.__file__, str(tmp_path)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["run: refused", "pack: refused"]
