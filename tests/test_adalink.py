"""AdaLink: the formula, the fresh identity, and exactly the leaves that were asked for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_paligemma, tiny_pix2struct, tiny_t5, tiny_t5gemma, tiny_t5gemma2

from adalink_jax import T5, AdaLink, AdaLinkAdapter, AdaptedModel, T5Config
from adalink_jax.adapters import abstract_params, fold_text
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.seam import Inputs

PHI = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
BACKBONES = {
    "T5": lambda **kw: T5(tiny_t5(**kw)),
    "PaLI": tiny_pali,
    "T5Gemma": tiny_t5gemma,
    "PaliGemma": tiny_paligemma,
    "Pix2Struct": tiny_pix2struct,
    "T5Gemma2": tiny_t5gemma2,
}


@pytest.mark.parametrize("phi", PHI)
def test_the_formula(phi):
    rng = np.random.default_rng(0)
    x, down, up = rng.normal(size=(3, 5, 16)), rng.normal(size=(16, 4)), rng.normal(size=(4, 16))
    params = {"down": jnp.asarray(down, jnp.float32), "up": jnp.asarray(up, jnp.float32)}
    with jax.default_matmul_precision("highest"):
        y = AdaLink(rank=4, phi=phi, scale=0.5).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, x + 0.5 * PHI[phi](x @ down) @ up, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("backbone", [
    *list(BACKBONES)[:-1], pytest.param("T5Gemma2", marks=pytest.mark.slow),  # the contract's tests have it too
])  # fmt: skip
def test_a_fresh_adalink_is_the_identity_to_the_bit(backbone, scan_layers, dtype):
    backbone = BACKBONES[backbone](scan_layers=scan_layers, dtype=dtype)
    is_text = type(backbone) is T5
    kinds = ("text", "target") if is_text else None
    adapted, bare = AdaptedModel(backbone, AdaLinkAdapter(rank=4, kinds=kinds)), AdaptedModel(backbone)
    batch = random_batch(backbone, 4, 6, 5, seed=0)
    params = init(adapted, batch)
    logits = jax.jit(bare.apply)({"params": {"backbone": params["backbone"]}}, batch)
    run = jax.jit(adapted.apply)
    np.testing.assert_array_equal(run({"params": params}, batch), logits)
    moved = {**params, "adapter": jax.tree.map(lambda x: x + 0.1, params["adapter"])}
    assert (run({"params": moved}, batch) != logits).any()


@pytest.mark.parametrize("options, leaves", [
    ({}, ["image", "text"]),
    ({"kinds": ("image",)}, ["image"]),
    ({"kinds": ("text",)}, ["text"]),
    ({"kinds": ("text", "target")}, ["target", "text"]),
    ({"share": True}, ["shared"]),
    ({"kinds": ("image", "text", "target"), "share": True}, ["shared"]),
])  # fmt: skip
def test_the_leaves_are_those_asked_for(options, leaves):
    model = AdaptedModel(tiny_pali(), AdaLinkAdapter(rank=4, **options))
    params = init(model, random_batch(model.backbone, 2, 6, 4, seed=0))
    shapes = {name: leaf.shape for name, leaf in paths.flatten(params["adapter"]).items()}
    assert shapes == {f"{kind}/{m}": s for kind in leaves for m, s in (("down", (32, 4)), ("up", (4, 32)))}
    assert {leaf.dtype for leaf in jax.tree.leaves(params["adapter"])} == {jnp.dtype("float32")}


def test_each_kind_is_adapted_by_its_own_pair():
    adapter = AdaLinkAdapter(rank=2, kinds=("image", "target"))
    x = jnp.ones((1, 3, 8))
    inputs = Inputs(image=x, image_mask=jnp.ones((1, 3), bool), text=x, text_mask=jnp.ones((1, 3), bool))
    both = inputs.replace(target=x)
    params = jax.tree.map(lambda leaf: leaf + 1.0, nn.meta.unbox(adapter.init(jax.random.key(0), both)["params"]))
    out = adapter.apply({"params": params}, inputs)
    assert (out.image != x).all() and (out.text == x).all() and out.target is None
    assert (adapter.apply({"params": params}, Inputs(target=x)).target != x).all()


def test_the_paper_s_count():
    """Two modalities, D = 4096, rank 64: the paper's 1.05 M."""
    config = T5Config(64, 4096, 2, 8, 64, 1, 1)
    adapter = abstract_params(AdaptedModel(T5(config), AdaLinkAdapter(kinds=("text", "target"))))["adapter"]
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == 1_048_576


@pytest.mark.parametrize("backbone, options, words", [
    ("PaLI", {"rank": 0}, "rank is 0"),
    ("PaLI", {"phi": "tanh"}, "phi is 'tanh'; it must be one of identity, relu, gelu, silu"),
    ("PaLI", {"kinds": ("audio",)}, "kinds is .'audio'"),
    ("PaLI", {"kinds": ()}, "kinds is"),
    ("T5", {"kinds": ("image",)}, "asks for 'image', but T5 has no such input"),
])  # fmt: skip
def test_settings_that_cannot_be_are_named(backbone, options, words):
    with pytest.raises(UserError, match=words):
        abstract_params(AdaptedModel(BACKBONES[backbone](), AdaLinkAdapter(**options)))


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("share", [False, True])
def test_a_text_adapter_folds_into_the_encoder_s_table(phi, share):
    adapter = AdaLinkAdapter(rank=4, phi=phi, scale=0.5, share=share)
    model = AdaptedModel(T5(tiny_t5()), adapter)
    batch = random_batch(model.backbone, 4, 6, 5, seed=0)
    params = init(model, batch)
    params["adapter"] = jax.tree.map(
        lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params["adapter"]
    )
    with jax.default_matmul_precision("highest"):
        adapted = jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, batch).states
        table = fold_text(adapter, params["adapter"], np.asarray(params["backbone"]["token_embedder"]["embedding"]))
        inputs = Inputs(
            text=jnp.asarray(table[batch["encoder_input_tokens"]]), text_mask=batch["encoder_input_tokens"] > 0
        )
        encode = jax.jit(functools.partial(model.backbone.apply, method="encode"))
        folded = encode({"params": params["backbone"]}, inputs).states
    np.testing.assert_allclose(folded, adapted, rtol=0, atol=1e-5 * float(jnp.std(adapted)))


def test_what_is_no_function_of_the_token_does_not_fold():
    class Shift(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return inputs.replace(text=jnp.roll(inputs.text, 1, axis=1))

    table = np.zeros((8, 4), np.float32)
    with pytest.raises(UserError, match="Shift cannot be folded"):
        fold_text(Shift(), {}, table)
    with pytest.raises(UserError, match="adapts text, target; only an adapter of the text alone"):
        fold_text(AdaLinkAdapter(kinds=("text", "target")), {}, table)
