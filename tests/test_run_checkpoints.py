"""Damaged checkpoints of a run: restoring gives the saved state, or an older one with a warning, never another."""

import gc
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from adalink_jax.errors import CheckpointError
from adalink_jax.training.run_checkpoints import RunCheckpoints
from adalink_jax.training.step import TrainState

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
IDENTITY = {"adamw.b1": "0.9"}
FLIPS = 60


@pytest.fixture(autouse=True)
def orbax_reports_here():
    """Orbax's abandoned reads are reported now, not in a later test."""
    yield
    gc.collect()


def state(step):
    rng = np.random.default_rng(step)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    trainable = {"adapter/text/down": leaf(512, 16), "adapter/text/up": leaf(16, 512)}
    return TrainState(jnp.int32(step), trainable, (leaf(512, 16), jnp.int32(step)))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with RunCheckpoints(folder, 2, IDENTITY) as checkpoints:
        for step in (10, 20):
            checkpoints.save(state(step), data_position={"epoch": 0, "batch": step})
    return folder


def test_the_newest_and_those_of_the_period_are_kept(tmp_path):
    """Saves by the clock, at other steps, do not push out those of the period."""
    kept = []
    with RunCheckpoints(tmp_path, 2, IDENTITY, period=10) as checkpoints:
        for step in (4, 7, 9, 10, 13, 20, 25, 30, 36):
            checkpoints.save(state(step))
            checkpoints.wait()
            kept.append(checkpoints.steps())
    assert kept == [[4], [4, 7], [7, 9], [9, 10], [10, 13], [10, 20], [10, 20, 25], [20, 30], [20, 30, 36]]


def test_any_single_flipped_bit_is_harmless_or_noticed(saved, tmp_path):
    chosen, noticed = random.Random(0), 0
    files = sorted(path.relative_to(saved) for path in (saved / "20").rglob("*") if path.is_file())
    sizes = [(saved / path).stat().st_size for path in files]
    for number in range(FLIPS):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        # Half of them over all bytes, which are mostly the arrays' own; half over all files.
        path = folder / (chosen.choices(files, sizes)[0] if number % 2 else files[number // 2 % len(files)])
        data = bytearray(path.read_bytes())
        if not data:
            continue
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(data)
        with RunCheckpoints(folder, 2, IDENTITY) as checkpoints:
            try:
                restored, facts = checkpoints.restore(state(0))
            except CheckpointError:  # damage that looks like another run's, or that hides the older one too
                noticed += 1
                continue
        step = int(restored.step)
        assert same(restored, state(step)), path
        assert facts["data_position"] == {"epoch": 0, "batch": step}, path
        assert step == 20 or 20 in checkpoints.damaged or checkpoints.latest_step() == 10, path
        noticed += step == 10
    assert noticed > FLIPS // 4


def test_facts_that_were_changed_are_noticed(saved, tmp_path):
    folder = tmp_path / "facts"
    shutil.copytree(saved, folder)
    (path,) = (folder / "20" / "meta").glob("metadata")
    path.write_text(path.read_text().replace('"batch": 20', '"batch": 30'))
    with RunCheckpoints(folder, 2, IDENTITY) as checkpoints:
        assert checkpoints.restore(state(0))[1]["data_position"] == {"epoch": 0, "batch": 10}
    assert "facts" in checkpoints.damaged[20]


def test_metadata_of_another_form_is_one_sentence(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    metadata = next(folder.glob("*/_CHECKPOINT_METADATA"))
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"metrics": 63}))
    with (
        pytest.raises(CheckpointError, match="has a step whose _CHECKPOINT_METADATA is damaged .*; delete that step"),
        RunCheckpoints(folder, 2, IDENTITY) as checkpoints,
    ):
        checkpoints.latest_step()


def test_a_damaged_step_is_replaced_when_it_is_saved_again(saved, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "20" / "meta")
    with RunCheckpoints(folder, 2, IDENTITY) as checkpoints:
        assert int(checkpoints.restore(state(0))[0].step) == 10
        assert list(checkpoints.damaged) == [20]
        checkpoints.save(state(20), data_position={"epoch": 0, "batch": 20})
    with RunCheckpoints(folder, 2, IDENTITY) as checkpoints:
        assert same(checkpoints.restore(state(0))[0], state(20))
    assert not checkpoints.damaged


def test_a_save_that_failed_in_the_background_is_not_reported_as_damage(tmp_path):
    resource = pytest.importorskip("resource")  # its limit on the size of files stands for a full disk
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = RunCheckpoints(tmp_path / "best", 1, IDENTITY)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        checkpoints.save(state(10), score=1.0)
        with pytest.raises(CheckpointError, match="could not be written to .*File too large.*make room there"):
            checkpoints.facts()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_leaves_are_stored_nested_as_in_every_earlier_version(saved):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(saved / "20" / "state")
    assert tree.keys() == {"step", "trainable", "opt"} and tree["opt"].keys() == {"0", "1"}
    expected = state(20).trainable
    np.testing.assert_array_equal(tree["trainable"]["adapter"]["text"]["down"], expected["adapter/text/down"])
    with RunCheckpoints(saved, 2, IDENTITY) as checkpoints:
        leaves = checkpoints.read_trainable(20, expected, IDENTITY)
    assert leaves.keys() == expected.keys() and same(leaves, expected)


def test_another_configuration_is_refused_and_not_passed_over(saved):
    with (
        RunCheckpoints(saved, 2, {"adamw.b1": "0.8"}) as checkpoints,
        pytest.raises(CheckpointError, match=r"adamw.b1 0.9 there, 0.8 here"),
    ):
        checkpoints.facts()


@pytest.mark.parametrize("setting, value, goes_on", [
    ("adamw.weight_decay", "0.0", True),  # a setting that is newer than the run, with its default
    ("adamw.weight_decay", "0.1", False),
    ("adamw.no_such", "1", False),
])  # fmt: skip
def test_a_setting_that_a_run_does_not_have_had_its_default_there(saved, setting, value, goes_on):
    from adalink_jax.training import optimizers  # noqa: F401  gin knows its defaults

    checkpoints = RunCheckpoints(saved, 2, {**IDENTITY, setting: value})
    if goes_on:
        assert checkpoints.facts()["data_position"] == {"epoch": 0, "batch": 20}
    else:
        with pytest.raises(CheckpointError, match=f"{setting} .* there, {value} here"):
            checkpoints.facts()
