"""Every built-in method has every behaviour; and what is specific to each method."""

import functools
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, with_devices

from adalink_jax import AdaLinkAdapter, AdaptedModel, Chain, LoRA, NormTuning, PositionOffsets, PromptTuning
from adalink_jax.adapters import make_adapter
from adalink_jax.adapters.registry import METHODS
from adalink_jax.contract.behaviours import BEHAVIOURS, DOES_NOT_APPLY, PASS, Result, examine
from adalink_jax.contract.case import Case
from adalink_jax.contract.tiny import BACKBONES
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.encoder_decoder import joined
from adalink_jax.models.seam import Inputs

LAYERS = [f"{stack}/layers_{i}" for stack in ("decoder", "encoder") for i in (0, 1)]
ATTENTIONS = [
    f"{layer}/{name}"
    for layer in LAYERS
    for name in (("encoder_decoder_attention", "self_attention") if layer.startswith("decoder") else ("attention",))
]
NORMS = sorted(
    [f"{layer}/pre_mlp_layer_norm/scale" for layer in LAYERS]
    + [f"{layer}/pre_{name}_layer_norm/scale" for layer in LAYERS[:2] for name in ("self_attention", "cross_attention")]
    + [f"{layer}/pre_attention_layer_norm/scale" for layer in LAYERS[2:]]
    + [f"{stack}/{stack}_norm/scale" for stack in ("decoder", "encoder")]
)
AT_START = {"adalink": True, "prompt_tuning": False, "adept": False, "dept": False, "lora": True, "norm_tuning": True}
CASES = {  # module, and its leaves with a text model
    "adalink": (lambda: AdaLinkAdapter(rank=4), ["text/down", "text/up"]),
    "prompt_tuning": (lambda: PromptTuning(length=3), ["prompt"]),
    "adept": (
        lambda: Chain((AdaLinkAdapter(rank=4, phi="relu", share=True), PromptTuning(length=3))),
        ["adapters_0/shared/down", "adapters_0/shared/up", "adapters_1/prompt"],
    ),
    "dept": (
        lambda: Chain((PositionOffsets(length=8, rank=4), PromptTuning(length=3))),
        ["adapters_0/down", "adapters_0/up", "adapters_1/prompt"],
    ),
    "lora": (
        lambda: LoRA(rank=4),
        [
            f"{attention}/{kernel}/{matrix}"
            for attention in ATTENTIONS
            for kernel in ("query", "value")
            for matrix in ("down", "up")
        ],
    ),
    "norm_tuning": (lambda: NormTuning(), NORMS),
}
SEEING = "PaLI", "PaliGemma", "T5Gemma2", "Pix2Struct"
GEMMAS = "T5Gemma", "PaliGemma", "T5Gemma2"
both = pytest.mark.parametrize("backbone", BACKBONES)
# A method knows no family: each has every behaviour with a T5, and with other families those that touch what they have of their own.
USUAL = [
    *((method, "T5") for method in CASES),
    ("adalink", "PaLI"),
    ("adept", "PaLI"),
    ("adalink", "T5Gemma"),
    ("lora", "T5Gemma"),
    ("adalink", "PaliGemma"),
    ("adalink", "T5Gemma2"),
    ("adalink", "Pix2Struct"),
]
every_pair = pytest.mark.parametrize(
    "method, backbone",
    [
        pytest.param(method, backbone, marks=() if (method, backbone) in USUAL else pytest.mark.slow)
        for method in CASES
        for backbone in BACKBONES
    ],
)
NO_BANK = "NormTuning cannot be served from a bank: its changes to the layers cannot differ between rows."
NOT_PER_TOKEN = (
    "{} cannot be folded: it does not declare `per_token = True`, that it maps each token's embedding by itself; declare that if it is "
    "so, else keep it as an adapter."
)
NOT_APART = "{} does not keep the examples of a packed row apart; set PACK_EXAMPLES to False."
NO_IMAGES = "{} reads images, and only text can be packed; set PACK_EXAMPLES to False."


@functools.cache
def case(method, backbone):
    return Case(CASES[method][0](), backbone)


def expected(behaviour, method, backbone):
    """The expected result: pass, or a remark, or why a behaviour does not apply."""
    name = type(CASES[method][0]()).__name__
    if behaviour == "starts_as_the_base" and not AT_START[method]:
        return Result(PASS, "declares no identity_at_start; a fresh one does not equal the base")
    if behaviour == "is_merged_or_folded" and method not in ("lora", "norm_tuning"):
        return Result(PASS) if method == "adalink" else Result(DOES_NOT_APPLY, NOT_PER_TOKEN.format(name))
    if method == "norm_tuning" and behaviour in ("is_disabled", "is_deleted"):
        return Result(PASS if behaviour == "is_disabled" else DOES_NOT_APPLY, NO_BANK)
    if behaviour == "keeps_packed_examples_apart" and backbone in SEEING:
        return Result(DOES_NOT_APPLY, NO_IMAGES.format(backbone))
    if behaviour == "keeps_packed_examples_apart" and method in ("prompt_tuning", "adept", "dept"):  # have a prompt
        return Result(DOES_NOT_APPLY, NOT_APART.format(name))
    if behaviour == "trains_alike_on_several_devices":
        return Result(DOES_NOT_APPLY, "there is only one device")  # here; see the test in a process of its own
    return Result(PASS)


