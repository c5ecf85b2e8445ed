"""One T5 in every format of base models: equal leaves and fingerprints; errors name damage and what does not fit."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from helpers import init, random_batch, tiny_pali, tiny_t5
from hub_server import hub

from adalink_jax import T5, AdaptedModel, parallel
from adalink_jax.checkpoints import (
    convert,
    fingerprint,
    hugging_face,
    load_base,
    native,
    open_source,
    save_base,
    t5x_format,
)
from adalink_jax.checkpoints.digests import marks_of_source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import from_array
from adalink_jax.models import paths


def make(backbone=None):
    backbone = backbone or T5(tiny_t5())
    return init(AdaptedModel(backbone), random_batch(backbone, 2, 6, 4, seed=0))["backbone"]


def abstract(params):
    sharding = parallel.replicated(parallel.make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)


@pytest.fixture(scope="module")
def params():
    return make()


@pytest.fixture(scope="module")
def base(params, tmp_path_factory):
    """A native base model."""
    folder = tmp_path_factory.mktemp("native")
    save_base(folder, params, "tiny", {"settings": {"mlp_activations": ("gelu", "linear"), "relpos_max_distance": 128}})
    return folder


def scanned_tree(params):
    """The tree of t5x's scanned network: layers on axis 1, heads apart, a table of relative positions per layer."""
    leaves, out = {k: np.asarray(v) for k, v in paths.flatten(params).items()}, {}
    for name, leaf in leaves.items():
        stack = name.split("/")[0]
        if "relpos_bias" in name:
            out[f"{stack}/{stack}/relpos_bias/rel_embedding"] = np.stack([leaf, leaf], axis=1)
        elif (inner := re.sub(r"layers_\d+/", "", name)) == name:
            out[name] = leaf
        elif "layers_0" in name:
            both = np.stack([leaf, leaves[name.replace("layers_0", "layers_1")]], axis=1)
            if "attention/" in name and "out/kernel" in name:
                both = both.transpose(1, 0, 2).reshape(2, 4, 8, -1).transpose(1, 0, 2, 3)
            elif "attention/" in name:
                both = both.reshape(*both.shape[:2], 4, 8)
            out[inner.replace(f"{stack}/", f"{stack}/{stack}/", 1)] = both
    return paths.unflatten(out)


def write(kind, source, params, folder):
    host = jax.device_get(params)
    if kind == "native bfloat16":
        native.write(epath.Path(folder), source, "bfloat16", marks_of_source(source, "bfloat16"))
    elif kind == "t5x legacy":
        t5x_format.write(epath.Path(folder), source, None)
    elif kind.startswith("t5x Orbax"):
        tree = scanned_tree(params) if "scanned" in kind else host
        state = {"target": tree, "state": {"step": np.int32(7), "param_states": {}}}
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt="folders" not in kind)
        ocp.Checkpointer(handler).save(folder / "state", state)
    else:
        config = hugging_face.config_of(source, "bfloat16" if "bfloat16" in kind else "float32")
        hugging_face.write(epath.Path(folder), source, config, config["dtype"])


FORMATS = ("native bfloat16", "t5x legacy", "t5x Orbax", "t5x Orbax, folders", "t5x Orbax, scanned",
           "Hugging Face", "Hugging Face bfloat16", "Hugging Face, sharded", "Hugging Face, bin")  # fmt: skip


