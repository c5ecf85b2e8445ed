"""One list of behaviours, crossed with every input method and both kinds of model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_t5

from adalink_jax import (
    T5,
    AdaLinkAdapter,
    AdaptedModel,
    Chain,
    LoRA,
    NormTuning,
    PositionOffsets,
    PromptTuning,
    parallel,
)
from adalink_jax.adapters import describe_adapter, make_adapter
from adalink_jax.adapters.registry import METHODS
from adalink_jax.checkpoints import load_adapter, save_adapter
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.models import paths
from adalink_jax.models.seam import Inputs
from adalink_jax.training import optimizers, partition
from adalink_jax.training.setup import abstract_params
from adalink_jax.training.step import TrainState, make_train_step

MARK = "f" * 64
BACKBONES = {"T5": lambda **kw: T5(tiny_t5(**kw)), "PaLI": lambda **kw: tiny_pali(**kw)}
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
pytestmark = [pytest.mark.parametrize("backbone", BACKBONES), pytest.mark.usefixtures("exact_matmuls")]
each = pytest.mark.parametrize("method", CASES)


@functools.cache
def make(backbone, method):
    """Model, parameters as after some training, batch."""
    model = AdaptedModel(BACKBONES[backbone](), CASES[method][0]())
    batch = random_batch(model.backbone, 4, 6, 5, seed=0)
    params = init(model, batch)
    moved = jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params["adapter"])
    return model, {**params, "adapter": moved}, batch


def test_every_method_has_a_case(backbone):
    used = lambda module: {type(module).__name__}.union(*map(used, getattr(module, "adapters", ())))
    assert set().union(*(used(module()) for module, _ in CASES.values())) == METHODS.keys()


@each
def test_its_leaves(backbone, method):
    _, params, _ = make(backbone, method)
    found = list(paths.flatten(params["adapter"]))
    kinds = ["image/down", "image/up"] if (backbone, method) == ("PaLI", "adalink") else []
    assert found == kinds + CASES[method][1]


@each
def test_only_its_own_leaves_move(backbone, method):
    model, params, batch = make(backbone, method)
    trainable, frozen = partition.split(params, ("adapter/.*",))
    optimizer = optimizers.adamw(0.01)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    before = {name: np.asarray(leaf) for name, leaf in paths.flatten(params).items()}
    state, _ = jax.jit(make_train_step(model, optimizer))(state, frozen, batch)
    for name, leaf in paths.flatten(partition.merge(state.trainable, frozen)).items():
        assert (np.asarray(leaf) != before[name]).any() == name.startswith("adapter/"), name


@each
def test_it_is_saved_and_loaded_with_equal_outputs(backbone, method, tmp_path):
    model, params, batch = make(backbone, method)
    about = describe_adapter(model.adapter) | {"base": {"name": "base", "fingerprint": MARK}}
    save_adapter(str(tmp_path), params["adapter"], about)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params["adapter"])
    loaded, found = load_adapter(str(tmp_path), abstract, MARK)
    again = AdaptedModel(model.backbone, make_adapter(found["method"], found["settings"]))
    assert again.adapter == model.adapter
    expected = jax.jit(model.apply)({"params": params}, batch)
    np.testing.assert_array_equal(jax.jit(again.apply)({"params": {**params, "adapter": loaded}}, batch), expected)
    with pytest.raises(CheckpointError, match="was trained on another base"):
        load_adapter(str(tmp_path), abstract, "e" * 64)


@each
def test_a_fresh_one_changes_nothing_where_it_says_so(backbone, method):
    model, params, batch = make(backbone, method)
    fresh = init(model, batch, seed=1)["adapter"]
    adapted = jax.jit(model.apply)({"params": {**params, "adapter": fresh}}, batch)
    plain = jax.jit(AdaptedModel(model.backbone).apply)({"params": {"backbone": params["backbone"]}}, batch)
    assert bool((adapted == plain).all()) == AT_START[method]


@pytest.mark.parametrize("method", ["lora", "norm_tuning"])
def test_merged_parameters_give_the_same_outputs(backbone, method):
    model, params, batch = make(backbone, method)
    merged = model.adapter.apply({"params": params["adapter"]}, params["backbone"], method="merge")
    expected = jax.jit(model.apply)({"params": params}, batch)
    found = jax.jit(AdaptedModel(model.backbone).apply)({"params": {"backbone": merged}}, batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.std(expected)))


@each
def test_it_changes_the_outputs(backbone, method):
    model, params, batch = make(backbone, method)
    plain = jax.jit(AdaptedModel(model.backbone).apply)({"params": {"backbone": params["backbone"]}}, batch)
    adapted = jax.jit(model.apply)({"params": params}, batch)
    assert np.abs(adapted - plain).max() > 1e-2


@each
def test_scanned_and_unrolled_models_agree(backbone, method):
    model, params, batch = make(backbone, method)
    scanned = AdaptedModel(BACKBONES[backbone](scan_layers=True), model.adapter)
    shapes = paths.flatten(parallel.unbox(abstract_params(scanned)))
    stacked = paths.unflatten(paths.rescan(paths.flatten(params), shapes))
    expected = jax.jit(model.apply)({"params": params}, batch)
    found = jax.jit(scanned.apply)({"params": stacked}, batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.std(expected)))


@each
def test_greedy_outputs_are_the_likeliest_tokens_of_teacher_forcing(backbone, method):
    model, params, batch = make(backbone, method)
    decoded = jax.jit(lambda params: model.apply({"params": params}, batch, 6, method="generate"))(params)
    ids = np.asarray(decoded.ids)[:, 0]
    forced = batch | {"decoder_input_tokens": np.pad(ids[:, :-1], ((0, 0), (1, 0)))}
    likeliest = np.argmax(jax.jit(model.apply)({"params": params}, forced), axis=-1)
    live = np.cumsum(ids == 1, axis=1) - (ids == 1) == 0
    np.testing.assert_array_equal(ids[live], likeliest[live])


def test_a_prompt_stands_before_everything_else(backbone):
    model, params, batch = make(backbone, "prompt_tuning")
    weights = {"params": params["backbone"]}
    run = lambda method: jax.jit(functools.partial(model.backbone.apply, method=method))
    inputs = run("embed")(weights, batch)
    prompt = jnp.broadcast_to(params["adapter"]["prompt"], (4, 3, 32))
    parts = [(prompt, jnp.ones((4, 3), bool)), (inputs.image, inputs.image_mask), (inputs.text, inputs.text_mask)]
    x, mask = (jnp.concatenate([part[i] for part in parts if part[0] is not None], axis=1) for i in (0, 1))
    expected = run("encode")(weights, Inputs(text=x, text_mask=mask))
    found = jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, batch)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.states, expected.states, rtol=0, atol=1e-6)


def test_a_fresh_prompt_is_uniform(backbone):
    model = AdaptedModel(BACKBONES[backbone](), PromptTuning(length=200, init_scale=0.25))
    prompt = np.asarray(init(model, random_batch(model.backbone, 2, 6, 5, seed=0))["adapter"]["prompt"])
    assert prompt.shape == (200, 32) and np.abs(prompt).max() <= 0.25
    assert abs(prompt.mean()) < 0.02 and abs(prompt.std() - 0.25 / 3**0.5) < 0.01


def test_settings_that_mean_nothing_are_refused(backbone):
    batch = random_batch(BACKBONES[backbone](), 2, 6, 5, seed=0)
    with pytest.raises(UserError, match="length is 0; it must be at least 1"):
        init(AdaptedModel(BACKBONES[backbone](), PromptTuning(length=0)), batch)
    with pytest.raises(UserError, match="There is no method 'Lora'"):
        make_adapter("Chain", {"adapters": [{"method": "Lora", "settings": {}}]})
    assert isinstance(make_adapter("PromptTuning", {"length": 2}), nn.Module)
