"""SIGTERM, SIGUSR1, SIGUSR2 at any time: status 75 and one sentence, saved or with nothing to save; all processes of a job end.

Ctrl-C: status 130.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings

import pytest
from PIL import Image

from adalink_jax import preemption
from adalink_jax.cli import main as cli
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


@pytest.mark.slow
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


@pytest.fixture
def ends(monkeypatch):
    """What `preemption` would have ended this process with: `(sentence, status)`."""
    endings, came = [], threading.Event()

    def end(number, status):
        endings.append((preemption.stopped(number), status))
        came.set()

    monkeypatch.setattr(preemption, "_end", end)
    monkeypatch.setattr(preemption, "PATIENCE", 0.1)
    return endings, lambda: came.wait(20)


def run_instead(monkeypatch, function):
    """Every command is `function`."""
    commands = {name.replace("-", "_"): lambda argv: function() for name in cli.COMMANDS}
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: types.SimpleNamespace(**commands))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_ends_with_75_by_a_notice_and_130_by_ctrl_c(command, monkeypatch, ends, capsys):
    endings, wait = ends

    def receive_a_notice():
        preemption.keeps("the rows so far are kept")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait()
        return 0

    run_instead(monkeypatch, receive_a_notice)
    assert cli.main([command]) == 0  # since the process was not ended
    assert endings == [("Stopped by SIGUSR1; the rows so far are kept; rerun the same command to resume.", 75)]

    run_instead(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(20))
    assert cli.main([command]) == 130
    assert capsys.readouterr().err == SENTENCE.format("SIGINT") and len(endings) == 1


def test_ctrl_c_that_a_library_swallows_ends_the_command_too(monkeypatch, ends):
    endings, wait = ends

    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
        except KeyboardInterrupt:
            assert wait()
        return 0

    run_instead(monkeypatch, swallow)
    assert cli.main(["plan"]) == 0
    assert endings == [(SENTENCE.format("SIGINT").strip(), 130)]


def test_who_handles_signals_itself_gets_them(monkeypatch, ends):
    endings, _ = ends
    received = []

    def command():
        with preemption.signals_handled(lambda number, frame: received.append(number), signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return 0

    run_instead(monkeypatch, command)
    assert cli.main(["sweep"]) == 0 and received == [signal.SIGTERM] and not endings


def test_the_signal_of_a_forked_process_does_not_end_its_parent(monkeypatch, ends):
    endings, wait = ends

    def command():
        with preemption.signals_handled(lambda *_: None, signal.SIGTERM):
            pass
        begun, begins = os.pipe()
        child = os.fork()
        if not child:
            os.write(begins, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(begun, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.2)
        assert not endings
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait()
        return 0

    run_instead(monkeypatch, command)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of a fork in a process with threads
        assert cli.main(["verify-base"]) == 0


def test_other_threads_can_run_commands(capsys):
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(cli.main(["convert", "nowhere", "out", "--to=native"])))
    thread.start()
    thread.join()
    assert statuses == [2] and capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_in_an_evaluation_is_130_and_names_what_is_kept(monkeypatch, tmp_path, capsys):
    from adalink_jax.training.session import Session

    def evaluator(self, *_):
        def score(*arguments):
            self.stop.check()
            os.kill(os.getpid(), signal.SIGINT)
            preemption.keeps("the scores in here are kept")
            self.stop.check()

        return score

    monkeypatch.setattr(Session, "evaluator", evaluator)
    pytest.importorskip("seqio")
    assert cli.main(["eval", "--gin_file=gin/runs/quickstart.gin"]) == 130
    assert "Stopped by SIGINT; the scores in here are kept; rerun the same command" in capsys.readouterr().err


def test_a_preempted_prediction_keeps_its_rows(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "p.png")
    (tmp_path / "rows.csv").write_text("inputs,image\n" + "a b c,p.png\n" * 20_000, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    base = "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'"
    argv = ["infer", f"{tmp_path}/rows.csv", str(out), NANO[0], base, "--gin.VOCABULARY='bytes'"]
    process = start(*argv)
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") > 256, process)  # the second part
    process.send_signal(signal.SIGTERM)
    status, err = end(process, 30)
    assert status == 75 and re.search(
        r"^Stopped by SIGTERM; the [\d,]+ predictions in .*out.jsonl are kept; rerun the", err
    )
