"""`adalink plan --search`: what arithmetic says of a job, and which candidates a search compiles."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is part of the extra `plan`")

from adalink_jax import configuration  # noqa: E402
from adalink_jax.cli.arguments import register  # noqa: E402
from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.parallel.accelerators import parse_topology  # noqa: E402
from adalink_jax.planning import attempts  # noqa: E402
from adalink_jax.planning.arithmetic import Arithmetic, Choice, typed_choice  # noqa: E402
from adalink_jax.planning.configured_job import configured_job  # noqa: E402
from adalink_jax.planning.search import LIMIT, Tried, search  # noqa: E402

SMALL = ["--gin_file=gin/models/t5_1_1_small.gin", "--gin_file=gin/adapters/adalink.gin"]


def job_of(*flags):
    register()
    parsed, _ = configuration.parse_flags([*SMALL, *flags])
    configuration.load(parsed, extra_files=("gin/runs/plan.gin",))
    return configured_job()


def guessed(arithmetic, topology, choice) -> Any:
    return arithmetic.guess(parse_topology(topology), choice)


@dataclasses.dataclass
class Machine:
    """Stands for the compiler: a plan by arithmetic, with more memory and time than that says.

    Attributes:
      arithmetic: guesses of the job.
      memory, temporaries: bytes more than guessed, and times as many temporaries (of a choice).
      evaluation: bytes of an evaluation beside the arguments, on all devices together.
      gathered: bytes more of an evaluation under FSDP, unless DECODER_WEIGHTS is 'sharded'.
      slower: how many times as long a step takes as guessed (of a choice).
      evaluating: seconds of all evaluations of the job (of a choice).
      refuses: whether it refuses what does not fit, as TPUs' compiler does, and so says nothing of its time.
      refused: REMATs that the job refuses.
    """

    arithmetic: Arithmetic
    memory: float = 0.0
    evaluation: float = 0.0
    gathered: float = 0.0
    slower: Callable[[Choice], float] = lambda _: 1.5
    evaluating: Callable[[Choice], float] = lambda _: 0.0
    temporaries: Callable[[Choice], float] = lambda _: 1.0
    refuses: bool = False
    refused: tuple[str, ...] = ()

    def __post_init__(self):
        self.typed, self.compiled = typed_choice(self.arithmetic.job, 1, False), []

    def plan(self, settings, topology) -> Any:
        of: Any = parse_topology(topology)
        values = {name: eval(text) for name, text in settings.items()}  # noqa: S307  our own texts
        names = {"make_mesh.model": "model", "logical_axis_rules.fsdp": "fsdp", "REMAT": "remat"}
        names |= {"MICROBATCHES": "microbatches", "FROZEN_DTYPE": "dtype"}
        known = {names[name]: value for name, value in values.items() if name in names}
        choice = Choice(**{**vars(self.typed), **known})
        if choice.remat in self.refused:
            return None
        guess = guessed(self.arithmetic, topology, choice)
        needed = guess.arguments + self.temporaries(choice) * guess.temporaries + self.memory
        seconds = guess.seconds * self.slower(choice)
        evaluation = guess.arguments + self.evaluation / of.devices
        evaluation += self.gathered if choice.fsdp and "DECODER_WEIGHTS" not in values else 0
        memory = of.accelerator.memory
        plan = {
            "topology": topology, "fits": max(needed, evaluation) <= memory, "hbm_bytes": needed,
            "eval_hbm_bytes": evaluation, "hbm_limit_bytes": memory, "compiler": "another",
            "compiler_flags": "none", "compile_seconds": 1.0, "estimated_step_seconds": seconds,
            "estimated_job_hours": (self.arithmetic.job.total_steps * seconds + self.evaluating(choice)) / 3600,
        }  # fmt: skip
        unknown = {"eval_hbm_bytes": None, "estimated_step_seconds": None, "estimated_job_hours": None}
        if guess.arguments > memory:  # nothing is compiled
            return plan | unknown | {"compile_seconds": 0.0, "hbm_bytes": guess.arguments}
        return plan | unknown if self.refuses and needed > memory else plan

    def attempt(self, wanted):
        self.compiled += wanted
        return [self.plan(*one) for one in wanted]

    def search(self, topology, at_once=2):
        return [*search(self.plan({}, topology), self.arithmetic, self.typed, self.attempt, at_once)]


def test_arithmetic_has_the_compiled_arguments_and_about_its_temporaries(capsys):
    flags = ["--gin.BATCH_SIZE=64", "--gin.REMAT='frozen'", "--gin.FROZEN_DTYPE='bfloat16'"]
    assert main(["plan", *SMALL, *flags, "--topology", "v5e:1x1", "--json", "--quick"]) == 0
    plan = json.loads(capsys.readouterr().out)
    job = job_of(*flags)
    guess = guessed(Arithmetic(job), "v5e:1x1", typed_choice(job, 1, False))
    arguments = plan["frozen_bytes"] + plan["trainable_bytes"] + plan["optimizer_bytes"]
    assert guess.arguments == arguments
    assert 0.5 * plan["temp_bytes"] < guess.temporaries < 2 * plan["temp_bytes"]
    assert 0.5 * plan["estimated_compute_seconds"] < guess.seconds < 2 * plan["estimated_step_seconds"]


@functools.cache
def arithmetic_of(*flags):
    return Arithmetic(job_of(*flags))


def optimum(machine, topology):
    """The least seconds of a step of all settings that fit and leave the model's numbers as they are."""
    rows, chips = machine.arithmetic.job.setup.data.batch_size, parse_topology(topology).devices
    choices = [
        Choice(model, fsdp, remat, 2**i, machine.typed.dtype)
        for model in (1, 2, 4, 8) for fsdp in (False, True) for remat in ("none", "frozen", "full") for i in range(11)
        if model <= chips and 2**i * chips // model <= rows
    ]  # fmt: skip
    choices = [choice for choice in choices if guessed(machine.arithmetic, topology, choice)]
    plans = [machine.plan(choice.settings(machine.typed), topology) for choice in choices]
    return min(plan["estimated_step_seconds"] for plan in plans if plan and plan["fits"])


