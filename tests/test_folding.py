"""Folded adapters: the plain backbone's program and the adapter's numbers."""

import functools
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, LoRA, NormTuning, PromptTuning
from adalink_jax.adapters import fold_adapter
from adalink_jax.adapters.folding import ENCODER_TABLE
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
    return AdaptedModel(BACKBONES[backbone](encoder_embedding=ENCODER_TABLE in paths.flatten(folded)))


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
    outputs = jax.jit(other.apply)({"params": {"backbone": folded}}, batch)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * float(jnp.std(expected)))
    assert np.abs(expected - base).max() > 1e-2
    greedy = lambda model: jax.jit(lambda p: model.apply({"params": p}, batch, 5, method="generate").ids)
    np.testing.assert_array_equal(greedy(other)({"backbone": folded}), greedy(model)(params))


def computed(model, backbone_params, batch, *rest, method):
    """Returns a digest of what the compiled program computes: the graph of its operations with shapes and attributes, and the
    names of the parameters at its leaves. The encoder's own table gets the name of the base's."""
    run = lambda p, b: model.apply({"params": {"backbone": p}}, b, *rest, method=method)
    text = jax.jit(run).lower(backbone_params, batch).compile().as_text()
    bodies, entry = {}, None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            body = bodies[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line_match := re.match(r"\s+(ROOT )?%?([\w.-]+) = (\([^=]*\)|\S+) ([\w-]+)\((.*?)\)(, .*)?$", line):
            root, name, shape, operation, operands, attributes = line_match.groups()
            body["" if root else name] = body[name] = shape, operation, operands, attributes or ""

    @functools.cache
    def digest(computation, name=""):
        shape, operation, operands, attributes = bodies[computation][name]
        parts = [shape, operation]
        if operation == "parameter" and computation == entry:
            argument = re.search(r'op_name="(.*?)"', attributes)[1].replace("\\'", "'")
            parts.append(argument.replace("['encoder']['token_embedder']", "['token_embedder']"))
        elif operation in ("parameter", "constant"):
            parts.append(operands)
        else:
            parts += [digest(computation, operand) for operand in re.findall(r"%([\w.-]+)", operands)]
            called = re.findall(r"(\w+)=\{?%([\w.-]+)", attributes)
            parts += [f"{role} {digest(other)}" for role, other in called if other in bodies]
            plain = re.sub(r"(metadata|backend_config|frontend_attributes)=\{.*", "", attributes)
            parts.append(re.sub(r"%[\w.-]+", "", plain))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    return digest(entry)


@pytest.mark.parametrize("method", ["generate", "encode"])
@pytest.mark.parametrize("backbone", ["1.1", "1.0", "PaLI"])
def test_the_program_is_the_bases_own_but_for_the_table(backbone, method):
    module = AdaLinkAdapter(rank=4)
    model, params, batch = adapted(backbone, module)
    folded = fold_adapter(module, params["adapter"], params["backbone"])
    rest = (5,) if method == "generate" else ()
    base = computed(AdaptedModel(BACKBONES[backbone]()), params["backbone"], batch, *rest, method=method)
    assert computed(plain(backbone, folded), folded, batch, *rest, method=method) == base
    other = AdaptedModel(BACKBONES[backbone](relpos_max_distance=64))  # in one constant
    assert computed(other, params["backbone"], batch, *rest, method=method) != base
    count = lambda tree: len(jax.tree.leaves(tree))
    assert count(folded) == count(params["backbone"]) + 1


@pytest.mark.parametrize("backbone, module, words", [
    ("PaLI", AdaLinkAdapter(rank=4, phi="relu"), r"images' adapter cannot be folded: AdaLinkAdapter is not linear here \(phi relu\)"),
    ("1.1", PromptTuning(length=2), "PromptTuning cannot be folded: it does not declare `per_token = True`"),
    ("1.1", AdaLinkAdapter(rank=4, kinds=("text", "target")), "adapts the decoder's input as well"),
])  # fmt: skip
def test_what_cannot_be_folded_is_refused(backbone, module, words):
    _, params, _ = adapted(backbone, module)
    with pytest.raises(UserError, match=words):
        fold_adapter(module, params["adapter"], params["backbone"])
