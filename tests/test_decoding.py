"""Decoding: each beam rule against its published definition, sampling, stop strings, lengths, and scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali
from scipy import stats

from adalink_jax import AdaLinkAdapter, AdaptedModel
from adalink_jax.data.vocabularies import ByteVocabulary
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import BeamSearch, Sampling, filter_logits, sampling_keys
from adalink_jax.models.seam import Cache
from adalink_jax.models.stopping import StopStrings

V, T, STATES = 12, 9, 97


class RandomModel:
    """A language model whose next token depends on the whole history, kept in the cache as one hash per row."""

    def __init__(self, rows: int, seed: int, eos: float = 0.0):
        rng = np.random.default_rng(seed)
        self.table = (rng.normal(size=(STATES, V)) * 1.5).astype(np.float32)
        self.table[:, 1] += eos
        self.start = rng.integers(0, STATES, rows)

    def step(self, tokens, cache):
        state = (cache.tokens * 31 + tokens[:, 0] * 7 + 3) % STATES
        return jnp.asarray(self.table)[state[0]][:, None], Cache(state, None, cache.index + 1)

    def decode(self, decoding, max_length=T, key=None):
        cache = Cache(jnp.asarray(self.start, jnp.int32)[None], None, jnp.int32(0))
        keys = None if key is None else jax.random.split(key, len(self.start))
        return jax.jit(lambda: decoding(self.step, cache, len(self.start), max_length, keys))()

    def log_p(self, row: int, tokens: list[int]) -> np.ndarray:
        """Log-probabilities of the token after `tokens`."""
        state = self.start[row]
        for token in [0, *tokens]:
            state = (state * 31 + token * 7 + 3) % STATES
        logits = self.table[state].astype(np.float64)
        return logits - np.log(np.sum(np.exp(logits)))


def t5x_beam_search(log_p, beams, alpha, max_length):
    """t5x's definition, on Python lists: decodes with scores, best first."""
    penalty = lambda n: ((5 + n) / 6) ** alpha
    live, finished = [([], 0.0)], []
    for length in range(1, max_length + 1):
        candidates = [(ids + [t], total + p) for ids, total in live for t, p in enumerate(log_p(ids))]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * beams]
        finished += [(ids, total / penalty(length)) for ids, total in candidates if ids[-1] == 1]
        finished = sorted(finished, key=lambda c: -c[1])[:beams]
        live = [c for c in candidates if c[0][-1] != 1][:beams]
        if len(finished) == beams and finished[-1][1] > live[0][1] / penalty(max_length + 1):
            break
    return finished or live


def padded(ids, length=T):
    return np.pad(ids, (0, length - len(ids)))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("eos", [-0.5, 2.0, -100.0])
def test_t5x_beam_search_is_its_definition(alpha, eos):
    beams, model = 3, RandomModel(rows=100, seed=0, eos=eos)
    decoded = model.decode(BeamSearch(beams, alpha))
    unfinished = 0
    for row in range(100):
        expected = t5x_beam_search(lambda ids, row=row: model.log_p(row, ids), beams, alpha, T)
        unfinished += 1 not in expected[0][0]
        for i, (ids, score) in enumerate(expected):
            np.testing.assert_array_equal(decoded.ids[row, i], padded(ids))
            np.testing.assert_allclose(decoded.scores[row, i], score, rtol=1e-5)
    assert (unfinished == 100) == (eos == -100.0)


def test_greedy_takes_the_likeliest_and_scores_it():
    model = RandomModel(rows=50, seed=1)
    decoded = model.decode(Sampling())
    for row in range(50):
        ids, total = [], 0.0
        while len(ids) < T and 1 not in ids:
            log_p = model.log_p(row, ids)
            ids.append(int(log_p.argmax()))
            total += log_p.max()
        np.testing.assert_array_equal(decoded.ids[row, 0], padded(ids))
        np.testing.assert_allclose(decoded.scores[row, 0], total, rtol=1e-5)


def test_one_beam_without_a_penalty_that_never_ends_is_greedy():
    model = RandomModel(rows=20, seed=1, eos=-100.0)
    np.testing.assert_array_equal(model.decode(BeamSearch(1, 0.0)).ids, model.decode(Sampling()).ids)