def best_of(tried, figure="estimated_step_seconds"):
    return min((one for one in tried if one.plan["fits"]), key=lambda one: one.plan[figure])


BFLOAT16 = "--gin.FROZEN_DTYPE='bfloat16'"
LONG = "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"
LARGE_JOB = ("--gin.BATCH_SIZE=1024", LONG, BFLOAT16)
XXL_JOB = (
    "--gin_file=gin/models/t5_1_1_xxl.gin",
    "--gin_file=gin/adapters/adalink.gin",
    "--gin.BATCH_SIZE=8",
    BFLOAT16,
)
PLAIN_JOB = ("--gin.BATCH_SIZE=64", BFLOAT16)
FROZEN_JOB = (*PLAIN_JOB, "--gin.REMAT='frozen'")


@pytest.mark.parametrize("slower, programs", [(1.0, 0), (1.5, 1)])
def test_what_fits_as_fast_as_arithmetic_allows_needs_no_other_program(slower, programs):
    """Otherwise REMATs whose guesses are faster are tried once: they may be right."""
    machine = Machine(arithmetic_of(*FROZEN_JOB), slower=lambda _: slower)
    assert len(machine.search("v5e:1x1")) == programs


def test_the_fastest_that_fits_is_found_by_few_programs_and_keeps_the_numbers():
    machine = Machine(arithmetic_of(*LARGE_JOB), memory=2e9)
    tried = machine.search("v5e:1x1")
    assert len(tried) <= 5 and not machine.plan({}, "v5e:1x1")["fits"]
    best = best_of(tried)
    assert best.topology == "v5e:1x1" and not {"FROZEN_DTYPE", "logical_axis_rules.fsdp"} & best.settings.keys()
    assert best.plan["estimated_step_seconds"] <= 1.05 * optimum(machine, "v5e:1x1")


def test_fewer_bits_come_where_nothing_else_fits_and_larger_slices_last():
    arithmetic = arithmetic_of(*XXL_JOB)
    tried = Machine(arithmetic).search("v5e:1x1")
    assert {(one.topology, one.settings.get("FROZEN_DTYPE")) for one in tried} == {("v5e:1x1", "'int8'")}
    tried = Machine(arithmetic, memory=11e9).search("v5e:1x1")
    fits = [one for one in tried if one.plan["fits"]]
    assert fits and len(tried) <= LIMIT
    assert all(one.topology != "v5e:1x1" and "FROZEN_DTYPE" not in one.settings for one in fits)


