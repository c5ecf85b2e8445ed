"""Stop strings inside a compiled decoding loop, as an automaton over UTF-8 bytes (Aho and Corasick, 1975).

The state of a decode is how much of a stop string its text ends with. A step by one token is one table lookup, so strings
that begin or end in the middle of a token are found as soon as they are complete.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import gin
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from adalink_jax.errors import UserError


class HasTokenBytes(Protocol):
    """A vocabulary that knows the text of its ids."""

    def token_bytes(self) -> Sequence[bytes]:
        """Returns the UTF-8 bytes that each id adds to an output."""
        ...


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StopStrings:
    """Strings that finish a decode when its text contains one of them.

    Attributes:
      strings: the strings; none is empty.
      vocabulary: has `token_bytes()`, the UTF-8 bytes that each id adds to an output.
    """

    strings: tuple[str, ...]
    vocabulary: HasTokenBytes
    _table: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)  # see `_token_table`

    def __post_init__(self) -> None:
        if not self.strings or not all(isinstance(s, str) and s for s in self.strings):
            raise UserError(f"StopStrings.strings is {self.strings!r}; give strings that are not empty.")
        table = _token_table([s.encode() for s in self.strings], self.vocabulary.token_bytes())
        object.__setattr__(self, "_table", table)  # the dataclass is frozen

    def advance(self, state: Int[Array, "..."], tokens: Int[Array, "..."]) -> Int[Array, "..."]:
        """Returns the states after `tokens`. Ids beyond the vocabulary add no text."""
        table = jnp.asarray(self._table)
        return jnp.where(tokens < table.shape[1], table[state, jnp.minimum(tokens, table.shape[1] - 1)], state)

    def ends(self, state: Int[Array, "..."], vocab_size: int) -> Bool[Array, "... V"]:
        """Returns which of the next `vocab_size` tokens complete a stop string."""
        complete = self._table == self._table.shape[0] - 1
        missing = max(0, vocab_size - complete.shape[1])
        return jnp.asarray(np.pad(complete, ((0, 0), (0, missing)))[:, :vocab_size])[state]

    def cut(self, text: str) -> str:
        """Returns `text` up to the first stop string."""
        return text[: min([len(text), *(at for s in self.strings if (at := text.find(s)) >= 0)])]


def _automaton(strings: Sequence[bytes]) -> tuple[list[dict[int, int]], set[int]]:
    """Returns each state's transitions by byte (an absent byte leads to state 0), and the final states."""
    children, fallback, final = [{}], [0], set()
    for string in strings:
        node = 0
        for c in string:
            if c not in children[node]:
                children.append({})
                fallback.append(0)
                children[node][c] = len(children) - 1
            node = children[node][c]
        final.add(node)
    moves, queue = [dict(children[0])] + [{} for _ in children[1:]], collections.deque(children[0].values())
    while queue:
        node = queue.popleft()
        if fallback[node] in final:
            final.add(node)
        moves[node] = moves[fallback[node]] | children[node]
        for c, child in children[node].items():
            fallback[child] = moves[fallback[node]].get(c, 0)
            queue.append(child)
    return moves, final


def _token_table(strings: Sequence[bytes], tokens: Sequence[bytes]) -> np.ndarray:
    """Returns the state after each token from each state, int32 [states + 1, ids]; the last state is never left."""
    moves, final = _automaton(strings)
    done = len(moves)
    table = np.full((done + 1, len(tokens)), done, np.int32)
    for state in range(done):
        for token, added in enumerate(tokens):
            node = state
            for c in added:
                node = moves[node].get(c, 0)
                if node in final:
                    node = done
                    break
            table[state, token] = node
    return table
