"""Mixes examples of several sources at given rates, without end.

Invariants: the share of a source does not depend on its size; a source repeats for itself, each pass in an order of its own; the
stream depends on the seed alone, wherever it starts.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from adalink_jax.data.task_protocol import Example
from adalink_jax.errors import UserError

BLOCK = 4096  # draws of one random generator, so that a start in the middle is found quickly


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


def mixed(
    sources: Sequence[Source], rates: Sequence[float], split: str, seed: int, start: int = 0
) -> Iterator[Example]:
    """Yields examples without end, each from a source that is drawn in proportion to the rates.

    Args:
      sources: the sources.
      rates: one per source; their sum does not matter.
      split: the split to read.
      seed: determines the draws, and with a source's number and the pass the order of that pass.
      start: number of examples to skip.

    Raises:
      UserError: for rates that are negative or all zero, and a source without examples that has a rate.
    """
    weights = np.asarray(rates, float)
    if not (weights >= 0).all() or not weights.sum() > 0:
        shown = ", ".join(f"{source.name} {rate}" for source, rate in zip(sources, rates))
        raise UserError(f"A mixture needs rates that are not negative, and one above 0; it has {shown}.")
    shares, skipped = weights / weights.sum(), np.zeros(len(sources), int)
    for block in range(start // BLOCK):
        skipped += np.bincount(_draws(shares, seed, block), minlength=len(sources))
    first, rest = _draws(shares, seed, start // BLOCK), start % BLOCK
    skipped += np.bincount(first[:rest], minlength=len(sources))
    streams = [_passes(source, split, seed, i, int(skipped[i])) for i, source in enumerate(sources)]
    later = (_draws(shares, seed, block) for block in itertools.count(start // BLOCK + 1))
    for draws in itertools.chain([first[rest:]], later):
        for i in draws:
            yield next(streams[i])


def _draws(shares: np.ndarray, seed: int, block: int) -> np.ndarray:
    """The sources of one block of examples, int [BLOCK]."""
    return np.random.default_rng([seed, block]).choice(len(shares), BLOCK, p=shares)


def _passes(source: Source, split: str, seed: int, number: int, start: int) -> Iterator[Example]:
    """The examples of one source, pass after pass, from number `start` on."""
    for pass_ in itertools.count():
        pass_seed = int(np.random.SeedSequence([seed, number, pass_]).generate_state(1)[0] & 0x7FFFFFFF)
        if start:
            size = source.size(split, pass_seed)
            if size <= start:
                _refuse_empty(source, split, size)
                start -= size
                continue
        read = start
        for example in source.examples(split, pass_seed, start):
            read += 1
            yield example
        _refuse_empty(source, split, read)
        start = 0


def _refuse_empty(source: Source, split: str, size: int) -> None:
    if not size:
        raise UserError(f"{source.name} has no examples in {split}; leave it out of the mixture.")
