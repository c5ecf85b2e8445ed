"""LoRA and prompt tuning agree with PEFT: files, logits and training from the same weights, in float32."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_pali
from references import NEEDS_PARITY, make_reference, tokens, torch
from safetensors.numpy import load_file, save_file
from test_t5_parity import assert_close

from adalink_jax import T5, AdaptedModel, LoRA, PromptTuning, T5Config, parallel
from adalink_jax.adapters import abstract_params, describe_adapter, make_adapter
from adalink_jax.checkpoints import (
    BaseReference,
    config_fields,
    fingerprint_of_source,
    load_adapter,
    open_adapter,
    open_source,
    read_adapter,
    save_adapter,
)
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths
from adalink_jax.training import partition
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason=NEEDS_PARITY)

TOLERANCE = 1e-4
pytestmark = [
    pytest.mark.usefixtures("exact_matmuls"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # transformers about PEFT
    pytest.mark.filterwarnings("ignore:.*adalink.*are ignored:UserWarning"),  # PEFT about our key
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),  # PEFT about the configuration of T5 1.1
]
EVERYWHERE = (r"(encoder|decoder)/layers_\d+/.*/(query|key|value|out|wi_?\d?|wo)", "decoder/logits_dense")
OURS = {
    "lora": lambda form: LoRA(rank=3, alpha=6.0),
    "lora everywhere": lambda form: LoRA(4, 2.0, EVERYWHERE if form == "T5 1.1" else EVERYWHERE[:1]),
    "prompt": lambda form: PromptTuning(length=5),
}
ALL_LINEAR = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
THEIRS = {
    "lora": lambda: peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, lora_alpha=6),
    "lora everywhere": lambda: peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=2, use_rslora=True, target_modules=ALL_LINEAR
    ),
    "prompt": lambda: peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1
    ),
}


@pytest.fixture(scope="module", params=["T5 1.0", "T5 1.1"])
def base(request, tmp_path_factory):
    """The form of T5, and a Hugging Face folder of it."""
    folder = tmp_path_factory.mktemp("base")
    make_reference(request.param).save_pretrained(folder)
    return request.param, folder


def load(folder, adapter, adapter_path=None, **overrides):
    """This package's model on the weights of `folder`; the adapter is random without a file."""
    config = T5Config(**config_fields(open_source(folder)), **overrides)
    model = AdaptedModel(T5(config), adapter)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    setup = Setup(model, initial_checkpoint_path=str(folder), initial_adapter_path=adapter_path and str(adapter_path))
    with parallel.use_mesh(mesh, rules):
        loaded = load_parameters(setup, mesh, rules)
    params = loaded.tree()
    if adapter_path is not None:
        names_base = open_adapter(adapter_path)[1]["base"]["fingerprint"] is not None
        assert loaded.sources["adapter"].endswith("does not name the base it was trained on") == (not names_base)
    else:
        keys = iter(jax.random.split(jax.random.key(0), 1000))
        params["adapter"] = jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape), params["adapter"])
    return model, params


def write(folder, base_folder, model, params):
    mark = fingerprint_of_source(open_source(base_folder))
    save_adapter(
        folder, params["adapter"], describe_adapter(model.adapter) | {"base": {"name": "a/b", "fingerprint": mark}}
    )


def write_theirs(folder, form, method):
    """Writes a folder with PEFT, of random weights; returns PEFT's model."""
    torch.manual_seed(1)
    model = peft.get_peft_model(make_reference(form), THEIRS[method]())
    for name, leaf in model.named_parameters():
        if "lora_" in name or "prompt_encoder" in name:
            leaf.data = torch.randn_like(leaf) * 0.3
    model.save_pretrained(folder)
    return model.eval()


def batch_of(seed):
    inputs, targets = tokens(6, 12, seed), tokens(6, 8, seed + 100)
    return {
        "encoder_input_tokens": inputs.astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))).astype(np.int32),
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


