"""SIGTERM, SIGUSR1, SIGUSR2 at any time: status 75 and one sentence, saved or with nothing to save; all processes of a job end."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from adalink_jax.training.interrupt import StopRequest

SENTENCE = "Stopped by {} with nothing to save; rerun the same command.\n"
NANO = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--gin_file=gin/tasks/digits.gin"]
COMMANDS = {
    "quickstart": [],
    "train": ["--gin_file=gin/runs/quickstart.gin"],
    "pack": NANO,
    "tune": NANO,
    "compare": ["--gin_file=gin/comparisons/digits.gin"],
}


def start(*arguments, **env):
    command = [sys.executable, "-m", "adalink_jax", *arguments]
    env = {**os.environ, **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def end(process, seconds):
    """`(status, stderr)`."""
    try:
        _, err = process.communicate(timeout=seconds)
        return process.returncode, err
    finally:
        process.kill()


def listens(process):
    """Whether the process has a handler for SIGTERM yet."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
        caught = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return int(caught, 16) >> (signal.SIGTERM - 1) & 1


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("command, number", [*zip(COMMANDS, ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGTERM"))])
def test_a_starting_command_ends_immediately(tmp_path, command, number):
    process = start(command, *COMMANDS[command], f"--gin.MODEL_DIR='{tmp_path}/run'")
    wait_for(lambda: listens(process), process)  # it has not yet imported JAX
    process.send_signal(getattr(signal, number))
    assert end(process, 30) == (75, SENTENCE.format(number))
    assert not (tmp_path / "run").exists()


def test_a_compiling_run_ends_immediately(tmp_path):
    process = start("quickstart", f"--gin.MODEL_DIR='{tmp_path}/run'", JAX_ENABLE_COMPILATION_CACHE="0")
    wait_for(lambda: (tmp_path / "run" / "config.gin").exists(), process)
    time.sleep(0.5)  # the decoding of the evaluation before the first step takes seconds to compile
    process.send_signal(signal.SIGTERM)
    assert end(process, 20) == (75, SENTENCE.format("SIGTERM"))
    assert not (tmp_path / "run" / "before.json").exists()


def test_the_other_processes_of_a_job_end_too(tmp_path):
    """One is stopped before it has met the other, to which JAX reports the loss."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator_address=localhost:{free.getsockname()[1]}"
    flags = [f"--gin.MODEL_DIR='{tmp_path}/run'", address, "--process_count=2"]
    first, second = (start("quickstart", *flags, f"--process_index={i}") for i in range(2))
    wait_for(lambda: listens(second), second)
    second.send_signal(signal.SIGTERM)
    status, err = end(second, 60)
    assert status == 75 and SENTENCE.format("SIGTERM") in err
    status, _ = end(first, 60)
    assert status != 0


def test_the_library_of_tpus_does_not_take_the_signal_away():
    """Without our handler it does, as soon as it is loaded, and prints a trace."""
    program = """
import os, signal, time
from adalink_jax import preemption
with preemption.exiting_on_notice():
    from jax.experimental import topologies
    topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (75, SENTENCE.format("SIGTERM"))


@pytest.mark.parametrize("number, status", [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGUSR2", 75), ("SIGINT", 130)])
def test_a_notice_while_it_is_saving_changes_nothing_and_ctrl_c_stops(number, status):
    with StopRequest() as stop:
        assert not stop.before_step()
        for each in (number, "SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, each))
        assert stop.before_step()
        assert stop.stopped("Stopped.").status == status
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
