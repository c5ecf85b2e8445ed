"""Examples that are read by number, in threads that read ahead."""

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from adalink_jax.data.task_protocol import Numbered

T = TypeVar("T")
THREADS, AHEAD = 4, 64


def read_ahead(examples: Numbered[T], numbers: Sequence[int]) -> Iterable[T]:
    """The examples with these numbers, in this order; of `numbers` only `len` and `[]` are used."""
    import grain

    if not len(numbers):
        return iter(())
    chosen = grain.MapDataset.source(numbers).map(lambda number: examples[number])
    ahead = chosen.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD))
    return iter(cast(Iterable[T], ahead))  # grain's type allows gaps; there are no gaps here
