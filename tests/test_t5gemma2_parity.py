"""A T5Gemma 2 gives the numbers of `transformers`, from the same random weights, in float32: images, windows, merged attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gemma_references import T5GEMMA2_END, T5GEMMA2_IMAGE, T5GEMMA2_TOKENS, make_t5gemma2
from references import torch
from test_t5_parity import assert_close
from test_vision_parity import pictures, pixel_values

from adalink_jax import AdaLinkAdapter, AdaptedModel, checkpoints, parallel
from adalink_jax.checkpoints import open_source
from adalink_jax.errors import UserError
from adalink_jax.interop.language_model import backbone_of
from adalink_jax.models import Inputs
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.models.encoder_decoder import joined
from adalink_jax.training.setup import Setup, load_parameters

pytestmark = pytest.mark.usefixtures("exact_matmuls")
BOS, LONGEST = 2, 2  # images in a row


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The reference, this package's model with the weights that the reference saved, and their folder."""
    theirs = make_t5gemma2()
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, *ours(folder), folder


def ours(folder, adapter=None, adapter_path=None, **overrides):
    """Loads the model of a folder."""
    backbone = backbone_of(open_source(folder))
    overrides = {"scan_layers": False, **overrides}
    change = lambda config: type(config)(**{**vars(config), **overrides})
    backbone = backbone.clone(config=change(backbone.config), vision_config=change(backbone.vision_config))
    model = AdaptedModel(backbone, adapter)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        paths = {"initial_checkpoint_path": str(folder), "initial_adapter_path": adapter_path and str(adapter_path)}
        loaded = load_parameters(Setup(model, **paths), mesh, rules)
    return model, loaded.tree()


def ids(rng, lengths):
    """Rows of random ids that end in EOS, padded."""
    rows = [[*rng.integers(3, 90, length - 1), 1] for length in lengths]
    return [list(map(int, row)) for row in rows]


def padded(rows):
    length = max(map(len, rows))
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def batch_of(rows, seed=0, counts=(2, 1, 0)):
    """Features of rows with two images, one, none, ...; one image begins the text, another is in its middle."""
    rng = np.random.default_rng(seed)
    number = np.array([counts[i % len(counts)] for i in range(rows)])
    image = [91, *[T5GEMMA2_IMAGE] * T5GEMMA2_TOKENS, T5GEMMA2_END]
    texts = ids(rng, [14, 6, 11, 9][:rows] + [12] * (rows - 4))
    inputs = [image * int(n > 0) + text[:3] + image * int(n > 1) + text[3:] for n, text in zip(number, texts)]
    targets = padded(ids(rng, [12, 9, 4, 10][:rows] + [8] * (rows - 4)))
    targets[::2, 2] = T5GEMMA2_END  # has a vector of its own in the decoder, too
    return {
        "encoder_input_tokens": padded(inputs),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=BOS),
        "images": pictures(rows * LONGEST, (16, 16), seed).reshape(rows, LONGEST, 16, 16, 3),
        "image_present": np.arange(LONGEST) < number[:, None],
    }


def theirs_of(batch):
    """The arguments of `transformers`: the images of all rows, one after the other."""
    arguments = {
        "input_ids": torch.tensor(batch["encoder_input_tokens"]).long(),
        "attention_mask": torch.tensor(batch["encoder_input_tokens"] > 0),
    }
    images = batch["images"][batch["image_present"]]
    return arguments | ({"pixel_values": pixel_values(images)} if len(images) else {})


def logits_of(theirs, batch):
    with torch.no_grad():
        return theirs(**theirs_of(batch), decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]).long())


@pytest.mark.parametrize("kind", ["reference", "blockwise"])
def test_features_and_logits_with_two_images_one_and_none(pair, kind):
    theirs, _, params, folder = pair
    model, _ = ours(folder, attention=kind)
    batch = batch_of(6)
    out = logits_of(theirs, batch)
    encoded = jax.jit(lambda params: model.apply({"params": params}, batch, method="encode"))(params)
    is_input = batch["encoder_input_tokens"] > 0
    np.testing.assert_array_equal(encoded.mask, is_input)
    assert_close(encoded.states[is_input], out.encoder_last_hidden_state.numpy()[is_input])
    assert_close(jax.jit(model.apply)({"params": params}, batch), out.logits.numpy())


def test_text_alone(pair):
    theirs, model, params, _ = pair
    batch = batch_of(4, counts=(0,))
    expected = logits_of(theirs, batch).logits.numpy()
    assert_close(jax.jit(model.apply)({"params": params}, batch), expected)
    without = {name: x for name, x in batch.items() if not name.startswith("image")}
    assert_close(jax.jit(model.apply)({"params": params}, without), expected)