def test_samples_follow_the_model():
    model = RandomModel(rows=1, seed=2)
    n = 4000
    ids = np.asarray(model.decode(Sampling(1.0, num_decodes=n), 2, jax.random.key(0)).ids[0])
    first = np.bincount(ids[:, 0], minlength=V)
    assert stats.chisquare(first, np.exp(model.log_p(0, [])) * n).pvalue > 1e-3
    likeliest = int(first.argmax()) if first.argmax() != 1 else int(first.argsort()[-2])
    after = np.bincount(ids[ids[:, 0] == likeliest, 1], minlength=V)
    assert stats.chisquare(after, np.exp(model.log_p(0, [likeliest])) * after.sum()).pvalue > 1e-3


def test_samples_come_sorted_with_their_likelihoods_and_depend_on_the_key_alone():
    model = RandomModel(rows=5, seed=3)
    draw = lambda seed: model.decode(Sampling(0.7, 5, 0.9, num_decodes=6), T, jax.random.key(seed))
    decoded = draw(0)
    np.testing.assert_array_equal(decoded.ids, draw(0).ids)
    assert (np.asarray(decoded.ids) != np.asarray(draw(1).ids)).any()
    assert (np.diff(decoded.scores, axis=1) <= 0).all()
    for row in range(5):
        for ids, score in zip(np.asarray(decoded.ids[row]), decoded.scores[row]):
            ids = ids.tolist()
            n = ids.index(1) + 1 if 1 in ids else T
            expected = sum(model.log_p(row, ids[:i])[ids[i]] for i in range(n))
            np.testing.assert_allclose(score, expected, rtol=1e-4)
            assert not any(ids[n:])


def test_a_row_s_samples_do_not_depend_on_its_batch():
    model = RandomModel(rows=6, seed=4)
    decoding, numbers = Sampling(1.0, num_decodes=2), jnp.array([[3, row] for row in range(6)])
    cache = lambda rows: Cache(jnp.asarray(model.start[rows], jnp.int32)[None], None, jnp.int32(0))
    draw = lambda rows, seed: decoding(model.step, cache(rows), len(rows), T, sampling_keys(seed, numbers[rows])).ids
    together = draw(np.arange(6), 0)
    np.testing.assert_array_equal(draw(np.array([4, 1]), 0), together[jnp.array([4, 1])])
    assert (draw(np.arange(6), 1) != together).any()
    model.start[:] = model.start[0]
    assert len(np.unique(np.asarray(draw(np.arange(6), 0)).reshape(12, T), axis=0)) > 6, "rows share their draws"


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.5, 8, 0.6)])
def test_filters_are_those_of_transformers(temperature, top_k, top_p):
    from references import torch
    from transformers.generation import logits_process as process

    logits = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32) * 3
    expected = process.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        expected = process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = process.TopPLogitsWarper(top_p)(None, expected)
    expected = np.exp(expected.numpy())
    np.testing.assert_allclose(
        np.exp(filter_logits(jnp.asarray(logits), temperature, top_k, top_p)), expected, rtol=1e-5
    )


METHODS = {
    "greedy": Sampling,
    "samples": lambda **kw: Sampling(1.0, num_decodes=3, **kw),
    "t5x": lambda **kw: BeamSearch(3, **kw),
    "transformers": lambda **kw: BeamSearch(3, finishing="transformers", **kw),
}


@pytest.mark.parametrize("method", METHODS)
def test_no_output_is_shorter_than_asked_for(method):
    model = RandomModel(rows=30, seed=4, eos=3.0)

    def shortest(decoding):
        ended = np.asarray(model.decode(decoding, T, jax.random.key(0)).ids) == 1
        return np.argmax(ended, axis=-1)[ended.any(axis=-1)].min()

    assert shortest(METHODS[method]()) < 4
    assert shortest(METHODS[method](min_length=4)) == 4


class Letters:
    """A vocabulary of pieces; ids 0 and 1 add no text."""

    pieces = ["", "", "a", "b", "ab", "ba", "abc", "c", " ", "\n", "é", "bc"]
    assert len(pieces) == V

    def token_bytes(self):
        return [piece.encode() for piece in self.pieces]

    def text(self, ids):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize("strings", [("bca",), ("ab", "\n"), ("aab", "é a", "bab", "ba")])