@every_pair
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_a_method_has_a_behaviour(behaviour, method, backbone):
    assert examine(behaviour, case(method, backbone)) == expected(behaviour.__name__, method, backbone)


ON_DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
from broken_methods import KnowsTheMesh
from test_methods import BACKBONES, CASES, case

from adalink_jax.contract.behaviours import examine, trains_alike_on_several_devices
from adalink_jax.contract.case import Case

assert jax.device_count() == 8
for method in CASES:
    for backbone in BACKBONES:
        print(method, backbone, examine(trains_alike_on_several_devices, case(method, backbone)).outcome)
print("KnowsTheMesh", examine(trains_alike_on_several_devices, Case(KnowsTheMesh(), "T5")))
"""


@pytest.mark.slow
def test_every_method_trains_alike_on_several_devices():
    """Runs in a process with several devices, with a wrong method too, to show that the check finds it."""
    env = with_devices(8)
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", ON_DEVICES, here], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, broken = done.stdout.splitlines()
    assert lines == [f"{method} {backbone} pass" for method in CASES for backbone in BACKBONES]
    assert "fail" in broken and "on a mesh (2, 4) the loss is" in broken


def test_every_method_has_a_case():
    used = lambda module: {type(module).__name__}.union(*map(used, getattr(module, "adapters", ())))
    assert set().union(*(used(module()) for module, _ in CASES.values())) == METHODS.keys()


@every_pair
def test_the_leaves_of_each_method(backbone, method):
    found = sorted(paths.unscan(paths.flatten(case(method, backbone).fresh)))
    kinds = ["image/down", "image/up"] if backbone in SEEING and method == "adalink" else []
    after = [name.replace("/pre_", "/post_") for name in NORMS if "/pre_" in name]  # norms of Gemma's sublayers
    more = after if backbone in GEMMAS and method == "norm_tuning" else []
    if backbone == "T5Gemma2" and method == "norm_tuning":
        more = more + [f"{name}/{norm}_norm/scale" for name in ATTENTIONS for norm in ("query", "key")]
    leaves = kinds + CASES[method][1] + more
    if backbone == "PaliGemma":  # has a decoder alone, which attends to itself
        leaves = [name for name in leaves if not name.startswith("encoder/")]
    if backbone in ("PaliGemma", "T5Gemma2"):  # have one attention in each layer
        leaves = [name for name in leaves if not re.match(r".*(cross|encoder_decoder)_attention", name)]
    if backbone == "Pix2Struct":  # reads no text
        leaves = [
            name for name in leaves if not name.startswith("text/") and (method, name[:11]) != ("dept", "adapters_0/")
        ]
    assert found == sorted(leaves)


@both
@pytest.mark.usefixtures("exact_matmuls")
def test_a_prompt_stands_before_everything_else(backbone):
    prompted = case("prompt_tuning", backbone)
    model, params, batch = prompted.model, prompted.params(), prompted.batch
    weights = {"params": params["backbone"]}
    run = lambda method: jax.jit(functools.partial(model.backbone.apply, method=method))
    inputs = run("embed")(weights, batch)
    prompt = jnp.broadcast_to(params["adapter"]["prompt"], (4, 3, 32))
    parts = [(prompt, jnp.ones((4, 3), bool)), joined(inputs)]
    x, mask = (jnp.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    expected = run("encode")(weights, Inputs(text=x, text_mask=mask))
    found = jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, batch)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.states, expected.states, rtol=0, atol=1e-6)


@both
def test_a_fresh_prompt_is_uniform(backbone):
    model = AdaptedModel(BACKBONES[backbone](), PromptTuning(length=200, init_scale=0.25))
    prompt = np.asarray(init(model, random_batch(model.backbone, 2, 6, 5, seed=0))["adapter"]["prompt"])
    assert prompt.shape == (200, 32) and np.abs(prompt).max() <= 0.25
    assert abs(prompt.mean()) < 0.02 and abs(prompt.std() - 0.25 / 3**0.5) < 0.01


@both
def test_invalid_settings_are_refused(backbone):
    batch = random_batch(BACKBONES[backbone](), 2, 6, 5, seed=0)
    with pytest.raises(UserError, match="length is 0; it must be at least 1"):
        init(AdaptedModel(BACKBONES[backbone](), PromptTuning(length=0)), batch)
    with pytest.raises(UserError, match="There is no method 'Lora'"):
        make_adapter("Chain", {"adapters": [{"method": "Lora", "settings": {}}]})
    assert isinstance(make_adapter("PromptTuning", {"length": 2}), nn.Module)
