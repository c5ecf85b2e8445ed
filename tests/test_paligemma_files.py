"""PaliGemma in files: every naming of Hugging Face's and big_vision's `.npz` are one model, and come back as they were."""

import contextlib
import dataclasses
import io
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from gemma_references import PALIGEMMA_FORMS, PALIGEMMA_IMAGE, make_paligemma, make_tokenizer
from PIL import Image
from references import torch, transformers
from safetensors.numpy import load_file, save_file
from test_paligemma_parity import assert_same_logits, batch_of, ours, theirs_of
from test_vision_parity import pictures, pixel_values

from adalink_jax import AdaLinkAdapter, AdaptedModel, PromptTuning, parallel
from adalink_jax.adapters import describe_adapter, make_adapter
from adalink_jax.checkpoints import config_fields, open_adapter, open_source, save_adapter
from adalink_jax.checkpoints.convert import convert
from adalink_jax.cli.main import main
from adalink_jax.data.vocabularies import load_vocabulary
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.files.places import path_of
from adalink_jax.interop.folded import export_folded
from adalink_jax.interop.hook import export_hook
from adalink_jax.models.decoding import Sampling
from adalink_jax.serving import Predictor
from adalink_jax.training.outputs import write_parameters
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")
WIDTH, HEADS, HEAD, TOWER_HEADS, PATCH = 32, 4, 10, 4, 14


@pytest.fixture(scope="module", params=PALIGEMMA_FORMS)
def base(request, tmp_path_factory):
    """A folder as transformers saves it, and the fingerprint of its model."""
    folder = tmp_path_factory.mktemp("base") / "paligemma"
    make_paligemma(request.param).save_pretrained(folder)
    return folder, fingerprint(folder)


def fingerprint(path):
    return json.loads(output_of("inspect", path, "--json"))["fingerprint"]


def output_of(*argv):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*map(str, argv)]) == 0
    return out.getvalue()


