"""Decoding with a key/value cache: greedy, sampling, beam search. It knows no model, only one step of it.

Letters: B batch, N decodes (beams or samples) per input, T tokens, V vocabulary. Every method finishes a decode at EOS or at
a stop string, pads it, and returns the best decode first.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models.seam import Cache
from adalink_jax.models.stopping import StopStrings
from adalink_jax.models.structs import Struct
from adalink_jax.token_ids import T5_IDS, TokenIds
from adalink_jax.typed_values import FiniteFloat, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt

NEGATIVE = -1.0e7  # log-likelihood of tokens that must not be chosen; t5x's value
FINISHING = ("t5x", "transformers")
Step = Callable[[Array, Cache], tuple[Array, Cache]]


class Decoded(Struct):
    """The result of decoding.

    Attributes:
      ids: int32 [B, N, T], tokens up to and including EOS, then padding; the best decode first.
      scores: float32 [B, N]; their meaning depends on the method.
    """

    ids: Int[Array, "B N T"]
    scores: Float[Array, "B N"]


class Decoding(abc.ABC):
    """Base class of the decoding methods, `Sampling` and `BeamSearch`.

    Attributes:
      stop: strings that finish a decode.
    """

    stop: StopStrings | None

    @abc.abstractmethod
    def __call__(
        self,
        step: Step,
        cache: Cache,
        batch_size: int,
        max_length: int,
        keys: Array | None = None,
        token_ids: TokenIds = T5_IDS,
    ) -> Decoded:
        """Decodes.

        Args:
          step: `(tokens [rows, 1], cache) -> (logits float32 [rows, 1, V], cache)`. The first call has B rows and, in some
            families, fills in `cache.inputs`. Later calls have B * N rows, those of one input together.
          cache: the empty cache of B rows, with at least `max_length` positions.
          batch_size: B.
          max_length: T.
          keys: random keys [B], one for each input (see `row_keys`); None if nothing is drawn.
          token_ids: the model's special ids.
        """


def _check(num_decodes: int, min_length: int, max_length: int) -> None:
    if num_decodes < 1:
        raise UserError(f"num_decodes is {num_decodes}; it must be at least 1.")
    if not 0 <= min_length < max_length:
        raise UserError(f"min_length is {min_length}; it must be less than the {max_length} tokens of an output.")


def row_keys(keys: Array, numbers: Int[Array, " B"]) -> Array:
    """Folds a number into each random key [B], or into one key for all: a row's draws do not depend on its batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(0 if keys.ndim else None, 0))(keys, numbers)


def sampling_keys(seed: int, ids: Int[Array, "B N"]) -> Array:
    """Returns the random keys [B] of rows that N numbers identify."""
    return functools.reduce(row_keys, ids.T, jax.random.key(seed))


def _repeat(cache: Cache, times: int) -> Cache:
    """Repeats each row of the tokens `times` times."""
    return cache.replace(tokens=jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), cache.tokens))


def _reorder(cache: Cache, index: Int[Array, " rows"]) -> Cache:
    """Selects rows of the tokens. They move only among the decodes of one input."""
    return cache.replace(tokens=jax.tree.map(lambda x: jnp.take(x, index, axis=1), cache.tokens))


def _loop(
    body: Callable[[Any, Cache], tuple[Any, Cache]], again: Callable[[Any], Array], state: Any, cache: Cache
) -> Any:
    """Repeats `state, cache = body(state, cache)` while `again(state)`, and returns the state.

    What is constant in the cache stays out of the loop's carry.
    """
    inputs = cache.inputs

    def step(carry: tuple[Any, Cache]) -> tuple[Any, Cache]:
        state, cache = body(carry[0], carry[1].replace(inputs=inputs))
        return state, cache.replace(inputs=None)

    return jax.lax.while_loop(lambda carry: again(carry[0]), step, (state, cache.replace(inputs=None)))[0]


