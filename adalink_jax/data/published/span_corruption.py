"""T5's span corruption on token ids, in NumPy (Raffel et al., 2020, section 3.1.4).

Runs of tokens are replaced in the inputs by one sentinel each; the targets are each sentinel and the tokens that it stands
for. Sentinels count down from the last id of the vocabulary. Nothing is lost: inputs and
targets together give the tokens back.
"""

import numpy as np

from adalink_jax.data.published.settings import SpanCorruption
from adalink_jax.errors import UserError

MAX_SPANS = 100  # sentinels of T5's vocabularies


def counts(length: int, settings: SpanCorruption) -> tuple[int, int]:
    """(tokens dropped, spans) of `length` >= 2 tokens; at least one each, and at least one token stays for each span."""
    dropped = min(max(round(length * settings.noise_density), 1), length - 1)
    return dropped, min(max(round(dropped / settings.mean_span_length), 1), length - dropped)


def lengths(inputs: int, settings: SpanCorruption) -> tuple[int, int]:
    """How many tokens of text fill `inputs` tokens with EOS, and how many targets these give, with EOS.

    Raises:
      UserError: if they need more sentinels than there are, or `inputs` has no room for any.
    """

    def used(length: int) -> int:
        dropped, spans = counts(length, settings)
        return length - dropped + spans + 1

    if inputs < 3:
        raise UserError(f"Span corruption needs at least 3 input tokens; TASK_FEATURE_LENGTHS gives {inputs}.")
    length = 2
    while used(length + 1) <= inputs:
        length += 1
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
    """Inputs and targets of `ids` [n], without EOS.

    The text begins with a run that stays and ends with one that is dropped, and they take turns; each division into so many
    runs is equally likely. One token alone is dropped.
    """
    if len(ids) < 2:
        return np.array([first_sentinel], np.int32), np.array([first_sentinel, *ids], np.int32)
    dropped, spans = counts(len(ids), settings)
    stay, drop = _division(len(ids) - dropped, spans, rng), _division(dropped, spans, rng)
    inputs, targets, start = [], [], 0
    for number, (kept, lost) in enumerate(zip(stay, drop)):
        sentinel = [first_sentinel - number]
        inputs += [ids[start : start + kept], sentinel]
        targets += [sentinel, ids[start + kept : start + kept + lost]]
        start += kept + lost
    return np.concatenate(inputs).astype(np.int32), np.concatenate(targets).astype(np.int32)


def _division(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`items` cut into `parts` runs of at least one: int [parts], all divisions equally likely."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))