def as_released(name):
    """The name in the files on the Hub, where the tower is within `vision_model`."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def as_newer(name):
    """The name in memory, as of version 4.52 of transformers."""
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("rename", [as_released, as_newer])
def test_names_and_rows_behind_the_vocabulary_do_not_matter(base, tmp_path, rename):
    """The files on the Hub have a placeholder and filling behind the vocabulary, and a head that differs there."""
    folder, mark = base
    tensors = {rename(name): x for name, x in load_file(folder / "model.safetensors").items()}
    table = next(name for name in tensors if "embed_tokens" in name)
    rng = np.random.default_rng(0)
    more = lambda: rng.normal(size=(32, WIDTH)).astype(np.float32)
    head = "lm_head.weight" if rename is as_newer else "language_model.lm_head.weight"
    tensors |= {head: np.concatenate([tensors[table], more()]), table: np.concatenate([tensors[table], more()])}
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 128
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert fingerprint(tmp_path) == mark
    assert open_source(tmp_path).settings == open_source(folder).settings
    output_of("convert", tmp_path, tmp_path / "hf", "--to", "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["text_config"]["vocab_size"] == PALIGEMMA_IMAGE


def test_a_head_of_its_own_is_refused_and_a_stored_tied_one_is_not(base, tmp_path):
    folder, mark = base
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    table = next(x for name, x in tensors.items() if "embed_tokens" in name)
    other = table.copy()
    other[-1, -1] += 1

    def write(head, **stated):
        save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | stated))
        return tmp_path

    assert fingerprint(write(table)) == mark
    text = {"text_config": config["text_config"] | {"tie_word_embeddings": False}}
    for head, stated in ((other, {}), (table[:-1], {}), (table, {"tie_word_embeddings": False}), (table, text)):
        with pytest.raises(CheckpointError, match="an untied head"):
            open_source(write(head, **stated))


def big_vision_arrays(folder):
    """The model of a folder in big_vision's layout."""
    leaves = {name: leaf.whole() for name, leaf in open_source(folder).leaves.items()}
    stacked = lambda stack, name: np.stack(
        [leaves[f"{stack}/layers_{i}/{name}"] for i in range(4 if stack == "decoder" else 2)]
    )
    apart = lambda x, heads: x.reshape(*x.shape[:2], heads, -1)
    tower = {"embedding/kernel": leaves["vision/patch_embedding/kernel"].reshape(PATCH, PATCH, 3, -1),
             "embedding/bias": leaves["vision/patch_embedding/bias"], "pos_embedding": leaves["vision/pos_embedding"][None]}  # fmt: skip
    for kind in ("scale", "bias"):
        tower[f"Transformer/encoder_norm/{kind}"] = leaves[f"vision/encoder_norm/{kind}"]
        for i, norm in enumerate(("attention", "mlp")):
            tower[f"Transformer/encoderblock/LayerNorm_{i}/{kind}"] = stacked("vision", f"pre_{norm}_layer_norm/{kind}")
    for kind in ("kernel", "bias"):
        for i, name in enumerate(("wi", "wo")):
            tower[f"Transformer/encoderblock/MlpBlock_0/Dense_{i}/{kind}"] = stacked("vision", f"mlp/{name}/{kind}")
        for name in ("query", "key", "value"):
            x = stacked("vision", f"attention/{name}/{kind}")
            x = x.reshape(*x.shape[:-1], TOWER_HEADS, -1)
            tower[f"Transformer/encoderblock/MultiHeadDotProductAttention_0/{name}/{kind}"] = x
        x = stacked("vision", f"attention/out/{kind}")
        x = x.reshape(2, TOWER_HEADS, -1, x.shape[-1]) if kind == "kernel" else x
        tower[f"Transformer/encoderblock/MultiHeadDotProductAttention_0/out/{kind}"] = x
        tower[f"head/{kind}"] = leaves[f"projection/{kind}"]
    attention = {name: stacked("decoder", f"self_attention/{name}/kernel") for name in ("query", "key", "value", "out")}
    kv_heads = attention["key"].shape[-1] // HEAD
    split = lambda name, heads: apart(attention[name], heads).transpose(0, 2, 1, 3)
    language = {
        "embedder/input_embedding": leaves["token_embedder/embedding"],
        "final_norm/scale": leaves["decoder/decoder_norm/scale"],
        "layers/attn/q_einsum/w": split("query", HEADS),
        "layers/attn/kv_einsum/w": np.stack([split("key", kv_heads), split("value", kv_heads)], axis=1),
        "layers/attn/attn_vec_einsum/w": attention["out"].reshape(4, HEADS, HEAD, WIDTH),
        "layers/mlp/gating_einsum": np.stack([stacked("decoder", f"mlp/wi_{i}/kernel") for i in (0, 1)], axis=1),
        "layers/mlp/linear": stacked("decoder", "mlp/wo/kernel"),
    }
    for place in ("pre", "post"):
        for name, block in (("attention", "self_attention"), ("ffw", "mlp")):
            if f"decoder/layers_0/{place}_{block}_layer_norm/scale" in leaves:
                language[f"layers/{place}_{name}_norm/scale"] = stacked("decoder", f"{place}_{block}_layer_norm/scale")
    return {f"params/img/{name}": x for name, x in tower.items()} | {
        f"params/llm/{name}": x for name, x in language.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_big_vision_is_the_same_model(base, tmp_path, dtype):
    """NumPy saves bfloat16 as two raw bytes; a fingerprint is that of the values in bfloat16."""
    folder, mark = base
    arrays = big_vision_arrays(folder)
    if dtype == "bfloat16":
        arrays = {name: x.astype(ml_dtypes.bfloat16).view("V2") for name, x in arrays.items()}
    np.savez(tmp_path / "model.npz", **arrays)
    assert fingerprint(tmp_path / "model.npz") == mark
    settings, expected = open_source(tmp_path / "model.npz").settings, open_source(folder).settings
    for part, fields in settings.items():
        assert fields.items() <= expected[part].items()
    assert settings["language"].keys() == {"num_heads", "num_kv_heads", "head_dim"}


def test_a_conversion_keeps_every_bit_for_transformers(base, tmp_path):
    folder, mark = base
    output_of("convert", folder, tmp_path / "native", "--to", "native")
    output_of("convert", tmp_path / "native", tmp_path / "hf", "--to", "hf")
    assert fingerprint(tmp_path / "native") == fingerprint(tmp_path / "hf") == mark
    load = lambda path: transformers.AutoModelForImageTextToText.from_pretrained(
        path, attn_implementation="eager"
    ).eval()
    one, other = load(folder), load(tmp_path / "hf")
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    ids = torch.tensor([[PALIGEMMA_IMAGE] * 4 + list(range(3, 23))])
    inputs = {
        "input_ids": ids,
        "pixel_values": pixel_values(pictures(1, (28, 28))),
        "token_type_ids": torch.zeros_like(ids),
    }
    with torch.no_grad():
        assert torch.equal(one(**inputs).logits, other(**inputs).logits)


def test_a_model_without_a_window_and_a_cap_generates_in_transformers(base, tmp_path):
    """Its layers all see all tokens: the cache of `transformers` refuses windowed layers without a window."""
    if (
        "attention_softcap" not in (fields := config_fields(open_source(base[0])))
        or fields["attention_softcap"] is None
    ):
        pytest.skip("Gemma 1 has no window")
    output_of("convert", base[0], tmp_path / "native", "--to", "native")
    source = open_source(tmp_path / "native")
    off = {"logits_softcap": None, "sliding_window": None}
    settings = {**source.settings, "language": {**source.settings["language"], **off}}
    convert(dataclasses.replace(source, settings=settings), tmp_path / "hf", "hf")
    read = open_source(tmp_path / "hf").settings
    assert read["language"] == settings["language"] and read["vision"] == settings["vision"]
    model, params = ours(tmp_path / "hf")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", attn_implementation="eager"
    ).eval()
    batch = batch_of(4)
    arguments, length = theirs_of(batch, suffix=False)
    with torch.no_grad():
        ids = theirs.generate(**arguments, max_new_tokens=9, do_sample=False).numpy()[:, length:]
    decoded = jax.jit(lambda params: model.apply({"params": params}, batch, 9, Sampling(), method="generate"))(params)
    np.testing.assert_array_equal(decoded.ids[:, 0, : ids.shape[1]], ids)


