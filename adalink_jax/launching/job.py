"""`Job`, the description of a job, and `Rendered`, what every launcher makes of it. Pure: runs and writes nothing."""

import ast
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping

from adalink_jax import configuration
from adalink_jax.errors import UserError
from adalink_jax.launching.alphabets import Label, Path, Text, require
from adalink_jax.parallel.accelerators import Topology

# Commands that run in several processes (`cli.arguments.add_processes`), and commands that write to MODEL_DIR.
SEVERAL = ("quickstart", "train", "eval", "cache-vision")
WRITING = ("quickstart", "train", "pack", "tune", "compare", "sweep")
ARRAY_INDEX = "ADALINK_ARRAY_INDEX"
_COORDINATION = ("--multiprocess", "--coordinator_address", "--process_count", "--process_index")
_LABEL = 63  # most characters of a DNS label, hence of names in Kubernetes and Google Cloud


@dataclasses.dataclass(frozen=True)
class Job:
    """A command and the chips that it runs on.

    Attributes:
      name: a DNS label; the name of the Slurm job, the queued resource or the JobSet.
      arguments: an `adalink` command and its arguments, as they would be typed.
      topology: the chips of the whole job.
      folder: where the job's files are written, as typed.
      array: number of elements, which run the same command, each with its number in ADALINK_ARRAY_INDEX; None without an array.

    Raises:
      UserError: for a name that is not a DNS label, a folder or arguments outside their `alphabets`, an empty array, an array whose
        elements would share one MODEL_DIR, and flags that the launcher sets.
    """

    name: str
    arguments: tuple[str, ...]
    topology: Topology
    folder: str
    array: int | None = None

    def __post_init__(self):
        check_label(self.name)
        require(self.folder, Path, "--folder", "give another")
        for word in self.arguments:
            require(word, Text, "An argument of the command")
            if word.partition("=")[0] in _COORDINATION:
                raise UserError(f"{word} is set by the launcher; leave it out.")
        if self.array is not None and self.array < 1:
            raise UserError(f"--array={self.array} must be 1 or more.")
        if self.array is not None and self.command in ("train", "quickstart"):
            raise UserError(
                f"--array would run `{self.command}` {self.array} times into one MODEL_DIR; use `sweep --element`, which reads {ARRAY_INDEX}."
            )

    @property
    def command(self) -> str:
        """The `adalink` command."""
        return self.arguments[0]

    @property
    def flags(self) -> configuration.GinFlags:
        """The gin flags among its arguments."""
        return configuration.parse_flags(self.arguments[1:])[0]

    @property
    def model_dir(self) -> str | None:
        """The folder that it writes to, if its command line names one."""
        return model_dir_of(self.arguments)

    def words(self, processes: int = 1, *options: str) -> list[str]:
        """The command of each process.

        Args:
          processes: number of processes of the job.
          *options: flags by which several processes find each other; without any, JAX detects the cluster (--multiprocess).

        Raises:
          UserError: for several processes of a command that runs in one.
        """
        check_processes(self, processes)
        added = list(options or ["--multiprocess"]) if processes > 1 else []
        if self.command in ("train", "quickstart") and "NUM_DEVICES" not in dict(self.flags.bindings):
            added.append(f"--gin.NUM_DEVICES={self.topology.devices}")
        return ["adalink", *self.arguments, *added]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What a launcher makes of a job.

    Attributes:
      files: name in the job's folder -> text.
      main: the file that is printed.
      submit: the command that submits the job; empty for processes on this machine.
      resume: how to resume the job after it has ended, in a few sentences.
    """

    files: dict[str, str]
    main: str
    submit: tuple[str, ...]
    resume: str


@dataclasses.dataclass(frozen=True)
class Commands:
    """The commands that control a submitted job.

    Attributes:
      status: commands that query its status, tried in order until one prints something.
      logs: the command that prints its output; None if the output is in files `*.log` of the job's folder.
      cancel: the command that cancels it; empty if a signal to a process on this machine does.
      state: commands that print its state in words, tried in order; empty if its submission waits for its end.
      ends: words of a state in which it has ended, and whether it succeeded.
    """

    status: tuple[tuple[str, ...], ...] = ()
    logs: tuple[str, ...] | None = None
    cancel: tuple[str, ...] = ()
    state: tuple[tuple[str, ...], ...] = ()
    ends: Mapping[str, bool] = dataclasses.field(default_factory=dict)


def check_processes(job: Job, processes: int) -> None:
    """Checks that a command that runs in one process is given one.

    Raises:
      UserError: for several processes of such a command.
    """
    if processes > 1 and job.command not in SEVERAL:
        raise UserError(
            f"`{job.command}` runs in one process, and {job.topology.text} needs {processes}; give a TOPOLOGY of one host, or use one of "
            f"{', '.join(SEVERAL)}."
        )


def check_label(name: str, longest: str | None = None) -> None:
    """Checks that a job's name is a DNS label.

    Args:
      name: the job's name.
      longest: the longest name that is derived from it; None for itself.

    Raises:
      UserError: if it is not, or if `longest` is too long.
    """
    over = len(longest or name) - _LABEL
    if over > 0:
        derived = f", from which {longest} is derived," if longest else ""
        raise UserError(
            f"The name {name!r}{derived} is {over} characters too long (at most {_LABEL}); give a shorter --name."
        )
    require(name, Label, "--name", "give another")


def string(text: str | None) -> str | None:
    """The value of a binding that is a string literal; None for anything else, such as a macro."""
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


def model_dir_of(arguments: tuple[str, ...]) -> str | None:
    """The folder that a command writes to, if its command line names one."""
    flags, rest = configuration.parse_flags(arguments[1:])
    for option, after in zip(rest, [*rest[1:], None]):  # `adalink quickstart --model_dir`
        if option.partition("=")[0] == "--model_dir":
            return option.partition("=")[2] or after
    return string(dict(flags.bindings).get("MODEL_DIR"))


def default_name(arguments: tuple[str, ...]) -> str:
    """A job's name derived from the last part of the folder that it writes to, or from its command."""
    base = os.path.basename((model_dir_of(arguments) or "").rstrip("/")) or arguments[0]
    return re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-").lstrip("0123456789-") or arguments[0]


def check_shared_model_dir(job: Job, why: str) -> None:
    """Checks that a job that writes to MODEL_DIR names one in a bucket.

    Args:
      job: the job.
      why: the end of the error message.

    Raises:
      UserError: if MODEL_DIR is not named, or is on one machine.
    """
    if job.command in WRITING and not (job.model_dir or "").startswith("gs://"):
        raise UserError(f"MODEL_DIR is {job.model_dir!r}; give --gin.MODEL_DIR=\"'gs://BUCKET/...'\", {why}.")


def check_under_current_folder(staged: Iterable[str], hosts: str) -> None:
    """Checks that a job's own files can have the same relative paths on other machines.

    Args:
      staged: paths of `record.stage`.
      hosts: the other machines, for the error message.

    Raises:
      UserError: for the first file outside the current folder.
    """
    for name in staged:
        if os.path.isabs(name):
            raise UserError(
                f"{name} must be under the current folder, so that {hosts} find it by the same path; copy it here."
            )
