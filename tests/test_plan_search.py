"""`adalink plan --search`: what arithmetic says of a job, and which candidates a search compiles."""

import json
from typing import Any

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is part of the extra `plan`")

from adalink_jax import configuration  # noqa: E402
from adalink_jax.cli.arguments import register  # noqa: E402
from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.parallel.accelerators import ACCELERATORS, parse_topology  # noqa: E402
from adalink_jax.planning import attempts  # noqa: E402
from adalink_jax.planning.arithmetic import Arithmetic, Choice, typed_choice  # noqa: E402
from adalink_jax.planning.configured_job import configured_job  # noqa: E402
from adalink_jax.planning.search import LIMIT, search  # noqa: E402

SMALL = ["--gin_file=gin/models/t5_1_1_small.gin", "--gin_file=gin/adapters/adalink.gin"]


def job_of(*flags):
    register()
    parsed, _ = configuration.parse_flags([*SMALL, *flags])
    configuration.load(parsed, extra_files=("gin/runs/plan.gin",))
    return configured_job()


def guessed(arithmetic, topology, choice) -> Any:
    return arithmetic.guess(parse_topology(topology), choice)


class Machine:
    """Stands for the compiler: a plan by arithmetic, with more memory and time than that says.

    Attributes:
      memory, temporaries: bytes more than guessed, and times as many temporaries (of a choice).
      evaluation: bytes of an evaluation beside the arguments, on all devices together.
      slower: how many times as long a step takes as guessed (of a choice).
      evaluating: seconds of all evaluations of the job (of a choice).
    """

    def __init__(
        self, job, memory=0.0, evaluation=0.0, slower=lambda _: 1.5, evaluating=lambda _: 0.0, temporaries=lambda _: 1.0
    ):
        self.job, self.memory, self.evaluation, self.slower = job, memory, evaluation, slower
        self.evaluating, self.temporaries = evaluating, temporaries
        self.typed = typed_choice(job, 1, False)
        self.compiled = []
        self.arithmetic = Arithmetic(job)

    def plan(self, settings, topology):
        of: Any = parse_topology(topology)
        values = {name: eval(text) for name, text in settings.items()}  # noqa: S307  our own texts
        names = {"make_mesh.model": "model", "logical_axis_rules.fsdp": "fsdp", "REMAT": "remat"}
        names |= {"MICROBATCHES": "microbatches", "FROZEN_DTYPE": "dtype"}
        known = {names[name]: value for name, value in values.items() if name in names}
        choice = Choice(**{**vars(self.typed), **known})
        guess = guessed(self.arithmetic, topology, choice)
        needed = guess.arguments + self.temporaries(choice) * guess.temporaries + self.memory
        seconds = guess.seconds * self.slower(choice)
        evaluation = guess.arguments + self.evaluation / of.devices
        return {
            "topology": topology, "fits": max(needed, evaluation) <= of.accelerator.memory, "hbm_bytes": needed,
            "eval_hbm_bytes": evaluation, "hbm_limit_bytes": of.accelerator.memory, "compiler": "another",
            "compiler_flags": "none", "compile_seconds": 1.0, "estimated_step_seconds": seconds,
            "estimated_job_hours": (self.job.total_steps * seconds + self.evaluating(choice)) / 3600,
        }  # fmt: skip

    def attempt(self, wanted):
        self.compiled += wanted
        return [self.plan(*one) for one in wanted]

    def search(self, topology, at_once=2):
        return [*search(self.plan({}, topology), self.job, self.typed, self.attempt, at_once)]


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


def test_what_fits_as_fast_as_arithmetic_allows_needs_no_other_program():
    job = job_of("--gin.BATCH_SIZE=64", "--gin.REMAT='frozen'", "--gin.FROZEN_DTYPE='bfloat16'")
    assert Machine(job, slower=lambda _: 1.0).search("v5e:1x1") == []


def test_the_fastest_that_fits_is_found_by_few_programs_and_keeps_the_numbers():
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"
    machine = Machine(job_of("--gin.BATCH_SIZE=1024", lengths, "--gin.FROZEN_DTYPE='bfloat16'"), memory=2e9)
    tried = machine.search("v5e:1x1")
    assert len(tried) <= 4 and not machine.plan({}, "v5e:1x1")["fits"]
    best = min((one for one in tried if one.plan["fits"]), key=lambda one: one.plan["estimated_step_seconds"])
    assert best.topology == "v5e:1x1" and not {"FROZEN_DTYPE", "logical_axis_rules.fsdp"} & best.settings.keys()
    # Nothing faster fits: all choices of the arithmetic, on the same machine.
    memory = ACCELERATORS["v5e"].memory
    every = (
        guessed(machine.arithmetic, "v5e:1x1", Choice(1, False, remat, 2**i, "bfloat16"))
        for remat in ("none", "frozen", "full")
        for i in range(11)
    )
    fits = [g.seconds for g in every if g.arguments + g.temporaries + machine.memory <= memory]
    assert best.plan["estimated_step_seconds"] <= 1.05 * 1.5 * min(fits)


