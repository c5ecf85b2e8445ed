"""The numbers of a T5 and of a vision tower are those of `transformers`, from the same random weights, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from adalink_jax import T5, AdaptedModel, T5Config, ViTConfig  # noqa: E402
from adalink_jax.models import Inputs, ViT, paths  # noqa: E402
from adalink_jax.models.layers import relative_position_bucket  # noqa: E402

VOCAB, D, H, K, F, LAYERS = 96, 32, 4, 12, 48, 2  # K is not D / H
FORMS = {
    "T5 1.0": {"feed_forward_proj": "relu", "tied": True},
    "T5 1.1": {"feed_forward_proj": "gated-gelu", "tied": False},
    "UL2": {"feed_forward_proj": "gated-silu", "tied": False},
}
ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear"), "gated-silu": ("silu", "linear")}


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def reference(form, seed=0):
    """A transformers T5 with weights large enough to matter; an untied head has a matrix of its own."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=D, d_kv=K, d_ff=F, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=H,
        feed_forward_proj=form["feed_forward_proj"], tie_word_embeddings=form["tied"], dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not form["tied"]:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, D) * 0.3)
    for name, leaf in model.named_parameters():
        if "layer_norm" in name:
            leaf.data = 1 + 0.2 * torch.randn_like(leaf)
        elif "shared" in name:
            leaf.data = torch.randn_like(leaf)
        elif "relative_attention_bias" in name:
            leaf.data = torch.randn_like(leaf)
        elif "lm_head" not in name:
            strong = "EncDecAttention" in name and name.endswith(("v.weight", "o.weight"))  # outputs follow inputs
            leaf.data = torch.randn_like(leaf) * leaf.shape[-1] ** -0.5 * (3.0 if strong else 1.0)
    return model


def ours(model, form):
    """The same weights under our names."""
    state = {name: np.asarray(leaf.detach()) for name, leaf in model.state_dict().items()}
    leaves = {"token_embedder/embedding": state["shared.weight"]}
    attention = {"q": "query", "k": "key", "v": "value", "o": "out"}
    sublayers = {
        "encoder": [("SelfAttention", "attention", "attention")],
        "decoder": [
            ("SelfAttention", "self_attention", "self_attention"),
            ("EncDecAttention", "encoder_decoder_attention", "cross_attention"),
        ],
    }
    mlp = ("wi", "wo") if form["feed_forward_proj"] == "relu" else ("wi_0", "wi_1", "wo")
    for stack, blocks in sublayers.items():
        leaves[f"{stack}/{stack}_norm/scale"] = state[f"{stack}.final_layer_norm.weight"]
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        leaves[f"{stack}/relpos_bias/rel_embedding"] = state[bias].T
        for i in range(LAYERS):
            at, theirs = f"{stack}/layers_{i}", f"{stack}.block.{i}.layer"
            for j, (block, name, norm) in enumerate(blocks):
                leaves[f"{at}/pre_{norm}_layer_norm/scale"] = state[f"{theirs}.{j}.layer_norm.weight"]
                for q, query in attention.items():
                    leaves[f"{at}/{name}/{query}/kernel"] = state[f"{theirs}.{j}.{block}.{q}.weight"].T
            last = f"{theirs}.{len(blocks)}"
            leaves[f"{at}/pre_mlp_layer_norm/scale"] = state[f"{last}.layer_norm.weight"]
            for matrix in mlp:
                leaves[f"{at}/mlp/{matrix}/kernel"] = state[f"{last}.DenseReluDense.{matrix}.weight"].T
    if not form["tied"]:
        leaves["decoder/logits_dense/kernel"] = state["lm_head.weight"].T
    config = T5Config(
        VOCAB, D, H, K, F, LAYERS, LAYERS, ACTIVATIONS[form["feed_forward_proj"]], logits_via_embedding=form["tied"]
    )
    return AdaptedModel(T5(config)), {"backbone": paths.unflatten(leaves)}


def tokens(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCAB, (rows, length)).astype(np.int64)
    lengths = rng.integers(2, length + 1, rows)
    ids[np.arange(rows), lengths - 1] = 1
    ids[np.arange(length) >= lengths[:, None]] = 0
    return ids


