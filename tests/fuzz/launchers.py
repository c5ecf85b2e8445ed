"""Jobs: shell payloads in every value of every launcher, whose scripts run under fakes, and damaged records of jobs."""

import json
import os
import pathlib
import shlex
import subprocess
from unittest import mock

import yaml
from hypothesis import strategies as st
from launch_cases import CLUSTER, FILES, PROJECT, TRAIN, make_files, topology
from shell_payloads import PAYLOADS, pwned, submitted, with_fakes

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import CHANGED, EQUAL, UNPROTECTED, Outcome, judge, run

_PARTS = st.sampled_from(("", "", "a", "runs/x", "gs://b/r", "a'b", "x/"))
TEXTS = st.builds(
    lambda before, payload, after: before + payload + after,
    _PARTS,
    st.sampled_from((*PAYLOADS, "\0;touch PWN")),
    _PARTS,
)
# Launcher -> its sound options, the settings that take a text, and those that take a list of texts.
LAUNCHERS = {
    "slurm": ([topology("h100:8")], ("ACCOUNT", "PARTITION", "QOS", "TIME", "CONTAINER_IMAGE"), ("MODULES", "CONTAINER_MOUNTS", "SBATCH")),
    "tpu": ([topology("v5e:2x4"), *PROJECT], ("PROJECT", "ZONE", "WHEEL", "CONSTRAINTS", "RUNTIME_VERSION"), ("CREATE_FLAGS", "SSH_FLAGS")),
    "gke": ([topology("v6e:2x4"), *CLUSTER], ("CONTEXT", "IMAGE", "NAMESPACE", "ACCELERATOR", "QUEUE", "SERVICE_ACCOUNT"), ()),
    "local": ([], ("PLATFORM",), ()),
}  # fmt: skip
SUBMITTED = {
    "slurm": ("job.sbatch", "sbatch"),
    "tpu": ("job.sh", "bash"),
    "gke": ("jobset.yaml", "kubectl"),
    "local": ("processes.txt", "bash"),
}
ANYWHERE = ("--name", "--folder", "MODEL_DIR", "value", "gin file", "argument")
Plan = tuple[str, tuple[tuple[str, str], ...]]  # launcher, (place, text) of each payload


def _payload_plans(originals: pathlib.Path) -> st.SearchStrategy[Plan]:
    def of(launcher: str) -> st.SearchStrategy[Plan]:
        _, texts, lists = LAUNCHERS[launcher]
        places = (*texts, *lists, *ANYWHERE, "MODEL_DIR", "MODEL_DIR", *(("--tpu",) if launcher == "tpu" else ()))
        slots = st.lists(
            st.tuples(st.sampled_from(places), TEXTS), min_size=1, max_size=2, unique_by=lambda slot: slot[0]
        )
        return st.tuples(st.just(launcher), slots.map(tuple))

    return st.sampled_from(sorted(LAUNCHERS)).flatmap(of)


def _command(launcher: str, slots: dict[str, str]) -> tuple[list[str], list[str]]:
    """The words after `adalink launch`, and those of the launched command."""
    options, texts, lists = LAUNCHERS[launcher]
    words = [launcher, "--no_plan", *options]
    for name in texts:
        if name in slots:
            words.append(f"--gin.{name}={slots[name]!r}")
    for name in lists:
        if name in slots:
            words.append(f"--gin.{name}={(slots[name],)!r}")
    words += [word for name in ("--name", "--folder", "--tpu") if name in slots for word in (name, slots[name])]
    model_dir = slots.get("MODEL_DIR", "gs://bucket/runs/digits")
    command = [*TRAIN[:3], f"--gin.MODEL_DIR={model_dir!r}"]
    if "value" in slots:
        command.append(f"--gin.MIXTURE_OR_TASK_NAME={slots['value']!r}")
    if "gin file" in slots:
        command[2] = f"--gin_file={slots['gin file']}"
    if "argument" in slots:
        command.append(slots["argument"])
    return words, command


def _run_payload(plan: Plan, originals: pathlib.Path) -> Outcome:
    place, (launcher, slots) = pathlib.Path.cwd(), (plan[0], dict(plan[1]))
    make_files(place)
    for name in ("gin file", "WHEEL", "CONSTRAINTS"):  # files of these names are there, if a file can have them
        text = slots.get(name, "")
        if text.strip("/") and "\0" not in text and not text.startswith(("/", "~")) and ".." not in text:
            (place / text).parent.mkdir(parents=True, exist_ok=True)
            if not (place / text).exists() and not text.endswith("/"):
                (place / text).write_text(FILES["mine.gin"] if name == "gin file" else "", encoding="utf-8")
    words, command = _command(launcher, slots)
    with mock.patch.dict(os.environ, with_fakes(place)):
        done = run("launch", *words, "--", *command)
    return judge(done, lambda done: _execute(launcher, place, command), _slot_names(slots))


