"""Writes the examples of a task to a cache, whole and in the order of their source.

Invariant: a shard is written once; killed at any point, the next call keeps every finished shard whose digest is right.
"""

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from adalink_jax.data.task_cache import cache_files, example_bytes
from adalink_jax.data.task_cache.cache_files import Identity, Shard, Split, shard_path
from adalink_jax.data.task_cache.cached_task import Source, cut, preprocessing, vocabulary_digest
from adalink_jax.data.task_protocol import Example
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import is_there, path_of
from adalink_jax.files.whole_file import write_bytes

SHARD_BYTES = 128 * 2**20  # of examples before compression
PROBED = 64  # examples of a split that are made at several lengths
OPTIONS = "group_size:1"  # each example is read alone
Show = Callable[..., None]  # see `terminal.progress`


class Cacheable(Source, Protocol):
    """A task that can be cached."""

    def fixed(self, split: str, start: int = 0) -> Iterable[Example]:
        """The examples in the source's order, the same in each call; what is drawn at random is drawn once."""
        ...

    def known_size(self, split: str) -> int | None:
        """The number of examples of a split; None if they would have to be counted."""
        ...


Sources = Callable[[Mapping[str, int] | None], Cacheable]  # lengths, or None for whole examples -> the task


class CacheWriter:
    """Writes one task.

    Attributes:
      identity: what the cache states of the task; without `kept_ends`, the examples are those of `lengths` only.
    """

    def __init__(self, task_at: Sources, lengths: Mapping[str, int], folder: str, splits: Sequence[str]):
        """Reads the first examples.

        Args:
          task_at: makes the task at lengths.
          lengths: those of the configuration; used only where the examples depend on them.
          folder: CACHE.
          splits: the splits to write.

        Raises:
          UserError: for a split that the task does not have, and a folder that holds other files, another task or other data.
        """
        task = task_at(lengths)
        self._folder, self._splits = path_of(folder) / task.name, splits
        if missing := [split for split in splits if split not in task.splits]:
            raise UserError(f"{task.name} has no split {missing[0]} (--split); it has {', '.join(task.splits)}.")
        _refuse_other_files(self._folder)
        first = lambda lengths: [list(itertools.islice(task_at(lengths).fixed(split), PROBED)) for split in splits]
        whole = _examples_at(first, None)
        kept_ends = None if whole is None else _kept_ends(whole, first)
        self._task = task if kept_ends is None else task_at(None)
        written = first(lengths) if whole is None or kept_ends is None else whole
        self.identity = Identity(
            name=task.name,
            format_version=cache_files.FORMAT_VERSION,
            vocabulary=vocabulary_digest(task),
            settings=preprocessing(),
            kept_ends=kept_ends,
            lengths=dict(lengths) if kept_ends is None else None,
            first_examples=dict(zip(splits, map(_digest, written))),
        )

    def write(self, show: Show) -> dict[str, Split]:
        """Writes what is not finished, and returns the files of each split.

        Args:
          show: shows the progress, see `terminal.progress`.
        """
        with locks.hold_folder(self._folder):
            self._claim()
            return {split: self._write(split, show) for split in self._splits}

    def _claim(self) -> None:
        """Writes `task.json`, or compares it."""
        path, identity, remedy = self._folder / cache_files.TASK, self.identity, "give another folder, or delete it"
        if is_there(path):
            there = cache_files.read(path, Identity, remedy)
            if differences := cache_files.differences(there, identity):
                raise UserError(f"{self._folder} holds another task or other data ({differences}); {remedy}.")
            identity = identity.model_copy(update={"first_examples": there.first_examples | identity.first_examples})
            if identity == there:
                return
        cache_files.write(path, identity)

    def _write(self, split: str, show: Show) -> Split:
        finished, shards = self._folder / f"{split}.json", []
        stated = _read_or_none(finished, Split)
        while (shard := self._intact(split, len(shards))) is not None:
            shards.append(shard)
            show(
                f"{self.identity.name}, {split}: checking {sum(x.examples for x in shards):,} examples that are written"
            )
        start, total = sum(shard.examples for shard in shards), self._task.known_size(split)
        if stated is not None and stated.shards == shards:
            self._check_size(split, start, total)
            return stated
        done, examples = start, iter(self._task.fixed(split, start))
        progress = lambda: show(
            f"{self.identity.name}, {split}: {done:,} examples",
            (done - start) / (total - start) if total and total > start else 0.0,
        )
        progress()
        for first in examples:
            before = done
            with tempfile.TemporaryDirectory() as local:
                path = path_of(local) / "shard"
                for _ in _write_records(path, itertools.chain([first], examples)):
                    done += 1
                    if done % 256 == 0:
                        progress()
                data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            shards.append(Shard(examples=done - before, bytes=len(data), sha256=sha256))
            to = shard_path(self._folder, split, len(shards) - 1)
            write_bytes(to, data)
            cache_files.write(to.with_suffix(".json"), shards[-1])
        if not shards:
            raise UserError(f"{self.identity.name} has no examples in {split}; leave the split out (--split).")
        self._check_size(split, done, total)
        files = Split(shards=shards)
        cache_files.write(finished, files)
        return files

    def _check_size(self, split: str, written: int, size: int | None) -> None:
        if size is not None and written != size:
            raise UserError(
                f"{self._folder} has {written:,} examples of {split}, some of them of other data, for {self.identity.name} has {size:,} now; "
                "delete it, or give another folder."
            )

    def _intact(self, split: str, number: int) -> Shard | None:
        """A shard that is whole; None if it is missing or damaged."""
        path = shard_path(self._folder, split, number)
        shard = _read_or_none(path.with_suffix(".json"), Shard)
        if shard is None or not is_there(path):
            return None
        return shard if hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256 else None


