"""Initial values of a prompt, taken from the base's embeddings (Lester et al., 2021, section 3.2: `vocabulary`, `class labels`).

A start is `(adapter, table, key) -> adapter` on the adapter's leaves by name; it replaces every leaf `prompt` [P, D].
"""

from collections.abc import Callable, Sequence

import gin
import jax
import jax.numpy as jnp

from adalink_jax.data import load_vocabulary
from adalink_jax.errors import UserError
from adalink_jax.training.partition import Leaves
from adalink_jax.typed_values import PositiveInt

Start = Callable[[Leaves, jax.Array, jax.Array], Leaves]
FIRST_TOKEN = 3  # ids below it are padding, end and unknown


@gin.configurable
def from_vocabulary(most_common: PositiveInt = 5000) -> Start:
    """Embeddings of tokens drawn without replacement from the first `most_common` of the vocabulary (which is sorted by
    frequency, as SentencePiece's is).

    Raises:
      UserError: from the start, if there are fewer tokens than prompt positions.
    """

    rows = lambda length, table, key: table[_draw_tokens(length, min(most_common, len(table)), key)]
    return lambda adapter, table, key: _replace_prompts(adapter, table, key, rows)


@gin.configurable
def from_class_labels(labels: Sequence[str], vocabulary: str, most_common: PositiveInt = 5000) -> Start:
    """The mean embedding of each label's tokens, in order; the remaining positions are filled as by `from_vocabulary`.

    Args:
      labels: the strings that the task's answers consist of.
      vocabulary: a spiece.model, or 'bytes'.
      most_common: see `from_vocabulary`.

    Raises:
      UserError: from the start, for more labels than positions, and for labels without tokens of the base.
    """
    ids = [[token for token in load_vocabulary(vocabulary).encode(label) if token >= FIRST_TOKEN] for label in labels]

    def rows(length, table, key):
        if not labels or len(labels) > length:
            raise UserError(
                f"from_class_labels.labels has {len(labels)} labels for a prompt of {length}; give 1 to {length}."
            )
        unknown = next((label for label, tokens in zip(labels, ids) if not tokens or max(tokens) >= len(table)), None)
        if unknown is not None:
            raise UserError(
                f"The label {unknown!r} has no tokens among the {len(table)} of the base; check the vocabulary."
            )
        means = [table[jnp.array(tokens)].mean(axis=0) for tokens in ids]
        rest = table[_draw_tokens(length - len(means), min(most_common, len(table)), key)]
        return jnp.concatenate([jnp.stack(means), rest])

    return lambda adapter, table, key: _replace_prompts(adapter, table, key, rows)


def _draw_tokens(count: int, tokens: int, key: jax.Array) -> jax.Array:
    if count > tokens - FIRST_TOKEN:
        raise UserError(
            f"The prompt has {count} positions to fill and the vocabulary {tokens - FIRST_TOKEN} tokens; shorten it."
        )
    return jax.random.choice(key, jnp.arange(FIRST_TOKEN, tokens), (count,), replace=False)


def _replace_prompts(adapter: Leaves, table: jax.Array, key: jax.Array, rows: Callable) -> Leaves:
    prompts = sorted(name for name in adapter if name.split("/")[-1] == "prompt")
    if not prompts:
        raise UserError("PROMPT_START is set, but the adapter has no prompt; leave it at None.")
    table = jnp.asarray(table, jnp.float32)
    keys = jax.random.split(key, len(prompts))
    return {**adapter} | {name: rows(len(adapter[name]), table, key) for name, key in zip(prompts, keys)}
