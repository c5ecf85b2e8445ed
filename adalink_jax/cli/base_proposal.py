"""Which base `adalink init` takes: the typed one, or a public one that fits the task, this machine's memory, and an hour.

Every base is judged by the command that `init` would print for it: the command's own configuration is planned (`planning.plan`) for this
machine's memory and measured speed. Of a listed base its configuration and tokenizer are downloaded; of another one of the Hub its headers are
read too (`checkpoints.open_source`).
"""

import dataclasses
import functools
import os
import shlex
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalink_jax import configuration
from adalink_jax.cli.public_bases import FOR_PICTURES, FOR_TEXT, GATED_FOR_TEXT, Base
from adalink_jax.errors import CheckpointError, GatedError, UserError
from adalink_jax.files.places import path_of

if TYPE_CHECKING:
    from adalink_jax.data.user_files.column_guess import Guess
    from adalink_jax.data.user_files.task_draft import Draft
    from adalink_jax.parallel.accelerators import Topology
    from adalink_jax.planning.plan import Plan
    from adalink_jax.training.setup import Setup

IMAGE = "<start_of_image>"  # where a picture stands in a text
BUNDLED = "bundled:pali_nano_instruct"
ADAPTER, RUN = "gin/adapters/adalink.gin", "gin/runs/finetune.gin"
MOST_RANK, RANK_OF_WIDTH = 64, 4  # RANK is at most a quarter of the width
LEAST_STEPS, MOST_STEPS, EPOCHS = 100, 2000, 3
MOST_HOURS = 1.0
START_HOURS = 1 / 60  # imports, data, base, compilation, baselines
OF_THE_MEMORY = 0.8  # a job may take this share of what is free
# On a CPU a step's temporaries are allocated anew each time while freed pages are kept (`host_memory`): measured, up to twice as much.
HELD_BY_CPU, PROCESS_BYTES = 2, 3 * 10**9 // 2


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A base with the task and the command that fit it.

    Attributes:
      base: the base.
      setup: of its gin file.
      draft: the task.
      doubts: what was chosen for this base, for the user.
      command: the arguments of `adalink train`, without the task's file.
      plan: what the command needs on this machine and how fast it can be; None if it was not planned.
    """

    base: Base
    setup: "Setup"
    draft: "Draft"
    doubts: tuple[str, ...]
    command: tuple[str, ...]
    plan: "Plan | None"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of every base.

    Attributes:
      guess: the task's settings that the data shows.
      name: of the task.
      run: of the run's folder in `runs`.
      vocabulary: the one typed; None for the base's own.
      machine: where the command would run; None to plan nothing.
    """

    guess: "Guess"
    name: str
    run: str
    vocabulary: str | None
    machine: "Topology | None"

    @property
    def has_images(self) -> bool:
        """Whether the rows have pictures."""
        return "image" in self.guess.settings


def typed_base(path: str, model: str | None, request: Request) -> Prepared:
    """The base that the user named.

    Args:
      path: as INITIAL_CHECKPOINT_PATH takes it.
      model: its gin file; None for the one of gin/models that fits.
      request: see there.

    Raises:
      UserError: if it cannot be used for the task.
    """
    from adalink_jax import checkpoints
    from adalink_jax.serving import shipped
    from adalink_jax.serving.opening import model_file, vocabulary_of

    listed = next((base for base in (*FOR_TEXT, *GATED_FOR_TEXT, *FOR_PICTURES) if base.path == path), None)
    if listed is None:
        listed = Base(path, model or model_file(path, "name its gin file with --model"), vocabulary_of(path))
    if model is not None:
        flags, _ = configuration.parse_flags([f"--gin_file={model}"])
        backbone = shipped.configured_backbone(flags)
        try:
            shipped.check_model(checkpoints.open_source(path, download=False), backbone)
        except CheckpointError as e:
            raise UserError(f"{model} (--model) is not the model of {path}; name the file that fits it. {e}") from e
    changes = {"model": model or listed.model, "vocabulary": request.vocabulary or listed.vocabulary}
    return _prepared(dataclasses.replace(listed, **changes), request)


