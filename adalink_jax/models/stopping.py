"""Stop strings inside a compiled decoding loop, as an automaton over UTF-8 bytes (Aho and Corasick, 1975).

A decode's state is how much of a stop string its text ends with. Stepping by one token is one table lookup, so strings
that begin or end in the middle of a token are found where they are complete.
"""

import collections
import dataclasses
from collections.abc import Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.errors import UserError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StopStrings:
    """Strings that finish a decode when its text contains one.

    Attributes:
      strings: the strings; not empty.
      vocabulary: gives `token_bytes()`, the UTF-8 that each id adds to an output.
    """

    strings: tuple[str, ...]
    vocabulary: object

    def __post_init__(self):
        if not self.strings or not all(isinstance(s, str) and s for s in self.strings):
            raise UserError(f"StopStrings.strings is {self.strings!r}; give strings that are not empty.")
        table = _token_table([s.encode() for s in self.strings], self.vocabulary.token_bytes())
        object.__setattr__(self, "_table", table)  # [states, ids]; the last state: a stop string is complete

    def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        """States after `tokens`; both int32 [...]. Ids beyond the vocabulary add no text."""
        table = jnp.asarray(self._table)
        return jnp.where(tokens < table.shape[1], table[state, jnp.minimum(tokens, table.shape[1] - 1)], state)

    def ends(self, state: jax.Array, vocab_size: int) -> jax.Array:
        """Which next tokens complete a stop string: bool [..., vocab_size]."""
        complete = self._table == self._table.shape[0] - 1
        missing = max(0, vocab_size - complete.shape[1])
        return jnp.asarray(np.pad(complete, ((0, 0), (0, missing)))[:, :vocab_size])[state]

    def cut(self, text: str) -> str:
        """`text` before the first stop string."""
        return text[: min([len(text), *(at for s in self.strings if (at := text.find(s)) >= 0)])]


def _automaton(strings: Sequence[bytes]) -> tuple[list[dict[int, int]], set[int]]:
    """For each state its transitions by byte (to state 0 where none is given), and the final states."""
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
    """int32 [states + 1, ids]: the state after each token, from each state; the last state is final and never left."""
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