def test_an_evaluation_that_is_too_large_is_not_compiled_again_and_again():
    """Its memory depends on BATCH_SIZE, and no REMAT and no microbatches change it."""
    machine = Machine(arithmetic_of(*PLAIN_JOB), evaluation=30e9)
    tried = machine.search("v5e:1x1", at_once=1)
    assert {one.topology for one in tried} == {"v5e:2x2"} and tried[-1].plan["fits"]


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_evaluations_that_fit_only_with_sharded_weights_get_them(at_once):
    """Only FSDP is fast, and leaves room for the weights, but not for a whole copy of them."""
    machine = Machine(
        arithmetic_of(*XXL_JOB, "--gin.BATCH_SIZE=256"), gathered=40e9, slower=lambda choice: choice.model
    )
    best = best_of(machine.search("v5e:2x2", at_once))
    assert best.settings["DECODER_WEIGHTS"] == "'sharded'" and "make_mesh.model" not in best.settings


def test_of_two_meshes_the_one_with_the_faster_job_is_found_whatever_its_step():
    """The typed mesh has the fastest steps, but evaluations that take as long as all of its steps."""
    machine = Machine(arithmetic_of(*FROZEN_JOB), slower=lambda _: 1.0)
    steps = machine.arithmetic.job.total_steps * guessed(machine.arithmetic, "v5e:2x2", machine.typed).seconds
    machine.evaluating = lambda choice: 3 * steps if choice.model == 1 and not choice.fsdp else 0.0
    first = machine.plan({}, "v5e:2x2")
    best = best_of(machine.search("v5e:2x2"), "estimated_job_hours")
    assert best.plan["estimated_job_hours"] < 0.9 * first["estimated_job_hours"]
    assert best.plan["estimated_step_seconds"] >= first["estimated_step_seconds"]


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("saved", [1.0, 1.5])
def test_guesses_that_are_wrong_for_a_remat_or_a_mesh_do_not_hide_the_fastest(saved, at_once, refuses):
    """As of T5Gemma 2 4b on 8 H100s: what is saved is slow to move, REMAT 'frozen' needs twice the bytes, a larger `model` is slower."""
    flags = ("--gin_file=gin/models/t5_1_1_xl.gin", "--gin_file=gin/adapters/adalink.gin", "--gin.BATCH_SIZE=256")
    machine = Machine(
        arithmetic_of(*flags, LONG),
        slower=lambda choice: {"none": 15, "frozen": 11, "full": 6.6}[choice.remat] * choice.model**0.2,
        temporaries=lambda choice: saved * {"none": 1, "frozen": 2, "full": 1}[choice.remat],
        refuses=refuses,
    )
    tried = machine.search("v6e:2x4", at_once)
    assert not machine.plan({}, "v6e:2x4")["fits"] and len(tried) <= LIMIT
    assert best_of(tried).plan["estimated_step_seconds"] <= 1.02 * optimum(machine, "v6e:2x4")


def test_programs_that_are_all_faster_than_guessed_do_not_end_a_search():
    machine = Machine(arithmetic_of(*PLAIN_JOB), slower=lambda _: 0.5)
    tried = [Tried({}, "v5e:2x2", machine.plan({}, "v5e:2x2")), *machine.search("v5e:2x2")]
    assert best_of(tried).plan["estimated_step_seconds"] <= 1.02 * optimum(machine, "v5e:2x2")


def test_remats_that_the_job_refuses_are_tried_once():
    machine = Machine(arithmetic_of(*LARGE_JOB), refused=("frozen", "full"))
    tried = machine.search("v5e:1x1")
    assert len(machine.compiled) == len(tried) + 2 and best_of(tried).settings.keys() == {"MICROBATCHES"}


@pytest.mark.slow
def test_a_plan_is_kept_for_the_next_search_of_the_same_job(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    register()
    flags, _ = configuration.parse_flags(["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin"])
    show = lambda *_: None
    refused = flags.binding("MICROBATCHES", "3")  # 128 rows do not divide
    plan, none = attempts.attempt_all([flags, refused], ["v5e:1x1"] * 2, ["--quick"], show)
    assert none is None and plan is not None and plan["fits"] and plan["topology"] == "v5e:1x1"
    monkeypatch.setattr(attempts.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert attempts.attempt_all([flags], ["v5e:1x1"], ["--quick"], show) == [plan]
    with pytest.raises(pytest.fail.Exception):
        attempts.attempt_all([flags.binding("BATCH_SIZE", "64")], ["v5e:1x1"], ["--quick"], show)