def proposed_base(request: Request) -> Prepared:
    """The largest public base that fits this machine and takes at most an hour; otherwise the smallest available one.

    Raises:
      UserError: if none is available, or none fits.
    """
    remaining = list(FOR_PICTURES if request.has_images else FOR_TEXT)
    smallest, refused = _first(remaining, request)
    if smallest is None:
        raise UserError(f"Every public base for this task is gated. {refused[0]} {_OR_BUNDLED}")
    if smallest.plan is None:
        return smallest
    if not smallest.plan.fits:
        raise UserError(
            f"{smallest.base.path} needs {needed_bytes(smallest.plan) / 1e9:.1f} GB, more than is free here; use a larger machine. {_OR_BUNDLED}"
        )
    for base in reversed(remaining):
        times = (base.parameters or 0) / (smallest.base.parameters or 1)
        if times * hours(smallest.plan) > MOST_HOURS or times * smallest.plan.frozen_bytes > _memory(request):
            continue
        try:
            larger = _prepared(base, request)
        except GatedError:
            continue
        if larger.plan and larger.plan.fits and hours(larger.plan) <= MOST_HOURS:
            return larger
    return smallest


_OR_BUNDLED = f"A bundled model is for trying the commands on digits alone: --base {BUNDLED}."


def _first(remaining: list[Base], request: Request) -> tuple[Prepared | None, list[str]]:
    """The first of `remaining`, which become fewer, that is available; and why the ones before it are not."""
    refused = []
    while remaining:
        base = remaining.pop(0)
        try:
            return _prepared(base, request), refused
        except GatedError as e:
            refused.append(str(e))
        except CheckpointError as e:
            raise UserError(
                f"No public base can be proposed, since {e} Name a base on this machine with --base FOLDER. {_OR_BUNDLED}"
            ) from e
    return None, refused


def _memory(request: Request) -> int:
    return request.machine.accelerator.memory if request.machine and request.machine.accelerator else 0


def hours(plan: "Plan") -> float:
    """The estimated hours of the whole job, with its start."""
    from adalink_jax.planning.this_machine import SLOWER

    return START_HOURS + SLOWER * ((plan.estimate and plan.estimate.job_hours) or 0.0)


def needed_bytes(plan: "Plan") -> int:
    """The estimated memory of the job, in bytes per device; of a CPU the whole process's."""
    needed = max(plan.hbm_bytes, plan.eval_hbm_bytes or 0)
    return HELD_BY_CPU * needed + PROCESS_BYTES if plan.compiler == "cpu" else needed


def free_machine() -> "Topology":
    """This machine, with the memory that a plan may have so that its run takes `OF_THE_MEMORY` of what is free."""
    from adalink_jax.planning.this_machine import this_machine

    machine = this_machine()
    assert machine.accelerator is not None
    memory = int(OF_THE_MEMORY * machine.accelerator.memory)
    if machine.platform == "cpu":
        memory = max(memory - PROCESS_BYTES, 0) // HELD_BY_CPU
    return dataclasses.replace(machine, accelerator=dataclasses.replace(machine.accelerator, memory=memory))


def _prepared(base: Base, request: Request) -> Prepared:
    """Writes the task for a base, and plans the command that trains on it.

    Raises:
      UserError: if the base cannot be used for the task, or its vocabulary is not available.
    """
    import jax

    from adalink_jax.data.user_files import task_draft

    setup = _setup(base)
    if request.has_images and setup.image_shape is None:
        raise UserError(f"The data has pictures, and {base.model} takes none; name a base that does (--base, --model).")
    settings: dict[str, Any] = {**request.guess.settings, "vocabulary": base.vocabulary}
    doubts = []
    if setup.needs_images and not request.has_images:
        settings["blank_image"] = True
    backbone = setup.model.backbone
    if request.has_images and backbone.image_places is not None and IMAGE not in settings["inputs"]:
        settings["inputs"] = IMAGE + settings["inputs"]
        doubts.append(
            f"INPUTS begins with {IMAGE}, which is where this base reads the picture; move it in INPUTS, if it belongs elsewhere"
        )
    draft = _divided(task_draft.complete(settings, request.name), devices := jax.local_device_count())
    command = functools.partial(_command, base, draft, setup, request)
    microbatches, planned = 1, None
    for microbatches in (number for number in (1, 2, 4, 8, 16) if draft.batch_size % (devices * number) == 0):
        planned = _plan(draft, command(microbatches), request)
        if planned is None or planned.fits:
            break
    return Prepared(base, setup, draft, tuple(doubts), command(microbatches), planned)


