"""Mixes examples of several sources at given rates, without end.

Invariants: the share of a source does not depend on its size; a source repeats for itself, each pass in an order of its own; the
stream depends on the seed alone, wherever it starts.

Examples are drawn in blocks, by systematic sampling (Madow & Madow, 1944): one uniform number u per block decides how many of its examples
come from each source, the integer below or above the expected number, and a permutation decides which. So the rates hold closely, and the
draws before any position are counted from one random number per block.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, overload

import numpy as np

from adalink_jax.data.task_protocol import Example, Numbered
from adalink_jax.errors import UserError

T = TypeVar("T")
BLOCK = 4096  # examples whose sources are drawn at once
ENDLESS = 2**62  # the size of a mixture's only pass
_AT_ONCE = 2**20  # blocks whose draws are counted at once
_COUNTED = 8  # blocks of which the counts before them are remembered


class Source(Protocol):
    """What is mixed: a split of a task.

    Attributes:
      name: the task's name.
    """

    name: str

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`."""
        ...

    def size(self, split: str, seed: int) -> int:
        """The number of examples of a pass with this seed."""
        ...


class NumberedSource(Source, Protocol):
    """A source whose examples are read by number."""

    def dataset(self, split: str, seed: int | None) -> Numbered[Example]:
        """See `NumberedTask.dataset`."""
        ...

    def token_counts(self, split: str, seed: int | None) -> Numbered[Sequence[int]]:
        """See `MeasuredTask.token_counts`."""
        ...


def shares_of(sources: Sequence[Source], rates: Sequence[float]) -> np.ndarray:
    """The shares of the sources, which sum to 1.

    Args:
      sources: the sources.
      rates: one per source; their sum does not matter.

    Raises:
      UserError: for rates that are negative or all zero.
    """
    weights = np.asarray(rates, float)
    if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        shown = ", ".join(f"{source.name} {rate}" for source, rate in zip(sources, rates))
        raise UserError(f"A mixture needs rates that are not negative, and one above 0; it has {shown}.")
    return weights / weights.sum()