def their_logits(model, batch):
    inputs = torch.tensor(batch["encoder_input_tokens"]).long()
    decoder = torch.tensor(batch["decoder_input_tokens"]).long()
    return model(input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=decoder).logits


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_peft_gives_the_same_logits_from_files_written_here(base, method, scan_layers, tmp_path):
    form, folder = base
    model, params = load(folder, OURS[method](form), scan_layers=scan_layers)
    write(tmp_path, folder, model, params)
    plain = make_reference(form)
    batch = batch_of(0)
    without = their_logits(plain, batch).detach().numpy()
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    expected = their_logits(theirs, batch).detach().numpy()
    assert_close(jax.jit(model.apply)({"params": params}, batch), expected, TOLERANCE)
    assert np.abs(expected - without).max() > 0.1 * expected.std()
    again, loaded = load(folder, model.adapter, tmp_path, scan_layers=scan_layers)
    jax.tree.map(np.testing.assert_array_equal, loaded["adapter"], params["adapter"])


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_files_written_by_peft_give_the_same_logits_here(base, method, scan_layers, tmp_path):
    form, folder = base
    theirs = write_theirs(tmp_path, form, method)
    _, about = open_adapter(tmp_path)
    assert about["base"] == {"name": "unknown", "fingerprint": None} and about["written_by"].startswith("PEFT ")
    model, params = load(folder, make_adapter(about["method"], about["settings"]), tmp_path, scan_layers=scan_layers)
    batch = batch_of(1)
    assert_close(jax.jit(model.apply)({"params": params}, batch), their_logits(theirs, batch).detach(), TOLERANCE)


@pytest.mark.parametrize("method", THEIRS)
def test_five_steps_of_gradient_descent_give_the_same_adapter(base, method, tmp_path):
    form, folder = base
    theirs = write_theirs(tmp_path / "start", form, method)
    _, about = open_adapter(tmp_path / "start")
    model, params = load(folder, make_adapter(about["method"], about["settings"]), tmp_path / "start")
    # Gradients are large here (norms of 5 to 100): at rates of 0.01 or more each step multiplies rounding errors tenfold.
    rate, batches = 0.002, [batch_of(seed) for seed in range(5)]

    trainable, frozen = partition.split(params, ("adapter/.*",))
    optimizer = optax.sgd(rate)
    step = jax.jit(make_train_step(model, optimizer))
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    mine_lost, theirs_lost = [], []
    sgd = torch.optim.SGD([leaf for leaf in theirs.parameters() if leaf.requires_grad], lr=rate)
    for batch in batches:
        state, metrics = step(state, frozen, batch)
        mine_lost.append(float(metrics["loss"]))
        sgd.zero_grad()
        labels = torch.tensor(batch["decoder_target_tokens"]).long()
        loss = torch.nn.functional.cross_entropy(
            their_logits(theirs, batch).flatten(0, 1), labels.flatten(), ignore_index=0
        )
        loss.backward()
        sgd.step()
        theirs_lost.append(loss.item())
    np.testing.assert_allclose(mine_lost, theirs_lost, rtol=TOLERANCE)

    theirs.save_pretrained(tmp_path / "end")
    start, _ = read_adapter(tmp_path / "start")
    expected, _ = read_adapter(tmp_path / "end")
    found = partition.below(state.trainable, "adapter")
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert np.linalg.norm(leaf - start[name]) > 3 * TOLERANCE * np.linalg.norm(leaf), name  # it moved
        assert np.linalg.norm(found[name] - leaf) <= TOLERANCE * np.linalg.norm(leaf), name


def test_the_layout_is_the_one_that_peft_writes(base, tmp_path):
    form, folder = base
    for method in THEIRS:
        write_theirs(tmp_path / "theirs", form, method)
        _, about = open_adapter(tmp_path / "theirs")
        model, params = load(folder, make_adapter(about["method"], about["settings"]))
        write(tmp_path / "ours", folder, model, params)
        files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
        ours, theirs = ({name: leaf.shape for name, leaf in file.items()} for file in files)
        assert ours == theirs