def test_loss_and_the_gradients_of_the_embeddings_of_text_and_images(pair):
    theirs, model, params, _ = pair
    batch = batch_of(5)
    targets, bound = batch["decoder_target_tokens"], model.backbone.bind({"params": params["backbone"]})
    inputs = bound.embed(batch)
    embeddings = torch.tensor(np.asarray(joined(inputs)[0])).requires_grad_()
    labels = torch.tensor(targets).long()
    logits = theirs(
        inputs_embeds=embeddings, attention_mask=torch.tensor(batch["encoder_input_tokens"] > 0),
        decoder_input_ids=torch.tensor(batch["decoder_input_tokens"]).long(),
    ).logits  # fmt: skip
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
    loss.backward()

    def ours_loss(image, text):
        encoded = bound.encode(inputs.replace(image=image, text=text))
        out, _ = bound.decode(encoded, bound.embed_target(batch["decoder_input_tokens"]))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(out), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(targets > 0, log_p, 0)) / np.sum(targets > 0)

    value, of_kinds = jax.jit(jax.value_and_grad(ours_loss, (0, 1)))(inputs.image, inputs.text)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    image, text = map(np.array, of_kinds)
    places = batch["encoder_input_tokens"] == T5GEMMA2_IMAGE
    assert not text[places].any()
    text[places] = image[np.asarray(inputs.image_mask)]
    assert_close(text, embeddings.grad.numpy())


def outputs_of(pair, batch, length, decoding, **settings):
    """Ids of both, [rows, decodes, length], and the scores of both."""
    theirs, model, params, _ = pair
    with torch.no_grad():
        out = theirs.generate(
            **theirs_of(batch),
            max_new_tokens=length,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    ids = out.sequences.numpy()[:, 1:]
    rows = len(batch["images"])
    ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1]))).reshape(rows, -1, length)
    ids = np.where(np.cumsum(ids == 1, axis=-1) - (ids == 1) > 0, 0, ids)  # its beam search pads with EOS
    run = jax.jit(lambda params: model.apply({"params": params}, batch, length, decoding, method="generate"))
    return run(params), ids, getattr(out, "sequences_scores", None)


def test_greedy_outputs_beyond_a_window(pair):
    decoded, theirs, _ = outputs_of(pair, batch_of(32, seed=2), 32, Sampling(), num_beams=1)
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert np.mean([len(set(row)) for row in theirs[:, 0].tolist()]) >= 8
    assert len({tuple(row) for row in theirs[:, 0].tolist()}) >= 24


def test_beam_search_with_the_finishing_rule_of_transformers(pair):
    decoded, theirs, scores = outputs_of(
        pair, batch_of(16, seed=3), 16, BeamSearch(3, 0.6, "transformers"), num_beams=3, num_return_sequences=3,
        length_penalty=0.6, early_stopping=False,
    )  # fmt: skip
    np.testing.assert_array_equal(decoded.ids, theirs)
    assert_close(decoded.scores.ravel(), scores.numpy())


def test_scanned_and_unrolled_forms_agree(pair):
    _, model, params, folder = pair
    scanned, stacked = ours(folder, scan_layers=True)
    batch = batch_of(4)
    assert_close(jax.jit(scanned.apply)({"params": stacked}, batch), jax.jit(model.apply)({"params": params}, batch))
    assert checkpoints.fingerprint(stacked["backbone"]) == checkpoints.fingerprint(params["backbone"])


def test_a_fresh_adalink_is_the_identity_to_the_bit(pair):
    _, model, params, folder = pair
    adapted, with_adapter = ours(folder, AdaLinkAdapter(rank=3))
    batch = batch_of(4)
    np.testing.assert_array_equal(
        jax.jit(adapted.apply)({"params": with_adapter}, batch), jax.jit(model.apply)({"params": params}, batch)
    )


@pytest.mark.parametrize("length", [3, 4])
def test_windows_at_their_edges(pair, length):
    """With a window of 6, an encoder's token sees two before its own and three after: all of 3 tokens, not all of 4."""
    theirs, model, params, _ = pair
    inputs, targets = np.full((1, length), 5), np.full((1, length), 7)
    inputs[:, 0], inputs[:, -1], targets[:, 0] = 9, 12, 11
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)).logits
    bound = model.backbone.bind({"params": params["backbone"]})
    encoded = bound.encode(Inputs(text=bound.embed_text(inputs), text_mask=jnp.ones(inputs.shape, bool)))
    assert_close(bound.decode(encoded, bound.embed_target(batch["decoder_input_tokens"]))[0], logits.numpy())


def test_packed_examples_are_refused(pair):
    """Where they get past `AdaptedModel`, which refuses them too: the decoder does not read segments."""
    _, model, params, _ = pair
    bound = model.backbone.bind({"params": params["backbone"]})
    ids = np.full((2, 5), 7, np.int32)
    packed = bound.embed({"encoder_input_tokens": ids, "encoder_segment_ids": np.ones_like(ids)})
    with pytest.raises(UserError, match="T5Gemma2 takes one example per row; set PACK_EXAMPLES to False"):
        bound.encode(packed)
