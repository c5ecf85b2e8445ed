"""Jobs: shell payloads in every value of every launcher, whose scripts run under fakes, and damaged records of jobs."""

import json
import os
import pathlib
import shlex
import subprocess

import yaml
from hypothesis import strategies as st
from launch_cases import CLUSTER, FILES, PROJECT, TRAIN, fake, make_files, topology

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import CHANGED, EQUAL, EXCEPTION, UNPROTECTED, Outcome, judge, run

CANARY = "CANARY"  # a file that no command makes unless a payload runs
TOUCH = f"touch {CANARY}"
PAYLOADS = (
    f"$({TOUCH})", f"`{TOUCH}`", f";{TOUCH};", f"&& {TOUCH} #", f"| {TOUCH}", f"& {TOUCH} &", f"\n{TOUCH}\n", f"\r\n{TOUCH}\r\n",
    f">{CANARY}", f"$({{touch,{CANARY}}})", f"`{{touch,{CANARY}}}`", f";{{touch,{CANARY}}};", f"${{x:-$({TOUCH})}}", f"<({TOUCH})",
    f"\"; {TOUCH}; \"", f"'; {TOUCH}; '", f"\"$({TOUCH})\"", f"'$({TOUCH})'", f"\\\"; {TOUCH} #", f"\\'; {TOUCH} #", f"a\\\n{TOUCH}",
    f"x\" --wrap=\"{TOUCH}", f" --prolog={TOUCH}", f"%s$({TOUCH})", f"{{{{ {TOUCH} }}}}", f"*$IFS;touch$IFS{CANARY}", "!!", "$HOME", "~/x",
    f"\x00;{TOUCH}", f"\u2028{TOUCH}", f"a[$({TOUCH})]", "-x", "--help", "%j%u", "a b", "\t", "é", "'", '"', "\\", "$", "`", "(", "{", "#x",
)  # fmt: skip
FAKES = {
    "adalink": 'printf "%s\\0" "$@" >"$FAKE_ARGUMENTS"',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    # ssh runs a text in a shell of the host, as the real one does; scp copies to the host's folder.
    "gcloud": """
case "$*" in
  *" describe "*) echo ACTIVE ;;
  *" ssh "*) for word; do case "$word" in --command=*) cd "$FAKE_HOST" && exec bash -c "${word#--command=}" ;; esac; done ;;
  *" scp "*) cd "$FAKE_HOME" && exec "$FAKE_PYTHON" "$FAKE_HOST/scp.py" "$@" ;;
esac
""",
    "sleep": "", "curl": "echo 0", "python3": "", "module": "", "scontrol": "", "sbatch": "echo 7", "squeue": "echo 7 RUNNING",
    "sacct": "", "scancel": "", "kubectl": "echo running",
}  # fmt: skip
SCP = """
import os, shutil, sys
host = os.path.dirname(__file__)
words = [word for word in sys.argv[sys.argv.index("scp") + 1 :] if not word.startswith("--")]
place = lambda word: os.path.join(host, word.partition(":")[2]) if ":" in word else word
for word in words[:-1]:
    source, to = place(word), place(words[-1])
    if os.path.isdir(source):
        shutil.copytree(source, os.path.join(to, os.path.basename(source.rstrip("/"))), dirs_exist_ok=True)
    elif os.path.exists(source):
        os.makedirs(to, exist_ok=True)
        shutil.copy(source, to)
"""
_PARTS = st.sampled_from(("", "", "a", "runs/x", "gs://b/r", "a'b", "x/"))
TEXTS = st.builds(lambda before, payload, after: before + payload + after, _PARTS, st.sampled_from(PAYLOADS), _PARTS)
OWN_GIN = "--gin_file={}"
# Launcher -> its sound options, the settings that take a text, and those that take a list of texts.
LAUNCHERS = {
    "slurm": ([topology("h100:8")], ("ACCOUNT", "PARTITION", "QOS", "TIME", "CONTAINER_IMAGE"), ("MODULES", "CONTAINER_MOUNTS", "SBATCH")),
    "tpu": ([topology("v5e:2x4"), *PROJECT], ("PROJECT", "ZONE", "WHEEL", "CONSTRAINTS", "RUNTIME_VERSION"), ("CREATE_FLAGS", "SSH_FLAGS")),
    "gke": ([topology("v6e:2x4"), *CLUSTER], ("CONTEXT", "IMAGE", "NAMESPACE", "ACCELERATOR", "QUEUE", "SERVICE_ACCOUNT"), ()),
    "local": ([], ("PLATFORM",), ()),
}  # fmt: skip
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


def _fakes(place: pathlib.Path) -> dict[str, str]:
    """Puts fakes of all programs in `place/fakes`; returns the environment that finds them first."""
    import sys

    for name, body in FAKES.items():
        fake(place / "fakes", name, body)
    (place / "host").mkdir(exist_ok=True)
    (place / "host" / "scp.py").write_text(SCP)
    return os.environ | {
        "PATH": f"{place / 'fakes'}{os.pathsep}{os.environ['PATH']}", "FAKE_ARGUMENTS": str(place / "arguments"),
        "FAKE_HOST": str(place / "host"), "FAKE_HOME": str(place), "FAKE_PYTHON": sys.executable, "SLURM_JOB_ID": "7",
    }  # fmt: skip