def test_fewer_bits_come_where_nothing_else_fits_and_larger_slices_last():
    flags = ["--gin_file=gin/models/t5_1_1_xxl.gin", "--gin_file=gin/adapters/adalink.gin", "--gin.BATCH_SIZE=8"]
    job = job_of(*flags, "--gin.FROZEN_DTYPE='bfloat16'")
    tried = Machine(job).search("v5e:1x1")
    assert {(one.topology, one.settings.get("FROZEN_DTYPE")) for one in tried} == {("v5e:1x1", "'int8'")}
    tried = Machine(job, memory=11e9).search("v5e:1x1")
    fits = [one for one in tried if one.plan["fits"]]
    assert fits and len(tried) <= LIMIT
    assert all(one.topology != "v5e:1x1" and "FROZEN_DTYPE" not in one.settings for one in fits)


def test_an_evaluation_that_is_too_large_is_not_compiled_again_and_again():
    """Its memory depends on BATCH_SIZE, and no REMAT and no microbatches change it."""
    machine = Machine(job_of("--gin.BATCH_SIZE=64", "--gin.FROZEN_DTYPE='bfloat16'"), evaluation=30e9)
    tried = machine.search("v5e:1x1", at_once=1)
    assert {one.topology for one in tried} == {"v5e:2x2"} and tried[-1].plan["fits"]


def test_of_two_meshes_the_one_with_the_faster_job_is_found_whatever_its_step():
    """The typed mesh has the fastest steps, but evaluations that take as long as all of its steps."""
    job = job_of("--gin.BATCH_SIZE=64", "--gin.FROZEN_DTYPE='bfloat16'", "--gin.REMAT='frozen'")
    steps = lambda machine: machine.job.total_steps * guessed(machine.arithmetic, "v5e:2x2", machine.typed).seconds
    machine = Machine(job, slower=lambda _: 1.0)
    machine.evaluating = lambda choice: 3 * steps(machine) if choice.model == 1 and not choice.fsdp else 0.0
    first = machine.plan({}, "v5e:2x2")
    best = min(machine.search("v5e:2x2"), key=lambda one: one.plan["estimated_job_hours"])
    assert best.plan["estimated_job_hours"] < 0.9 * first["estimated_job_hours"]
    assert best.plan["estimated_step_seconds"] >= first["estimated_step_seconds"]


def test_guesses_that_are_wrong_for_a_remat_or_a_mesh_do_not_hide_the_fastest():
    """As of T5Gemma 2 4b on 8 H100s: what is saved is slow to move, REMAT 'frozen' needs twice the bytes, a larger `model` is slower."""
    flags = ["--gin_file=gin/models/t5_1_1_xl.gin", "--gin_file=gin/adapters/adalink.gin", "--gin.BATCH_SIZE=256"]
    job = job_of(*flags, "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}")
    slower = lambda choice: {"none": 15, "frozen": 11, "full": 6.6}[choice.remat] * choice.model**0.2
    machine = Machine(job, slower=slower, temporaries=lambda choice: {"none": 1, "frozen": 2, "full": 1}[choice.remat])
    tried = machine.search("v6e:2x4")
    found = min(one.plan["estimated_step_seconds"] for one in tried if one.plan["fits"])
    settings = [
        {"make_mesh.model": repr(model), "logical_axis_rules.fsdp": repr(fsdp), "REMAT": repr(remat), "MICROBATCHES": repr(2**i)}
        for model in (1, 2, 4, 8) for fsdp in (False, True) if model < 8 or not fsdp
        for remat in ("none", "frozen", "full") for i in range(6)
    ]  # fmt: skip
    plans = [machine.plan(one, "v6e:2x4") for one in settings]
    assert not machine.plan({}, "v6e:2x4")["fits"] and len(tried) <= LIMIT
    assert found <= 1.02 * min(plan["estimated_step_seconds"] for plan in plans if plan["fits"])


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
