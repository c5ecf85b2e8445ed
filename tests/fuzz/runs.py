"""JSON of runs and of studies, through `adalink results` and `report`, and folders of runs that `adalink train` resumes."""

import hashlib
import pathlib
import shutil
from typing import Any
from unittest import mock

import gin_values
import numpy as np
from hypothesis import strategies as st

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import CHANGED, EQUAL, UNPROTECTED, Outcome, Run, judge, run

STUDY = pathlib.Path(__file__).parents[2] / "docs" / "results" / "miniature"
PARTS = {
    "results": ("results", "runs"),
    "grouped": ("results", "runs", "--group", "RANK"),
    "report": ("report", "runs", "--out", "a.html"),
}


def _prepare_tables(folder: pathlib.Path) -> None:
    from test_results import write_run

    for i, (rank, seed) in enumerate(((1, 0), (1, 1), (4, 0), (4, 1))):
        write_run(folder / "sweep" / f"run_{i}", rank=rank, seed=seed, accuracy=0.5 + i / 10)
        (folder / "sweep" / f"run_{i}" / "metrics.jsonl").write_text(
            '{"step": 0, "validation/accuracy": 0.1}\n' * 2, encoding="utf-8"
        )
    stopped = folder / "sweep" / "stopped"
    stopped.mkdir()
    (stopped / "sweep.json").write_text(
        '{"bindings": {"RANK": "8"}, "settings": {"train.total_steps": "10"}}', encoding="utf-8"
    )
    (stopped / "attempts.jsonl").write_text('{"time": 1.0, "event": "started"}\n', encoding="utf-8")
    (stopped / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n', encoding="utf-8")
    for seed in (0, 1):
        write_run(folder / "pack" / "members" / f"seed_{seed}", rank=2, seed=seed, accuracy=0.1, sweep=False)
    (folder / "pack" / "config.gin").write_text("", encoding="utf-8")
    if STUDY.is_dir():
        for path in sorted(STUDY.glob("*/*0_3m*cola*.json")):
            (folder / "study" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "study" / path.parent.name)


def _table_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, str, list[damage.Edit]]]:
    def of(name: str) -> st.SearchStrategy[tuple[str, str, list[damage.Edit]]]:
        parts = st.sampled_from(("results",) * 4 + ("grouped",) * 4 + ("report",) if name != "study" else ("report",))
        return st.tuples(st.just(name), parts, damage.edits(originals / name))

    return st.sampled_from(["sweep"] * 4 + sorted(path.name for path in originals.iterdir())).flatmap(of)


def _run_table(plan: tuple[str, str, list[damage.Edit]], originals: pathlib.Path) -> Outcome:
    name, part, edits = plan
    damage.damaged(originals / name, pathlib.Path("runs"), edits)
    names = ("runs", "run", *(pathlib.PurePath(edit.file).name for edit in edits))
    return judge(run(*PARTS[part]), lambda done: Outcome(UNPROTECTED if edits else EQUAL), names)


# --- folders of runs that are resumed ---


class TrainingReached(Exception):
    """The run would train on, from this step and with these parameters."""


def _flags(originals: pathlib.Path) -> list[str]:
    more = {"TRAIN_STEPS": 4, "CHECKPOINT_PERIOD": 2, "MODEL_DIR": "run", "WARMUP_STEPS": 1, "BATCH_SIZE": 8, "RANK": 2}
    return [*gin_values.files(originals), *(f"--gin.{name}={value!r}" for name, value in more.items())]


def _prepare_resumed(folder: pathlib.Path) -> None:
    done = run("train", *_flags(folder))
    assert done.status == 0, done.err
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(folder / "run" / "adapter")
    shutil.rmtree(folder / "run" / "tensorboard", ignore_errors=True)


def _resume(originals: pathlib.Path) -> tuple[Run, str | None]:
    """Resumes `run` up to its next step: what the command printed, or the step and the digest of its parameters."""
    from adalink_jax.training.run import Run as TrainingRun

    def reached(training: TrainingRun, *_: Any, **__: Any) -> None:
        state = training.start.state
        values = b"".join(np.asarray(leaf).tobytes() for _, leaf in sorted(state.trainable.items()))
        raise TrainingReached(f"{training.start.step} {hashlib.sha256(values).hexdigest()}")

    with mock.patch.object(TrainingRun, "train", reached), mock.patch.object(TrainingRun, "_score", reached):
        try:
            return run("train", *_flags(originals)), None
        except TrainingReached as e:
            return Run(0, "", ""), str(e)


_STATES: dict[pathlib.Path, dict[str, str]] = {}


def _states(originals: pathlib.Path) -> dict[str, str]:
    """Step -> state, of the sound run and of the run with its newest checkpoint removed."""
    if originals not in _STATES:
        found = {}
        for newest in (None, "4"):
            shutil.rmtree("run", ignore_errors=True)
            shutil.copytree(originals / "run", "run")
            if newest:
                shutil.rmtree(pathlib.Path("run", "checkpoints", newest))
            state = _resume(originals)[1]
            assert state is not None
            found[state.split()[0]] = state
        shutil.rmtree("run")
        _STATES[originals] = found
    return _STATES[originals]


def _run_resumed(edits: list[damage.Edit], originals: pathlib.Path) -> Outcome:
    states = _states(originals)
    damage.damaged(originals / "run", pathlib.Path("run"), edits)
    done, state = _resume(originals)

    def accepted(done: Run) -> Outcome:
        if state is None:
            return Outcome(UNPROTECTED)
        step = state.split()[0]
        if state == states.get(step):
            return Outcome(EQUAL)
        return Outcome(CHANGED, "a checkpoint", state) if step != "0" else Outcome(UNPROTECTED)

    return judge(done, accepted, ("run", *(pathlib.PurePath(edit.file).name for edit in edits)))


TARGETS = {
    "runs": Target(_prepare_tables, _table_plans, _run_table, ("sweep", "results", []), share=3),
    "resumed runs": Target(
        _prepare_resumed, lambda originals: damage.edits(originals / "run"), _run_resumed, [], share=1
    ),
}
