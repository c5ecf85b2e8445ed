"""Which ids and which weights a Hugging Face folder has: those that `transformers` uses, or a refusal."""

import json
import shutil

import jax
import numpy as np
import pytest
from references import make_reference, torch, transformers
from safetensors.numpy import load_file, save_file
from test_t5_parity import assert_close, ours

from adalink_jax import T5, AdaptedModel, T5Config, configuration, parallel
from adalink_jax.checkpoints import config_fields, convert, open_source
from adalink_jax.cli.arguments import register
from adalink_jax.data.transformers_vocabulary import Framed
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.serving import Predictor, shipped
from adalink_jax.token_ids import TokenIds
from adalink_jax.training.setup import Setup, load_parameters

IDS = {"decoder_start_token_id": 5, "pad_token_id": 3, "eos_token_id": 4}
SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"
LENGTH = 12
pytestmark = pytest.mark.usefixtures("exact_matmuls")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 1.1 as transformers saves it, with ids 0, 0 and 1."""
    path = tmp_path_factory.mktemp("usual")
    make_reference("T5 1.1").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same model with `IDS`, and its folder."""
    model = make_reference("T5 1.1")
    with torch.no_grad():
        model.lm_head.weight[[1, 4]] = model.lm_head.weight[[4, 1]]  # half of the outputs end
    for name, value in IDS.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    path = tmp_path_factory.mktemp("other")
    model.save_pretrained(path)
    return model, path


def rows(count, length, seed):
    """Lists of ids with 0 and 1 among them, which end in 4 and hold no 3."""
    rng = np.random.default_rng(seed)
    choices = [i for i in range(90) if i not in (3, 4)]
    return [[*map(int, rng.choice(choices, rng.integers(1, length))), 4] for _ in range(count)]


def changed(folder, to, file="config.json", **fields):
    """A copy of a folder in which one of the JSON files has other fields; None removes one."""
    shutil.copytree(folder, to)
    path = to / file
    value = (json.loads(path.read_text()) if path.exists() else {}) | fields
    path.write_text(json.dumps({name: field for name, field in value.items() if field is not None}))
    return to


