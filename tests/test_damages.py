"""Damaged checkpoints of every format: refused in one sentence, at once; none aborts the process; none passes its digests."""

import json
import os
import time

import damages
import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from adalink_jax import AdaLink, LoRA
from adalink_jax.adapters import describe_adapter
from adalink_jax.checkpoints import (
    config_fields,
    convert,
    hugging_face,
    load_base,
    native,
    open_source,
    read_adapter,
    save_adapter,
    save_base,
    t5x_format,
)
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.experiments.sweeps.run_folder import RunFolder
from adalink_jax.files.leaves import from_array
from adalink_jax.models.quantised import Storage
from adalink_jax.reports import results, runs_report

SHARE = 0.1  # of all damages, which `make fuzz` tries
D, MODULE = 4, AdaLink(rank=2)
LAYER = {
    "attention": ("query", "key", "value", "out"), "mlp": ("wi_0", "wi_1", "wo"),
    "self_attention": ("query", "key", "value", "out"), "encoder_decoder_attention": ("query", "key", "value", "out"),
}  # fmt: skip
SETTINGS = {"mlp_activations": ["gelu", "linear"], "relpos_max_distance": 128, "eos_token_id": 1, "pad_token_id": 0,
            "decoder_start_token_id": 0}  # fmt: skip
FACTS = {
    "base": {"name": "base", "fingerprint": "f" * 64},
    "task": "t",
    "step": 3,
    "metrics": {"x": 0.5},
    "versions": {"jax": "1"},
}


def t5_leaves():
    shapes = {"token_embedder/embedding": (9, D), "decoder/logits_dense/kernel": (D, 9)}
    for stack, blocks in (
        ("encoder", ("attention", "mlp")),
        ("decoder", ("self_attention", "encoder_decoder_attention", "mlp")),
    ):
        shapes[f"{stack}/{stack}_norm/scale"] = (D,)
        shapes[f"{stack}/relpos_bias/rel_embedding"] = (2, 8)
        for block in blocks:
            norm = f"pre_{'cross_attention' if block.startswith('encoder_') else block}_layer_norm"
            shapes[f"{stack}/layers_0/{norm}/scale"] = (D,)
            shapes |= {f"{stack}/layers_0/{block}/{name}/kernel": (D, D) for name in LAYER[block]}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def source(path, leaves):
    return Source(
        "test", str(path), "tiny", {name: from_array(x, name) for name, x in leaves.items()}, epath.Path(path)
    )


def read_all(path):
    opened = open_source(str(path))
    for leaf in opened.leaves.values():
        leaf.whole()
    config_fields(opened)


def native_base(folder):
    save_base(
        folder,
        {name: x for name, x in t5_leaves().items() if "relpos" in name or "token" in name},
        "tiny",
        {"settings": SETTINGS},
    )
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def load(path):
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place)
            for name, x in t5_leaves().items()
            if "relpos" in name or "token" in name
        }
        load_base(str(path), wanted)

    return load


def quantised_base(folder):
    leaves = {"mlp/wi/kernel": np.random.default_rng(0).normal(size=(8, 5)).astype("f"), "mlp/scale": np.ones(5, "f")}
    convert(source(folder, leaves), folder, "native", storage=Storage("int4", 4, ()))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place) for name, x in leaves.items()}
    return lambda path: load_base(str(path), wanted)


def older_base(folder):
    native_base(folder)
    config = json.loads((folder / native.CONFIG).read_text()) | {"format_version": 1}
    (folder / native.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("digest")}))
    return read_all


def hugging_face_folder(folder):
    save_base(folder.parent / "native", t5_leaves(), "tiny", {"settings": SETTINGS})
    opened = open_source(str(folder.parent / "native"))
    hugging_face.write(epath.Path(folder), opened, hugging_face.config_of(opened, "float32"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 0}))
    return read_all


def t5x_checkpoint(folder):
    t5x_format.write(
        epath.Path(folder / "checkpoint_7"),
        source(folder, {"a/kernel": np.ones((8, 4), "f"), "b/scale": np.ones(4, "f")}),
        None,
    )
    return lambda path: read_all(path / "checkpoint_7")


def orbax_checkpoint(folder):
    import orbax.checkpoint as ocp

    state = {"target": {"a": {"kernel": np.ones((8, 4), "f")}}}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(folder / "checkpoint_7" / "state", state)
    return lambda path: read_all(path / "checkpoint_7")


def tower(folder):
    layer, attention = "Transformer/encoderblock_0/", "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/"
    shapes = {"embedding/kernel": (2, 2, 1, D), "embedding/bias": (D,), "pos_embedding": (1, 4, D), f"{layer}LayerNorm_0/scale": (D,),
              f"{attention}query/kernel": (D, 2, 2), f"{attention}out/kernel": (2, 2, D)}  # fmt: skip
    folder.mkdir()
    np.savez(folder / "tower.npz", **{name: np.ones(shape, "f") for name, shape in shapes.items()})
    return lambda path: read_all(path / "tower.npz")


