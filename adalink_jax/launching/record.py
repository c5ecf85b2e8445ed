"""A job's folder: what ran, with which code and files, and how to resume it.

`job.json` is written when the job is rendered, and again when it is submitted; `control` needs nothing else. It describes the job, and
holds no commands, since a folder may come from anyone. The job's own files (gin files as typed, and the modules of the current folder
that they import) are copied to `files/`.
"""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import subprocess
from typing import Annotated, Any, Generic, Literal, TypeVar

import psutil
import pydantic
from etils import epath

from adalink_jax.configuration import GinFlags, gin_files, gin_root
from adalink_jax.errors import UserError
from adalink_jax.files.typed_json import Form, as_form, read_form, read_object
from adalink_jax.files.whole_file import write_json, write_text
from adalink_jax.launching import Gke, Local, Ray, Settings, Slurm, Tpu
from adalink_jax.launching.alphabets import Count, Label
from adalink_jax.launching.job import Job, Rendered, string
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.version import __version__

RECORD = "job.json"
HOME = os.path.join("runs", "launch")
_REMEDY = "copy it again, or launch the job into another --folder"
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import|import\s+([\w.]+))", re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\s+['\"](.+?)['\"]", re.MULTILINE)
_MODULE = re.compile(r"mixture_or_task_module\s*=\s*['\"]([\w.]+)['\"]")


SettingsT = TypeVar("SettingsT", Gke, Local, Ray, Slurm, Tpu)


class Submission(Form):
    """When a job was submitted, and the id under which its scheduler knows it; jobs that run in the foreground have none."""

    at: str
    id: str = ""


def _inside(path: str) -> str:
    if not path or "\0" in path or os.path.isabs(path) or os.pardir in pathlib.PurePath(path).parts:
        raise ValueError("a path inside the job's folder")
    return path


def _topology(text: str) -> str:
    try:
        parse_topology(text)
    except UserError as e:
        raise ValueError("a topology, such as v5e:4x8 or cpu:8") from e
    return text


class JobRecord(Form, Generic[SettingsT]):
    """What this package reads of `job.json`, which `write` and `submitted` make; and `folder`, which `read` adds."""

    name: Label
    launcher: Literal["gke", "local", "ray", "slurm", "tpu"]
    arguments: tuple[str, ...]
    topology: Annotated[str, pydantic.AfterValidator(_topology)]
    array: Count | None
    settings: SettingsT
    written: tuple[Annotated[str, pydantic.AfterValidator(_inside)], ...] = ()
    submitted: Submission | None
    folder: str


class _Launched(Form):
    launcher: Literal["gke", "local", "ray", "slurm", "tpu"]


_RECORDS = {
    "gke": JobRecord[Gke],
    "local": JobRecord[Local],
    "ray": JobRecord[Ray],
    "slurm": JobRecord[Slurm],
    "tpu": JobRecord[Tpu],
}


class Process(Form):
    """What a pid file holds: a process's number, and its start time, since numbers are reused."""

    pid: Annotated[int, pydantic.Field(ge=1, lt=2**31)]
    began: float


@dataclasses.dataclass(frozen=True)
class Code:
    """The code that a job is launched with.

    Attributes:
      commit: of the checkout that this package is imported from; None for an installed package.
      diff: uncommitted changes of that checkout.
      untracked: its untracked files.
    """

    commit: str | None
    diff: str
    untracked: tuple[str, ...]


def code() -> Code:
    """The state of the checkout that this package is imported from, by git."""
    root = gin_root().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, encoding="utf-8", errors="replace"
            )
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top.strip()).resolve() != root.resolve():
        return Code(None, "", ())
    untracked = git("ls-files", "--others", "--exclude-standard") or ""
    return Code(
        (git("rev-parse", "HEAD") or "").strip() or None, git("diff", "HEAD") or "", tuple(untracked.splitlines())
    )


def stage(flags: GinFlags) -> dict[str, str]:
    """The job's own files: the gin files of `flags`, the files that they include, and the modules of the current folder that they import.

    Returns:
      Path -> text, without the files that this package ships. A path is relative to the current folder, or absolute if the file is
      outside it.

    Raises:
      UserError: for a gin file that does not exist.
    """
    out, modules = {}, []

    def add(path: str) -> str:
        """Adds a file and what it imports; returns its text, or "" if it was added before."""
        name = os.path.relpath(path)
        name = os.path.abspath(path) if name.startswith("..") else name
        text = "" if name in out else pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
        out.setdefault(name, text)
        modules.extend(first or second for first, second in _IMPORT.findall(text))
        return text

    def add_gin(name: str) -> None:
        path = gin_files.find(name, flags.search_paths)
        if pathlib.Path(path).resolve().is_relative_to(gin_root().resolve()):
            return
        text = add(path)
        modules.extend(_MODULE.findall(text))
        for included in _INCLUDE.findall(text):
            add_gin(included)

    for name in flags.files:
        add_gin(name)
    modules += filter(None, (string(text) for name, text in flags.bindings if name.endswith("mixture_or_task_module")))
    while modules:
        top = modules.pop().split(".")[0]
        package = pathlib.Path(top)
        if top == "adalink_jax":  # in its own checkout; other machines install the wheel
            continue
        submodules = sorted(package.rglob("*.py")) if (package / "__init__.py").exists() else []
        for path in [pathlib.Path(f"{top}.py"), *submodules]:
            if path.is_file():
                add(str(path))
    return dict(sorted(out.items()))