def _refuse_other_files(folder: epath.Path) -> None:
    if folder.exists() and not is_there(folder / cache_files.TASK):
        strange = [x.name for x in folder.iterdir() if x.name != locks.LOCK and not x.name.startswith(".")]
        if strange:
            raise UserError(f"{folder} holds files that are not a cache, such as {min(strange)}; give another folder.")


def _write_records(path: epath.Path, examples: Iterable[Example]) -> Iterable[None]:
    """Writes one shard, and yields after each example."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, size = ArrayRecordWriter(str(path), OPTIONS), 0
    try:
        for example in examples:
            record = example_bytes.to_bytes(example)
            writer.write(record)
            yield
            if (size := size + len(record)) >= SHARD_BYTES:
                break
    finally:
        writer.close()


Examples = list[list[Example]]  # of each split


def _examples_at(
    first: Callable[[Mapping[str, int] | None], Examples], lengths: Mapping[str, int] | None
) -> Examples | None:
    """The first examples at some lengths, or without any; None if the task cannot make them."""
    try:
        return first(lengths)
    except UserError:
        raise
    except Exception:  # what preprocessing raises that computes with a length
        return None


def _kept_ends(whole: Examples, first: Callable[[Mapping[str, int] | None], Examples]) -> dict[str, int] | None:
    """How many of the last ids of each feature stay where the task cuts it, see `cut`; None if it makes other examples at other lengths.

    That is seen in the first examples: whole ones, and those of two shorter lengths, which the same number must explain.
    """
    names = ("inputs", "targets")
    longest = {
        name: max((len(example[name]) for examples in whole for example in examples), default=0) for name in names
    }
    trials = []
    for share in (0.75, 0.5):
        lengths = {name: max(int(length * share), 1) for name, length in longest.items()}
        short = _examples_at(first, lengths)
        if short is None or [len(examples) for examples in whole] != [len(examples) for examples in short]:
            return None
        trials.append((lengths, [pair for some, others in zip(whole, short) for pair in zip(some, others)]))

    def explains(name: str, count: int) -> bool:
        return all(
            np.array_equal(cut(one, lengths, {name: count})[name], other[name])
            for lengths, pairs in trials
            for one, other in pairs
        )

    shortest, kept_ends = trials[-1][0], {}
    for name in names:
        count = next((count for count in range(shortest[name] + 1) if explains(name, count)), None)
        if count is None:
            return None
        kept_ends[name] = count
    return kept_ends


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example_bytes.to_bytes(example))
    return digest.hexdigest()


def _read_or_none(path: epath.Path, form: type[cache_files.FormT]) -> cache_files.FormT | None:
    """A sealed file; None if it is missing or damaged, so that it is written again."""
    try:
        return cache_files.read(path, form) if is_there(path) else None
    except UserError:
        return None