def test_a_tower_without_a_stated_activation_has_siglip_s(base, tmp_path):
    config = json.loads((base[0] / "config.json").read_text())
    for name in ("model_type", "hidden_act"):
        config["vision_config"].pop(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((base[0] / "model.safetensors").read_bytes())
    assert open_source(tmp_path).settings["vision"]["activation"] == "gelu"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_activation": "silu"}, "text_config.hidden_activation 'silu'"),
        ({"rms_norm_eps": 1e-5}, "text_config.rms_norm_eps 1e-05"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_type 'linear'"),
        ({"model_type": "gemma3"}, "model_type"),
        (
            {"model_type": "gemma2", "layer_types": ["sliding_attention"] * 3 + ["full_attention", "full_attention"]},
            "layer_types",
        ),
    ],
)
def test_another_network_is_refused(base, tmp_path, change, message):
    config = json.loads((base[0] / "config.json").read_text())
    config["text_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((base[0] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path)


def test_inputs_have_bos_and_a_newline_and_no_placeholder(tmp_path):
    """The tokenizer has BOS alone; the newline is the processor's."""
    make_tokenizer(tmp_path, extra=("<loc0000>", "<image>"))
    assert load_vocabulary(tmp_path).after == ()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"processor_class": "PaliGemmaProcessor"}))
    vocabulary = load_vocabulary(tmp_path)
    byte = lambda text: 4 + ord(text)
    assert vocabulary.input_ids("ab") == [2, byte("a"), byte("b"), byte("\n")]
    assert vocabulary.input_ids("abc", 4) == [2, byte("a"), byte("b"), byte("\n")]
    assert vocabulary.encode("<loc0000>a") == [262, byte("a")]
    assert vocabulary.vocab_size == 263
    with pytest.raises(UserError, match="has <image>; leave it out"):
        vocabulary.encode("<image> caption en")


@pytest.mark.parametrize("window", [None, pytest.param(9, marks=pytest.mark.slow)])
def test_verify_base_agrees_and_finds_one_changed_setting(tmp_path, capsys, window):
    folder, other = tmp_path / "base", tmp_path / "other"
    make_paligemma("2", vocab_size=300, image_token_index=263).save_pretrained(folder)
    make_tokenizer(folder, extra=("<loc0000>", "<image>"))
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}'
    )
    output_of("convert", folder, other, "--to", "native")
    out = output_of("verify-base", other, "--reference", folder)
    assert "20 of 20 greedy outputs" in out and "20 of 20 prompts" in out
    if window is None:
        return
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = window
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["verify-base", str(other), "--reference", str(folder)]) == 1
    assert "sliding_window 6 (reference: 9)" in " ".join(capsys.readouterr().out.split())


