"""A job's folder: what ran, with which code and files, and how to resume it.

`job.json` is written when the job is rendered, and again when it is submitted; `control` needs nothing else. The job's own files (gin
files as typed, and the modules of the current folder that they import) are copied to `files/`.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import subprocess
from typing import Any, TypedDict

import psutil
from etils import epath

from adalink_jax.configuration import GinFlags, gin_files, gin_root
from adalink_jax.errors import UserError
from adalink_jax.files.whole_file import read_json, write_json, write_text
from adalink_jax.launching import Settings
from adalink_jax.launching.job import Job, Rendered, string
from adalink_jax.version import __version__

RECORD = "job.json"
HOME = os.path.join("runs", "launch")
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import|import\s+([\w.]+))", re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\s+['\"](.+?)['\"]", re.MULTILINE)
_MODULE = re.compile(r"mixture_or_task_module\s*=\s*['\"]([\w.]+)['\"]")


class Commands(TypedDict):
    """A job's commands in `job.json`, see `job.Rendered`."""

    submit: list[str]
    status: list[list[str]]
    logs: list[str] | None
    cancel: list[str]


class JobRecord(TypedDict):
    """What this package reads of `job.json`, which `write` and `submitted` make; and `folder`, which `read` adds."""

    name: str
    written: list[str]
    commands: Commands
    submitted: dict[str, str] | None
    folder: str


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
    submission = previous.get("submitted") if previous else None
    identity = {
        "name": job.name,
        "launcher": launcher,
        "arguments": list(job.arguments),
        "topology": job.topology.text,
        "array": job.array,
    }
    if previous and submission and any(previous.get(key) != value for key, value in identity.items()):
        raise UserError(
            f"{folder} has another job that was submitted ({submission['at']}); give another --name or --folder."
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
    for name in set(previous.get("written", ()) if previous else ()) - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier job that was not submitted
    commands = dataclasses.asdict(rendered)
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
        "commands": {name: commands[name] for name in ("submit", "status", "logs", "cancel")},
        "submitted": submission,
    }
    write_json(epath.Path(folder / RECORD), record)
    return sorted([*texts, RECORD])


def read(folder: str) -> JobRecord:
    """Reads a job's record.

    Args:
      folder: the job's folder, or its name.

    Raises:
      UserError: if there is no such job.
    """
    for path in (pathlib.Path(folder), pathlib.Path(HOME, folder)):
        if (path / RECORD).is_file():
            return json.loads((path / RECORD).read_text()) | {"folder": str(path)}
    known = sorted(path.parent.name for path in pathlib.Path(HOME).glob(f"*/{RECORD}"))
    hint = f"jobs in {HOME}: {', '.join(known)}" if known else f"{HOME} has no jobs"
    raise UserError(f"There is no job {folder}: neither {folder}/{RECORD} nor {HOME}/{folder}/{RECORD}; {hint}.")


def submitted(folder: str, **facts: str) -> None:
    """Records that a job was submitted, with `facts` such as its `id`."""
    record: dict[str, Any] = {**read(folder)}
    path = epath.Path(record.pop("folder")) / RECORD
    write_json(path, record | {"submitted": {"at": now(), **facts}})


def note_process(path: pathlib.Path, pid: int) -> None:
    """Writes a pid file: the process's number, and its start time, since numbers are reused."""
    write_json(epath.Path(path), {"pid": pid, "began": psutil.Process(pid).create_time()})


def running_pid(path: pathlib.Path) -> int | None:
    """The process that a pid file names, if it is still running."""
    if noted := read_json(epath.Path(path)):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(noted["pid"])
            if process.create_time() == noted["began"] and process.is_running():
                return process.pid
    return None


def now() -> str:
    """The time in UTC, in ISO format."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