def test_lora_beyond_a_t5_keeps_our_names(tmp_path):
    lora = LoRA(2, 4.0, (r".*/query",))
    boxed = abstract_params(AdaptedModel(tiny_pali(), lora))["adapter"]
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), parallel.unbox(boxed))
    save_adapter(tmp_path, params, describe_adapter(lora) | {"base": {"name": "a", "fingerprint": "f" * 64}})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ADALINK"
    assert read_adapter(tmp_path)[0].keys() == paths.flatten(params).keys()


@pytest.mark.parametrize("method, change, words", [
    ("lora", {"use_dora": True}, "has use_dora = true"),
    ("lora", {"bias": "lora_only"}, 'has bias = "lora_only"'),
    ("lora", {"lora_bias": True}, "has lora_bias = true"),
    ("lora", {"modules_to_save": ["lm_head"]}, "has modules_to_save ="),
    ("lora", {"rank_pattern": {"q": 2}}, "has rank_pattern ="),
    ("lora", {"alpha_pattern": {"q": 2}}, "has alpha_pattern ="),
    ("lora", {"fan_in_fan_out": True}, "has fan_in_fan_out ="),
    ("lora", {"init_lora_weights": "pissa"}, "has init_lora_weights ="),
    ("lora", {"layer_replication": [[0, 1]]}, "has layer_replication ="),
    ("lora", {"a_field_of_next_year": 1}, "has a_field_of_next_year = 1"),
    ("lora", {"task_type": "SEQ_CLS"}, 'has task_type = "SEQ_CLS"'),
    ("lora", {"r": "3"}, "has `r`, which is '3', a text; it must be a whole number"),
    ("lora", {"r": 2}, "has r = 2, but its decoder/layers_0/encoder_decoder_attention/query/down has the"),
    ("lora", {"lora_alpha": None}, "has `lora_alpha`, which is None; it must be"),
    ("lora", {"peft_type": "IA3"}, "is PEFT's IA3"),
    ("lora", {"peft_type": "PROMPT_TUNING"}, "not a tensor of PEFT's PROMPT_TUNING"),
    ("prompt", {"num_transformer_submodules": 2}, "has num_transformer_submodules = 2"),
    ("prompt", {"num_virtual_tokens": 6}, "has num_virtual_tokens = 6, but"),
    ("prompt", {"task_type": None}, "has task_type = null"),
    ("prompt", {"peft_type": "LORA"}, "not a tensor of PEFT's LORA"),
])  # fmt: skip
def test_unsupported_configurations_are_refused(method, change, words, tmp_path):
    write_theirs(tmp_path, "T5 1.1", method)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError) as refused:
        open_adapter(tmp_path)
    assert words in str(refused.value) and str(tmp_path) in str(refused.value)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize("theirs", [
    "base_model.model.shared.lora_embedding_A", "base_model.model.encoder.block.0.layer.0.SelfAttention.query.lora_A.weight",
    "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_magnitude_vector.weight",
    "base_model.model.encoder.block.0.layer.0.layer_norm.lora_A.weight", "encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.../../x.lora_A.weight",
])  # fmt: skip
def test_tensors_of_unknown_models_are_refused(theirs, tmp_path):
    write_theirs(tmp_path, "T5 1.1", "lora")
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | {theirs: np.ones((3, 4), np.float32)}, file)
    with pytest.raises(CheckpointError, match="which is not"):
        open_adapter(tmp_path)


def test_another_alpha_is_refused(base, tmp_path):
    form, folder = base
    write_theirs(tmp_path, form, "lora")
    _, params = load(folder, OURS["lora"](form))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params["adapter"])
    load_adapter(tmp_path, abstract, BaseReference("base", "f" * 64), module=OURS["lora"](form))
    with pytest.raises(CheckpointError, match=r"has alpha = 6.0, but the model has 8.0"):
        load_adapter(tmp_path, abstract, BaseReference("base", "f" * 64), module=LoRA(3, 8.0))
