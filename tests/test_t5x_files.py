"""t5x's checkpoints: a real file, a round trip through this package's writer, and damage."""

import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from adalink_jax.checkpoints import open_source, t5x_format
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import from_array

REAL = pathlib.Path(__file__).parents[2] / "shared/data/ckpt_t5x_tiny_test/prompt_tuning_test_t5_1_1_tiny/checkpoint_3"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real t5x checkpoint is not on this machine")


@needs_real
def test_the_real_file_survives_a_round_trip(tmp_path):
    source = open_source(REAL)
    in_arrays = [leaf.size for leaf in source.leaves.values() if not leaf.origin.startswith("checkpoint: ")]
    assert sum(in_arrays) == 257_792
    assert sum(leaf.size for leaf in source.leaves.values()) == 257_856  # including the leaves in the msgpack
    t5x_format.write(epath.Path(tmp_path / "checkpoint_3"), source, None)
    again = open_source(tmp_path / "checkpoint_3")
    assert again.leaves.keys() == source.leaves.keys()
    for name, leaf in source.leaves.items():
        np.testing.assert_array_equal(again.leaves[name].whole(), leaf.whole(), err_msg=name)


@needs_real
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_damaged_chunk_is_an_error_not_zeros(tmp_path, how):
    folder = shutil.copytree(REAL, tmp_path / "checkpoint_3", copy_function=shutil.copyfile)
    chunk = folder / "target.token_embedder.embedding" / "3.0"
    if how == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="target.token_embedder.embedding is damaged"):
        open_source(folder).leaves["token_embedder/embedding"].whole()


@pytest.mark.parametrize("name", [".zarray", "0.0"])
def test_a_file_that_no_memory_holds_is_not_read(tmp_path, name):
    leaf = from_array(np.ones((4, 4), "f"), "decoder/logits_dense/kernel")
    source = Source("t5x", "x", "x", {leaf.origin: leaf}, epath.Path(tmp_path))
    t5x_format.write(epath.Path(tmp_path / "checkpoint_3"), source, None)
    with open(tmp_path / "checkpoint_3" / "target.decoder.logits_dense.kernel" / name, "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=f"{name} has 1,099,511,627,776 bytes, more than"):
        open_source(tmp_path / "checkpoint_3")