def test_a_run_on_pictures_is_trained_and_predicts(tmp_path):
    folder, data = tmp_path / "base", tmp_path / "colours.csv"
    make_paligemma(
        "2", vocab_size=300, image_token_index=263, num_hidden_layers=1, layer_types=["sliding_attention"]
    ).save_pretrained(folder)
    make_tokenizer(folder, extra=("<loc0000>", "<image>"))
    colours = {"red": "a", "blue": "b"}
    for colour in colours:
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    rows = [(split, *row) for split in ("train", "dev", "test") for row in colours.items()] * 4
    data.write_text("split,picture,label,number\n" + "".join(f"{','.join(row)},{i}\n" for i, row in enumerate(rows)))
    fields = "".join(f"PaliGemmaConfig.{name} = {x!r}\n" for name, x in config_fields(open_source(folder)).items())
    tower = {"emb_dim": 24, "num_heads": 4, "mlp_dim": 48, "num_layers": 2}
    fields += "".join(f"ViTConfig.{name} = {x!r}\n" for name, x in tower.items())
    (tmp_path / "model.gin").write_text(f"include 'gin/models/paligemma2.gin'\n{fields}")
    files = [tmp_path / "model.gin", "gin/adapters/adalink.gin", "gin/tasks/files.gin", "gin/runs/finetune.gin"]
    settings = {
        "DATA": str(data), "INPUTS": "colour? {number}", "TARGETS": "{label}", "IMAGE": "{picture}.png", "SPLIT": "split",
        "MIXTURE_OR_TASK_NAME": "colours", "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 3}, "VOCABULARY": str(folder),
        "IMAGE_SIZE": (28, 28), "INITIAL_CHECKPOINT_PATH": str(folder), "MODEL_DIR": str(tmp_path / "run"),
        "TRAIN_STEPS": 1, "WARMUP_STEPS": 0, "BATCH_SIZE": 8, "METRIC": None, "ACTIVATION_DTYPE": "float32",
    }  # fmt: skip
    flags = [f"--gin_file={file}" for file in files] + [f"--gin.{name}={x!r}" for name, x in settings.items()]
    output_of("train", *flags)
    predictor = Predictor(tmp_path / "run")
    inputs, pictures = ["colour? 99"] * 2, [str(tmp_path / f"{colour}.png") for colour in colours]
    score = lambda **options: predictor(inputs, pictures, choices=["a", "b"], scores=True, **options)
    (red, blue), (plain, _) = score(), score(adapters=None)
    assert all(abs(red["a"] - other["a"]) > 1e-4 for other in (blue, plain))  # picture and adapter matter


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers about PEFT
def test_a_lora_of_peft_gives_its_logits(base, tmp_path):
    """On the language model: its projections have the names of the tower's too, so an expression names them."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=r"model\.language_model\..*(q_proj|v_proj|down_proj)"
    )
    with torch.no_grad():
        plain = transformers.AutoModelForImageTextToText.from_pretrained(base[0], attn_implementation="eager")
        theirs = peft.get_peft_model(plain, config).eval()
        for leaf in theirs.parameters():
            if leaf.requires_grad:
                leaf.copy_(torch.randn_like(leaf) * 0.3)
        theirs.save_pretrained(tmp_path)
    _, facts = open_adapter(tmp_path)
    model, _ = ours(base[0])
    adapted = AdaptedModel(model.backbone, make_adapter(facts.method, facts.settings))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(adapted, initial_checkpoint_path=str(base[0]), initial_adapter_path=str(tmp_path))
        loaded = load_parameters(setup, mesh, rules)
    assert_same_logits(adapted, loaded.tree(), theirs, batch_of(4))
    save_adapter(tmp_path / "own", loaded.tree()["adapter"], dataclasses.replace(facts, base=loaded.base))
    written, original = (load_file(x / "adapter_model.safetensors") for x in (tmp_path / "own", tmp_path))
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor)
    older = lambda name: name.replace(".model.language_model.", ".language_model.model.")  # before transformers 4.52
    leaves = {name: leaf.whole() for name, leaf in open_adapter(tmp_path)[0].items()}
    save_file({older(name): tensor for name, tensor in original.items()}, tmp_path / "adapter_model.safetensors")
    again = {name: leaf.whole() for name, leaf in open_adapter(tmp_path)[0].items()}
    jax.tree.map(np.testing.assert_array_equal, again, leaves)


def test_an_adapter_s_file_states_the_settings_that_its_base_may_have_otherwise(tmp_path):
    """A checkpoint's soft cap and window may be off in a model, and this one does not state how pictures are scaled."""
    folder = tmp_path / "base"
    make_paligemma("2", vocab_size=300, image_token_index=263).save_pretrained(folder)
    off = {"logits_softcap": None, "sliding_window": None}
    with_cap, without = (ours(folder, **changes)[0].backbone for changes in ({}, off))
    bilinear = without.clone(vision_config=dataclasses.replace(without.vision_config, resample="bilinear"))
    setup_of = lambda backbone, **more: Setup(
        AdaptedModel(backbone, AdaLinkAdapter(4)), ("adapter/.*",), initial_checkpoint_path=str(folder), **more
    )
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        params = load_parameters(setup_of(without), mesh, rules)
    summary = {"task": "t", "empty_input": None, "step": 1, "steps": 1}
    write_parameters(path_of(tmp_path), setup_of(without), params, params.trainable, {}, summary)
    adapter = str(tmp_path / "adapter")
    for backbone, message in (
        (with_cap, "logits_softcap = None in the language model, and this one has 6.0"),
        (bilinear, "resample = 'bicubic' in the vision model, and this one has 'bilinear'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Predictor(setup_of(backbone), {"a": adapter}, "bytes")
        with pytest.raises(CheckpointError, match=message), parallel.use_mesh(mesh, rules):
            load_parameters(setup_of(backbone, initial_adapter_path=adapter), mesh, rules)
        Predictor(setup_of(backbone, allow_other_base=True), {"a": adapter}, "bytes")
    Predictor(setup_of(without), {"a": adapter}, "bytes")


def test_a_prompt_has_this_package_s_format_and_no_file_is_of_an_encoder_decoder(base, tmp_path):
    """PEFT would load `PROMPT_TUNING` with SEQ_2_SEQ_LM and wrap a causal model as an encoder-decoder."""
    prompt = {"prompt": np.ones((3, WIDTH), np.float32)}
    rank = {name: np.ones(shape, np.float32) for name, shape in (("text/down", (WIDTH, 4)), ("text/up", (4, WIDTH)))}
    stated = {"base": {"name": "b", "fingerprint": base[1], "family": "PaliGemma"}}
    for module, leaves in ((PromptTuning(3), prompt), (AdaLinkAdapter(4, kinds=("text",)), rank)):
        save_adapter(tmp_path / "adapter", leaves, describe_adapter(module) | stated)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["peft_type"], config["task_type"]) == ("ADALINK", "CAUSAL_LM")
        again, _ = open_adapter(tmp_path / "adapter")
        assert {name: leaf.whole().tolist() for name, leaf in again.items()} == {
            name: x.tolist() for name, x in leaves.items()
        }


def test_a_text_adapter_has_no_encoder_to_hook_into_and_no_table_of_its_own(base, tmp_path):
    rng = np.random.default_rng(0)
    pair = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in (("down", (WIDTH, 4)), ("up", (4, WIDTH)))
    }
    settings = {"rank": 4, "phi": "identity", "scale": 1.0, "kinds": ["text"], "share": False}
    facts = {"method": "AdaLinkAdapter", "settings": settings, "task": "t", "metrics": {}}
    stated = {"name": "b", "fingerprint": base[1], "family": "PaliGemma"}
    save_adapter(tmp_path / "adapter", {"text": pair}, facts | {"base": stated})
    with pytest.raises(UserError, match="has no encoder"):
        export_hook(str(tmp_path / "adapter"), str(tmp_path / "torch"))
    with pytest.raises(CheckpointError, match="has one table for all text"):
        export_folded(str(tmp_path / "adapter"), open_source(base[0]), str(tmp_path / "hf"))