def _slot_names(slots: dict[str, str]) -> tuple[str, ...]:
    words = {"value": "MIXTURE_OR_TASK_NAME", "gin file": "gin", "argument": "argument"}
    shown = [repr(text)[1:-1][:20] for text in slots.values()]
    return (*(words.get(name, name) for name in slots), *(name.strip("-") for name in slots), *shown)


def _execute(launcher: str, place: pathlib.Path, command: list[str]) -> Outcome:
    """Submits what was written to the fakes, as a user would."""
    changed = lambda why, text="": Outcome(CHANGED, f"{launcher}: {why}", text)
    if pwned(place):
        return changed("a payload ran while the job was written")
    [record] = place.rglob("job.json")
    name, program = SUBMITTED[launcher]
    main = record.parent / name
    if program == "bash":
        checked = subprocess.run(["bash", "-n", str(main)], capture_output=True, text=True)
        if checked.returncode:
            return changed(f"{name} cannot be parsed", checked.stderr)
    try:
        ran = submitted(place, [program, str(main.relative_to(place))], main)
    except yaml.YAMLError as e:
        return changed(f"{name} cannot be parsed", str(e))
    if ran.pwned:
        return changed(f"a payload ran in {name}", ran.errors)
    received = ran.arguments("adalink")
    if not received or received[0][: len(command)] != command:
        return changed("the command received other arguments", f"{received}\n{command}\n{ran.errors}")
    if any(not _is_one_word(option) for options in ran.arguments("#SBATCH") for option in options):
        return changed("an option of sbatch has several words", main.read_text(encoding="utf-8"))
    pasted = (record.parent / "resume.txt").read_text(encoding="utf-8").rpartition("The launch command was:\n\n")[2]
    subprocess.run(
        ["bash", "-c", pasted], cwd=place, env=with_fakes(place), capture_output=True, stdin=subprocess.DEVNULL
    )
    return changed("a payload runs in the command of resume.txt", pasted) if pwned(place) else Outcome(EQUAL)


def _is_one_word(option: str) -> bool:
    try:
        return len(shlex.split(option)) == 1
    except ValueError:
        return False


# --- records of jobs ---


def _prepare_jobs(folder: pathlib.Path) -> None:
    for launcher, (options, _, _) in LAUNCHERS.items():
        place = folder / launcher
        place.mkdir()
        os.chdir(place)
        make_files(place)
        assert (
            run("launch", launcher, "--no_plan", *options, "--name", "j", "--folder", "job", "--", *TRAIN).status == 0
        )
        record = json.loads((place / "job" / "job.json").read_text())
        record["submitted"] = {"at": "2026-11-01T00:00:00+00:00", "id": "7"}
        (place / "job" / "job.json").write_text(json.dumps(record, indent=2))
        (place / "job" / "process_0.pid").write_text(json.dumps({"pid": 4194000, "began": 1.5}))
        (place / "job" / "process_0.log").write_text("a line\n")
        for path in place.iterdir():
            if path.name != "job":
                subprocess.run(["rm", "-r", str(path)], check=True)


def _job_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, str, list[damage.Edit]]]:
    def of(launcher: str):
        edits = damage.edits(originals / launcher / "job", only=("job.json", "process_0.pid"))
        return st.tuples(st.just(launcher), st.sampled_from(("status", "logs", "cancel")), edits)

    return st.sampled_from(sorted(LAUNCHERS)).flatmap(of)


def _run_job(plan: tuple[str, str, list[damage.Edit]], originals: pathlib.Path) -> Outcome:
    launcher, part, edits = plan
    place = pathlib.Path.cwd()
    damage.damaged(originals / launcher / "job", place / "job", edits)
    with mock.patch.dict(os.environ, with_fakes(place)), mock.patch.object(os, "kill") as kill:
        done = run("launch", part, "job")
    if pwned(place):
        return Outcome(CHANGED, f"{part} runs a command that job.json names", done.out + done.err)
    if kill.called:
        return Outcome(CHANGED, f"{part} signals another process", str(kill.call_args))
    return judge(done, lambda done: Outcome(UNPROTECTED if edits else EQUAL), ("job", "process_0", "scheduler"))


TARGETS = {
    "shell payloads": Target(lambda folder: None, _payload_plans, _run_payload, ("slurm", ()), share=3),
    "jobs": Target(_prepare_jobs, _job_plans, _run_job, ("slurm", "status", []), share=1),
}