def to_bin(folder):
    from references import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_leaves_and_fingerprint(kind, scan_layers, params, base, tmp_path, monkeypatch):
    if "sharded" in kind:
        monkeypatch.setattr(hugging_face, "SHARD_BYTES", 30_000)
    folder = tmp_path / "checkpoint_7"
    write(kind, open_source(base), params, folder)
    if "sharded" in kind:
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    if "bin" in kind:
        to_bin(folder)
    wanted = abstract(make(T5(tiny_t5(scan_layers=True))) if scan_layers else params)
    loaded = load_base(folder, wanted, configs={"language": tiny_t5()})
    assert loaded.fingerprint == fingerprint(params)
    exact = "bfloat16" not in kind
    found = paths.unscan(loaded.leaves)
    expected = paths.flatten(params)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        leaf = np.asarray(leaf) if exact else np.asarray(leaf.astype("bfloat16").astype("float32"))
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_scanned_network_keeps_tables_per_layer_that_differ(params, tmp_path):
    backbone = T5(tiny_t5(relpos_per_layer=True))
    batch = random_batch(backbone, 2, 6, 4, seed=0)
    leaves = paths.flatten(scanned_tree(params))
    logits = {}
    for kind, shift in (("equal", 0.0), ("different", 1.0)):
        tables = {k: v + shift * np.arange(2)[:, None] for k, v in leaves.items() if "relpos" in k}
        state = {"target": paths.unflatten(leaves | tables), "state": {"step": np.int32(7)}}
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(tmp_path / kind / "state", state)
    loaded = load_base(tmp_path / "different", abstract(make(backbone)))
    run = lambda backbone, leaves: AdaptedModel(backbone).apply(
        {"params": {"backbone": paths.unflatten(leaves)}}, batch
    )
    logits["different"] = run(backbone, loaded.leaves)
    plain = load_base(tmp_path / "equal", abstract(params)).leaves
    logits["equal"] = run(T5(tiny_t5()), plain)
    per_layer = dict(plain)
    for stack in ("encoder", "decoder"):
        table = per_layer.pop(f"{stack}/relpos_bias/rel_embedding")
        per_layer |= {f"{stack}/layers_{i}/relpos_bias/rel_embedding": table for i in range(2)}
    np.testing.assert_allclose(run(backbone, per_layer), logits["equal"], atol=1e-6)
    assert (
        np.abs(logits["different"] - logits["equal"]).max() < 1e-4
    )  # a constant per layer does not change the softmax
    tables = [leaf for name, leaf in loaded.leaves.items() if "relpos" in name]
    assert len(tables) == 4 and not np.array_equal(tables[0], tables[1])


def test_transformers_loads_written_folders_bit_for_bit(params, base, tmp_path):
    from references import torch, transformers

    write("Hugging Face", open_source(base), params, tmp_path / "hf")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    theirs.save_pretrained(tmp_path / "again")
    loaded = load_base(tmp_path / "again", abstract(params), configs={"language": tiny_t5()})
    for name, leaf in paths.flatten(params).items():
        np.testing.assert_array_equal(loaded.leaves[name], leaf, err_msg=name)
    assert not torch.equal(theirs.lm_head.weight, theirs.shared.weight)


