"""Folded adapters: the plain backbone's program and the adapter's numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, LoRA, NormTuning, PromptTuning
from adalink_jax.adapters import fold_adapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths

BACKBONES = {
    "1.1": lambda **kw: T5(tiny_t5(**kw)),
    "1.0": lambda **kw: T5(tiny_t5(logits_via_embedding=True, mlp_activations=("relu",), **kw)),
    "PaLI": lambda **kw: tiny_pali(**kw),
}
pytestmark = pytest.mark.usefixtures("exact_matmuls")


def adapted(backbone, module):
    model = AdaptedModel(BACKBONES[backbone](), module)
    batch = random_batch(model.backbone, 4, 6, 5, seed=0)
    params = init(model, batch)
    moved = jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params["adapter"])
    return model, {**params, "adapter": moved}, batch


def plain(backbone, folded):
    """The plain backbone that `folded` is for."""
    own = "encoder/token_embedder/embedding" in paths.flatten(folded)
    return AdaptedModel(BACKBONES[backbone](encoder_embedding=own))


@pytest.mark.parametrize("backbone, module", [
    ("1.1", AdaLinkAdapter(rank=4, phi="gelu")),
    ("1.0", AdaLinkAdapter(rank=4, scale=0.5)),
    ("1.1", LoRA(rank=4)),
    ("PaLI", AdaLinkAdapter(rank=4, scale=0.5)),
    ("PaLI", AdaLinkAdapter(rank=4, share=True)),
    ("PaLI", AdaLinkAdapter(rank=4, kinds=("image",))),
    ("PaLI", AdaLinkAdapter(rank=4, kinds=("text",), phi="relu")),
    ("PaLI", NormTuning()),
])  # fmt: skip
def test_a_folded_adapter_gives_the_same_outputs(backbone, module):
    model, params, batch = adapted(backbone, module)
    folded = fold_adapter(module, params["adapter"], params["backbone"])
    expected = jax.jit(model.apply)({"params": params}, batch)
    base = jax.jit(AdaptedModel(model.backbone).apply)({"params": {"backbone": params["backbone"]}}, batch)
    other = plain(backbone, folded)
    found = jax.jit(other.apply)({"params": {"backbone": folded}}, batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.std(expected)))
    assert np.abs(expected - base).max() > 1e-2
    greedy = lambda model: jax.jit(lambda p: model.apply({"params": p}, batch, 5, method="generate").ids)
    np.testing.assert_array_equal(greedy(other)({"backbone": folded}), greedy(model)(params))


@pytest.mark.parametrize("method", ["generate", "encode"])
@pytest.mark.parametrize("backbone", ["1.1", "1.0", "PaLI"])
def test_the_program_is_the_bases_own_but_for_the_table(backbone, method):
    module = AdaLinkAdapter(rank=4)
    model, params, batch = adapted(backbone, module)
    folded = fold_adapter(module, params["adapter"], params["backbone"])
    rest = (5,) if method == "generate" else ()

    def text(model, backbone_params):
        """The compiled program, without the names and the numbers of its values, which come in the order of the arguments."""
        run = lambda p, b: model.apply({"params": {"backbone": p}}, b, *rest, method=method)
        lines = jax.jit(run).lower(backbone_params, batch).compile().as_text().splitlines()
        lines = [re.sub(r", metadata=\{.*?\}|, origin=\{.*?\}", "", line) for line in lines]
        operations = [re.findall(r"= (\S+) ([\w-]+)\(", line) for line in lines]
        return sorted(found[0] for found in operations if found and found[0][1] != "parameter"), lines

    mine, _ = text(plain(backbone, folded), folded)
    base, _ = text(AdaptedModel(BACKBONES[backbone]()), params["backbone"])
    assert mine == base and len(base) > 50
    count = lambda tree: len(jax.tree.leaves(tree))
    assert count(folded) == count(params["backbone"]) + 1


@pytest.mark.parametrize("backbone, module, words", [
    ("PaLI", AdaLinkAdapter(rank=4, phi="relu"), r"images' adapter cannot be folded: AdaLinkAdapter is not linear here \(phi relu\)"),
    ("1.1", PromptTuning(length=2), "PromptTuning cannot be folded: it does more than map"),
    ("1.1", AdaLinkAdapter(rank=4, kinds=("text", "target")), "adapts the decoder's input as well"),
])  # fmt: skip
def test_what_cannot_be_folded_is_refused(backbone, module, words):
    _, params, _ = adapted(backbone, module)
    with pytest.raises(UserError, match=words):
        fold_adapter(module, params["adapter"], params["backbone"])
