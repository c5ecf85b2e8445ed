"""SETUP and SECRETS of launchers whose processes this package starts itself: `local`, and the tasks of `ray` on their nodes."""

import os
import pathlib
import sys

import pytest
from launch_cases import fake, topology

from adalink_jax.cli.main import main
from adalink_jax.errors import Preempted, UserError
from adalink_jax.launching import ray_tasks

TOKEN = "hf_do_not_write_me"
SETUP = ("FROM_SETUP=$((20 + 22))", "export FROM_SETUP")


@pytest.fixture
def python(place, monkeypatch):
    """In place of Python, a program that writes what it is given to the file `seen`."""
    (place / "kept").write_text(f"{TOKEN}\n")
    fake(
        place / "fakes", "python", f'echo "$HF_TOKEN $FROM_SETUP $PLAIN $$ $PPID" >>{place}/seen; exit "${{STATUS:-0}}"'
    )
    monkeypatch.setattr(sys, "executable", str(place / "fakes" / "python"))
    return place / "fakes" / "python.calls"


def written() -> str:
    """Everything in the files of the jobs."""
    return "".join(path.read_text() for path in pathlib.Path("runs/launch").rglob("*") if path.is_file())


def test_local_processes_have_them(place, python, capfd):
    options = [f"--gin.SETUP={SETUP!r}", "--gin.SECRETS={'HF_TOKEN': 'kept'}", "--gin.ENV={'PLAIN': 'a b'}"]
    launch = ["launch", "local", "--processes", "2", "--name", "x", *options]
    assert main([*launch, "--", "eval"]) == 0
    assert 'HF_TOKEN="$(cat kept)" bash -c' in capfd.readouterr().out
    assert main([*launch, "--submit", "--", "eval"]) == 0
    assert [line.split()[:4] for line in (place / "seen").read_text().splitlines()] == [[TOKEN, "42", "a", "b"]] * 2
    assert "--process_index=1" in python.read_text()
    assert TOKEN not in written() + capfd.readouterr().out


def test_the_shell_of_setup_is_replaced_by_the_command(place, python):
    """Signals reach the command: it is the process that was started."""
    launch = ["launch", "local", "--name", "x", "--gin.SETUP=('true',)", "--submit", "--", "eval"]
    assert main(launch) == 0
    assert (place / "seen").read_text().split()[-1] == str(os.getpid())  # its parent is this process


def test_a_line_of_setup_that_fails_ends_the_job(place, python):
    launch = ["launch", "local", "--name", "x", "--gin.SETUP=('exit 7',)", "--submit", "--", "eval"]
    assert main(launch) == 7 and not (place / "seen").exists()


def test_a_task_of_ray_has_them(place, python):
    secrets = {"HF_TOKEN": str(place / "kept")}
    assert ray_tasks.element(["eval"], {"PLAIN": "p"}, secrets, SETUP, {"mine.gin": "x = 1"}) == 0
    assert (place / "seen").read_text().split()[:3] == [TOKEN, "42", "p"]
    assert TOKEN not in python.read_text()
    with pytest.raises(ray_tasks.Again):
        ray_tasks.element(["eval"], {"STATUS": str(Preempted.status)}, {}, (), {})


# Ray in one process: a task runs when it is asked for, and what it is given crosses as a pickle does.
RAY = """
import pickle, types

exceptions = types.SimpleNamespace(RayError=RuntimeError)
init = lambda **options: None
get = lambda done: done[1]
wait = lambda tasks, num_returns: (tasks[:1], tasks[1:])


def remote(**options):
    number = iter(range(99))
    run = lambda task, given: (next(number), task(*pickle.loads(pickle.dumps(given))))
    return lambda task: types.SimpleNamespace(remote=lambda *given: run(task, given))
"""


def test_the_tasks_of_an_array_have_them(place, python, monkeypatch, capfd):
    (place / "ray.py").write_text(RAY)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    secret = f"--gin.SECRETS={{'HF_TOKEN': '{place}/kept'}}"
    options = [topology("cpu:1"), "--array", "2", secret, "--gin.SETUP=('export FROM_SETUP=$ADALINK_ARRAY_INDEX',)"]
    assert main(["launch", "ray", *options, "--name", "x", "--submit", "--", "eval"]) == 0
    monkeypatch.delitem(sys.modules, "ray")
    assert [line.split()[:2] for line in (place / "seen").read_text().splitlines()] == [[TOKEN, "0"], [TOKEN, "1"]]
    assert TOKEN not in written() + capfd.readouterr().out
    assert 'ADALINK_ARRAY_INDEX=1 HF_TOKEN="$(cat ' in pathlib.Path("runs/launch/x/tasks.txt").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("setting, words", [
    ("--gin.SECRETS={'HF_TOKEN': 'kept'}", "SECRETS reads HF_TOKEN from 'kept'; give an absolute path"),
    ("--gin.SECRETS={'ADALINK_ARRAY_INDEX': '/kept'}", "SECRETS sets ADALINK_ARRAY_INDEX, which"),
])  # fmt: skip
def test_secrets_that_ray_could_not_read_are_refused(place, capsys, setting, words):
    assert main(["launch", "ray", topology("cpu:1"), setting, "--name", "x", "--", "eval"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not pathlib.Path("runs").exists()


def test_a_secret_that_is_not_there_is_named(place, python, capsys):
    missing = ["launch", "local", "--name", "x", "--gin.SECRETS={'HF_TOKEN': 'lost'}", "--submit", "--", "eval"]
    assert main(missing) == 2
    assert (
        "SECRETS reads HF_TOKEN from lost, which cannot be read where the job runs: No such file"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="reads HF_TOKEN from /lost/it"):
        ray_tasks.element(["eval"], {}, {"HF_TOKEN": "/lost/it"}, (), {})
    assert not (place / "seen").exists()
