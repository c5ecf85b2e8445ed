"""T5's span corruption on token ids, in NumPy (Raffel et al., 2020, section 3.1.4).

Spans of tokens are replaced in the inputs by one sentinel each; the targets are each sentinel and the tokens that it replaces.
Sentinels count down from the id of `<extra_id_0>`, or from the last byte. Invariant: inputs and targets together determine the tokens.
"""

import itertools

import numpy as np

from adalink_jax.data.published.settings import SpanCorruption
from adalink_jax.errors import UserError

MAX_SPANS = 100  # sentinels of T5's vocabularies


def counts(length: int, settings: SpanCorruption) -> tuple[int, int]:
    """(dropped tokens, spans) for `length` >= 2 tokens: at least one of each, and at least one remaining token per span."""
    dropped = min(max(round(length * settings.noise_density), 1), length - 1)
    return dropped, min(max(round(dropped / settings.mean_span_length), 1), length - dropped)


def lengths(inputs: int, settings: SpanCorruption) -> tuple[int, int]:
    """Returns how many tokens of text fill `inputs` tokens with EOS, and how many target tokens they give with EOS.

    Raises:
      UserError: if they need more sentinels than there are, or `inputs` has no room for any.
    """

    def used(length: int) -> int:
        dropped, spans = counts(length, settings)
        return length - dropped + spans + 1

    if inputs < 3:
        raise UserError(f"Span corruption needs at least 3 input tokens; TASK_FEATURE_LENGTHS gives {inputs}.")
    length = next(length for length in itertools.count(2) if used(length + 1) > inputs)
    dropped, spans = counts(length, settings)
    if spans > MAX_SPANS:
        raise UserError(
            f"Span corruption of {inputs} input tokens has {spans} spans, and there are sentinels for {MAX_SPANS}; raise "
            f"SpanCorruption.mean_span_length, or shorten the inputs."
        )
    return length, dropped + spans + 1


def corrupt(
    ids: np.ndarray, rng: np.random.Generator, first_sentinel: int, settings: SpanCorruption
) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets, int32, for `ids` [n], without EOS.

    The text starts with a span that stays and ends with one that is dropped, in turn; all divisions into this number of spans
    are equally likely. A single token is dropped.
    """
    if len(ids) < 2:
        return np.array([first_sentinel], np.int32), np.array([first_sentinel, *ids], np.int32)
    dropped, spans = counts(len(ids), settings)
    stay, drop = _division(len(ids) - dropped, spans, rng), _division(dropped, spans, rng)
    inputs, targets, start = [], [], 0
    for number, (staying, dropping) in enumerate(zip(stay, drop)):
        sentinel, middle = [first_sentinel - number], start + staying
        inputs += [ids[start:middle], sentinel]
        targets += [sentinel, ids[middle : middle + dropping]]
        start = middle + dropping
    return np.concatenate(inputs).astype(np.int32), np.concatenate(targets).astype(np.int32)


def _division(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of `parts` spans of at least one item that add up to `items`: int [parts], all divisions equally likely."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))