def assert_close(mine, theirs, tolerance=1e-4):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=tolerance * theirs.std())


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_the_gradient_of_the_input_embeddings(form):
    model = reference(FORMS[form])
    mine, params = ours(model, FORMS[form])
    inputs, targets = tokens(5, 20), tokens(5, 7, seed=1)
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    embeddings = model.shared(torch.tensor(inputs)).detach().requires_grad_()
    logits = model(
        inputs_embeds=embeddings, attention_mask=torch.tensor(inputs > 0), decoder_input_ids=torch.tensor(shifted)
    ).logits
    labels = torch.tensor(targets)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), labels.reshape(-1), ignore_index=0)
    loss.backward()

    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": shifted}
    assert_close(mine.apply({"params": params}, batch), logits.detach())

    def ours_loss(text):
        bound = mine.backbone.bind({"params": params["backbone"]})
        encoded = bound.encode(Inputs(text=text, text_mask=jnp.asarray(inputs > 0)))
        out, _ = bound.decode(encoded, bound.embed_target(shifted))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(targets > 0, log_p, 0)) / np.sum(targets > 0)

    value, gradient = jax.value_and_grad(ours_loss)(jnp.asarray(embeddings.detach()))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    assert_close(gradient, embeddings.grad)


@pytest.mark.parametrize("form", FORMS)
def test_greedy_outputs(form):
    model = reference(FORMS[form])
    # Favour EOS, so that outputs end by themselves at different lengths.
    with torch.no_grad():
        model.lm_head.weight[1] *= 16.0 if FORMS[form]["tied"] else 5.0
    mine, params = ours(model, FORMS[form])
    inputs, length = tokens(64, 12, seed=2), 40
    theirs = model.generate(
        torch.tensor(inputs),
        attention_mask=torch.tensor(inputs > 0),
        max_new_tokens=length,
        do_sample=False,
        num_beams=1,
    ).numpy()[:, 1:]
    theirs = np.pad(theirs, ((0, 0), (0, length - theirs.shape[1])))
    decoded = mine.apply({"params": params}, {"encoder_input_tokens": inputs.astype(np.int32)}, length, method="generate")
    np.testing.assert_array_equal(decoded.ids[:, 0], theirs)
    assert len({tuple(row) for row in theirs.tolist()}) >= 30
    assert (theirs == 1).any(axis=1).sum() >= 32


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_position_buckets(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, 32, 128)
    np.testing.assert_array_equal(relative_position_bucket(jnp.asarray(distance), bidirectional, 32, 128), theirs)


def test_the_vision_tower():
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config).eval()
    for name, leaf in model.named_parameters():
        leaf.data = torch.randn_like(leaf) * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    state = {name.removeprefix("vision_model."): np.asarray(x.detach()) for name, x in model.state_dict().items()}
    patches = state["embeddings.patch_embedding.weight"]  # [D, channels, p, p]
    leaves = {
        "patch_embedding/kernel": patches.transpose(2, 3, 1, 0).reshape(-1, 32),
        "patch_embedding/bias": state["embeddings.patch_embedding.bias"],
        "pos_embedding": state["embeddings.position_embedding.weight"],
        "encoder_norm/scale": state["post_layernorm.weight"],
        "encoder_norm/bias": state["post_layernorm.bias"],
    }
    dense = {"self_attn.q_proj": "attention/query", "self_attn.k_proj": "attention/key", "self_attn.v_proj":
             "attention/value", "self_attn.out_proj": "attention/out", "mlp.fc1": "mlp/wi", "mlp.fc2": "mlp/wo"}  # fmt: skip
    norms = {"layer_norm1": "pre_attention_layer_norm", "layer_norm2": "pre_mlp_layer_norm"}
    for i in range(2):
        for theirs, name in dense.items():
            leaves[f"layers_{i}/{name}/kernel"] = state[f"encoder.layers.{i}.{theirs}.weight"].T
            leaves[f"layers_{i}/{name}/bias"] = state[f"encoder.layers.{i}.{theirs}.bias"]
        for theirs, name in norms.items():
            leaves[f"layers_{i}/{name}/scale"] = state[f"encoder.layers.{i}.{theirs}.weight"]
            leaves[f"layers_{i}/{name}/bias"] = state[f"encoder.layers.{i}.{theirs}.bias"]
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state.detach()
    mine = ViT(ViTConfig((16, 16), 4, 32, 4, 64, 2)).apply({"params": paths.unflatten(leaves)}, images)
    assert_close(mine, expected)
