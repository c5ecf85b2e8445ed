"""A PaliGemma gives the numbers of `transformers`, from the same random weights, in float32.

`transformers` gets `token_type_ids`, without which its prefix is causal, and rows whose prefix is padded on the left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gemma_references import PALIGEMMA_FORMS, PALIGEMMA_IMAGE, make_paligemma
from references import tokens, torch
from test_t5_parity import assert_close
from test_vision_parity import pictures, pixel_values

from adalink_jax import AdaptedModel, PaliGemma, PaliGemmaConfig, ViTConfig, checkpoints, parallel
from adalink_jax.checkpoints import config_fields, open_source
from adalink_jax.errors import CheckpointError
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")
N, L, T = 4, 12, 9  # visual tokens, and lengths of text and suffix: windows are of 6


@pytest.fixture(scope="module", params=PALIGEMMA_FORMS)
def pair(request, tmp_path_factory):
    """The reference, this package's model with the weights that the reference saved, and their folder."""
    theirs = make_paligemma(request.param)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, *ours(folder), folder


def ours(path, scan_layers=False, **overrides):
    """Loads the model of a folder or file."""
    config = PaliGemmaConfig(**config_fields(open_source(path)) | overrides, scan_layers=scan_layers)
    model = AdaptedModel(PaliGemma(config, ViTConfig((28, 28), 14, 24, 4, 48, 2, scan_layers=scan_layers)))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        return model, load_parameters(Setup(model, initial_checkpoint_path=str(path)), mesh, rules).tree()


def batch_of(rows, images=True):
    """Features; without images, no row has one."""
    inputs, targets = tokens(rows, L), tokens(rows, T, seed=1)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=7),  # the start has no effect
        "images": pictures(rows, (28, 28)),
    }
    return batch if images else batch | {"image_present": np.zeros(rows, bool)}


def theirs_of(batch, suffix=True):
    """The arguments of `transformers` for a batch, and how many positions the prefix takes."""
    text, rows = batch["encoder_input_tokens"], len(batch["images"])
    images = "image_present" not in batch
    prefix = [[*[PALIGEMMA_IMAGE] * N * images, *row[row > 0]] for row in text]
    length = max(map(len, prefix))
    ids = np.array([[0] * (length - len(row)) + row for row in prefix])
    mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in prefix])
    types = np.zeros_like(ids)
    if suffix:
        targets = batch["decoder_target_tokens"]
        ids, mask = np.hstack([ids, targets]), np.hstack([mask, targets > 0])
        types = np.hstack([types, np.ones((rows, T), int)])
    arguments = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    pixels = {"pixel_values": pixel_values(batch["images"])} if images else {}
    return {name: torch.tensor(x) for name, x in arguments.items()} | pixels, length


def assert_same_logits(model, params, theirs, batch):
    arguments, length = theirs_of(batch)
    with torch.no_grad():
        logits = theirs(**arguments).logits[:, length - 1 : -1].numpy()
    is_target = batch["decoder_target_tokens"] > 0
    assert_close(jax.jit(model.apply)({"params": params}, batch)[is_target], logits[is_target])


