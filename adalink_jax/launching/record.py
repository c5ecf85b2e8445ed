"""What a job's folder records: what was run, of which code, with which files, and how to go on.

`job.json` is written when the job is rendered, and again when it is submitted; the commands that it holds are all that `control`
needs. The job's own files (gin files as typed, and the modules of the current folder that they import) are copied to `files/`.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import re
import subprocess

import psutil

from adalink_jax.configuration import GinFlags, gin_files, gin_root
from adalink_jax.errors import UserError
from adalink_jax.launching.job import Job, Rendered, string
from adalink_jax.version import __version__

RECORD = "job.json"
HOME = os.path.join("runs", "launch")
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import|import\s+([\w.]+))", re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\s+['\"](.+?)['\"]", re.MULTILINE)
_MODULE = re.compile(r"mixture_or_task_module\s*=\s*['\"]([\w.]+)['\"]")


@dataclasses.dataclass(frozen=True)
class Code:
    """The code that a job is launched with.

    Attributes:
      commit: of the checkout that this package is run from; None for an installed package.
      diff: from that commit to the files as they are.
      untracked: files there that git does not know.
    """

    commit: str | None
    diff: str
    untracked: tuple[str, ...]


def code() -> Code:
    """What git says of the checkout, if this is one."""
    root = gin_root().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, errors="replace")
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
    """The job's own files: gin files that are typed, those that they include, modules of the current folder that they import.

    Returns:
      Path -> text. Paths are relative to the current folder, absolute where a file lies elsewhere. Files that this package
      ships are left out.

    Raises:
      UserError: for a gin file that is not there.
    """
    out, modules = {}, []

    def add(path: str) -> str | None:
        name = os.path.relpath(path)
        name = os.path.abspath(path) if name.startswith("..") else name
        if name in out:
            return None
        out[name] = pathlib.Path(path).read_text()
        return out[name]

    def add_gin(name: str) -> None:
        path = gin_files.find(name, flags.search_paths)
        if pathlib.Path(path).resolve().is_relative_to(gin_root().resolve()):
            return
        text = add(path)
        if text is not None:
            modules.extend(first or second for first, second in _IMPORT.findall(text))
            modules.extend(_MODULE.findall(text))
            for each in _INCLUDE.findall(text):
                add_gin(each)

    for name in flags.files:
        add_gin(name)
    modules += filter(None, (string(text) for name, text in flags.bindings if name.endswith("mixture_or_task_module")))
    while modules:
        top = modules.pop().split(".")[0]
        package = pathlib.Path(top)
        # The package itself, where it is run from its own checkout, comes to other machines as a wheel.
        if top == "adalink_jax":
            continue
        for path in [
            pathlib.Path(f"{top}.py"),
            *(sorted(package.rglob("*.py")) if (package / "__init__.py").exists() else ()),
        ]:
            text = add(str(path)) if path.is_file() else None
            if text is not None:
                modules += [first or second for first, second in _IMPORT.findall(text)]
    return dict(sorted(out.items()))


def write(job: Job, launcher: str, settings, rendered: Rendered, staged: dict[str, str], command: str) -> list[str]:
    """Writes a job's folder.

    Args:
      job: what runs.
      launcher: which kind of machine.
      settings: of that launcher.
      rendered: what it made of the job.
      staged: the job's own files.
      command: the `adalink launch` command, as typed.

    Returns:
      The files that were written, relative to the folder.

    Raises:
      UserError: if the folder holds another job that was submitted, or one that runs on this machine.
    """
    folder = pathlib.Path(job.folder)
    before = read(job.folder) if (folder / RECORD).exists() else {}
    same = {
        "name": job.name,
        "launcher": launcher,
        "arguments": list(job.arguments),
        "topology": job.topology.text,
        "array": job.array,
    }
    if before.get("submitted") and any(before.get(key) != value for key, value in same.items()):
        raise UserError(
            f"{folder} holds another job that was submitted ({before['submitted']['at']}); give another --name or --folder."
        )
    running = [path for path in folder.glob("*.pid") if alive(path)]
    if running:  # Bash reads a script while it runs it
        raise UserError(
            f"{job.name} runs ({running[0]}); stop it by `adalink launch cancel {job.name}`, or give another --name."
        )
    found = code()
    resume = f"{rendered.resume}\n\nThe launch command was:\n\n  {command}\n"
    texts = rendered.files | {"resume.txt": resume}
    if found.diff:
        texts["tree.diff"] = found.diff
    # A file that lies elsewhere is kept under its whole path.
    texts |= {os.path.join("files", name.lstrip("/")): text for name, text in staged.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in set(before.get("written", ())) - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of a job that was not submitted
    commands = dataclasses.asdict(rendered)
    record = same | {
        "launched_by": command,
        "version": __version__,
        "commit": found.commit,
        "changed": bool(found.diff),
        "untracked": found.untracked,
        "written_at": now(),
        "written": sorted(texts),
        "settings": dataclasses.asdict(settings),
        "files": sorted(staged),
        "commands": {name: commands[name] for name in ("submit", "status", "logs", "cancel")},
        "submitted": before.get("submitted"),
    }
    _write_record(folder, record)
    return sorted([*texts, RECORD])


def read(folder: str) -> dict:
    """The record of a job's folder, or of a job's name.

    Raises:
      UserError: if there is none.
    """
    for path in (pathlib.Path(folder), pathlib.Path(HOME, folder)):
        if (path / RECORD).is_file():
            return json.loads((path / RECORD).read_text()) | {"folder": str(path)}
    known = sorted(path.parent.name for path in pathlib.Path(HOME).glob(f"*/{RECORD}"))
    hint = f"there are: {', '.join(known)}" if known else f"{HOME} has none"
    raise UserError(f"There is no job {folder}: neither {folder}/{RECORD} nor {HOME}/{folder}/{RECORD}; {hint}.")


def submitted(folder: str, **facts) -> None:
    """Adds to a record that the job was submitted, and what is known of it then, such as its `id`."""
    record = read(folder)
    path = pathlib.Path(record.pop("folder"))
    _write_record(path, record | {"submitted": {"at": now(), **facts}})


def note_process(path: pathlib.Path, pid: int) -> None:
    """Writes a pid file: the process's number, and when it began, as numbers are given again."""
    path.write_text(json.dumps({"pid": pid, "began": psutil.Process(pid).create_time()}) + "\n")


def alive(path: pathlib.Path) -> int | None:
    """The process that a pid file names, if it runs."""
    try:
        noted = json.loads(path.read_text())
        process = psutil.Process(noted["pid"])
        return process.pid if process.create_time() == noted["began"] and process.is_running() else None
    except (FileNotFoundError, json.JSONDecodeError, psutil.Error):
        return None


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write_record(folder: pathlib.Path, record: dict) -> None:
    new = folder / f"{RECORD}.new"  # never half a record, also while another process reads it
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(folder / RECORD)