@pytest.mark.parametrize("method", METHODS)
def test_outputs_end_where_a_stop_string_is_complete(method, strings):
    model, letters = RandomModel(rows=200, seed=5, eos=-2.0), Letters()
    stop = StopStrings(strings, letters)
    decoded = model.decode(METHODS[method](stop=stop), T, jax.random.key(0))
    ends = {"string": 0, "eos": 0, "length": 0}
    for ids in np.asarray(decoded.ids).reshape(-1, T):
        n = len(np.trim_zeros(ids, "b")) or 1
        before, whole = letters.text(ids[: n - 1]), letters.text(ids[:n])
        assert not any(s in before for s in strings)
        stopped = any(s in whole for s in strings)
        ends["string" if stopped else "eos" if ids[n - 1] == 1 else "length"] += 1
        assert not any(s in stop.cut(whole) for s in strings)
        assert whole.startswith(stop.cut(whole))
    assert ends["string"] > 10


def test_a_stopped_greedy_output_is_the_beginning_of_the_free_one():
    model, letters = RandomModel(rows=100, seed=5, eos=-2.0), Letters()
    free, stopped = (model.decode(Sampling(stop=s)).ids[:, 0] for s in (None, StopStrings(("ab",), letters)))
    for a, b in zip(np.asarray(free), np.asarray(stopped)):
        n = next((i for i in range(1, T + 1) if "ab" in letters.text(a[:i])), T)
        np.testing.assert_array_equal(padded(a[:n]), b)


def test_stop_strings_of_a_byte_vocabulary_may_be_any_utf_8():
    stop = StopStrings(("é",), ByteVocabulary())
    state = jnp.int32(0)
    for byte in "aé".encode()[:-1]:
        assert not stop.ends(state, 264)[byte + 3]
        state = stop.advance(state, jnp.int32(byte + 3))
    assert np.flatnonzero(stop.ends(state, 264)).tolist() == ["é".encode()[-1] + 3]


@pytest.mark.parametrize(
    "decoding, message",
    [
        (BeamSearch(finishing="google"), "one of t5x, transformers"),
        (BeamSearch(0), "num_decodes is 0"),
        (Sampling(num_decodes=2), "temperature above 0"),
        (Sampling(top_k=3), "temperature above 0"),
        (Sampling(1.0, top_p=0.0), "top_p"),
        (Sampling(1.0), "random key"),
        (Sampling(min_length=T), "min_length"),
    ],
)
def test_settings_that_mean_nothing_are_refused(decoding, message):
    with pytest.raises(UserError, match=message):
        RandomModel(rows=2, seed=0).decode(decoding)


@pytest.mark.parametrize("decoding, scan_layers", [
    (Sampling(), True),
    (BeamSearch(3, 0.6), False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (Sampling(), False), (BeamSearch(3, 0.6), True),
        (BeamSearch(3, 0.6, "transformers"), False), (BeamSearch(3, 0.6, "transformers"), True),
    )),
])  # fmt: skip
def test_a_model_s_decodes_score_what_the_model_gives_them(decoding, scan_layers):
    backbone = tiny_pali(scan_layers=scan_layers)
    model = AdaptedModel(backbone, AdaLinkAdapter(rank=4, kinds=("text", "image", "target")))
    batch = random_batch(backbone, 4, 6, 5, seed=0)
    params = init(model, batch)
    params = jax.tree.map(lambda x: x * 3, params)
    length = 7
    features = {name: batch[name] for name in ("encoder_input_tokens", "images")}
    generate = lambda params, features: model.apply({"params": params}, features, length, decoding, method="generate")
    score = jax.jit(functools.partial(model.apply, method="score"))
    decoded = jax.jit(generate)(params, features)
    for i in range(decoded.ids.shape[1]):
        ids = np.asarray(decoded.ids[:, i])
        n = np.where((ids == 1).any(axis=1), (ids == 1).argmax(axis=1) + 1, length)
        scored = {
            **features,
            "decoder_input_tokens": np.pad(ids[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": ids,
            "decoder_loss_weights": (np.arange(length) < n[:, None]).astype(np.float32),
        }
        log_p = score({"params": params}, scored)
        if isinstance(decoding, BeamSearch):
            ended = (ids == 1).any(axis=1) | (decoding.finishing == "transformers")
            log_p = np.where(ended, log_p / decoding._penalty(n), log_p)
        np.testing.assert_allclose(decoded.scores[:, i], log_p, rtol=1e-4, atol=1e-4)