def test_features_logits_loss_and_the_gradient_of_the_input_embeddings(pair):
    theirs, model, params, _ = pair
    batch = batch_of(5)
    assert_same_logits(model, params, theirs, batch)
    apply = jax.jit(model.apply, static_argnames="method")
    encoded = apply({"params": params}, batch, method="encode")
    targets, weights = batch["decoder_target_tokens"], batch["decoder_target_tokens"] > 0
    inputs = jax.jit(model.backbone.apply, static_argnames="method")(
        {"params": params["backbone"]}, batch, method="embed"
    )

    arguments, length = theirs_of(batch)
    in_prefix = (arguments["attention_mask"] > 0)[:, :length]
    embeddings = theirs.get_input_embeddings()(arguments.pop("input_ids").clamp(max=PALIGEMMA_IMAGE - 1)).detach()
    for row, mask in enumerate(in_prefix):
        text = torch.tensor(np.asarray(inputs.text[row])[np.asarray(inputs.text_mask[row])])
        embeddings[row, :length][mask] = torch.cat([torch.tensor(np.asarray(inputs.image[row])), text])
    embeddings.requires_grad_()
    del arguments["pixel_values"]
    out = theirs(inputs_embeds=embeddings, output_hidden_states=True, **arguments)
    assert_close(encoded.states[encoded.mask], out.hidden_states[-1][:, :length][in_prefix].detach())
    losses = torch.nn.functional.cross_entropy(
        out.logits[:, length - 1 : -1].flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=0, reduction="none"
    )
    (losses.sum() / weights.sum()).backward()

    def loss(inputs):
        bound = model.backbone.bind({"params": params["backbone"]})
        out, _ = bound.decode(bound.encode(inputs), bound.embed_target(batch["decoder_input_tokens"]))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(weights, log_p, 0)) / np.sum(weights)

    of_embeddings = lambda image, text: loss(inputs.replace(image=image, text=text))
    value, (image, text) = jax.jit(jax.value_and_grad(of_embeddings, argnums=(0, 1)))(inputs.image, inputs.text)
    np.testing.assert_allclose(value, losses.detach().sum() / weights.sum(), rtol=1e-4)
    expected = embeddings.grad[:, :length]
    assert_close(
        np.concatenate([np.concatenate([i, t[m]]) for i, t, m in zip(image, text, inputs.text_mask)]),
        expected[in_prefix],
    )


def test_rows_without_an_image(pair):
    theirs, model, params, _ = pair
    assert_same_logits(model, params, theirs, batch_of(5, images=False))


@pytest.mark.parametrize("pair", ["2"], indirect=True)  # Gemma 1 has neither
def test_without_windows_and_cap_it_is_big_vision_s(pair, monkeypatch):
    """A window that is longer than the input has no effect; where there are windows, they are felt."""
    theirs, model, params, folder = pair
    text = theirs.config.text_config
    batch = batch_of(5)
    big_vision, _ = ours(folder, sliding_window=None, logits_softcap=None)
    monkeypatch.setattr(text, "sliding_window", 100)
    with pytest.raises(AssertionError):
        assert_same_logits(model, params, theirs, batch)
    monkeypatch.setattr(text, "final_logit_softcapping", None)
    assert_same_logits(big_vision, params, theirs, batch)


def test_another_window_than_the_checkpoint_s_is_refused(pair):
    *_, folder = pair
    with pytest.raises(CheckpointError, match="set PaliGemmaConfig.sliding_window"):
        ours(folder, sliding_window=100)


@pytest.mark.parametrize("kind", ["greedy", "beams"])
def test_outputs(pair, kind):
    theirs, model, params, _ = pair
    batch = batch_of(24)
    beams, decoding = (1, Sampling()) if kind == "greedy" else (3, BeamSearch(3, 0.6, "transformers"))
    settings = {"num_return_sequences": 3, "length_penalty": 0.6, "early_stopping": False} if beams > 1 else {}
    arguments, length = theirs_of(batch, suffix=False)
    with torch.no_grad():
        out = theirs.generate(
            **arguments, max_new_tokens=32, do_sample=False, num_beams=beams, return_dict_in_generate=True,
            output_scores=True, **settings,
        )  # fmt: skip
    expected = out.sequences.numpy()[:, length:]
    expected = np.pad(expected, ((0, 0), (0, 32 - expected.shape[1]))).reshape(24, beams, 32)
    expected = np.where(np.cumsum(expected == 1, axis=-1) - (expected == 1) > 0, 0, expected)
    features = {name: batch[name] for name in ("encoder_input_tokens", "images")}
    run = jax.jit(lambda params: model.apply({"params": params}, features, 32, decoding, method="generate"))
    decoded = run(params)
    np.testing.assert_array_equal(decoded.ids, expected)
    assert np.mean([len(set(row)) for row in expected[:, 0].tolist()]) >= 8
    if beams > 1:
        assert_close(decoded.scores.ravel(), out.sequences_scores.numpy())


def test_scanned_and_unrolled_forms_agree(pair):
    _, model, params, folder = pair
    scanned, stacked = ours(folder, scan_layers=True)
    batch = batch_of(5)
    assert_close(jax.jit(scanned.apply)({"params": stacked}, batch), jax.jit(model.apply)({"params": params}, batch))
    assert checkpoints.fingerprint(stacked["backbone"]) == checkpoints.fingerprint(params["backbone"])
