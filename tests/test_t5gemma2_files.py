"""T5Gemma 2 in files: both styles of names, every format, a folded adapter, and what this package does not compute."""

import dataclasses
import json
import runpy

import jax
import numpy as np
import pytest
from gemma_references import T5GEMMA2_IMAGE, T5GEMMA2_TOKENS, make_t5gemma2, make_tokenizer
from PIL import Image
from references import torch, transformers
from safetensors.numpy import load_file, save_file
from test_t5gemma2_parity import batch_of, ours, theirs_of
from test_vision_parity import assert_close

from adalink_jax import AdaLinkAdapter, PromptTuning, parallel
from adalink_jax.adapters import fold_adapter, folded_backbone, make_adapter
from adalink_jax.adapters.adapted import AdaptedModel
from adalink_jax.checkpoints import config_fields, fingerprint, open_adapter, open_source, save_adapter
from adalink_jax.checkpoints.families.t5gemma2_family import T5Gemma2Family
from adalink_jax.cli.main import main
from adalink_jax.data import FeatureConverter
from adalink_jax.data.images import Preparation, picture_array
from adalink_jax.data.vocabularies import load_vocabulary
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder, its reference, and the parameters."""
    folder = tmp_path_factory.mktemp("base") / "t5gemma2"
    reference = make_t5gemma2()
    reference.save_pretrained(folder)
    return folder, reference, ours(folder)[1]["backbone"]


def run(capsys, *argv):
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def copied(base, folder, tensors=None, **changes):
    """The base's folder with other tensors or fields of `config.json`, whose names have dots."""
    config = json.loads((base[0] / "config.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        part = config
        for key in path:
            part = part[key]
        part[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors or load_file(base[0] / "model.safetensors"), folder / "model.safetensors")
    return folder


def test_a_conversion_to_native_and_back_keeps_every_bit(base, tmp_path, capsys):
    """`config.json` is made anew; `transformers` computes the same from the folder."""
    run(capsys, "convert", base[0], tmp_path / "native", "--to", "native")
    run(capsys, "convert", tmp_path / "native", tmp_path / "hf", "--to", "hf")
    marks = [json.loads(run(capsys, "inspect", tmp_path / to, "--json"))["fingerprint"] for to in ("native", "hf")]
    assert marks == [fingerprint(base[2])] * 2
    assert config_fields(open_source(tmp_path / "hf")) == config_fields(open_source(base[0]))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    batch = theirs_of(batch_of(3))
    with torch.no_grad():
        one, other = (m.eval()(**batch, decoder_input_ids=batch["input_ids"]).logits for m in (model, base[1]))
    assert torch.equal(one, other)


@pytest.mark.parametrize("style", ["released", "as in the code"])
def test_both_styles_of_names_are_read(base, tmp_path, style):
    tensors = {}
    for name, tensor in load_file(base[0] / "model.safetensors").items():
        assert ".text_model." not in name and ".vision_model." not in name  # as transformers 5.23 saves them
        if style == "released":
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        elif "vision" not in name and "projector" not in name:
            name = name.replace("encoder.", "encoder.text_model.")
        tensors[name] = tensor
    if style == "released":  # tied ones may be stored
        table = tensors["model.encoder.embed_tokens.weight"]
        tensors |= {"model.decoder.embed_tokens.weight": table.copy(), "lm_head.out_proj.weight": table.copy()}
    source = open_source(copied(base, tmp_path / "hf", tensors))
    assert source.shapes == open_source(base[0]).shapes
    assert fingerprint(ours(tmp_path / "hf")[1]["backbone"]) == fingerprint(base[2])


def test_rotations_and_the_pattern_of_layers_as_older_files_state_them(base, tmp_path):
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    folder = copied(base, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for side in (config["decoder"], config["encoder"]["text_config"]):
        del side["rope_parameters"], side["layer_types"]
        side |= old | {"sliding_window_pattern": 3}
    (folder / "config.json").write_text(json.dumps(config))
    fields = config_fields(open_source(folder))
    names = "rope_theta", "local_rope_theta", "rope_factor", "full_attention_every"
    assert [fields[name] for name in names] == [5e5, 2e4, 4.0, 3]
    text = transformers.AutoConfig.from_pretrained(folder).decoder
    full, local = text.rope_parameters["full_attention"], text.rope_parameters["sliding_attention"]
    assert (full["rope_theta"], local["rope_theta"], full["factor"]) == (5e5, 2e4, 4.0)
    assert text.layer_types == ["sliding_attention"] * 2 + ["full_attention"]


def trained_pair(kinds, seed=0):
    rng = np.random.default_rng(seed)
    pair = lambda: {"down": rng.normal(size=(32, 4)) * 32**-0.5, "up": rng.normal(size=(4, 32))}
    return {kind: {name: leaf.astype(np.float32) for name, leaf in pair().items()} for kind in kinds}


def test_a_folded_text_adapter_unties_the_embeddings(base, tmp_path, capsys):
    """Rows of the table that are replaced stay as they are; the vector of an image's end is adapted, for the encoder alone."""
    params, settings = (
        trained_pair(["text"]),
        {"rank": 4, "phi": "gelu", "scale": 0.7, "kinds": ["text"], "share": False},
    )
    about = {"method": "AdaLinkAdapter", "settings": settings, "task": "t", "metrics": {}}
    save_adapter(tmp_path / "adapter", params, about | {"base": {"name": "b", "fingerprint": fingerprint(base[2])}})
    run(capsys, "export", tmp_path / "adapter", tmp_path / "hf", "--to", "hf", "--base", base[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["self_check.py"])
        runpy.run_path(str(tmp_path / "hf" / "self_check.py"))
    assert "The adapter is in place" in capsys.readouterr().out
    theirs, folded = (load_file(path / "model.safetensors") for path in (base[0], tmp_path / "hf"))
    table, vector = "embed_tokens.weight", "embed_tokens.eoi_embedding"
    written = {name.replace("vision_model.", ""): tensor for name, tensor in folded.items()}
    changed = {name for name in theirs if not np.array_equal(theirs[name], written[name])}
    assert changed == {f"model.encoder.{table}", f"model.encoder.{vector}"}
    same = np.all(theirs[f"model.encoder.{table}"] == folded[f"model.encoder.{table}"], axis=1)
    assert np.flatnonzero(same).tolist() == [92, 93]
    for name in (f"model.decoder.{table}", "lm_head.out_proj.weight"):
        np.testing.assert_array_equal(folded[name], theirs[f"model.encoder.{table}"])

    adapter = AdaLinkAdapter(rank=4, phi="gelu", scale=0.7, kinds=("text",))
    adapted, tree = ours(base[0], adapter)
    batch = batch_of(4)
    expected = jax.jit(adapted.apply)({"params": {**tree, "adapter": params}}, batch)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(**theirs_of(batch), decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]).long()).logits
    assert_close(expected, logits)
    again, read = ours(tmp_path / "hf")
    assert_close(jax.jit(again.apply)({"params": read}, batch), logits)


@pytest.mark.parametrize("share", [False, True])
def test_a_hooked_adapter_changes_text_and_images(share, base, tmp_path, capsys):
    params = trained_pair(["shared"] if share else ["text", "image"])
    settings = {"rank": 4, "phi": "gelu", "scale": 0.7, "kinds": None, "share": share}
    stated = {"name": "b", "fingerprint": fingerprint(base[2]), "family": "T5Gemma 2"}
    about = {"method": "AdaLinkAdapter", "settings": settings, "task": "t", "metrics": {}, "base": stated}
    save_adapter(tmp_path / "adapter", params, about)
    run(capsys, "export", tmp_path / "adapter", tmp_path / "torch", "--to", "torch")

    adapted, tree = ours(base[0], AdaLinkAdapter(rank=4, phi="gelu", scale=0.7, share=share))
    batch = batch_of(4)
    expected = jax.jit(adapted.apply)({"params": {**tree, "adapter": params}}, batch)
    targets = {"decoder_input_ids": torch.tensor(batch["decoder_input_tokens"]).long()}
    inputs, model = theirs_of(batch), base[1].eval()
    embedded = {name: x for name, x in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        plain = model(**inputs, **targets).logits
        embedded["inputs_embeds"] = model.get_encoder().get_input_embeddings()(inputs["input_ids"])
        links = runpy.run_path(str(tmp_path / "torch" / "adalink_torch.py"))["AdaLinks"](model)
        try:
            links.load("mine", tmp_path / "torch")
            links.switch("mine")
            assert_close(expected, model(**inputs, **targets).logits)
            assert_close(expected, model(**embedded, **targets).logits)
            links.switch(None)
            assert torch.equal(model(**inputs, **targets).logits, plain)
        finally:
            links.remove()


def test_no_export_drops_an_adapter_of_images_or_of_outputs(base, tmp_path, capsys):
    def message(kinds, share, to):
        settings = {"rank": 4, "phi": "identity", "scale": 1.0, "kinds": kinds, "share": share}
        stated = {"name": "b", "fingerprint": fingerprint(base[2]), "family": "T5Gemma 2"}
        about = {"method": "AdaLinkAdapter", "settings": settings, "task": "t", "metrics": {}, "base": stated}
        save_adapter(tmp_path / "adapter", trained_pair(["shared"] if share else kinds or ["text", "image"]), about)
        assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "out"), *map(str, to)]) == 2
        return " ".join(capsys.readouterr().err.split())

    folder = ("--to", "hf", "--base", base[0])
    assert "adapts images too; fold it into a native base with `adalink adapters fold`" in message(None, True, folder)
    assert "has image, text; only an adapter of the text alone" in message(None, False, folder)
    assert "has target, text; only an adapter of text and images" in message(
        ["text", "target"], False, ("--to", "torch")
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers about PEFT
def test_a_prompt_of_peft_gives_its_logits(base, tmp_path):
    """`transformers` multiplies by sqrt(D) inside its embedding module, so PEFT's prompt is not multiplied."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, token_dim=32, num_layers=4, num_attention_heads=4,
        num_transformer_submodules=1,
    )  # fmt: skip
    batch = {name: x for name, x in batch_of(4, counts=(0,)).items() if not name.startswith("image")}
    with torch.no_grad():
        plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(base[0], attn_implementation="eager")
        model = peft.get_peft_model(plain, config).eval()
        model.prompt_encoder["default"].embedding.weight.copy_(torch.randn(4, 32))
        model.save_pretrained(tmp_path)
        ids = [torch.tensor(batch[f"{side}_input_tokens"]).long() for side in ("encoder", "decoder")]
        logits = model(input_ids=ids[0], attention_mask=ids[0] > 0, decoder_input_ids=ids[1]).logits
    adapted, tree = ours(base[0], PromptTuning(4), adapter_path=tmp_path)
    assert_close(jax.jit(adapted.apply)({"params": tree}, batch), logits)


def test_adapters_of_text_and_images_fold_into_the_parameters(base):
    adapter = AdaLinkAdapter(rank=4, scale=0.7)
    adapted, tree = ours(base[0], adapter)
    params = trained_pair(["text", "image"])
    backbone, batch = adapted.backbone, batch_of(4)
    folded = fold_adapter(adapter, params, tree["backbone"], backbone.embedding_scale, backbone.replaced_ids)
    plain = AdaptedModel(folded_backbone(backbone, folded))
    assert_close(
        jax.jit(plain.apply)({"params": {"backbone": folded}}, batch),
        jax.jit(adapted.apply)({"params": {**tree, "adapter": params}}, batch),
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decoder__hidden_activation": "silu"}, "decoder.hidden_activation 'silu'"),
        ({"encoder__text_config__attn_logit_softcapping": 5.0}, "encoder.text_config.attn_logit_softcapping 5.0"),
        ({"decoder__sliding_window": 7}, "another sliding_window for the encoder than for the decoder"),
        ({"encoder__mm_tokens_per_image": 5}, "mm_tokens_per_image 5"),
        (
            {"decoder__rope_parameters__sliding_attention__rope_type": "linear"},
            "rope_type 'linear' in decoder.rope_param",
        ),
        ({"tie_word_embeddings": False}, "lacks the decoder's embeddings"),
        ({"pad_token_id": [0, 3]}, "pad_token_id"),
    ],
)
def test_another_network_is_refused(base, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        open_source(copied(base, tmp_path, **change))


def test_embeddings_that_are_not_tied_though_the_folder_says_so_are_refused(base, tmp_path):
    tensors = load_file(base[0] / "model.safetensors")
    table = tensors["model.encoder.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match="not tied to the decoder's embedding table"):
        open_source(copied(base, tmp_path, tensors | {"lm_head.out_proj.weight": table + 1}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings is not False"):
        open_source(copied(base, tmp_path, tensors | {"model.decoder.embed_tokens.weight": table + 1}))


@pytest.mark.parametrize("tensor", ["embed_tokens.weight", "embed_tokens.eoi_embedding"])
def test_an_untied_model_without_one_of_the_encoder_s_tables_is_refused(base, tmp_path, tensor):
    tensors = load_file(base[0] / "model.safetensors")
    for name in ("embed_tokens.weight", "embed_tokens.eoi_embedding"):
        tensors[f"model.decoder.{name}"] = tensors[f"model.encoder.{name}"] + 1
    source = open_source(copied(base, tmp_path / "whole", tensors, tie_word_embeddings=False))
    del tensors[f"model.encoder.{tensor}"]
    with pytest.raises(CheckpointError, match=f"lacks the encoder's {tensor}"):
        open_source(copied(base, tmp_path / "hf", tensors, tie_word_embeddings=False))
    family, name = T5Gemma2Family(), "token_embedder/" + ("embedding" if "weight" in tensor else "end_of_image")
    for absent in {name, "encoder/token_embedder/end_of_image"}:
        with pytest.raises(CheckpointError, match=f"has {absent}, and this one lacks it"):
            family.to_hugging_face({key: leaf for key, leaf in source.leaves.items() if key != absent})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers about PEFT
@pytest.mark.filterwarnings("ignore:.*adalink.*are ignored:UserWarning")  # PEFT about our key
def test_a_lora_is_peft_s_on_encoder_and_decoder(base, tmp_path):
    """Read and written with the names of modules in memory; the tower has projections of the same names."""
    peft = pytest.importorskip("peft")
    sides = r"model\.(encoder\.text_model|decoder)\.layers\..*(q_proj|v_proj|down_proj)"
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, lora_alpha=6, target_modules=sides)
    load = lambda: transformers.AutoModelForSeq2SeqLM.from_pretrained(base[0], attn_implementation="eager")
    batch = batch_of(4)

    def logits_of(model):
        inputs = theirs_of(batch) | {"decoder_input_ids": torch.tensor(batch["decoder_input_tokens"]).long()}
        with torch.no_grad():
            return model.eval()(**inputs).logits.numpy()

    theirs = peft.get_peft_model(load(), config)
    with torch.no_grad():
        for leaf in theirs.parameters():
            if leaf.requires_grad:
                leaf.copy_(torch.randn_like(leaf) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    _, facts = open_adapter(tmp_path / "theirs")
    adapted = AdaptedModel(ours(base[0])[0].backbone, make_adapter(facts.method, facts.settings))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(adapted, initial_checkpoint_path=str(base[0]), initial_adapter_path=str(tmp_path / "theirs"))
        loaded = load_parameters(setup, mesh, rules)
    expected = logits_of(theirs)
    assert_close(jax.jit(adapted.apply)({"params": loaded.tree()}, batch), expected)
    save_adapter(tmp_path / "ours", loaded.tree()["adapter"], dataclasses.replace(facts, base=loaded.base))
    np.testing.assert_array_equal(logits_of(peft.PeftModel.from_pretrained(load(), tmp_path / "ours")), expected)


IMAGE_WORDS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


@pytest.fixture(scope="module")
def processor(base, tmp_path_factory):
    """A folder with a tokenizer and an image processor, and the processor that `transformers` reads."""
    folder = tmp_path_factory.mktemp("processor")
    copied(base, folder)
    make_tokenizer(folder, **IMAGE_WORDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    transformers.Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(folder)
    return folder, transformers.Gemma3Processor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("text", ["<start_of_image>", "a <start_of_image> b<start_of_image>", "no image"])
def test_texts_have_the_processor_s_ids(processor, text):
    folder, theirs = processor
    picture = Image.new("RGB", (31, 17), (200, 10, 60))
    count = text.count("<start_of_image>")
    expected = theirs(text=[text], images=[[picture] * count] if count else None)["input_ids"][0]
    vocabulary = load_vocabulary(folder)
    assert vocabulary.input_ids(text) == expected
    assert expected.count(vocabulary.encode("<image_soft_token>")[0]) == 4 * count


def test_pictures_have_the_processor_s_pixels(processor, base):
    folder, theirs = processor
    noise = np.random.default_rng(0).integers(0, 255, (37, 50, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    pixels = theirs(text=["<start_of_image>"], images=[[picture]], return_tensors="np")["pixel_values"]
    tower = open_source(folder).settings["vision"]
    assert tower["resample"] == "bilinear"
    preparation = Preparation(**{name: tower[name] for name in ("resample", "keep_aspect", "crop_pct")})
    np.testing.assert_allclose(
        picture_array(picture, (16, 16, 3), "it", preparation), pixels[0].transpose(1, 2, 0), rtol=0, atol=1e-6
    )


def test_an_image_without_a_place_in_the_text_is_refused(base):
    backbone = ours(base[0])[0].backbone
    converter = FeatureConverter({"inputs": 9, "targets": 3}, image_places=backbone.image_places)
    image = np.zeros((16, 16, 3), np.float32)
    places = [T5GEMMA2_IMAGE] * T5GEMMA2_TOKENS
    assert converter([{"inputs": [2, *places, 5], "targets": [7], "image": image}])["images"].shape == (1, 16, 16, 3)
    for inputs in ([2, 5], [2, *range(30, 36), *places]):  # none, and cut
        with pytest.raises(UserError, match="write <start_of_image> once where the image stands"):
            converter([{"inputs": inputs, "targets": [7], "image": image}])


@pytest.mark.slow
def test_verify_base_agrees_with_pictures_and_finds_a_changed_window(tmp_path, capsys):
    folder, other = tmp_path / "base", tmp_path / "other"
    make_t5gemma2(vocab_size=272, image=262, end=261).save_pretrained(folder)
    make_tokenizer(folder, **IMAGE_WORDS)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(folder)
    run(capsys, "convert", folder, other, "--to", "native")
    out = run(capsys, "verify-base", other, "--reference", folder)
    assert "20 of 20 greedy outputs" in out and "20 of 20 prompts" in out
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["sliding_window"] = config["encoder"]["text_config"]["sliding_window"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["verify-base", str(other), "--reference", str(folder)]) == 1
    assert "settings" in capsys.readouterr().out
