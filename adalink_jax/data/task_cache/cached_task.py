"""A seqio task whose examples are read from a cache by number; its vocabulary, postprocessing and metrics stay the task's own.

Invariant: an example is that of the uncached task at the same lengths, and each host reads only those that it is asked for.
"""

import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import gin
import numpy as np
from etils import epath

from adalink_jax.data.published.settings import FILES, PublishedData, SpanCorruption
from adalink_jax.data.read_ahead import read_ahead
from adalink_jax.data.task_cache import cache_files, example_bytes
from adalink_jax.data.task_cache.cache_files import AGAIN, Identity, Shard, Split, counts_path, shard_path
from adalink_jax.data.task_protocol import SIDES, Example, Numbered, Task
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import is_remote, is_there, path_of
from adalink_jax.files.whole_file import write_bytes

if TYPE_CHECKING:
    import grain
    from array_record.python.array_record_module import ArrayRecordReader

T = TypeVar("T")
OPEN_FILES = 128  # of a split
COPYING = 600.0  # seconds that another process may take to copy a file
TRAIN = "train"
PROBE = "The 7 quick brown foxes of Zürich jump over a lazy dog."


class Source(Task, Protocol):
    """A task with named splits.

    Attributes:
      splits: their names.
    """

    splits: Sequence[str]


