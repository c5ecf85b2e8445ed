"""The backbones: names, scan, remat, decoding with a cache, padding, dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_paligemma, tiny_pix2struct, tiny_t5, tiny_t5gemma, tiny_t5gemma2

from adalink_jax import T5, AdaptedModel, PaLI, T5Config, ViTConfig
from adalink_jax.adapters import abstract_params
from adalink_jax.errors import UserError
from adalink_jax.models import Inputs, paths
from adalink_jax.models.seam import Cache
from adalink_jax.parallel import logical_axis_rules

BACKBONES = {
    "T5": lambda **kw: T5(tiny_t5(**kw)),
    "PaLI": tiny_pali,
    "T5Gemma": tiny_t5gemma,
    "PaliGemma": tiny_paligemma,
    "Pix2Struct": tiny_pix2struct,
    "T5Gemma2": tiny_t5gemma2,
}
pytestmark = pytest.mark.usefixtures("exact_matmuls")


def make(name="PaLI", seed=0, **overrides):
    model = AdaptedModel(BACKBONES[name](**overrides))
    batch = random_batch(model.backbone, 6, 7, 5, seed=1)
    return model, init(model, batch, seed), batch


def stacked(unrolled):
    """The parameters of an unrolled model for the scanned one."""
    scanned = paths.flatten(make(scan_layers=True)[1])
    leaves = paths.flatten(unrolled)
    parts = {
        name: [leaves[unscanned] for unscanned in paths.unscanned_names(name, leaf.shape)]
        for name, leaf in scanned.items()
    }
    return paths.unflatten({name: part[0] if name in leaves else jnp.stack(part) for name, part in parts.items()})


def loss_and_gradient(model, params, batch):
    loss = lambda params: jnp.mean(jnp.square(model.apply({"params": params}, batch)))
    return jax.jit(jax.value_and_grad(loss))(params)


def assert_close(a, b, rtol=1e-5):
    a, b = paths.flatten(a), paths.flatten(b)
    assert a.keys() == b.keys()
    # Relative to the spread of all leaves: the gradient of a key's bias is zero, as the softmax ignores it.
    spread = np.std(np.concatenate([np.ravel(leaf) for leaf in b.values()]))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=rtol * spread, rtol=rtol, err_msg=name)


def test_scanned_and_unrolled_layers_agree():
    model, params, batch = make()
    scanned = AdaptedModel(tiny_pali(scan_layers=True))
    loss, gradient = loss_and_gradient(model, params, batch)
    scanned_loss, scanned_gradient = loss_and_gradient(scanned, stacked(params), batch)
    np.testing.assert_allclose(scanned_loss, loss, rtol=1e-5)
    assert_close(scanned_gradient, stacked(gradient))


def test_the_unscanned_names_of_a_scanned_model_are_those_of_the_unrolled():
    scanned, unrolled = (paths.flatten(make(scan_layers=scan)[1]) for scan in (True, False))
    shapes = lambda leaves: {name: leaf.shape for name, leaf in leaves.items()}
    assert shapes(paths.unscan(scanned)) == shapes(unrolled)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", ["full", "frozen", "dots", "save:attention_out,mlp_out"])
def test_remat_changes_no_gradient(remat, scan_layers):
    model, params, batch = make(scan_layers=scan_layers)
    recomputed = AdaptedModel(tiny_pali(remat=remat, scan_layers=scan_layers))
    (loss, gradient), (plain, plain_gradient) = (loss_and_gradient(m, params, batch) for m in (recomputed, model))
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    assert_close(gradient, plain_gradient)
    program = lambda m: str(jax.make_jaxpr(lambda p: m.apply({"params": p}, batch))(params))
    assert "remat" in program(recomputed) and "remat" not in program(model)


def test_an_unknown_remat_policy_is_named():
    for remat in ("most", "save:", "save:attention_out,mlp"):
        with pytest.raises(
            UserError,
            match=f"REMAT is '{remat}'.* projections,attention_softmax,attention_out,mlp_in,mlp_hidden,mlp_out",
        ):
            abstract_params(AdaptedModel(tiny_pali(remat=remat)))


@pytest.mark.parametrize("backbone, scan_layers", [
    pytest.param(name, scan, marks=[pytest.mark.slow] if (name, scan) == ("T5Gemma2", True) else [])
    for name in BACKBONES for scan in (False, True)
])  # fmt: skip
def test_decoding_with_a_cache_equals_decoding_without(backbone, scan_layers):
    model, params, batch = make(backbone, scan_layers=scan_layers)
    norm = params["backbone"]["decoder"]["decoder_norm"]
    # Gains about 0, not 1: else a head that is tied to the table repeats the decoder's first input.
    norm["scale"] = norm["scale"] - 1 + np.random.default_rng(0).normal(size=norm["scale"].shape)
    length = 9
    ids = jax.jit(lambda params, batch: model.apply({"params": params}, batch, length, method="generate").ids[:, 0])(
        params, batch
    )
    without = np.zeros((6, length + 1), np.int32)
    without[:, 0] = model.backbone.token_ids.start
    encoded = jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, batch)
    decode = jax.jit(lambda ids: model.apply({"params": params}, encoded, ids, method="decode")[0])
    ended = np.zeros(6, bool)
    for i in range(length):
        new = np.argmax(decode(without)[:, i], axis=-1)
        without[:, i + 1] = np.where(ended, 0, new)
        ended |= without[:, i + 1] == 1
    np.testing.assert_array_equal(ids, without[:, 1:])
    assert len({tuple(row) for row in without.tolist()}) > 1  # rows differ, so the comparison is not trivial


@pytest.mark.parametrize("scan_layers", [False, True])
def test_each_cached_step_gives_the_uncached_logits(scan_layers):
    model, params, batch = make(scan_layers=scan_layers)
    encode, decode = (jax.jit(functools.partial(model.apply, method=method)) for method in ("encode", "decode"))
    encoded = encode({"params": params}, batch)
    tokens = batch["decoder_input_tokens"]
    expected, _ = decode({"params": params}, encoded, tokens)
    cache = model.backbone.empty_cache(6, 5)
    for i in range(5):
        logits, cache = decode({"params": params}, encoded, tokens[:, i : i + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, i], atol=1e-5 * np.std(expected), rtol=1e-5)


def test_nothing_follows_the_end_of_a_row():
    from adalink_jax.models import decoding

    script = jnp.array([[5, 1, 7, 7], [4, 6, 8, 9], [1, 3, 3, 3]])

    def step(tokens, cache):
        return jax.nn.one_hot(script[:, cache.index], 10)[:, None], cache.replace(index=cache.index + 1)

    ids = decoding.Sampling()(step, Cache(None, None, jnp.int32(0)), 3, 4).ids[:, 0]
    np.testing.assert_array_equal(ids, [[5, 1, 0, 0], [4, 6, 8, 9], [1, 0, 0, 0]])


def test_padding_changes_no_logit():
    model, params, batch = make()
    longer = {**batch, "encoder_input_tokens": np.pad(batch["encoder_input_tokens"], ((0, 0), (0, 4)))}
    run = jax.jit(lambda batch: model.apply({"params": params}, batch))
    np.testing.assert_allclose(run(longer), run(batch), atol=1e-5)


def test_the_text_and_the_image_both_matter():
    model, params, batch = make()
    run = jax.jit(model.apply)
    logits = run({"params": params}, batch)
    for feature in ("encoder_input_tokens", "images", "decoder_input_tokens"):
        rolled = {**batch, feature: np.roll(batch[feature], 1, axis=0)}
        assert np.abs(run({"params": params}, rolled) - logits).max() > 1e-3, feature


def test_a_decoder_position_sees_no_later_token():
    model, params, batch = make()
    changed = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
    changed["decoder_input_tokens"][:, 3:] = 9
    run = jax.jit(model.apply)
    a, b = (run({"params": params}, x) for x in (batch, changed))
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] != b[:, 3:]).any()


def test_dropout_is_for_training_only():
    model, params, batch = make(dropout_rate=0.5)
    train = jax.jit(
        lambda seed: model.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(seed)})
    )
    np.testing.assert_array_equal(train(0), train(0))
    assert (train(0) != train(1)).any()
    plain = AdaptedModel(tiny_pali(dropout_rate=0.0))
    still = jax.jit(model.apply)({"params": params}, batch)
    np.testing.assert_array_equal(still, jax.jit(plain.apply)({"params": params}, batch))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_parameter_names_its_axes_and_the_rules_know_them(scan_layers):
    known = {name for name, _ in logical_axis_rules()}
    boxed = abstract_params(AdaptedModel(tiny_pali(scan_layers=scan_layers)))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    for path, leaf in jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]:
        assert is_box(leaf), path
        assert len(leaf.names) == leaf.value.ndim, path
        assert set(leaf.names) <= known, path


def test_parameters_have_t5x_s_names():
    expected = {
        "token_embedder/embedding": (64, 32),
        "encoder/relpos_bias/rel_embedding": (4, 32),
        "encoder/encoder_norm/scale": (32,),
        "decoder/relpos_bias/rel_embedding": (4, 32),
        "decoder/decoder_norm/scale": (32,),
        "decoder/logits_dense/kernel": (32, 64),
    }
    blocks = {"encoder": ["attention"], "decoder": ["self_attention", "encoder_decoder_attention"]}
    norms = {"encoder": ["attention", "mlp"], "decoder": ["self_attention", "cross_attention", "mlp"]}
    for i in range(2):
        for stack in blocks:
            at = f"{stack}/layers_{i}"
            expected |= {f"{at}/pre_{norm}_layer_norm/scale": (32,) for norm in norms[stack]}
            expected |= {
                f"{at}/{b}/{m}/kernel": (32, 32) for b in blocks[stack] for m in ("query", "key", "value", "out")
            }
            expected |= {f"{at}/mlp/{m}/kernel": (32, 64) for m in ("wi_0", "wi_1")} | {f"{at}/mlp/wo/kernel": (64, 32)}
    leaves = paths.flatten(make("T5")[1]["backbone"])
    assert {name: leaf.shape for name, leaf in leaves.items()} == expected


def test_t5_1_0_has_one_wi_and_no_logits_dense():
    _, params, _ = make("T5", mlp_activations=("relu",), logits_via_embedding=True)
    names = paths.flatten(params["backbone"])
    assert "encoder/layers_0/mlp/wi/kernel" in names and "decoder/logits_dense/kernel" not in names


class DropsTheBatch(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return inputs.replace(text=inputs.text[0])


def test_a_wrong_shape_at_the_seam_is_reported_by_name():
    """The tests check annotated shapes (shape_checks.py): a struct's fields, an adapter's result, a method's arguments."""
    text = jnp.ones((2, 3, 8))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)seam\.Inputs\..*'text_mask'.*bool\[2,4\].*B L"):
        Inputs(text=text, text_mask=jnp.ones((2, 4), bool))
    model, params, batch = make("T5")
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)seam\.Inputs\..*'text'.*f32\[7,32\].*B L D"):
        AdaptedModel(model.backbone, DropsTheBatch()).apply({"params": params}, batch)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)AdaptedModel\.decode_states.*'tokens'.*B T"):
        model.apply({"params": params}, {**batch, "decoder_input_tokens": batch["decoder_input_tokens"][0]})