def test_the_cache_of_the_hub_is_read_offline(params, base, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    repo = tmp_path / "models--someone--tiny"
    snapshot = repo / "snapshots" / ("a" * 40)
    write("Hugging Face", open_source(base), params, tmp_path / "hf")
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in (tmp_path / "hf").iterdir():  # snapshots are folders of links
        shutil.move(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_base("hf://someone/tiny", abstract(params))
    assert (loaded.fingerprint, loaded.name) == (fingerprint(params), "someone/tiny")
    with pytest.raises(CheckpointError, match="hf://someone/else is not available, and HF_HUB_OFFLINE is set"):
        load_base("hf://someone/else", abstract(params))


def test_a_repository_of_the_hub_is_opened_without_its_weights(params, base, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "someone" / "tiny"
    write("Hugging Face", open_source(base), params, repository)
    whole = open_source(repository)
    with hub(tmp_path / "hub", monkeypatch, gated=("someone/gated",)) as asked:
        opened = open_source("hf://someone/tiny", download=False)
        assert (opened.shapes, opened.settings) == (whole.shapes, whole.settings)
        assert {name: leaf.dtype for name, leaf in opened.leaves.items()} == {
            name: leaf.dtype for name, leaf in whole.leaves.items()
        }
        reads = [path for path in asked if "safetensors" in path and " " in path]
        assert reads and not any(path.endswith("whole") for path in reads)
        with pytest.raises(
            CheckpointError, match="hf://someone/gated is gated; accept its terms at http.*hf auth login"
        ):
            open_source("hf://someone/gated", download=False)
        assert load_base("hf://someone/tiny", abstract(params)).fingerprint == fingerprint(params)


def test_parts_may_come_from_several_places_and_one_may_be_fresh(params, base, tmp_path):
    pali = make(tiny_pali())
    save_base(tmp_path / "pali", pali, "pali", {})
    where = {"vision": str(tmp_path / "pali"), "projection": None, "language": str(base)}
    loaded = load_base(where, abstract(pali))
    assert loaded.fingerprint is None and loaded.sources["projection"] == "fresh"
    assert loaded.name == "pali + tiny" and not any(name.startswith("projection") for name in loaded.leaves)
    for part, tree in (("vision", pali), ("encoder", params), ("decoder", params), ("token_embedder", params)):
        jax.tree.map(np.testing.assert_array_equal, loaded.params[part], tree[part])
    with pytest.raises(CheckpointError, match="names no source for projection/bias; add 'projection' or 'language'"):
        load_base({"vision": str(base)}, abstract({k: pali[k] for k in ("vision", "projection")}))
    with pytest.raises(CheckpointError, match="names 'image', but this model has only"):
        load_base({"image": str(base), "language": str(base)}, abstract(params))


def test_renames(params, base, tmp_path):
    theirs = {name.replace("encoder/layers_", "enc/block") + "/w": leaf for name, leaf in paths.flatten(params).items()}
    save_base(tmp_path / "theirs", paths.unflatten(theirs | {"step/w": np.zeros(1)}), "theirs", {})
    path = str(tmp_path / "theirs")
    renames = [("step/w", None), (r"enc/block(\d+)/(.*)/w", r"encoder/layers_\1/\2"), ("(.*)/w", r"\1")]
    loaded = load_base(path, abstract(params), renames=renames)
    assert loaded.fingerprint == fingerprint(params)
    for wrong, message in (
        ([*renames, ("nothing", "x")], "'nothing' matches no leaf"),
        ([("enc/(.*", "x")], r"'enc/\(\.\*'"),
        ([(".*", "same")], "gives the name same to two leaves"),
        (renames[1:], "has, and the model does not, 1: step"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_base(path, abstract(params), renames=wrong)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"vocab_size": 72}, r"vocab_size 64 \(model: 72\)"),
        ({"num_heads": 2, "head_dim": 16}, r"num_heads 4 \(model: 2\), head_dim 8 \(model: 16\)"),
        ({"num_encoder_layers": 3}, r"num_encoder_layers 2 \(model: 3\).*lacks"),
        ({"logits_via_embedding": True}, "does not, 1: decoder/logits_dense/kernel"),
    ],
)
def test_another_size_is_named(overrides, message, base):
    with pytest.raises(CheckpointError, match=message):
        load_base(base, abstract(make(T5(tiny_t5(**overrides)))))


def test_another_activation_is_refused_though_the_shapes_agree(params, base):
    with pytest.raises(CheckpointError, match=r"mlp_activations = \('gelu', 'linear'\).*silu"):
        load_base(base, abstract(params), configs={"language": tiny_t5(mlp_activations=("silu", "linear"))})


def test_a_folder_with_a_folded_adapter_is_refused_as_a_base(params, base, tmp_path):
    source = open_source(base)
    table = source.leaves["token_embedder/embedding"]
    extra = {"encoder.embed_tokens.weight": from_array(table.whole() + 1, "folded")}
    hugging_face.write(epath.Path(tmp_path), source, hugging_face.config_of(source, "float32"), extra=extra)
    with pytest.raises(CheckpointError, match="encoder.embed_tokens.weight differs from shared.weight"):
        open_source(tmp_path)


def test_damaged_folders_are_named(params, base, tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face, "SHARD_BYTES", 30_000)
    write("Hugging Face, sharded", open_source(base), params, tmp_path / "hf")
    shard = next((tmp_path / "hf").glob("model-00002*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged or cut short .it has"):
        open_source(tmp_path / "hf")
    shard.unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its files: model-00002"):
        open_source(tmp_path / "hf")
    write("t5x legacy", open_source(base), params, tmp_path / "run" / "checkpoint_5")
    with pytest.raises(CheckpointError, match="holds the checkpoints checkpoint_5; give one"):
        open_source(tmp_path / "run")
    file = tmp_path / "run" / "checkpoint_5" / "checkpoint"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not a t5x checkpoint, or is cut short"):
        open_source(tmp_path / "run" / "checkpoint_5")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="is an adapter, not a base model"):
        open_source(tmp_path / "adapter")


def test_a_conversion_that_reads_back_with_other_values_is_an_error(base, tmp_path, monkeypatch):
    write = t5x_format.write

    def broken(folder, source, dtype):
        name = "encoder/layers_1/mlp/wo/kernel"
        leaf = from_array(source.leaves[name].whole() * 1.01, name)
        write(folder, dataclasses.replace(source, leaves=source.leaves | {name: leaf}), dtype)

    monkeypatch.setattr(t5x_format, "write", broken)
    with pytest.raises(CheckpointError, match="does not read back with the values of"):
        convert(open_source(base), tmp_path / "checkpoint_1", "t5x")