def test_another_start_padding_and_end_give_the_numbers_of_transformers(other):
    theirs, path = other
    model, params = ours(path)
    assert model.backbone.token_ids == TokenIds(5, 3, 4)
    examples = [{"inputs": x, "targets": y} for x, y in zip(rows(6, 14, 0), rows(6, 9, 1))]
    batch = Setup(model).converter({"inputs": 14, "targets": 9})(examples)
    assert (batch["encoder_input_tokens"][:, -1] == 3).any()
    inputs, targets = (torch.tensor(batch[name]).long() for name in ("encoder_input_tokens", "decoder_target_tokens"))
    labels = targets.masked_fill(targets == 3, -100)
    with torch.no_grad():
        out = theirs(input_ids=inputs, attention_mask=inputs != 3, labels=labels)
    np.testing.assert_array_equal(batch["decoder_input_tokens"], theirs._shift_right(targets))
    np.testing.assert_array_equal(batch["decoder_loss_weights"], labels != -100)
    assert_close(jax.jit(model.apply)({"params": params}, batch), out.logits)
    scores = jax.jit(lambda params: model.apply({"params": params}, batch, method="score"))(params)
    np.testing.assert_allclose(-scores.sum() / batch["decoder_loss_weights"].sum(), out.loss, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_outputs_start_end_and_are_padded_as_the_folder_says(other, beams):
    theirs, path = other
    model, params = ours(path)
    batch = Setup(model).converter({"inputs": 14, "targets": 4})(
        [{"inputs": x, "targets": []} for x in rows(16, 14, 2)]
    )
    inputs = torch.tensor(batch["encoder_input_tokens"]).long()
    with torch.no_grad():
        expected = theirs.generate(
            inputs, attention_mask=inputs != 3, max_new_tokens=LENGTH, num_beams=beams, do_sample=False
        ).numpy()
    assert (expected[:, 0] == 5).all() and (expected == 4).any(1).sum() > 3 and (expected[:, -1] == 3).any()
    decoding = Sampling() if beams == 1 else BeamSearch(beams, 1.0, "transformers")
    run = jax.jit(lambda params: model.apply({"params": params}, batch, LENGTH, decoding, method="generate").ids[:, 0])
    expected = np.pad(expected[:, 1:], ((0, 0), (0, LENGTH + 1 - expected.shape[1])), constant_values=3)
    np.testing.assert_array_equal(run(params), expected)


class _Characters(Framed):
    """A vocabulary in which the character 28 + i is id i, and `IDS` has the end."""

    vocab_size, eos, after = 96, 4, (4,)

    def encode(self, text):
        return [ord(c) - 28 for c in text]

    def decode(self, ids):
        return "".join(chr(28 + int(i)) for i in ids)


Characters = _Characters()


def test_texts_end_as_the_folder_says_and_hold_no_padding(other, monkeypatch):
    theirs, path = other
    monkeypatch.setattr("adalink_jax.serving.predictor.load_vocabulary", lambda path: Characters)
    setup = Setup(ours(path)[0], initial_checkpoint_path=str(path))
    predict = Predictor(setup, vocabulary="characters", task_feature_lengths={"inputs": 14, "targets": LENGTH})
    texts = [Characters.decode(row[:-1]) for row in rows(16, 12, 3)]
    ids = [[*Characters.encode(text), 4] for text in texts]
    inputs = torch.tensor([[*row, *[3] * (14 - len(row))] for row in ids])
    with torch.no_grad():
        outputs = theirs.generate(inputs, attention_mask=inputs != 3, max_new_tokens=LENGTH, do_sample=False)
    ended = [row[: row.index(4)] if 4 in row else row for row in outputs[:, 1:].tolist()]
    assert sum(len(row) < LENGTH for row in ended) > 3
    assert predict(texts) == [Characters.decode(row) for row in ended]
    with pytest.raises(UserError, match="In the inputs of the example .*, id 3 is text, and the model masks it"):
        predict(["good", "go\x1fod"])


def loaded_with(path, **fields):
    config = T5Config(**{**config_fields(open_source(path)), **fields})
    setup = Setup(AdaptedModel(T5(config)), initial_checkpoint_path=str(path))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        return load_parameters(setup, mesh, rules)


def test_a_model_with_other_ids_than_the_folder_is_refused(other, folder):
    with pytest.raises(CheckpointError, match="has decoder_start_token_id = 5, but the model has 0; set T5Config.dec"):
        loaded_with(other[1], decoder_start_token_id=0)
    with pytest.raises(CheckpointError, match="has pad_token_id = 0, but the model has 7; set T5Config.pad_token_id"):
        loaded_with(folder, pad_token_id=7)


def test_ids_survive_a_conversion(other, folder, tmp_path):
    convert(open_source(other[1]), tmp_path / "native", "native")
    stated = open_source(tmp_path / "native").settings["language"]
    assert IDS.items() <= stated.items()
    convert(open_source(tmp_path / "native"), tmp_path / "hf", "hf")
    assert IDS.items() <= json.loads((tmp_path / "hf" / "config.json").read_text()).items()
    assert IDS.items() <= json.loads((tmp_path / "hf" / "generation_config.json").read_text()).items()


def test_files_that_state_no_ids_have_those_of_t5(folder, tmp_path):
    register()
    convert(open_source(folder), tmp_path / "native", "native")
    about = json.loads((tmp_path / "native" / "base_config.json").read_text())
    older = {key: value for key, value in about["settings"].items() if key not in IDS}
    undigested = {key: value for key, value in about.items() if key not in ("digest", "digests")}
    edited = undigested | {"settings": older, "format_version": 1}
    (tmp_path / "native" / "base_config.json").write_text(json.dumps(edited))
    source = shipped.completed_source(open_source(tmp_path / "native"), configuration.GinFlags())
    assert source.settings["language"] == about["settings"] | {"mlp_activations": ("gelu", "linear")}
    assert AdaptedModel(T5(T5Config(**config_fields(source)))).backbone.token_ids == TokenIds()


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("generation_config.json", {"decoder_start_token_id": 7}, "0 in config.json and 7 in generation_config.json"),
        ("config.json", {"pad_token_id": [0, 2]}, r"has pad_token_id \[0, 2\]; this package supports exactly one id"),
        ("config.json", {"eos_token_id": []}, r"has eos_token_id \[\]; this package supports exactly one id"),
        (
            "generation_config.json",
            {"eos_token_id": [2, 3]},
            r"1 in config.json and \[2, 3\] in generation_config.json",
        ),
        ("config.json", {"pad_token_id": "0"}, "has `pad_token_id`, which is '0', a text"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config, which this package does not"),
    ],
)
def test_ids_that_are_not_one_id_each_are_refused(folder, tmp_path, file, fields, message):
    path = changed(folder, tmp_path / "x", file, **fields)
    if file == "config.json":
        (path / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        open_source(path)


def test_an_id_of_the_generation_alone_is_used(folder, tmp_path):
    path = changed(folder, tmp_path / "x", decoder_start_token_id=None)
    changed(path, tmp_path / "y", "generation_config.json", decoder_start_token_id=9)
    assert open_source(tmp_path / "y").settings["language"]["decoder_start_token_id"] == 9


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_several_ids_may_end_an_output(folder, tmp_path, file):
    path = changed(folder, tmp_path / "x", file, eos_token_id=[1, 7])
    if file == "config.json":
        (path / "generation_config.json").unlink()
    model, params = ours(path)
    assert model.backbone.token_ids.ends == (1, 7)
    convert(open_source(path), tmp_path / "native", "native")
    assert open_source(tmp_path / "native").settings["language"]["eos_token_id"] == (1, 7)
    assert ours(tmp_path / "native")[0].backbone.token_ids.ends == (1, 7)


@pytest.mark.parametrize(
    "ids",
    [
        {"eos_token_id": (1, 96)},
        {"eos_token_id": (1, 0)},
        {"eos_token_id": 96},
        {"decoder_start_token_id": -1},
        {"pad_token_id": 1},
    ],
)
def test_ids_must_be_rows_and_padding_must_not_end_an_output(ids):
    with pytest.raises(UserError, match="must be rows of the embedding table"):
        T5Config(96, 32, 4, 8, 48, 2, 2, **ids)


def table_of(path):
    return open_source(path).leaves["token_embedder/embedding"].whole()


def test_a_single_file_comes_before_an_index(folder, tmp_path):
    saved = make_reference("T5 1.0")
    saved.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    shards = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert len(shards) > 2
    np.testing.assert_array_equal(table_of(tmp_path / "b"), saved.shared.weight.detach())
    shutil.copy(folder / SAFE, tmp_path / "b" / SAFE)
    shutil.copy(folder / "config.json", tmp_path / "b" / "config.json")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "b").shared.weight.detach()
    np.testing.assert_array_equal(table_of(tmp_path / "b"), theirs)
    for shard in shards:  # as transformers leaves a folder that it saves again in one file
        (tmp_path / "b" / shard).unlink()
    np.testing.assert_array_equal(table_of(tmp_path / "b"), theirs)


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/secret.safetensors", "inner/../../secret.safetensors"]
)
def test_an_index_names_files_of_its_folder_only(folder, tmp_path, place):
    path = shutil.copytree(folder, tmp_path / "x")
    (path / SAFE).rename(tmp_path / "secret.safetensors")
    (path / INDEX).write_text(json.dumps({"weight_map": {"shared.weight": place}}))
    with pytest.raises(CheckpointError, match="which is not a file of this folder"):
        open_source(path)
    (path / INDEX).write_text('{"weight_map": {"shared.weight": 3}}')
    with pytest.raises(CheckpointError, match="has `weight_map.shared.weight`, which is 3"):
        open_source(path)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_the_table_may_stand_under_any_of_the_tied_names(folder, tmp_path, name):
    path = shutil.copytree(folder, tmp_path / "x")
    tensors = load_file(path / SAFE)
    tensors[name] = tensors.pop("shared.weight")
    save_file(tensors, path / SAFE, {"format": "pt"})
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(path)
    np.testing.assert_array_equal(table_of(path), theirs.shared.weight.detach())
    head = open_source(path).leaves["decoder/logits_dense/kernel"].whole()
    np.testing.assert_array_equal(head.T, theirs.lm_head.weight.detach())


def test_a_siglip_tower_alone_is_the_tower_of_the_whole_model(tmp_path):
    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.SiglipConfig(
        vision_config=sizes | {"image_size": 28, "patch_size": 7}, text_config=sizes | {"vocab_size": 30}
    )
    whole = transformers.SiglipModel(config)
    whole.save_pretrained(tmp_path / "whole")
    alone = transformers.SiglipVisionModel(config.vision_config)
    alone.load_state_dict(
        {name.removeprefix("vision_model."): x for name, x in whole.vision_model.state_dict().items()}
    )
    alone.save_pretrained(tmp_path / "alone")
    assert "encoder.layers.0.mlp.fc1.weight" in load_file(tmp_path / "alone" / SAFE)
    leaves, expected = (open_source(tmp_path / name).leaves for name in ("alone", "whole"))
    vision = [name for name in expected if name.startswith("vision/")]
    assert len(vision) > 30
    for name in vision:
        np.testing.assert_array_equal(leaves[name].whole(), expected[name].whole())
