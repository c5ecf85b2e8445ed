"""A job's folder may come from anyone: `job.json` runs nothing, and what is damaged is refused in one sentence."""

import json
import pathlib

import pytest
from launch_cases import fake, launch

from adalink_jax.cli.main import main

PARTS = ("status", "logs", "cancel")


def write_record(folder: pathlib.Path, **changes: object) -> None:
    """The record of a submitted Slurm job, with changes; `...` leaves a field out."""
    record = {
        "name": "j", "launcher": "slurm", "arguments": ["params"], "topology": "cpu:1", "array": None,
        "settings": {"topology": "cpu:1"}, "written": [], "submitted": {"at": "2026-01-01", "id": "7"},
    } | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))


def test_commands_in_a_record_are_not_run(place, capsys):
    harm = ["touch", "PWN"]
    write_record(place / "j", commands={"submit": harm, "status": [harm], "logs": harm, "cancel": harm})
    squeue, scancel = fake(place / "fakes", "squeue", "echo RUNNING"), fake(place / "fakes", "scancel", "")
    assert [main(["launch", part, "j"]) for part in PARTS] == [0, 2, 0]
    assert "j has written no log" in capsys.readouterr().err
    assert "--jobs=7" in squeue.read_text() and scancel.read_text() == "7\n" and not (place / "PWN").exists()


@pytest.mark.parametrize("changes, words", [
    ({"launcher": "bash"}, "`launcher`, which is 'bash'"),
    ({"launcher": ...}, "lacks `launcher`"),
    ({"name": "$(touch PWN)"}, "lower-case letters"),
    ({"name": 3}, "`name`, which is 3"),
    ({"settings": {}}, "lacks `settings.topology`"),
    ({"settings": {"topology": "cpu:1", "account": 7}}, "`settings.account`, which is 7"),
    ({"settings": {"topology": "cpu:1", "partition": "-x y"}}, "`settings.partition`"),
    ({"settings": []}, "`settings`"),
    ({"submitted": {"at": "x", "id": "7 --all"}}, "The id of j is '7 --all'"),
    ({"submitted": {"at": "x", "id": 7}}, "`submitted.id`, which is 7"),
    ({"submitted": {"at": "x"}}, "The id of j is ''"),
    ({"submitted": []}, "`submitted`"),
    ({"topology": "cpu"}, "`topology`, which is 'cpu', a text; it must be a topology"),
    ({"written": ["../x"]}, "a path inside the job's folder"),
    ({"written": ["/etc/x"]}, "a path inside the job's folder"),
    ({"array": "2"}, "`array`, which is '2'"),
    ({"launcher": "tpu", "settings": {"topology": "v5e:1x1", "project": "--x", "zone": "z", "wheel": "w"}}, "`settings.project`"),
    ({"launcher": "gke", "settings": {"topology": "v5e:1x1", "context": "a b", "image": "i"}}, "`settings.context`"),
])  # fmt: skip
def test_a_damaged_record_is_refused_in_one_sentence(place, capsys, changes, words):
    write_record(place / "j", **changes)
    assert main(["launch", "status", "j"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": "j"', "\ufeff{}", "[" * 9000, '{"a": 1' + "0" * 9000 + "}", "\0"]
)
def test_a_record_that_is_no_json_is_refused_in_one_sentence(place, capsys, text):
    (place / "j").mkdir()
    (place / "j" / "job.json").write_text(text)
    for part in PARTS:
        assert main(["launch", part, "j"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"pid": "1", "began": 0}', '{"pid": 99999999999999999999, "began": 0}', '{"pid": -1, "began": 1}'],
)
def test_a_damaged_pid_file_names_no_process(place, capsys, text):
    write_record(place / "j", launcher="local", settings={})
    (place / "j" / "process_0.pid").write_text(text)
    assert main(["launch", "cancel", "j"]) == 0
    assert "No process of this job is running" in capsys.readouterr().out


def test_a_record_with_commands_still_works(place, capsys):
    """Version 0.1 wrote the name of an existing slice nowhere else."""
    describe = [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "describe",
        "my-slice",
        "--project=p",
        "--zone=z",
        "--format=value(state)",
    ]
    commands = {"submit": ["bash", "j/job.sh"], "status": [describe], "logs": None, "cancel": []}
    settings = {"topology": "v5e:1x1", "project": "p", "zone": "z", "wheel": "w.whl", "constraints": None, "setup": []}
    write_record(
        place / "j", launcher="tpu", topology="v5e:1x1", settings=settings, submitted={"at": "x"}, commands=commands
    )
    calls = fake(place / "fakes", "gcloud", "echo READY")
    assert main(["launch", "status", "j"]) == main(["launch", "cancel", "j"]) == 0
    assert calls.read_text() == f"{' '.join(describe[1:])}\n"
    assert "No process" in capsys.readouterr().out
    describe[5] = "$(touch PWN)"
    write_record(
        place / "j", launcher="tpu", topology="v5e:1x1", settings=settings, submitted={"at": "x"}, commands=commands
    )
    assert main(["launch", "status", "j"]) == 2 and "`settings.tpu`" in capsys.readouterr().err


def test_what_sbatch_printed_must_have_a_number(place, capsys):
    fake(place / "fakes", "sbatch", "echo 'Welcome'; echo '$(touch PWN)'")
    assert launch("slurm_cpu", "--submit") == 2
    assert "in which there is no job's number" in capsys.readouterr().err
    fake(place / "fakes", "sbatch", "echo 'Welcome'; echo '12;cluster'")
    assert launch("slurm_cpu", "--submit") == 0
    assert '"id": "12"' in (place / "runs" / "launch" / "digits-reverse" / "job.json").read_text()