def _ends(
    stop: StopStrings | None, state: Int[Array, "..."], vocab_size: int, token_ids: TokenIds
) -> Bool[Array, "... V"]:
    """Returns which next tokens finish a decode, given the states of the stop strings' automaton."""
    is_eos = functools.reduce(jnp.logical_or, (jnp.arange(vocab_size) == end for end in token_ids.ends))
    ends = is_eos if stop is None else is_eos | stop.ends(state, vocab_size)
    return jnp.broadcast_to(ends, (*state.shape, vocab_size))


def _advance(stop: StopStrings | None, state: Int[Array, "..."], tokens: Int[Array, "..."]) -> Int[Array, "..."]:
    return state if stop is None else stop.advance(state, tokens)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Sampling(Decoding):
    """Chooses token after token: the likeliest (temperature 0, the default: greedy) or a random one.

    Temperature, top-k and top-p apply in this order, as in `transformers`. A decode's score is its log-likelihood under the
    model itself (temperature 1, nothing cut off), EOS included.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the fewest likeliest tokens whose probabilities sum to at least this; 1.0 keeps all.
      num_decodes: N, independent samples per input, sorted by score.
      min_length: least number of tokens before EOS.
      stop: strings that finish a decode.
    """

    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: Fraction = 1.0
    num_decodes: PositiveInt = 1
    min_length: NonNegativeInt = 0
    stop: StopStrings | None = None

    def __call__(
        self,
        step: Step,
        cache: Cache,
        batch_size: int,
        max_length: int,
        keys: Array | None = None,
        token_ids: TokenIds = T5_IDS,
    ) -> Decoded:
        """Decodes; see `Decoding`."""
        _check(self.num_decodes, self.min_length, max_length)
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError("Sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1.")
        greedy = self.temperature == 0
        if greedy and (self.num_decodes > 1 or self.top_k or self.top_p < 1):
            raise UserError("num_decodes, top_k and top_p need a temperature above 0: greedy decoding has one output.")
        if not greedy and keys is None:
            raise UserError("Sampling with a temperature needs random keys, one for each input.")
        rows = batch_size * self.num_decodes
        draws = None
        if not greedy and keys is not None:
            draws = row_keys(jnp.repeat(keys, self.num_decodes, axis=0), jnp.arange(rows) % self.num_decodes)

        def choose(logits, i, state, ended, total):
            """Returns per row: the next token, the automaton's state, whether the row has ended, its score."""
            log_p = jax.nn.log_softmax(logits)
            ends = _ends(self.stop, state, logits.shape[-1], token_ids)
            if self.min_length:
                logits = jnp.where(ends & (i < self.min_length), NEGATIVE, logits)
            if draws is None:
                new = jax.lax.top_k(logits, 1)[1][:, 0]  # on a CPU in half of argmax's time
            else:
                logits = filter_logits(logits, self.temperature, self.top_k, self.top_p)
                new = jax.vmap(jax.random.categorical)(row_keys(draws, jnp.full(rows, i)), logits)
            new = jnp.where(ended, token_ids.pad, new.astype(jnp.int32))
            picked = lambda x: jnp.take_along_axis(x, new[:, None], axis=-1)[:, 0]
            total = total + jnp.where(ended, 0.0, picked(log_p))
            return new, _advance(self.stop, state, new), ended | picked(ends), total

        def body(carry, cache):
            i, out, last, state, ended, total = carry
            logits, cache = step(last[:, None], cache)
            new, state, ended, total = choose(logits[:, -1], i, state, ended, total)
            return (i + 1, out.at[:, i].set(new), new, state, ended, total), cache

        logits, cache = step(jnp.full((batch_size, 1), token_ids.start, jnp.int32), cache)
        logits, cache = jnp.repeat(logits[:, -1], self.num_decodes, axis=0), _repeat(cache, self.num_decodes)
        zeros = jnp.zeros(rows, jnp.int32)
        new, state, ended, total = choose(logits, 0, zeros, zeros > 0, zeros.astype(jnp.float32))
        out = jnp.full((rows, max_length), token_ids.pad, jnp.int32).at[:, 0].set(new)
        carry = (jnp.int32(1), out, new, state, ended, total)
        carry = _loop(body, lambda carry: (carry[0] < max_length) & ~jnp.all(carry[4]), carry, cache)
        ids = carry[1].reshape(batch_size, self.num_decodes, max_length)
        scores = carry[5].reshape(batch_size, -1)
        if self.num_decodes == 1:  # the ids do not depend on the scores, which are not computed where nobody reads them
            return Decoded(ids, scores)
        scores, order = jax.lax.top_k(scores, self.num_decodes)
        return Decoded(jnp.take_along_axis(ids, order[..., None], axis=1), scores)


