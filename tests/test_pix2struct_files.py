"""Pix2Struct in files: folders of transformers load, convert, fold and come back as they were; what is another network is refused."""

import contextlib
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from pix2struct_references import MOST, PATCH, VOCAB, D, make_pix2struct, processor
from references import torch, transformers
from safetensors.numpy import load_file, save_file
from test_pix2struct_parity import batch_of, ours
from test_t5_parity import assert_close
from test_verify_base import save_tokenizer

from adalink_jax import AdaLinkAdapter, AdaptedModel
from adalink_jax.adapters import describe_adapter
from adalink_jax.checkpoints import config_fields, open_source, save_adapter
from adalink_jax.cli.main import main
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.interop.folded import export_folded
from adalink_jax.serving import Predictor
from adalink_jax.training.fold import fold_base
from adalink_jax.training.setup import Setup

pytestmark = pytest.mark.usefixtures("exact_matmuls")
ROWS = 512  # of a vocabulary


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as transformers saves it, and the fingerprint of its model."""
    folder = tmp_path_factory.mktemp("base") / "pix2struct"
    make_pix2struct().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder, fingerprint(folder)


def fingerprint(path):
    return json.loads(output_of("inspect", path, "--json"))["fingerprint"]


def output_of(*argv):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*map(str, argv)]) == 0
    return out.getvalue()


def changed(folder, to, file, part=None, **fields):
    """A copy with other fields in one of its files."""
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text())
    (content if part is None else content[part]).update(fields)
    (to / file).write_text(json.dumps(content))
    return to


def logits_of(folder, arguments, shifted):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**arguments, decoder_input_ids=torch.tensor(shifted)).logits.numpy()


def test_sizes_and_settings_are_read(base):
    assert config_fields(open_source(base[0])) == {
        "vocab_size": VOCAB, "emb_dim": D, "num_heads": 4, "head_dim": 8, "mlp_dim": 48, "num_encoder_layers": 2,
        "num_decoder_layers": 3, "logits_via_embedding": False, "relpos_num_buckets": 8, "max_patches": 40, "num_positions": 40,
        "patch_size": PATCH, "channels": 3, "mlp_activations": ("gelu", "linear"), "relpos_max_distance": 12,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


def test_a_conversion_keeps_every_bit_for_transformers(base, tmp_path):
    folder, mark = base
    output_of("convert", folder, tmp_path / "native", "--to", "native")
    output_of("convert", tmp_path / "native", tmp_path / "hf", "--to", "hf")
    output_of("convert", folder, tmp_path / "kept", "--to", "hf")
    assert {fingerprint(tmp_path / name) for name in ("native", "hf", "kept")} == {mark}
    assert json.loads((tmp_path / "kept" / "preprocessor_config.json").read_text())["max_patches"] == MOST
    original = load_file(folder / "model.safetensors")
    batch, arguments = batch_of(ours(folder)[0], 3)
    expected = logits_of(folder, arguments, batch["decoder_input_tokens"])
    for name in ("hf", "kept"):
        jax.tree.map(np.testing.assert_array_equal, load_file(tmp_path / name / "model.safetensors"), original)
        assert open_source(tmp_path / name).settings == open_source(folder).settings
        np.testing.assert_array_equal(logits_of(tmp_path / name, arguments, batch["decoder_input_tokens"]), expected)


def test_a_head_tied_to_the_table_is_not_scaled_and_is_written_apart(base, tmp_path):
    tensors = load_file(base[0] / "model.safetensors")
    path = changed(base[0], tmp_path / "tied", "config.json", tie_word_embeddings=True)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (path / "config.json").write_text(json.dumps(config))
    del tensors["decoder.lm_head.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    model, params = ours(path)
    batch, arguments = batch_of(model, 3)
    expected = logits_of(path, arguments, batch["decoder_input_tokens"])
    assert_close(jax.jit(model.apply)({"params": params}, batch), expected)
    output_of("convert", path, tmp_path / "hf", "--to", "hf")
    np.testing.assert_array_equal(logits_of(tmp_path / "hf", arguments, batch["decoder_input_tokens"]), expected)


@pytest.mark.parametrize("file, part, change, message", [
    ("config.json", "text_config", {"layer_norm_epsilon": 1e-5}, "text_config.layer_norm_epsilon 1e-05"),
    ("config.json", "vision_config", {"layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps 1e-05"),
    ("config.json", "vision_config", {"dense_act_fn": "relu"}, "vision_config.dense_act_fn 'relu'"),
    ("config.json", "vision_config", {"num_attention_heads": 2}, "vision_config.num_attention_heads 2"),
    ("config.json", "text_config", {"decoder_start_token_id": [0, 1]}, "supports exactly one id"),
    ("preprocessor_config.json", None, {"do_normalize": False}, "do_normalize = False"),
    ("preprocessor_config.json", None, {"patch_size": {"height": 8, "width": 8}}, "patch_size = "),
    ("preprocessor_config.json", None, {"image_processor_type": "ViTImageProcessor"}, "image_processor_type = 'ViT"),
])  # fmt: skip
def test_another_network_is_refused(base, tmp_path, file, part, change, message):
    path = changed(base[0], tmp_path / "x", file, part, **change)
    if "decoder_start_token_id" in change:
        for name in ("config.json", "generation_config.json"):
            content = json.loads((path / name).read_text())
            content.pop("decoder_start_token_id")
            (path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        open_source(path)


@pytest.mark.parametrize("distance", [None, pytest.param(100, marks=pytest.mark.slow)])
def test_verify_base_agrees_and_finds_one_changed_setting(tmp_path, capsys, distance):
    folder, other = tmp_path / "base", tmp_path / "other"
    make_pix2struct(vocab_size=ROWS).save_pretrained(folder)
    processor().save_pretrained(folder)
    save_tokenizer("T5 1.1", folder)
    output_of("convert", folder, other, "--to", "native")
    out = " ".join(output_of("verify-base", other, "--reference", folder).split())
    assert "20 of 20 greedy outputs" in out and "20 of 20 prompts" in out
    if distance is None:
        return
    path = changed(folder, tmp_path / "x", "config.json", "text_config", relative_attention_max_distance=distance)
    assert main(["verify-base", str(other), "--reference", str(path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "relpos_max_distance 12 (reference: 100)" in out and "logits DIFFERENT" in out


def test_an_adapter_of_images_folds_exactly_and_transformers_serves_it(base, tmp_path):
    folder, mark = base
    rng = np.random.default_rng(0)
    draw = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)
    module, pair = AdaLinkAdapter(rank=4, share=True), {"shared": {"down": draw(D, 4), "up": draw(4, D)}}
    facts = {"base": {"name": "b", "fingerprint": mark, "family": "Pix2Struct"}, "task": "t", "metrics": {}}
    save_adapter(tmp_path / "adapter", pair, describe_adapter(module) | facts)
    model, params = ours(folder)
    done = fold_base(str(tmp_path / "adapter"), model.backbone, str(folder), str(tmp_path / "folded"))
    assert done.adapter > 0.1 and done.folding < 1e-4 and not done.encoder_embedding
    output_of("convert", tmp_path / "folded", tmp_path / "hf", "--to", "hf")
    batch, arguments = batch_of(model, 3)
    adapted = jax.jit(AdaptedModel(model.backbone, module).apply)({"params": {**params, "adapter": pair}}, batch)
    assert_close(logits_of(tmp_path / "hf", arguments, batch["decoder_input_tokens"]), adapted)
    save_adapter(tmp_path / "images", {"image": pair["shared"]}, describe_adapter(AdaLinkAdapter(rank=4)) | facts)
    for adapter, error, message in (
        ("images", UserError, "`adalink adapters fold` folds one of images"), ("adapter", UserError, "fold it into a native base"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            export_folded(str(tmp_path / adapter), open_source(folder), str(tmp_path / "x"))


@pytest.mark.parametrize("header", [None, "pillow"])
def test_a_run_on_pictures_is_trained_and_predicts(tmp_path, header):
    """Without a font, a picture is all that the model is given; with one, the text above it is read too."""
    folder, data = tmp_path / "base", tmp_path / "colours.csv"
    make_pix2struct(vocab_size=ROWS, num_layers=1).save_pretrained(folder)
    save_tokenizer("T5 1.1", folder)
    rng = np.random.default_rng(0)
    sizes, rows = {"wide": (12, 40), "high": (40, 12)}, ["split,picture,label,number\n"]
    for number in range(24):
        name = list(sizes)[number % 2]
        Image.fromarray(rng.integers(0, 256, (*sizes[name], 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{('train', 'dev', 'test')[number // 8]},{number},{name},{number}\n")
    data.write_text("".join(rows))
    fields = {**config_fields(open_source(folder)), "max_patches": MOST}
    written = "".join(f"Pix2StructConfig.{name} = {x!r}\n" for name, x in fields.items() if name != "max_patches")
    (tmp_path / "model.gin").write_text(f"include 'gin/models/pix2struct.gin'\n{written}")
    files = [tmp_path / "model.gin", "gin/adapters/adalink.gin", "gin/tasks/files.gin", "gin/runs/finetune.gin"]
    settings = {
        "DATA": str(data), "INPUTS": "number {number}" if header else "", "TARGETS": "{label}", "IMAGE": "{picture}.png",
        "SPLIT": "split", "MIXTURE_OR_TASK_NAME": "pictures", "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 6},
        "VOCABULARY": str(folder), "INITIAL_CHECKPOINT_PATH": str(folder), "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 1,
        "WARMUP_STEPS": 0, "BATCH_SIZE": 8, "METRIC": None, "ACTIVATION_DTYPE": "float32", "MAX_PATCHES": MOST, "HEADER_FONT": header,
    }  # fmt: skip
    flags = [f"--gin_file={file}" for file in files] + [f"--gin.{name}={x!r}" for name, x in settings.items()]
    output_of("train", *flags)
    predictor = Predictor(tmp_path / "run")
    pictures = [str(tmp_path / f"{number}.png") for number in (0, 1)]
    score = lambda text="", **options: predictor([text] * 2, pictures, choices=["wide", "high"], scores=True, **options)
    (one, other), (plain, _) = score(), score(adapters=None)
    assert all(abs(one["wide"] - x["wide"]) > 1e-4 for x in (other, plain))  # picture and adapter matter
    if header:
        assert abs(score("number 7")[0]["wide"] - one["wide"]) > 1e-4
    else:
        with pytest.raises(UserError, match="there is 'number 7'; set HEADER_FONT"):
            score("number 7")


def test_the_number_of_patches_may_differ_from_the_processor_s(base):
    model, params = ours(base[0])
    assert Setup(model).image_shape == (MOST, 2 + 3 * PATCH**2) and Setup(model).preparation.patch_size == PATCH
    fewer = AdaptedModel(model.backbone.clone(config=dataclasses.replace(model.backbone.config, max_patches=6)))
    batch, _ = batch_of(fewer, 2)
    assert batch["images"].shape[1] == 6
    assert jax.jit(fewer.apply)({"params": params}, batch).shape == (2, 20, VOCAB)


@pytest.mark.parametrize("size", ["base", "large"])
def test_parameters_are_those_of_transformers(capsys, size):
    width, mlp, heads, layers = {"base": (768, 2048, 12, 12), "large": (1536, 3968, 24, 18)}[size]
    common = {"hidden_size": width, "d_ff": mlp}
    config = transformers.Pix2StructConfig(
        text_config={**common, "num_heads": heads, "num_layers": layers},
        vision_config={**common, "num_attention_heads": heads, "num_hidden_layers": layers},
    )
    with torch.device("meta"):
        theirs = transformers.Pix2StructForConditionalGeneration(config)
    found = json.loads(output_of("params", "--json", f"--gin_file=gin/models/pix2struct_{size}.gin"))
    assert found["total"] == sum(leaf.numel() for leaf in theirs.parameters())