def mixed(
    sources: Sequence[Source], rates: Sequence[float], split: str, seed: int, start: int = 0
) -> Iterator[Example]:
    """Yields examples without end, each from a source that is drawn in proportion to the rates.

    Args:
      sources: the sources.
      rates: see `shares_of`.
      split: the split to read.
      seed: determines the draws, and with a source's number and the pass the order of that pass.
      start: number of examples to skip.

    Raises:
      UserError: for rates that are negative or all zero, and a source without examples that has a rate.
    """
    shares = shares_of(sources, rates)
    first, rest = _draws(shares, seed, start // BLOCK), start % BLOCK
    skipped = _counts(shares, seed, 0, start // BLOCK) + np.bincount(first[:rest], minlength=len(sources))
    streams = [_passes(source, split, seed, i, int(skipped[i])) for i, source in enumerate(sources)]
    later = (_draws(shares, seed, block) for block in itertools.count(start // BLOCK + 1))
    for draws in itertools.chain([first[rest:]], later):
        for i in draws:
            yield next(streams[i])


class MixedNumbers(Generic[T]):
    """The examples of `mixed` by number, or what else is known of each; of a source, only what is asked for is read. Several threads may use it.

    Args:
      sources, rates, split, seed: see `mixed`.
      of_pass: `(source, split, seed)` -> what is read of a pass of a source, such as `NumberedSource.dataset`.
    """

    def __init__(
        self,
        sources: Sequence[NumberedSource],
        rates: Sequence[float],
        split: str,
        seed: int,
        of_pass: Callable[[NumberedSource, str, int], Numbered[T]],
    ):
        self._sources, self._split, self._seed, self._of_pass = sources, split, seed, of_pass
        self._shares = shares_of(sources, rates)
        self._counted = {0: np.zeros(len(sources), int)}  # block -> examples of each source before it; the last ones
        self._block, self._lock = functools.lru_cache(4)(self._open_block), threading.Lock()
        self._pass = functools.lru_cache(4 * len(sources))(self._open_pass)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int, /) -> T:
        with self._lock:  # a block is counted by one of the threads
            draws, nth = self._block(number // BLOCK)
        source, nth = int(draws[number % BLOCK]), int(nth[number % BLOCK])
        size = self._sources[source].size(self._split, 0)  # of numbered sources the same for all seeds
        if not size:
            raise _empty(self._sources[source], self._split)
        pass_, at = divmod(nth, size)
        return self._pass(source, pass_)[at]

    def _open_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each example of a block, and how many of this source come before it; int [BLOCK]."""
        draws, nth = _draws(self._shares, self._seed, block), np.empty(BLOCK, int)
        known = max(one for one in self._counted if one <= block)
        counts = self._counted[known] + _counts(self._shares, self._seed, known, block)
        latest = sorted({*self._counted, block})[-_COUNTED:]
        self._counted = {0: self._counted[0], **{one: self._counted.get(one, counts) for one in latest}}
        for source, before in enumerate(counts):
            chosen = draws == source
            nth[chosen] = before + np.arange(chosen.sum())
        return draws, nth

    def _open_pass(self, source: int, pass_: int) -> Numbered[T]:
        return self._of_pass(self._sources[source], self._split, _pass_seed(self._seed, source, pass_))


def _counts(shares: np.ndarray, seed: int, start: int, stop: int) -> np.ndarray:
    """How many examples of each source are in the blocks from `start` to `stop`, without it, int [sources]."""
    bits, counts, at_once = np.random.PCG64(seed), np.zeros(len(shares), int), max(1, _AT_ONCE // len(shares))
    offsets = np.random.Generator(bits.advance(start))
    for first in range(start, stop, at_once):
        ends = _ends(shares, offsets.random(min(at_once, stop - first))).sum(axis=1)
        counts += np.diff(ends, prepend=0)
    return counts


@overload
def _ends(shares: np.ndarray, u: float) -> np.ndarray: ...
@overload
def _ends(shares: np.ndarray, u: np.ndarray) -> np.ndarray: ...
def _ends(shares: np.ndarray, u: float | np.ndarray) -> np.ndarray:
    """How many examples of a block come from each source or one before it, int [sources] or, for many blocks, [sources, blocks].

    The examples' quantiles are (t + u) / BLOCK for t = 0, 1, ...; source i has those below the sum of the shares up to its own.
    """
    bounds = np.cumsum(shares) * BLOCK
    bounds[np.flatnonzero(shares)[-1] :] = BLOCK  # whatever the sum's rounding
    return np.clip(np.ceil(bounds.reshape(-1, *[1] * np.ndim(u)) - u), 0, BLOCK).astype(int)


def _draws(shares: np.ndarray, seed: int, block: int) -> np.ndarray:
    """The sources of one block of examples, int [BLOCK]."""
    offsets = np.random.PCG64(seed)
    offsets.advance(block)  # `random` takes one number of the generator
    counts = np.diff(_ends(shares, np.random.Generator(offsets).random()), prepend=0)
    return np.random.default_rng([seed, block]).permutation(np.repeat(np.arange(len(shares)), counts))


def _pass_seed(seed: int, source: int, pass_: int) -> int:
    """The seed of one pass of a source, 31 bits."""
    return int(np.random.SeedSequence([seed, source, pass_]).generate_state(1)[0] & 0x7FFFFFFF)


def _passes(source: Source, split: str, seed: int, number: int, start: int) -> Iterator[Example]:
    """The examples of one source, pass after pass, from number `start` on."""
    for pass_ in itertools.count():
        pass_seed = _pass_seed(seed, number, pass_)
        if start:
            size = source.size(split, pass_seed)
            if not size:
                raise _empty(source, split)
            if size <= start:
                start -= size
                continue
        read = start
        for example in source.examples(split, pass_seed, start):
            read += 1
            yield example
        if not read:
            raise _empty(source, split)
        start = 0


def _empty(source: Source, split: str) -> UserError:
    return UserError(f"{source.name} has no examples in {split}; leave it out of the mixture.")