def filter_logits(
    logits: Float[Array, "rows V"], temperature: float, top_k: int, top_p: float
) -> Float[Array, "rows V"]:
    """Divides logits by the temperature, and sets those outside of top-k and top-p to `NEGATIVE`; see `Sampling`."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][:, -1:], NEGATIVE, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, NEGATIVE, logits)
    return logits


@gin.configurable
@dataclasses.dataclass(frozen=True)
class BeamSearch(Decoding):
    """Beam search with one of two finishing rules, `t5x`'s and that of `transformers`. `n` is a decode's length with its EOS.

    | | `t5x` (`t5x.decoding.beam_search`) | `transformers` (`early_stopping=False`) |
    |---|---|---|
    | score | log-likelihood / ((5 + n) / 6)^alpha | log-likelihood / n^alpha |
    | may finish | any of the 2 N likeliest candidates that ends | only the N likeliest |
    | stops when | no live beam can beat the worst of N finished ones, at any length | ... at its current length |
    | cut off at T | ranked, by log-likelihood, only if nothing finished | ranked among the finished ones |

    Attributes:
      num_decodes: N, beams.
      alpha: exponent of the length penalty; 0 ranks by log-likelihood.
      finishing: "t5x" or "transformers".
      min_length: least number of tokens before EOS.
      stop: strings that finish a decode.
    """

    num_decodes: PositiveInt = 4
    alpha: FiniteFloat = 0.6
    finishing: str = "t5x"
    min_length: NonNegativeInt = 0
    stop: StopStrings | None = None

    def _penalty(self, length: Array | int) -> Array:
        length = jnp.asarray(length, jnp.float32)
        return ((5.0 + length) / 6.0 if self.finishing == "t5x" else length) ** self.alpha

    def __call__(
        self,
        step: Step,
        cache: Cache,
        batch_size: int,
        max_length: int,
        keys: Array | None = None,
        token_ids: TokenIds = T5_IDS,
    ) -> Decoded:
        """Decodes; see `Decoding`."""
        _check(self.num_decodes, self.min_length, max_length)
        if self.finishing not in FINISHING:
            raise UserError(f"BeamSearch.finishing is {self.finishing!r}; it must be one of {', '.join(FINISHING)}.")
        beams, t5x = self.num_decodes, self.finishing == "t5x"

        def search(logits, s: "_Beams", cache):
            """Extends every beam by a token. `logits` [B, live beams, V]; `cache` has B * live beams rows."""
            live, vocab = logits.shape[1:]
            if live * vocab < 2 * beams:
                raise UserError(f"{beams} beams need a vocabulary of at least {2 * beams} tokens; it has {vocab}.")
            ends = _ends(self.stop, s.automaton[:, :live], vocab, token_ids)
            log_p = jnp.where(ends & (s.length < self.min_length), NEGATIVE, jax.nn.log_softmax(logits))
            log_p = (log_p + s.live_log_p[:, :live, None]).reshape(batch_size, -1)
            log_p, flat = jax.lax.top_k(log_p, 2 * beams)
            parent, token = flat // vocab, (flat % vocab).astype(jnp.int32)
            at = lambda x, index: jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
            ids = at(s.live_ids, parent).at[:, :, s.length].set(token)
            length = s.length + 1
            ended = jnp.take_along_axis(ends.reshape(batch_size, -1), flat, axis=1)
            if not t5x:
                ended = ended | (length == max_length)

            # Live: the best candidates that did not end.
            live_log_p, chosen = jax.lax.top_k(log_p + jnp.where(ended, NEGATIVE, 0.0), beams)
            from_beam = at(parent, chosen)
            if live == beams:
                cache = _reorder(cache, (from_beam + beams * jnp.arange(batch_size)[:, None]).reshape(-1))
            else:  # at the first token all beams start from the same row
                cache = _repeat(cache, beams)
            automaton = _advance(self.stop, at(s.automaton[:, :live], from_beam), at(token, chosen))

            # Finished: the best of the old and the new ones.
            may_finish = ended
            if not t5x:
                may_finish = ended & (jnp.arange(2 * beams) < beams) & s.open[:, None]
            scores = log_p / self._penalty(length) + jnp.where(may_finish, 0.0, NEGATIVE)
            scores, best = jax.lax.top_k(jnp.concatenate([s.scores, scores], axis=1), beams)
            finished = at(jnp.concatenate([s.finished, may_finish], axis=1), best)
            done_ids = at(jnp.concatenate([s.ids, ids], axis=1), best)

            # Open: a live beam may still displace a finished one.
            reachable = live_log_p[:, 0] / self._penalty(max_length + 1 if t5x else length)
            beaten = jnp.all(finished, axis=1) & (
                (scores[:, -1] > reachable) if t5x else (scores[:, -1] >= reachable)
            )  # fmt: skip
            still_open = ~beaten if t5x else s.open & ~beaten
            new = _Beams(length, at(ids, chosen), live_log_p, automaton, done_ids, scores, finished, still_open)
            return new, cache

        def body(s, cache):
            last = jax.lax.dynamic_index_in_dim(s.live_ids, s.length - 1, axis=2)
            logits, cache = step(last.reshape(-1, 1), cache)
            return search(logits.reshape(batch_size, beams, -1), s, cache)

        start = _Beams.start(batch_size, beams, max_length, token_ids.pad)
        logits, cache = step(jnp.full((batch_size, 1), token_ids.start, jnp.int32), cache)
        s = _loop(body, lambda s: (s.length < max_length) & jnp.any(s.open), *search(logits, start, cache))
        any_finished = jnp.any(s.finished, axis=1, keepdims=True)
        ids = jnp.where(any_finished[..., None], s.ids, s.live_ids)
        return Decoded(ids, jnp.where(any_finished, s.scores, s.live_log_p))


class _Beams(Struct):
    """State of a beam search after `length` tokens. Beams are sorted, the best first.

    The live beams have `live_ids`, `live_log_p` and the state of the stop strings' `automaton`; the pool of finished ones has
    `ids`, `scores` and `finished`, False where a place is still empty. `open` rows continue.
    """

    length: Int[Array, ""]
    live_ids: Int[Array, "B N T"]
    live_log_p: Float[Array, "B N"]
    automaton: Int[Array, "B N"]
    ids: Int[Array, "B N T"]
    scores: Float[Array, "B N"]
    finished: Bool[Array, "B N"]
    open: Bool[Array, " B"]

    @classmethod
    def start(cls, batch_size: int, beams: int, max_length: int, pad: int) -> "_Beams":
        zeros = jnp.zeros((batch_size, beams), jnp.int32)
        ids = jnp.full((batch_size, beams, max_length), pad, jnp.int32)
        low = jnp.full((batch_size, beams), NEGATIVE, jnp.float32)
        return cls(jnp.int32(0), ids, zeros * 1.0, zeros, ids, low, zeros > 0, jnp.ones(batch_size, bool))