def test_images_that_do_not_fit_are_named():
    vision = ViTConfig((8, 16), 4, 32, 4, 64, 1, channels=1)
    model, params, batch = make()
    with pytest.raises(UserError, match=r"\(8, 16, 1\), these are \(8, 8, 1\)"):
        model.apply({"params": params}, {**batch, "images": batch["images"][:, :, :8]})
    uneven = AdaptedModel(PaLI(tiny_t5(), ViTConfig((8, 18), 4, 32, 4, 64, 1, channels=1)))
    with pytest.raises(UserError, match="Patches of 4 pixels do not tile images of 8 x 18"):
        abstract_params(uneven)
    assert vision.num_tokens == 8


@pytest.mark.parametrize("backbone, sizes, message", [
    ("T5Gemma", {"decoder_num_kv_heads": 3}, "T5GemmaConfig.decoder_num_kv_heads is 3; it must divide decoder_num_heads, 4"),
    ("T5Gemma2", {"num_kv_heads": 3}, "T5Gemma2Config.num_kv_heads is 3; it must divide num_heads, 4"),
    ("PaliGemma", {"head_dim": 7}, "PaliGemmaConfig.head_dim is odd"),
])  # fmt: skip
def test_heads_that_cannot_be_are_named(backbone, sizes, message):
    with pytest.raises(UserError, match=message):
        BACKBONES[backbone](**sizes)


@pytest.mark.parametrize("sizes, total", [
    ((32128, 512, 6, 64, 1024, 8, 8), 76_961_152),
    ((32128, 4096, 64, 64, 10240, 24, 24), 11_135_332_352),
])  # fmt: skip
def test_parameter_counts(sizes, total):
    model = AdaptedModel(T5(T5Config(*sizes, scan_layers=True)))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))) == total
