"""A Pix2Struct gives the numbers of `transformers`, from the same random weights and pictures, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pix2struct_references import D, make_pix2struct, pictures, processor
from references import tokens, torch
from test_t5_parity import assert_close

from adalink_jax import AdaLinkAdapter, AdaptedModel, Pix2Struct, Pix2StructConfig, checkpoints, parallel
from adalink_jax.checkpoints import config_fields, open_source
from adalink_jax.data.images import picture_array
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")
N, T = 24, 20  # patches of a picture, and length of the targets, beyond the last border of relative positions


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The reference, this package's model with the weights that the reference saved, and their folder."""
    theirs = make_pix2struct()
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, *ours(folder), folder


def ours(path, adapter=None, **overrides):
    """Loads the model of a folder."""
    config = Pix2StructConfig(**config_fields(open_source(path)) | {"max_patches": N} | overrides)
    model = AdaptedModel(Pix2Struct(config), adapter)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        return model, load_parameters(Setup(model, initial_checkpoint_path=str(path)), mesh, rules).tree()


def patches_of(model, images):
    """`images` as this package prepares them."""
    setup = Setup(model)
    return np.stack([picture_array(image, setup.image_shape, "it", setup.preparation) for image in images])


def batch_of(model, rows):
    """Features of pictures of different aspect ratios, and the arguments of `transformers`."""
    targets, images = tokens(rows, T, seed=1), pictures(rows)
    batch = {
        "images": patches_of(model, images),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    }
    theirs = processor()(images, return_tensors="pt")
    return batch, {name: theirs[name] for name in ("flattened_patches", "attention_mask")}


def test_features_logits_loss_and_the_gradient_of_the_input_embeddings(pair, monkeypatch):
    theirs, model, params, _ = pair
    batch, arguments = batch_of(model, 6)
    mask = arguments["attention_mask"].numpy() > 0
    assert 0 < mask.mean() < 1  # there is padding
    inputs = jax.jit(model.backbone.apply, static_argnames="method")(
        {"params": params["backbone"]}, batch, method="embed"
    )
    np.testing.assert_array_equal(inputs.image_mask, mask)
    with torch.no_grad():
        embeddings = theirs.encoder.embeddings(arguments["flattened_patches"])
    assert_close(np.asarray(inputs.image)[mask], embeddings[mask])

    embeddings.requires_grad_()
    monkeypatch.setattr(theirs.encoder.embeddings, "forward", lambda patches: embeddings)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_target_tokens"] > 0
    shifted = torch.tensor(batch["decoder_input_tokens"])
    out = theirs(**arguments, decoder_input_ids=shifted)
    apply = jax.jit(model.apply, static_argnames="method")
    encoded = apply({"params": params}, batch, method="encode")
    assert_close(encoded.states[mask], out.encoder_last_hidden_state[mask].detach())
    assert_close(apply({"params": params}, batch)[weights], out.logits[weights].detach())
    losses = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=0, reduction="none"
    )
    (losses.sum() / weights.sum()).backward()

    def loss(image):
        bound = model.backbone.bind({"params": params["backbone"]})
        target = bound.embed_target(batch["decoder_input_tokens"])
        out, _ = bound.decode(bound.encode(inputs.replace(image=image)), target)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(weights, log_p, 0)) / np.sum(weights)

    value, gradient = jax.jit(jax.value_and_grad(loss))(inputs.image)
    np.testing.assert_allclose(value, losses.detach().sum() / weights.sum(), rtol=1e-4)
    assert_close(np.asarray(gradient)[mask], embeddings.grad[mask])
    assert not np.asarray(gradient)[~mask].any()


@pytest.mark.parametrize("kind", ["greedy", "beams"])
def test_outputs(pair, kind):
    theirs, model, params, _ = pair
    rows = 12
    batch, arguments = batch_of(model, rows)
    beams, decoding = (1, Sampling()) if kind == "greedy" else (3, BeamSearch(3, 0.6, "transformers"))
    settings = {"num_return_sequences": 3, "length_penalty": 0.6, "early_stopping": False} if beams > 1 else {}
    with torch.no_grad():
        out = theirs.generate(
            **arguments, max_new_tokens=32, do_sample=False, num_beams=beams, return_dict_in_generate=True,
            output_scores=True, **settings,
        )  # fmt: skip
    expected = out.sequences.numpy()[:, 1:]
    expected = np.pad(expected, ((0, 0), (0, 32 - expected.shape[1]))).reshape(rows, beams, 32)
    expected = np.where(np.cumsum(expected == 1, axis=-1) - (expected == 1) > 0, 0, expected)
    features = {"images": batch["images"]}
    run = jax.jit(lambda params: model.apply({"params": params}, features, 32, decoding, method="generate"))
    decoded = run(params)
    np.testing.assert_array_equal(decoded.ids, expected)
    assert np.mean([len(set(row)) for row in expected[:, 0].tolist()]) >= 8
    assert len({tuple(row) for row in expected[:, 0].tolist()}) > rows / 2  # the picture matters
    if beams > 1:
        assert_close(decoded.scores.ravel(), out.sequences_scores.numpy())


def test_scanned_and_unrolled_forms_agree(pair):
    _, model, params, folder = pair
    scanned, stacked = ours(folder, scan_layers=True)
    batch, _ = batch_of(model, 3)
    assert_close(jax.jit(scanned.apply)({"params": stacked}, batch), jax.jit(model.apply)({"params": params}, batch))
    assert checkpoints.fingerprint(stacked["backbone"]) == checkpoints.fingerprint(params["backbone"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adalink_is_the_identity_to_the_bit_and_acts_on_patches(pair, dtype):
    *_, folder = pair
    model, params = ours(folder, AdaLinkAdapter(rank=4), dtype=dtype)
    assert jax.tree.map(jnp.shape, params["adapter"]) == {"image": {"down": (D, 4), "up": (4, D)}}
    batch, _ = batch_of(model, 3)
    bare = jax.jit(AdaptedModel(model.backbone).apply)({"params": {"backbone": params["backbone"]}}, batch)
    run = jax.jit(model.apply)
    np.testing.assert_array_equal(run({"params": params}, batch), bare)
    moved = {**params, "adapter": jax.tree.map(lambda x: x + 0.1, params["adapter"])}
    assert (run({"params": moved}, batch) != bare).any()


def test_what_it_cannot_have_is_named(pair):
    *_, folder = pair
    for settings, message in (
        ({"max_patches": 41}, "max_patches is 41; rows and columns are numbered up to 40"),
        ({"encoder_embedding": True}, "encoder_embedding is True"),
        ({"background": "red"}, "background is 'red'"),
    ):
        with pytest.raises(UserError, match=message):
            ours(folder, **settings)
    model, params = ours(folder, AdaLinkAdapter(rank=4))
    batch, _ = batch_of(model, 2)
    with pytest.raises(UserError, match="patches of 50 numbers"):
        model.apply({"params": params}, {**batch, "images": batch["images"][..., 1:]})
    with pytest.raises(UserError, match="kinds asks for 'text', but Pix2Struct has no such input"):
        ours(folder, AdaLinkAdapter(rank=4, kinds=("image", "text")))
