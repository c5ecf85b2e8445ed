"""A T5Gemma gives the numbers of `transformers`, from the same random weights, in float32: windows, soft caps, groups of heads."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gemma_references import T5GEMMA_FORMS, make_t5gemma
from references import tokens, torch
from test_t5_parity import assert_close, generate_both, ours

from adalink_jax import checkpoints
from adalink_jax.models import Inputs
from adalink_jax.models.decoding import BeamSearch, Sampling

pytestmark = pytest.mark.usefixtures("exact_matmuls")
BOS = 2


@pytest.fixture(scope="module", params=T5GEMMA_FORMS)
def pair(request, tmp_path_factory):
    """The reference, this package's model with the weights that the reference saved, and their folder."""
    theirs = make_t5gemma(request.param)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, *ours(folder), folder


def batch_of(inputs, targets):
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    return {"encoder_input_tokens": inputs, "decoder_input_tokens": shifted, "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32)}  # fmt: skip


@pytest.mark.parametrize("kind", ["reference", pytest.param("blockwise", marks=pytest.mark.slow)])
def test_logits_loss_likelihood_and_the_gradient_of_the_input_embeddings(pair, kind):
    theirs, _, params, folder = pair
    model, _ = ours(folder, attention=kind)
    inputs, targets = tokens(5, 40), tokens(5, 30, seed=1)
    batch = batch_of(inputs, targets)
    embeddings = theirs.model.encoder.embed_tokens(torch.tensor(inputs)).detach().requires_grad_()
    logits = theirs(
        inputs_embeds=embeddings, attention_mask=torch.tensor(inputs > 0),
        decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]),
    ).logits  # fmt: skip
    labels = torch.tensor(targets)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0, reduction="none")
    loss = losses.sum() / (labels > 0).sum()
    loss.backward()

    assert_close(jax.jit(model.apply)({"params": params}, batch), logits.detach())
    scores = jax.jit(functools.partial(model.apply, method="score"))({"params": params}, batch)
    np.testing.assert_allclose(scores, -losses.detach().reshape(labels.shape).sum(1).numpy(), rtol=1e-4)

    def ours_loss(text):
        bound = model.backbone.bind({"params": params["backbone"]})
        encoded = bound.encode(Inputs(text=text, text_mask=jnp.asarray(inputs > 0)))
        out, _ = bound.decode(encoded, bound.embed_target(batch["decoder_input_tokens"]))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(targets > 0, log_p, 0)) / np.sum(targets > 0)

    factor = model.backbone.config.emb_dim**0.5  # theirs multiplies after `inputs_embeds`, ours before the seam
    value, gradient = jax.value_and_grad(ours_loss)(jnp.asarray(embeddings.detach().numpy()) * factor)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    assert_close(gradient * factor, embeddings.grad.numpy())


def test_greedy_outputs_beyond_a_window(pair):
    inputs = tokens(64, 12, seed=2)
    decoded, theirs, _ = generate_both(pair, inputs, 32, Sampling(), num_beams=1)
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert np.mean([len(set(row)) for row in theirs[:, 0].tolist()]) >= 8
    assert len({tuple(row) for row in theirs[:, 0].tolist()}) >= 32


def test_beam_search_with_the_finishing_rule_of_transformers(pair):
    inputs = tokens(40, 12, seed=3)
    decoded, theirs, scores = generate_both(
        pair, inputs, 12, BeamSearch(3, 0.6, "transformers"), num_beams=3, num_return_sequences=3,
        length_penalty=0.6, early_stopping=False,
    )  # fmt: skip
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert_close(decoded.scores.ravel(), scores.numpy())


@pytest.mark.parametrize("pair", ["grouped"], indirect=True)
def test_several_ids_end_an_output(pair, tmp_path):
    theirs, _, _, folder = pair
    inputs = tokens(40, 12, seed=2)
    alone = generate_both(pair, inputs, 12, Sampling(), num_beams=1)[1]
    ends = (1, int(np.bincount(alone[alone > 1]).argmax()))
    folder = shutil.copytree(folder, tmp_path / "x")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    pair = theirs, *ours(folder), folder
    decoded, found, _ = generate_both(pair, inputs, 12, Sampling(), ends, num_beams=1)
    np.testing.assert_array_equal(decoded.ids, found)
    assert (found != alone).any(axis=-1).sum() >= 10
    decoded, found, _ = generate_both(
        pair, inputs, 12, BeamSearch(3, 0.6, "transformers"), ends, num_beams=3, num_return_sequences=3,
        length_penalty=0.6, early_stopping=False,
    )  # fmt: skip
    np.testing.assert_array_equal(decoded.ids, found)


def test_scanned_and_unrolled_forms_agree(pair):
    _, model, params, folder = pair
    scanned, stacked = ours(folder, scan_layers=True)
    batch = batch_of(tokens(5, 20), tokens(5, 20, seed=1))
    assert_close(jax.jit(scanned.apply)({"params": stacked}, batch), jax.jit(model.apply)({"params": params}, batch))
    assert checkpoints.fingerprint(stacked["backbone"]) == checkpoints.fingerprint(params["backbone"])


@pytest.mark.parametrize("length", [6, 7, 8])
def test_windows_at_their_edges(pair, length):
    """The encoder's window of 6 is felt from 8 tokens on, the decoder's from 7; both models feel the same."""
    theirs, model, params, _ = pair
    inputs, targets = np.full((1, length), 5), np.full((1, length), 7)
    inputs[:, 0], targets[:, 0] = 9, 11
    batch = batch_of(inputs, targets)
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(batch["decoder_input_tokens"])
        ).logits
    assert_close(jax.jit(model.apply)({"params": params}, batch), logits)
