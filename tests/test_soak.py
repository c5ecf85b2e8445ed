"""A short soak; `make soak` does a long one."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    program = pathlib.Path(__file__).parent.parent / "benchmarks" / "soak.py"
    command = [sys.executable, program, "--kills", "3", "--out", tmp_path / "soak"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].startswith("3 kills of")
