"""The description of a job, and what every launcher makes of it. Nothing here runs or writes anything."""

import ast
import dataclasses
import os
import re

from adalink_jax import configuration
from adalink_jax.errors import UserError
from adalink_jax.parallel.accelerators import Topology

# Commands that several processes run together (`cli.arguments.add_processes`), and those that write into MODEL_DIR.
SEVERAL = ("quickstart", "train", "eval", "cache-vision")
WRITING = ("quickstart", "train", "pack", "tune", "compare", "sweep")
ARRAY_INDEX = "ADALINK_ARRAY_INDEX"
_MEETING = ("--multiprocess", "--coordinator_address", "--process_count", "--process_index")
_LABEL = 63  # the longest name in DNS, hence in Kubernetes and Google Cloud


@dataclasses.dataclass(frozen=True)
class Job:
    """What runs, and on what.

    Attributes:
      name: a DNS label, the same everywhere: Slurm's job, the queued resource, the JobSet.
      arguments: an `adalink` command and its arguments, as they would be typed.
      topology: the chips of the whole job.
      folder: where its files are written, as typed.
      array: elements that run the same command, each told its number by ADALINK_ARRAY_INDEX; None for one that knows none.

    Raises:
      UserError: for a name that is no DNS label, an array of nothing, or of trainings into one MODEL_DIR, flags that a launcher
        gives.
    """

    name: str
    arguments: tuple[str, ...]
    topology: Topology
    folder: str
    array: int | None = None

    def __post_init__(self):
        check_label(self.name)
        if re.search(r"[\s%\"'\\$]", self.folder):
            raise UserError(
                f"The folder {self.folder!r} must have no spaces, quotes, %, $ or backslashes; give another --folder."
            )
        for word in self.arguments:
            if word.partition("=")[0] in _MEETING:
                raise UserError(f"{word} is given by the launcher; leave it out.")
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
        """What its arguments say of gin."""
        return configuration.parse_flags(self.arguments[1:])[0]

    @property
    def model_dir(self) -> str | None:
        """The folder that it writes, if its command line names one."""
        return model_dir_of(self.arguments)

    def words(self, processes: int = 1, *options: str) -> list[str]:
        """The command for each process.

        Args:
          processes: of the job; several find each other by the cluster, unless `options` says where.
          *options: further ones.

        Raises:
          UserError: for several processes of a command that runs in one.
        """
        check_processes(self, processes)
        more = list(options) if processes > 1 else []
        if processes > 1 and not options:
            more.append("--multiprocess")
        if self.command in ("train", "quickstart") and "NUM_DEVICES" not in dict(self.flags.bindings):
            more.append(f"--gin.NUM_DEVICES={self.topology.chips}")
        return ["adalink", *self.arguments, *more]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What a launcher makes of a job.

    In commands, `{id}` stands for what the submission printed.

    Attributes:
      files: name in the job's folder -> text.
      main: the file that is shown.
      submit: the command that submits it; none for processes of this machine.
      status: commands that tell its state; the first that has an answer is enough.
      logs: a command that prints its output; None where that comes in files `*.log` of the job's folder.
      cancel: the command that stops it.
      resume: how to go on after an end, in a few sentences.
    """

    files: dict[str, str]
    main: str
    submit: tuple[str, ...]
    status: tuple[tuple[str, ...], ...]
    logs: tuple[str, ...] | None
    cancel: tuple[str, ...]
    resume: str


def check_processes(job: Job, processes: int) -> None:
    """Refuses several processes of a command that runs in one."""
    if processes > 1 and job.command not in SEVERAL:
        raise UserError(
            f"`{job.command}` runs in one process, and {job.topology.text} needs {processes}; give it one host, or use {', '.join(SEVERAL)}."
        )


def check_label(name: str, longest: str | None = None) -> None:
    """Refuses what is no DNS label.

    Args:
      name: of a job.
      longest: the longest name that is made of it; None for itself.

    Raises:
      UserError: says what a name may be.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UserError(
            f"The name {name!r} must be lower-case letters, digits and -, beginning with a letter; give another --name."
        )
    over = len(longest or name) - _LABEL
    if over > 0:
        made = f", of which {longest} is made," if longest else ""
        raise UserError(
            f"The name {name!r}{made} is {over} characters too long (names have {_LABEL}); give a shorter --name."
        )


def string(text: str | None) -> str | None:
    """The value of a binding that is a plain string; None for any other, such as a macro."""
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


def model_dir_of(arguments: tuple[str, ...]) -> str | None:
    """The folder that a command writes, if its command line names one."""
    flags, rest = configuration.parse_flags(arguments[1:])
    for option, after in zip(rest, [*rest[1:], None]):  # of `adalink quickstart`
        if option.partition("=")[0] == "--model_dir":
            return option.partition("=")[2] or after
    return string(dict(flags.bindings).get("MODEL_DIR"))


def default_name(arguments: tuple[str, ...]) -> str:
    """A name made of the folder that a job writes, else of its command."""
    base = os.path.basename((model_dir_of(arguments) or "").rstrip("/")) or arguments[0]
    return re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-").lstrip("0123456789-") or arguments[0]


def shared_model_dir(job: Job, why: str) -> None:
    """Refuses a folder that is on one machine only.

    Args:
      job: whose MODEL_DIR it is.
      why: the end of the sentence.

    Raises:
      UserError: where MODEL_DIR is not named, or is no bucket's.
    """
    if job.command in WRITING and not (job.model_dir or "").startswith("gs://"):
        raise UserError(f"MODEL_DIR is {job.model_dir!r}; give --gin.MODEL_DIR=\"'gs://BUCKET/...'\", {why}.")
