"""T5Gemma in files: converted through every format, folded, and refused where this package computes something else."""

import dataclasses
import json
import runpy

import jax
import numpy as np
import pytest
from gemma_references import make_t5gemma, make_tokenizer
from references import tokens, torch, transformers
from safetensors.numpy import load_file, save_file
from test_t5_parity import assert_close, ours

from adalink_jax import AdaptedModel, parallel
from adalink_jax.adapters import make_adapter
from adalink_jax.checkpoints import fingerprint, open_adapter, open_source, save_adapter
from adalink_jax.cli.main import main
from adalink_jax.data.vocabularies import fingerprint as fingerprint_of_vocabulary
from adalink_jax.data.vocabularies import load_vocabulary
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.interop import verify
from adalink_jax.interop.reference import Reference
from adalink_jax.serving import Predictor
from adalink_jax.training.setup import Setup, load_parameters

GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
pytestmark = [
    pytest.mark.usefixtures("exact_matmuls"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # transformers about PEFT
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder, its reference, and the parameters."""
    folder = tmp_path_factory.mktemp("base") / "t5gemma"
    reference = make_t5gemma("another decoder")
    reference.save_pretrained(folder)
    return folder, reference, ours(folder)[1]["backbone"]


def run(capsys, *argv):
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def test_a_conversion_through_every_format_keeps_every_bit(base, tmp_path, capsys):
    last, mark = base[0], fingerprint(base[2])
    for i, to in enumerate(("native", "t5x", "hf", "t5x", "native", "hf")):
        place = tmp_path / f"checkpoint_{i}"
        flags = _model_file(tmp_path, base[0]) if to == "hf" and i == 2 else []  # t5x's files state no settings
        run(capsys, "convert", last, place, "--to", to, *flags)
        last = place if i != 3 else last
        assert json.loads(run(capsys, "inspect", place, "--json"))["fingerprint"] == mark
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(last, attn_implementation="eager")
    for name, tensor in base[1].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with torch.no_grad():
        ids = torch.arange(3, 33)[None]
        assert torch.equal(*(m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, base[1])))


def _model_file(folder, path):
    """Flags of a gin file of the model."""
    from adalink_jax.checkpoints import config_fields

    fields = "".join(f"T5GemmaConfig.{name} = {value!r}\n" for name, value in config_fields(open_source(path)).items())
    (folder / "model.gin").write_text("include 'gin/models/t5gemma.gin'\n" + fields)
    return ["--gin_file", folder / "model.gin"]


def test_a_folded_adapter_is_in_the_encoder_s_table_alone(base, tmp_path, capsys):
    rng, width = np.random.default_rng(0), 32
    pair = {"down": rng.normal(size=(width, 4)) * width**-0.5, "up": rng.normal(size=(4, width))}
    params = {"text": {name: leaf.astype(np.float32) for name, leaf in pair.items()}}
    settings = {"rank": 4, "phi": "gelu", "scale": 0.7, "kinds": None, "share": False}
    about = {"method": "AdaLinkAdapter", "settings": settings, "task": "t", "metrics": {}}
    save_adapter(tmp_path / "adapter", params, about | {"base": {"name": "b", "fingerprint": fingerprint(base[2])}})
    run(capsys, "export", tmp_path / "adapter", tmp_path / "hf", "--to", "hf", "--base", base[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["self_check.py"])
        runpy.run_path(str(tmp_path / "hf" / "self_check.py"))
    assert "The adapter is in place" in capsys.readouterr().out
    theirs, folded = (load_file(path / "model.safetensors") for path in (base[0], tmp_path / "hf"))
    assert [name for name in theirs if not np.array_equal(theirs[name], folded[name])] == [
        "model.encoder.embed_tokens.weight"
    ]
    files = _model_file(tmp_path, base[0])
    files.append("--gin.ACTIVATION_DTYPE='float32'")
    run(capsys, "adapters", "fold", tmp_path / "adapter", tmp_path / "native", "--base", base[0], *files)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        ours(tmp_path / "native")[1]["backbone"]["encoder"]["token_embedder"],
        {"embedding": folded["model.encoder.embed_tokens.weight"]},
    )


@pytest.mark.parametrize("kind", ["LORA", "PROMPT_TUNING"])
def test_an_adapter_of_peft_gives_its_logits(base, tmp_path, kind):
    peft = pytest.importorskip("peft")
    if kind == "LORA":
        targets = ["q_proj", "v_proj"]  # PEFT knows none for T5Gemma
        config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, lora_alpha=6, target_modules=targets)
    else:
        sizes = {"num_virtual_tokens": 4, "token_dim": 32, "num_layers": 4, "num_attention_heads": 4}
        more = {"num_transformer_submodules": 1, "task_type": "SEQ_2_SEQ_LM"}
        config = peft.PromptTuningConfig(**sizes, **more)
    with torch.no_grad():
        model = peft.get_peft_model(transformers.AutoModelForSeq2SeqLM.from_pretrained(base[0]), config).eval()
        for leaf in model.parameters():
            if leaf.requires_grad:
                leaf.copy_(torch.randn_like(leaf) * (0.3 if kind == "LORA" else 32**-0.5))
        model.save_pretrained(tmp_path)
        inputs, targets = tokens(4, 12), tokens(4, 9, seed=1)
        ids = [torch.tensor(x) for x in (inputs, targets)]
        logits = model(input_ids=ids[0], attention_mask=ids[0] > 0, decoder_input_ids=ids[1]).logits
    _, facts = open_adapter(tmp_path)
    plain = ours(base[0])[0]
    adapted = AdaptedModel(plain.backbone, make_adapter(facts.method, facts.settings))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(adapted, initial_checkpoint_path=str(base[0]), initial_adapter_path=str(tmp_path))
        loaded = load_parameters(setup, mesh, rules)
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
    assert_close(jax.jit(adapted.apply)({"params": loaded.tree()}, batch), logits)
    if kind == "LORA":  # written here, it is PEFT's file again, with T5Gemma's names
        save_adapter(tmp_path / "own", loaded.tree()["adapter"], dataclasses.replace(facts, base=loaded.base))
        written, original = (load_file(x / "adapter_model.safetensors") for x in (tmp_path / "own", tmp_path))
        jax.tree.map(np.testing.assert_array_equal, written, original)


OTHERS = {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 9}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"sliding_window": 9}, OTHERS])
def test_verify_base_agrees_and_finds_one_changed_setting(tmp_path, capsys, changes):
    folder, other = tmp_path / "base", tmp_path / "other"
    make_t5gemma("grouped", vocab_size=300).save_pretrained(folder)
    make_tokenizer(folder)
    run(capsys, "convert", folder, other, "--to", "native")
    out = run(capsys, "verify-base", other, "--reference", folder, "--report", tmp_path / "report.html")
    assert "20 of 20 greedy outputs" in out and "20 of 20 prompts" in out
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        changed = {side: {**config[side], name: value} for side in ("encoder", "decoder")}
        (folder / "config.json").write_text(json.dumps(config | changed))
        assert main(["verify-base", str(other), "--reference", str(folder)]) == 1
        assert "settings" in capsys.readouterr().out


def test_inputs_begin_as_the_model_s_tokenizer_has_them(tmp_path):
    make_tokenizer(tmp_path)
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.input_ids("a b", 3) == [2, 4 + ord("a"), 4 + 0xE2]  # a space is U+2581 in UTF-8
    assert vocabulary.decode([*vocabulary.encode("a b"), 1, 5]) == "a b"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"encoder": {"hidden_activation": "silu"}}, "encoder.hidden_activation 'silu'"),
        ({"decoder": {"rms_norm_eps": 1e-5}}, "decoder.rms_norm_eps 1e-05"),
        ({"decoder": {"sliding_window": 7}}, "another sliding_window for the encoder than for the decoder"),
        ({"encoder": {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}}, "rope_type 'linear'"),
        ({"encoder": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}}, "layer_types"),
        ({"tie_word_embeddings": False}, "not tied to the decoder's embedding table"),
    ],
)
def test_another_network_is_refused(base, tmp_path, change, message):
    config = json.loads((base[0] / "config.json").read_text())
    config |= {key: {**config[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((base[0] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path)


def test_a_head_of_its_own_is_refused_and_a_stored_tied_one_is_not(base, tmp_path):
    tensors = load_file(base[0] / "model.safetensors")
    (tmp_path / "config.json").write_text((base[0] / "config.json").read_text())
    head = tensors["model.decoder.embed_tokens.weight"]
    save_file({**tensors, "lm_head.out_proj.weight": head.copy()}, tmp_path / "model.safetensors")
    assert open_source(tmp_path).shapes == open_source(base[0]).shapes
    save_file({**tensors, "lm_head.out_proj.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not tied"):
        open_source(tmp_path)


def test_names_without_the_prefix_are_read(base, tmp_path):
    tensors = load_file(base[0] / "model.safetensors")
    save_file({name.removeprefix("model."): x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((base[0] / "config.json").read_text())
    assert open_source(tmp_path).leaves.keys() == open_source(base[0]).leaves.keys()


def test_an_input_is_a_message_in_the_chat_template_and_the_text_alone_is_cut(tmp_path):
    make_tokenizer(tmp_path, GEMMA)
    chat, theirs = load_vocabulary(f"chat:{tmp_path}"), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Is it good?", "  two\n\nlines \u00a0\n", "", "<end_of_turn> caf\u00e9", "x" * 40):
        message = [{"role": "user", "content": text}]
        assert chat.input_ids(text) == theirs.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    assert theirs.decode(chat.input_ids("abcd", 18)) == (
        "<bos><start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\n"
    )
    assert fingerprint_of_vocabulary(f"chat:{tmp_path}") == "chat:" + fingerprint_of_vocabulary(tmp_path)
    with pytest.raises(UserError, match="begin and end with 16 tokens .* gives them 15; raise it"):
        chat.input_ids("abcd", 15)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "has no chat template; leave out 'chat:'"),
        ("{{ messages[0]['content'] | upper }}", "'Hello' has other ids than alone"),
        ("{{ messages[0]['content'] | reverse }}", "changes a text"),
        ("{{ raise_exception('a system first') }}", r"takes no message of a user alone \(a system first\)"),
    ],
)
def test_a_folder_without_a_fixed_chat_template_is_refused(tmp_path, template, message):
    make_tokenizer(tmp_path, template)
    with pytest.raises(UserError, match=message):
        load_vocabulary(f"chat:{tmp_path}")


@pytest.mark.slow
def test_a_chat_template_travels_with_the_run_and_its_adapter(tmp_path, capsys):
    folder, data = tmp_path / "base", tmp_path / "reviews.csv"
    make_t5gemma("grouped", vocab_size=300).save_pretrained(folder)
    make_tokenizer(folder, GEMMA)
    data.write_text(
        "text,label,split\n" + "".join(f"film{i},{'ab'[i % 2]},{'train dev test'.split()[i % 3]}\n" for i in range(12))
    )
    values = {
        "DATA": str(data), "INPUTS": "{text}", "TARGETS": "{label}", "SPLIT": "split", "MIXTURE_OR_TASK_NAME": "reviews",
        "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 3}, "VOCABULARY": f"chat:{folder}", "MODEL_DIR": str(tmp_path / "run"),
        "INITIAL_CHECKPOINT_PATH": str(folder), "TRAIN_STEPS": 1, "WARMUP_STEPS": 0, "BATCH_SIZE": 4,
    }  # fmt: skip
    files = ["gin/adapters/adalink.gin", "gin/tasks/files.gin", "gin/runs/finetune.gin"]
    flags = [*_model_file(tmp_path, folder), *(f"--gin_file={file}" for file in files)]
    assert main(["train", *map(str, flags), *(f"--gin.{name}={value!r}" for name, value in values.items())]) == 0
    chat = load_vocabulary(f"chat:{folder}")
    assert Predictor(tmp_path / "run")._vocabulary.input_ids("x") == chat.input_ids("x")
    with pytest.raises(UserError, match="'chat:' stands before its path"):
        Predictor(tmp_path / "run", vocabulary=str(folder))
    values |= {"INITIAL_ADAPTER_PATH": str(tmp_path / "run" / "adapter"), "MODEL_DIR": str(tmp_path / "other")}
    for command, vocabulary, status in (
        ("eval", f"chat:{folder}", 0),
        ("eval", str(folder), 2),
        ("train", str(folder), 0),
    ):
        capsys.readouterr()
        settings = (f"--gin.{name}={value!r}" for name, value in (values | {"VOCABULARY": vocabulary}).items())
        assert main([command, *map(str, flags), *settings]) == status
        assert ("'chat:' stands before its path" in "".join(capsys.readouterr())) == (vocabulary == str(folder))
    plain = ours(folder)[0]
    _, checks = verify._features(plain, Reference(str(folder)), chat)
    assert [check.finding for check in checks] == ["20 of 20 prompts and 6 of 6 added tokens have the same ids"]
    main(["convert", str(folder), str(tmp_path / "native"), "--to", "native"])
    assert load_vocabulary(f"chat:{tmp_path}/native").input_ids("a") == chat.input_ids("a")


def test_a_chat_template_is_of_a_folder():
    with pytest.raises(UserError, match="'chat:bytes' is not a Hugging Face folder"):
        load_vocabulary("chat:bytes")