def adapter(folder, module=MODULE, name="text/"):
    leaves = {f"{name}down": np.ones((6, 2), "f"), f"{name}up": np.ones((2, 6), "f")}
    save_adapter(str(folder), leaves, describe_adapter(module) | FACTS)
    return read_adapter


def lora(folder):
    return adapter(folder, LoRA(rank=2), "encoder/layers_0/attention/query/")


def peft_adapter(folder):
    lora(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "adalink"}))
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors", {"format": "pt"})
    return read_adapter


SEALED = (native_base, quantised_base, adapter, lora)  # formats with digests of all that they hold
FORMATS = (*SEALED, older_base, hugging_face_folder, t5x_checkpoint, orbax_checkpoint, tower, peft_adapter)


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_damage_is_refused_in_one_sentence(make, tmp_path):
    load = make(tmp_path / "whole")
    load(tmp_path / "whole")
    refused, share = 0, SHARE if make is not tower else 1.0
    for name, path in damages.of_folder(tmp_path / "whole", tmp_path / "damaged", 1, share):
        start = time.monotonic()
        try:
            load(path)
            assert make not in SEALED, f"accepted: {name}"
        except UserError as error:
            refused += 1
            assert str(error).endswith(".") and "\n" not in str(error) and len(str(error)) < 600, name
        except Exception as error:
            raise AssertionError(f"{make.__name__}: {name}") from error
        assert time.monotonic() - start < 10, name
    load(tmp_path / "damaged")
    assert refused > 10


@pytest.mark.parametrize("metadata", [
    {"chunks": [2**40, 2**20]}, {"chunks": [2**30, 4]}, {"shape": [2**45, 4]}, {"shape": [2**45, 4], "chunks": [2**45, 4]},
    {"dtype": "|S1000000000000"}, {"dtype": [["a", "<f4", [2**40]]]}, {"shape": [2**62, 2**62]}, {"chunks": [8]},
    {"compressor": None, "chunks": [64, 64]},
])  # fmt: skip
def test_an_array_that_declares_more_than_is_stored_does_not_abort_the_process(metadata, tmp_path):
    load = t5x_checkpoint(tmp_path)
    load(tmp_path)
    file = tmp_path / "checkpoint_7" / "target.a.kernel" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | metadata))
    with pytest.raises(CheckpointError, match="target.a.kernel .*; copy it again"):
        load(tmp_path)


def test_a_pipe_in_place_of_a_chunk_does_not_block(tmp_path):
    load = t5x_checkpoint(tmp_path)
    chunk = tmp_path / "checkpoint_7" / "target.a.kernel" / "0.0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(CheckpointError, match="0.0 is not a regular file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation"), [(1, [1]), ([1], 1), (None, [1]), ([1], None), ([1], [1]), (None, None)]
)
def test_an_id_is_the_same_alone_and_in_a_list(config, generation, tmp_path):
    hugging_face_folder(tmp_path / "hf")
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        file = tmp_path / "hf" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": value}))
    assert open_source(str(tmp_path / "hf")).settings["language"]["eos_token_id"] == 1


def test_damaged_files_of_runs_are_reported_or_refused(tmp_path):
    run = tmp_path / "whole" / "run"
    run.mkdir(parents=True)
    member = {
        "name": "a",
        "trainable": 3,
        "step": 2,
        "diverged": False,
        "validation": 0.5,
        "learning_rate": 0.1,
        "seed": 0,
    }
    segment = {"versions": {"jax": "1"}, "platform": "cpu", "device_kind": "cpu", "first_step": 1, "last_step": 2}
    summary = {
        "steps": 2,
        "total_steps": 2,
        "metric": "x",
        "scores": {"x": 0.5},
        "settings": {"A.b": "1"},
        "segments": [segment],
    }
    (run / "summary.json").write_text(json.dumps(member | summary | {"members": [member]}))
    (run / "sweep.json").write_text(json.dumps({"bindings": {"RANK": "1"}, "settings": {"A.b": "1"}}))
    (run / "metrics.jsonl").write_text('{"step": 2, "validation/x": 0.5}\n')
    (run / "attempts.jsonl").write_text('{"what": "end", "status": 0}\n')
    (run / "samples.json").write_text(
        json.dumps({"samples": [dict.fromkeys(("inputs", "target", "before", "after"), "x")]})
    )
    for name, path in damages.of_folder(tmp_path / "whole", tmp_path / "damaged", 1, 0.5):
        try:
            results.collect(str(path))
            runs_report.make(str(path), "adalink report")
            RunFolder(str(path / "run"), {}, {"A.b": "1"}, 2).check()
        except UserError as error:
            assert str(error).endswith(".") and "\n" not in str(error), name
        except Exception as error:
            raise AssertionError(name) from error
