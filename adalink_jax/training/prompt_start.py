"""First values of a prompt, taken from the base's embeddings (Lester et al., 2021, section 3.2: `vocabulary`, `class labels`).

A start is `(adapter, table, key) -> adapter`: every leaf called `prompt` [P, D] is replaced.
"""

from collections.abc import Callable, Sequence

import gin
import jax
import jax.numpy as jnp

from adalink_jax.data import load_vocabulary
from adalink_jax.errors import UserError
from adalink_jax.models import paths

Start = Callable[[dict, jax.Array, jax.Array], dict]
FIRST = 3  # ids before it are padding, end and unknown


@gin.configurable
def from_vocabulary(most_common: int = 5000) -> Start:
    """Embeddings of tokens drawn without repetition from the `most_common` first of the vocabulary (which is sorted by
    frequency, as SentencePiece's is).

    Raises:
      UserError: from the start, if there are fewer tokens than positions of the prompt.
    """

    def rows(length, table, key):
        return table[_drawn(length, min(most_common, len(table)), key)]

    return lambda adapter, table, key: _with_prompts(adapter, table, key, rows)


@gin.configurable
def from_class_labels(labels: Sequence[str], vocabulary: str, most_common: int = 5000) -> Start:
    """The mean embedding of each label's tokens, in order; positions that are left over are as `from_vocabulary`'s.

    Args:
      labels: the strings that the task's answers are made of.
      vocabulary: a spiece.model, or 'bytes'.
      most_common: see `from_vocabulary`.

    Raises:
      UserError: from the start, for more labels than positions, and labels that have no tokens of the base.
    """
    ids = [[token for token in load_vocabulary(vocabulary).encode(label) if token >= FIRST] for label in labels]

    def rows(length, table, key):
        if not labels or len(labels) > length:
            raise UserError(
                f"from_class_labels.labels has {len(labels)} labels for a prompt of {length}; it takes 1 to {length}."
            )
        odd = next((label for label, tokens in zip(labels, ids) if not tokens or max(tokens) >= len(table)), None)
        if odd is not None:
            raise UserError(
                f"The label {odd!r} has no tokens among the {len(table)} of the base; check the vocabulary."
            )
        named = [table[jnp.array(tokens)].mean(axis=0) for tokens in ids]
        rest = table[_drawn(length - len(named), min(most_common, len(table)), key)]
        return jnp.concatenate([jnp.stack(named), rest])

    return lambda adapter, table, key: _with_prompts(adapter, table, key, rows)


def _drawn(count: int, tokens: int, key) -> jax.Array:
    if count > tokens - FIRST:
        raise UserError(
            f"The prompt has {count} positions to fill and the vocabulary {tokens - FIRST} tokens; shorten it."
        )
    return jax.random.choice(key, jnp.arange(FIRST, tokens), (count,), replace=False)


def _with_prompts(adapter: dict, table: jax.Array, key, rows: Callable) -> dict:
    leaves = dict(paths.flatten(adapter))
    prompts = [name for name in leaves if name.split("/")[-1] == "prompt"]
    if not prompts:
        raise UserError("PROMPT_START is set, but the adapter has no prompt; leave it at None.")
    for name, each in zip(prompts, jax.random.split(key, len(prompts))):
        leaves[name] = rows(len(leaves[name]), jnp.asarray(table, jnp.float32), each)
    return paths.unflatten(leaves)