def _divided(draft: "Draft", devices: int) -> "Draft":
    """The draft with a batch that divides over this machine's devices, at least a row each."""
    return dataclasses.replace(draft, batch_size=devices * max(1, draft.batch_size // devices))


def _setup(base: Base) -> "Setup":
    """The setup of a base's gin file, whose table has a row for each id of the vocabulary."""
    from adalink_jax.data import check_rows, load_vocabulary
    from adalink_jax.training.setup import Setup

    flags, _ = configuration.parse_flags([f"--gin_file={base.model}"])
    configuration.load(flags, require_all=False)
    configuration.require({"Setup.model": "a model's file, such as --model=gin/models/pali_nano.gin"})
    setup = Setup()  # pyright: ignore[reportCallIssue]  # gin supplies the model
    try:
        ids = load_vocabulary(base.vocabulary).vocab_size
        check_rows(f"The vocabulary {base.vocabulary}", ids, setup.model.backbone.config.vocab_size)
    except CheckpointError:
        raise
    except UserError as e:
        raise UserError(f"{e} (--vocabulary)") from e
    return setup


def _command(base: Base, draft: "Draft", setup: "Setup", request: Request, microbatches: int) -> tuple[str, ...]:
    """The arguments of `adalink train`; settings that the files have already are left out."""
    import jax

    rows = len(draft.loaded.splits["train"])
    steps = min(max(EPOCHS * rows // draft.batch_size, LEAST_STEPS), MOST_STEPS)
    config = setup.model.backbone.config
    on_cpu = jax.default_backend() == "cpu"
    rank = min(MOST_RANK, max(1, config.emb_dim // RANK_OF_WIDTH))
    bindings: dict[str, Any] = {
        "INITIAL_CHECKPOINT_PATH": base.path,
        "MODEL_DIR": f"runs/{request.run}",
        "TRAIN_STEPS": steps,
        "EVAL_PERIOD": -(-steps // 4),
    }
    if rank != MOST_RANK:
        bindings["RANK"] = rank
    if setup.image_shape is not None and not request.has_images:
        bindings["KINDS"] = ("text",)
    if microbatches > 1:
        bindings["MICROBATCHES"] = microbatches
    if not on_cpu:
        bindings["FROZEN_DTYPE"] = "bfloat16"
    files = tuple(f"--gin_file={file}" for file in (base.model, ADAPTER, RUN))
    return (*files, *(f"--gin.{name}={value!r}" for name, value in bindings.items()))


def _plan(draft: "Draft", command: Sequence[str], request: Request) -> "Plan | None":
    if request.machine is None:
        return None
    from adalink_jax.planning.configured_job import configured_job
    from adalink_jax.planning.plan import make_plan

    with tempfile.TemporaryDirectory() as folder:
        task = path_of(folder) / "task.gin"
        draft.write(task, "planned")
        flags, _ = configuration.parse_flags([f"--gin_file={os.fspath(task)}", *command])
        configuration.load(flags)
        return make_plan(configured_job(), request.machine, len(draft.loaded.splits["validation"]))


def shell_text(argument: str) -> str:
    """An argument of a command, quoted for a shell as in t5x's documentation."""
    name, equals, value = argument.partition("=")
    if not argument.startswith("--gin.") or not set(value) & set("'() "):
        return shlex.quote(argument)
    return f'{name}{equals}"{value}"' if not set(value) & set('"$`\\!') else f"{name}{equals}{shlex.quote(value)}"
