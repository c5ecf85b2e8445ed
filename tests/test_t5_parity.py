"""A T5 gives the numbers of `transformers`, from the same random weights, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import FORMS, make_reference, tokens, torch

from adalink_jax import AdaptedModel, checkpoints, parallel
from adalink_jax.checkpoints import config_fields, open_source
from adalink_jax.checkpoints.families.family import family_of_shapes
from adalink_jax.models import Inputs
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.models.relative import relative_position_bucket
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")


@pytest.fixture(scope="module", params=FORMS)
def pair(request, tmp_path_factory):
    """The reference, this package's model with the weights that the reference saved, and their folder."""
    theirs = make_reference(request.param)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    model, params = ours(folder)
    return theirs, model, params, folder


def ours(folder, **overrides):
    """Loads the model of a folder."""
    source = open_source(folder)
    family = family_of_shapes(source.shapes)
    model = AdaptedModel(family.backbone(family.config(**config_fields(source), **overrides)))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        loaded = load_parameters(Setup(model, initial_checkpoint_path=str(folder)), mesh, rules)
    return model, loaded.tree()


def assert_close(mine, theirs, tolerance=1e-4):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=tolerance * theirs.std())


def test_logits_loss_likelihood_and_the_gradient_of_the_input_embeddings(pair):
    theirs, model, params, _ = pair
    inputs, targets = tokens(5, 150), tokens(5, 150, seed=1)  # distances beyond the last bucket's border
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    embeddings = theirs.shared(torch.tensor(inputs)).detach().requires_grad_()
    logits = theirs(
        inputs_embeds=embeddings, attention_mask=torch.tensor(inputs > 0), decoder_input_ids=torch.tensor(shifted)
    ).logits
    labels = torch.tensor(targets)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0, reduction="none")
    loss = losses.sum() / (labels > 0).sum()
    loss.backward()

    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": shifted, "decoder_target_tokens": targets}
    batch["decoder_loss_weights"] = (targets > 0).astype(np.float32)
    assert_close(jax.jit(model.apply)({"params": params}, batch), logits.detach())
    scores = jax.jit(functools.partial(model.apply, method="score"))({"params": params}, batch)
    np.testing.assert_allclose(scores, -losses.detach().reshape(labels.shape).sum(1).numpy(), rtol=1e-4)

    def ours_loss(text):
        bound = model.backbone.bind({"params": params["backbone"]})
        encoded = bound.encode(Inputs(text=text, text_mask=jnp.asarray(inputs > 0)))
        out, _ = bound.decode(encoded, bound.embed_target(shifted))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(targets > 0, log_p, 0)) / np.sum(targets > 0)

    value, gradient = jax.value_and_grad(ours_loss)(jnp.asarray(embeddings.detach().numpy()))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    assert_close(gradient, embeddings.grad.numpy())


def generate_both(pair, inputs, length, decoding, ends=(1,), **settings):
    """Ids of both, [rows, decodes, length], and the scores of both."""
    theirs, model, params, _ = pair
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor(inputs), attention_mask=torch.tensor(inputs > 0), max_new_tokens=length, do_sample=False,
            return_dict_in_generate=True, output_scores=True, eos_token_id=list(ends), **settings,
        )  # fmt: skip
    ids = out.sequences.numpy()[:, 1:]
    ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1]))).reshape(len(inputs), -1, length)
    is_end = np.isin(ids, ends)
    ids = np.where(np.cumsum(is_end, axis=-1) - is_end > 0, 0, ids)  # its beam search pads with EOS
    features = {"encoder_input_tokens": inputs.astype(np.int32)}
    run = jax.jit(lambda params: model.apply({"params": params}, features, length, decoding, method="generate"))
    return run(params), ids, getattr(out, "sequences_scores", None)


def test_greedy_outputs(pair):
    inputs = tokens(64, 12, seed=2)
    decoded, theirs, _ = generate_both(pair, inputs, 40, Sampling(), num_beams=1)
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert len({tuple(row) for row in theirs[:, 0].tolist()}) >= 30
    assert (theirs == 1).any(axis=-1).sum() >= 32


@pytest.mark.parametrize("alpha", [0.6, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.0, 1.0))])
def test_beam_search_with_the_finishing_rule_of_transformers(pair, alpha):
    inputs = tokens(100, 12, seed=3)
    decoded, theirs, scores = generate_both(
        pair, inputs, 12, BeamSearch(3, alpha, "transformers"), num_beams=3, num_return_sequences=3,
        length_penalty=alpha, early_stopping=False,
    )  # fmt: skip
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert_close(decoded.scores.ravel(), scores.numpy())
    cut = (theirs != 1).all(axis=-1)
    assert 0 < cut.sum() < cut.size  # some beams are cut at the end, some are not


def test_minimum_length(pair):
    inputs = tokens(40, 12, seed=4)
    for settings, decoding in (
        ({"num_beams": 1}, Sampling(min_length=6)),
        ({"num_beams": 3, "num_return_sequences": 3, "length_penalty": 1.0},
         BeamSearch(3, 1.0, "transformers", min_length=6)),
    ):  # fmt: skip
        decoded, theirs, _ = generate_both(pair, inputs, 12, decoding, min_new_tokens=6, **settings)
        np.testing.assert_array_equal(decoded.ids, theirs)


def test_scanned_and_unrolled_forms_agree(pair):
    _, model, params, folder = pair
    scanned, stacked = ours(folder, scan_layers=True)
    batch = {"encoder_input_tokens": tokens(5, 20), "decoder_input_tokens": tokens(5, 20, seed=1)}
    assert_close(jax.jit(scanned.apply)({"params": stacked}, batch), jax.jit(model.apply)({"params": params}, batch))
    assert checkpoints.fingerprint(stacked["backbone"]) == checkpoints.fingerprint(params["backbone"])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_position_buckets(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, 32, 128)
    np.testing.assert_array_equal(relative_position_bucket(jnp.asarray(distance), bidirectional, 32, 128), theirs)
