"""The special ids of a model: what starts its decoder, fills up its rows, and ends its texts. Free of JAX."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple


class TokenIds(NamedTuple):
    """Special ids; the defaults are T5's.

    Attributes:
      start: the decoder's first input.
      pad: fills up rows; inputs with this id are masked, targets with it have no loss.
      eos: ends an output; a vocabulary ends texts with it.
      further_ends: ids that end an output too, as the end of a turn does in a dialogue.
    """

    start: int = 0
    pad: int = 0
    eos: int = 1
    further_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end an output."""
        return (self.eos, *self.further_ends)

    def before_end(self, ids: Iterable[int]) -> list[int]:
        """The ids of an output before its end; what follows is padding."""
        return list(itertools.takewhile(lambda i: i not in self.ends, map(int, ids)))


T5_IDS = TokenIds()