class CachedTask:
    """See `NumberedTask`. A split is opened when it is first asked for.

    Attributes:
      splits: those of the uncached task; one that is not cached is refused when it is read.
    """

    def __init__(self, task: Source, folder: str, lengths: Mapping[str, int]):
        """Args:
          task: the uncached task.
          folder: CACHE.
          lengths: `{"inputs": L, "targets": T}`; examples are cut to them.

        Raises:
          UserError: if the folder has no cache of the task, or one with another vocabulary, other settings or at other lengths.
        """
        self.name, self.vocab_size, self.eos, self.notes = task.name, task.vocab_size, task.eos, task.notes
        self.has_images, self.labels, self._task = task.has_images, task.labels, task
        self.encode, self.decode, self.score = task.encode, task.decode, task.score
        self._folder, self._lengths = path_of(folder) / task.name, lengths
        remedy = f"write it: adalink cache-task {task.name} {folder} --gin_file=... (the files of the task)"
        if not is_there(self._folder / cache_files.TASK):
            raise UserError(f"{folder} (TASK_CACHE) holds no cache of {task.name}; {remedy}.")
        identity = cache_files.read(self._folder / cache_files.TASK, Identity, f"delete {self._folder} and {remedy}")
        if identity.vocabulary != vocabulary_digest(task):
            raise UserError(
                f"{self._folder} holds {task.name} in another vocabulary; use that one, or another TASK_CACHE."
            )
        if identity.settings != (here := preprocessing()):
            raise UserError(
                f"{self._folder} holds {task.name} made with {identity.settings}, and the run has {here}; set them so, or use another "
                f"TASK_CACHE."
            )
        if identity.kept_ends is None and identity.lengths != dict(lengths):
            raise UserError(
                f"{self._folder} holds the examples of {task.name} at the lengths {identity.lengths}, and other lengths make other examples; "
                f"set TASK_FEATURE_LENGTHS so, or use another TASK_CACHE."
            )
        self._kept_ends = identity.kept_ends or {}
        self.splits = task.splits
        self._split = functools.cache(lambda split: _Records(self._folder, split, self._read_split(split)))
        self._shuffled = functools.lru_cache(64)(self._shuffle)
        self._shuffled_counts = functools.lru_cache(64)(self._shuffle_counts)

    @functools.cached_property
    def digest(self) -> str:
        """The digest of all records of `train`; "" if the task has no such split.

        Raises:
          UserError: if the split is not cached, or not finished.
        """
        return self._split(TRAIN).digest if TRAIN in self.splits else ""

    def _read_split(self, split: str) -> Split:
        path = self._folder / f"{split}.json"
        if not is_there(path):
            begun = len(list(self._folder.glob(f"{split}-*.json")))
            state = f"has written {begun} files of {split} and not all" if begun else f"has no split {split}"
            raise UserError(
                f"The cache {self._folder} {state}; rerun `adalink cache-task` with this split to finish it."
            )
        return cache_files.read(path, Split)

    def size(self, split: str, seed: int | None = None) -> int:
        """The number of examples of a split, whatever the seed."""
        return len(self._split(split))

    def dataset(self, split: str, seed: int | None) -> Numbered[Example]:
        """See `NumberedTask.dataset`; the shuffle is grain's, as of a user's own files."""
        return self._shuffled(split, seed)

    def _shuffle(self, split: str, seed: int | None) -> Numbered[Example]:
        return cast(Numbered[Example], _in_order(self._split(split), seed).map(self._cut))

    def _shuffle_counts(self, split: str, seed: int | None) -> Numbered[Sequence[int]]:
        return cast(Numbered[Sequence[int]], _in_order(self._split(split).counts, seed))

    def token_counts(self, split: str, seed: int | None) -> Numbered[Sequence[int]]:
        """See `MeasuredTask.token_counts`."""
        return self._shuffled_counts(split, seed)

    def examples_at(self, split: str, seed: int | None, numbers: Sequence[int]) -> Iterable[Example]:
        """See `NumberedTask.examples_at`."""
        return read_ahead(self.dataset(split, seed), numbers)

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`."""
        return self.examples_at(split, seed, range(start, self.size(split)))

    def _cut(self, example: Example) -> Example:
        """The example at the run's lengths."""
        return cut(example, self._lengths, self._kept_ends)


def _in_order(data: Numbered[T], seed: int | None) -> "grain.MapDataset[T]":
    """`data` in the order of a seed, the same for all data of one size."""
    import grain

    dataset = grain.MapDataset.source(cast(Sequence[T], data))  # needs only len and []
    return dataset if seed is None else dataset.shuffle(seed=seed)


def cut(example: Example, lengths: Mapping[str, int], kept_ends: Mapping[str, int]) -> Example:
    """Cuts the ids of an example to `lengths`; of a feature its last `kept_ends` ids stay."""
    short = {}
    for name, end in kept_ends.items():
        if name in lengths and len(ids := example[name]) > (length := lengths[name]):
            end = min(end, length)
            short[name] = np.concatenate([ids[: length - end], ids[len(ids) - end :]])
    return {**example, **short}


def preprocessing() -> dict[str, str]:
    """The settings of the shipped preprocessing that decide what examples are. A user's own preprocessors have none that are known."""
    published = gin.get_bindings(PublishedData)
    chosen = {name: published.get(name, default) for name, default in (("source", FILES), ("image_text", ""))}
    values = {**dataclasses.asdict(SpanCorruption()), **chosen}
    return {name: repr(value) for name, value in values.items()}


def vocabulary_digest(task: Task) -> str:
    """The digest of a task's vocabulary: its size, its EOS, the ids of a text, and the text of ids."""
    facts = [task.vocab_size, task.eos, [int(i) for i in task.encode(PROBE)], task.decode(range(3, 100))]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class _Shards:
    """What the files of a split hold, by number."""

    def __init__(self, folder: epath.Path, split: str, files: Split):
        self._folder, self._split, self._shards = folder, split, files.shards
        self._ends = np.array(list(accumulate(shard.examples for shard in files.shards)), np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, number: Any) -> tuple[int, int]:
        """The number of the file, and that of the row in it."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, int(number) - (int(self._ends[shard - 1]) if shard else 0)


class _Counts(_Shards):
    """How many tokens the sides of an example have, int [2]. A file is read when it is first needed, and kept: 8 bytes per example."""

    def __init__(self, folder: epath.Path, split: str, files: Split):
        super().__init__(folder, split, files)
        self._counts = functools.cache(self._read)

    def __getitem__(self, number: Any) -> np.ndarray:
        shard, row = self._place(number)
        return self._counts(shard)[row]

    def _read(self, number: int) -> np.ndarray:
        path = counts_path(shard_path(self._folder, self._split, number))
        if not is_there(path):
            raise UserError(f"There is no {path}; {AGAIN}.")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self._shards[number].counts_sha256:
            raise _damaged(path, "its digest is not the stated one")
        return np.frombuffer(data, cache_files.COUNTS).reshape(-1, len(SIDES))


class _Records(_Shards):
    """The examples of a split, from files that are opened when they are needed.

    Attributes:
      counts: the numbers of their tokens.
      digest: of all of them.
    """

    def __init__(self, folder: epath.Path, split: str, files: Split):
        super().__init__(folder, split, files)
        self.counts, self.digest = _Counts(folder, split, files), files.digest
        self._reader = functools.lru_cache(OPEN_FILES)(self._open)

    def __getitem__(self, number: Any) -> Example:
        shard, row = self._place(number)
        try:
            return self._read(shard, row)
        except UserError:
            if not is_remote(self._folder):
                raise
            _copy_of(self._shards[shard]).unlink(missing_ok=True)  # perhaps only the copy is damaged
            self._reader.cache_clear()
            return self._read(shard, row)

    def _read(self, shard: int, row: int) -> Example:
        try:
            return example_bytes.from_bytes(self._reader(shard).read([row])[0])
        except (RuntimeError, ValueError) as e:  # ArrayRecord's checksums; msgpack's errors are ValueErrors
            if isinstance(e, UserError):
                raise
            path = shard_path(self._folder, self._split, shard)
            raise _damaged(path, f"example {row} cannot be read: {e}") from e

    def _open(self, number: int) -> "ArrayRecordReader":
        from array_record.python.array_record_module import ArrayRecordReader

        path, stated = shard_path(self._folder, self._split, number), self._shards[number]
        reader = ArrayRecordReader(str(_local(path, stated)), "readahead_buffer_size:0")
        if reader.num_records() != stated.examples:
            raise _damaged(path, f"it has {reader.num_records():,} examples, not {stated.examples:,}")
        return reader


def _local(path: epath.Path, shard: Shard) -> epath.Path:
    """The shard on a local disk. One in a bucket is copied to the folder for temporary files (TMPDIR), once for all processes."""
    if not is_there(path):
        raise UserError(f"There is no {path}; {AGAIN}.")
    if not is_remote(path):
        if (size := path.stat().length) != shard.bytes:
            raise _damaged(path, f"it has {size:,} bytes, not {shard.bytes:,}")
        return path
    copy = _copy_of(shard)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(copy.with_suffix(".lock"), COPYING):
        if not copy.exists() or copy.stat().length != shard.bytes:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != shard.sha256:
                raise _damaged(path, "its digest is not the stated one")
            write_bytes(copy, data)
    return copy


def _copy_of(shard: Shard) -> epath.Path:
    """Where this user's copy of a shard in a bucket is."""
    return path_of(tempfile.gettempdir()) / f"adalink_task_cache_{os.getuid()}" / f"{shard.sha256}.array_record"


def _damaged(path: epath.Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}); {AGAIN}.")