def _canary(place: pathlib.Path) -> bool:
    return any(path.name.startswith(CANARY) for path in place.rglob(f"{CANARY}*"))


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
    environment = _fakes(place)
    for name in ("gin file", "WHEEL", "CONSTRAINTS"):  # files of these names are there, if a file can have it
        if (
            name in slots
            and "\0" not in slots[name]
            and not slots[name].startswith(("/", "~"))
            and ".." not in slots[name]
        ):
            file = place / slots[name]
            if not file.exists() and slots[name].strip("/"):
                file.parent.mkdir(parents=True, exist_ok=True)
                if not slots[name].endswith("/"):
                    file.write_text(FILES["mine.gin"] if name == "gin file" else "")
    words, command = _command(launcher, slots)
    before = dict(os.environ)
    os.environ["PATH"] = environment["PATH"]
    try:
        done = run("launch", *words, "--", *command)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return judge(done, lambda done: _execute(launcher, place, environment, command), _slot_names(slots))


def _slot_names(slots: dict[str, str]) -> tuple[str, ...]:
    words = {"value": "MIXTURE_OR_TASK_NAME", "gin file": "gin", "argument": "argument"}
    shown = [repr(text)[1:-1][:20] for text in slots.values()]
    return (*(words.get(name, name) for name in slots), *(name.strip("-") for name in slots), *shown)


def _execute(launcher: str, place: pathlib.Path, environment: dict[str, str], command: list[str]) -> Outcome:
    """Runs what was written, as the cluster and a user would."""
    changed = lambda why, text="": Outcome(CHANGED, f"{launcher}: {why}", text)
    if _canary(place):
        return changed("a payload ran while the job was written")
    [record] = [path for path in place.rglob("job.json") if "host" not in path.parts[:1]]
    folder, texts = record.parent, []
    for name in ("job.sbatch", "job.sh", "processes.txt"):
        if (folder / name).exists():
            checked = subprocess.run(["bash", "-n", str(folder / name)], capture_output=True, text=True)
            if checked.returncode:
                return changed(f"{name} cannot be parsed", checked.stderr)
            script = subprocess.run(
                ["bash", str(folder / name)],
                cwd=place,
                env=environment,
                capture_output=True,
                timeout=60,
                stdin=subprocess.DEVNULL,
            )
            texts.append((script.stdout + script.stderr).decode(errors="replace"))
            if _canary(place):
                return changed(f"a payload ran in {name}", texts[-1])
    if launcher == "slurm" and (why := _odd_options((folder / "job.sbatch").read_text())):
        return changed(why)
    if launcher == "gke":
        return _manifest((folder / "jobset.yaml").read_text(), command)
    arguments = pathlib.Path(environment["FAKE_ARGUMENTS"])
    if not arguments.exists():
        return changed("the command did not run", "\n".join(texts))
    received = arguments.read_bytes().decode().split("\0")[:-1]
    if received[: len(command)] != command:
        return changed("the command received other arguments", f"{received}\n{command}")
    pasted = (folder / "resume.txt").read_text().rpartition("The launch command was:\n\n")[2]
    subprocess.run(
        ["bash", "-c", pasted], cwd=place, env=environment, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return changed("a payload runs in the command of resume.txt", pasted) if _canary(place) else Outcome(EQUAL)


def _odd_options(script: str) -> str | None:
    """What a payload added to the options that sbatch reads."""
    known = {"job-name", "output", "open-mode", "account", "partition", "qos", "time", "nodes", "ntasks-per-node", "gpus-per-node",
             "cpus-per-task", "array", "dependency", "signal", "requeue"}  # fmt: skip
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            try:
                words = shlex.split(line[8:])
            except ValueError as e:
                return f"an option of sbatch has no end: {e}"
            if len(words) != 1 and words[0].lstrip("-").partition("=")[0] in known:
                return f"an option of sbatch has {len(words)} words"
    return None


def _manifest(text: str, command: list[str]) -> Outcome:
    try:
        *maps, jobset = yaml.safe_load_all(text)
        [container] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        # Kubernetes expands $(NAME) in a command, and reads $$ as $.
        given = [word.replace("$$", "$") for word in container["command"]][1 : 1 + len(command)]
    except Exception as e:  # noqa: BLE001  whatever a payload made of it
        return Outcome(CHANGED, "gke: the manifest cannot be read as a JobSet", f"{e}\n{text}")
    odd = given != command or len(maps) != 1 or not all(isinstance(word, str) for word in container["command"])
    return Outcome(CHANGED, "gke: the manifest has another command", text) if odd else Outcome(EQUAL)


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
    environment = _fakes(place)
    damage.damaged(originals / launcher / "job", place / "job", edits)
    before, kill, signalled = dict(os.environ), os.kill, []
    os.environ.update(environment)
    os.kill = lambda pid, signal: signalled.append(pid)
    try:
        done = run("launch", part, "job")
    finally:
        os.kill = kill
        os.environ.clear()
        os.environ.update(before)
    if _canary(place):
        return Outcome(CHANGED, f"{part} runs a command that job.json names", done.out + done.err)
    if signalled:
        return Outcome(EXCEPTION, f"{part} signals another process", str(signalled))
    accepted = lambda done: Outcome(UNPROTECTED if edits else EQUAL)
    if launcher == "local" and part == "status" and done.status == 0:
        return accepted(done)
    return judge(done, accepted, ("job", "process_0", "scheduler"))


TARGETS = {
    "shell payloads": Target(lambda folder: None, _payload_plans, _run_payload, ("slurm", ()), share=3),
    "jobs": Target(_prepare_jobs, _job_plans, _run_job, ("slurm", "status", []), share=1),
}