def write(
    job: Job, launcher: str, settings: Settings, rendered: Rendered, staged: dict[str, str], command: str
) -> list[str]:
    """Writes a job's folder.

    Args:
      job: what runs.
      launcher: its name, such as "slurm".
      settings: of the launcher.
      rendered: what the launcher made of the job.
      staged: the job's own files, see `stage`.
      command: the `adalink launch` command, as typed.

    Returns:
      The files that were written, relative to the folder.

    Raises:
      UserError: if the folder has another job that was submitted, or a job that is running on this machine.
    """
    folder = pathlib.Path(job.folder)
    previous = read(job.folder) if (folder / RECORD).exists() else None
    submission = previous.submitted if previous else None
    identity = {
        "name": job.name,
        "launcher": launcher,
        "arguments": job.arguments,
        "topology": job.topology.text,
        "array": job.array,
    }
    if previous and submission and any(getattr(previous, key) != value for key, value in identity.items()):
        raise UserError(
            f"{folder} has another job that was submitted ({submission.at}); give another --name or --folder."
        )
    running = [path for path in folder.glob("*.pid") if running_pid(path)]
    if running:  # Bash reads a script while it runs it
        raise UserError(
            f"{job.name} is running ({running[0]}); stop it with `adalink launch cancel {job.name}`, or give another --name."
        )
    checkout = code()
    resume = f"{rendered.resume}\n\nThe launch command was:\n\n  {command}\n"
    texts = rendered.files | {"resume.txt": resume}
    if checkout.diff:
        texts["tree.diff"] = checkout.diff
    # A file outside the current folder is copied to its absolute path under files/.
    texts |= {os.path.join("files", name.lstrip("/")): text for name, text in staged.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(epath.Path(folder / name), text)
    for name in set(previous.written if previous else ()) - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier job that was not submitted
    record = identity | {
        "launched_by": command,
        "version": __version__,
        "commit": checkout.commit,
        "changed": bool(checkout.diff),
        "untracked": checkout.untracked,
        "written_at": now(),
        "written": sorted(texts),
        "settings": dataclasses.asdict(settings),
        "files": sorted(staged),
        "submitted": submission and submission.model_dump(),
    }
    write_json(epath.Path(folder / RECORD), record)
    return sorted([*texts, RECORD])


def read(folder: str) -> JobRecord:
    """Reads a job's record.

    Args:
      folder: the job's folder, or its name.

    Raises:
      UserError: if there is no such job, or its record is damaged.
    """
    for path in (pathlib.Path(folder), pathlib.Path(HOME, folder)):
        if (path / RECORD).is_file():
            record = _upgraded(read_object(epath.Path(path / RECORD), _REMEDY)) | {"folder": str(path)}
            launcher = as_form(record, _Launched, f"{path / RECORD}", _REMEDY).launcher
            return as_form(record, _RECORDS[launcher], f"{path / RECORD}", _REMEDY)
    known = sorted(path.parent.name for path in pathlib.Path(HOME).glob(f"*/{RECORD}"))
    hint = f"jobs in {HOME}: {', '.join(known)}" if known else f"{HOME} has no jobs"
    raise UserError(f"There is no job {folder}: neither {folder}/{RECORD} nor {HOME}/{folder}/{RECORD}; {hint}.")


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record, with the name of an existing TPU slice among the settings. Version 0.1 wrote it as part of a command."""
    match record:
        case {
            "settings": {**settings},
            "commands": {"status": [["gcloud", "compute", "tpus", "tpu-vm", "describe", name, *_]]},
        }:
            return record | {"settings": {"tpu": name} | settings}
    return record


def submitted(folder: str, **facts: str) -> None:
    """Records that a job was submitted, with `facts` such as its `id`."""
    path = epath.Path(read(folder).folder) / RECORD
    write_json(path, read_object(path, _REMEDY) | {"submitted": {"at": now(), **facts}})


def note_process(path: pathlib.Path, pid: int) -> None:
    """Writes a pid file, see `Process`."""
    write_json(epath.Path(path), {"pid": pid, "began": psutil.Process(pid).create_time()})


def running_pid(path: pathlib.Path) -> int | None:
    """The process that a pid file names, if it is still running."""
    with contextlib.suppress(psutil.Error, UserError):
        noted = read_form(epath.Path(path), Process)
        process = psutil.Process(noted.pid)
        if process.create_time() == noted.began and process.is_running():
            return process.pid
    return None


def now() -> str:
    """The time in UTC, in ISO format."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
