"""Writes the examples of a task to a cache, whole and in the order of their source.

Invariant: a shard is written once; killed at any point, the next call keeps every finished shard whose digest is right, and refuses if the
task now makes other examples than it holds. Of a split that is not finished all examples are made again to compare them: TensorFlow would
make them to skip them, too. Of a finished one the files that it was made of are compared by name, size and time, where the source states them.
"""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from adalink_jax.data.task_cache import cache_files, example_bytes
from adalink_jax.data.task_cache.cache_files import Identity, Shard, Split, counts_path, shard_path
from adalink_jax.data.task_cache.cached_task import Source, cut, preprocessing, vocabulary_digest
from adalink_jax.data.task_protocol import SIDES, Example
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import is_remote, is_there, path_of
from adalink_jax.files.whole_file import write_bytes

SHARD_BYTES = 128 * 2**20  # of examples before compression
PROBED = 64  # examples of a split that are made at several lengths
OPTIONS = "group_size:1"  # each example is read alone
Show = Callable[..., None]  # see `terminal.progress`
Record = tuple[bytes, list[int]]  # an example as bytes, and how many tokens each of its `SIDES` has


class Cacheable(Source, Protocol):
    """A task that can be cached."""

    def fixed(self, split: str) -> Iterable[Example]:
        """The examples in the source's order, the same in each call; what is drawn at random is drawn once."""
        ...

    def known_size(self, split: str) -> int | None:
        """The number of examples of a split; None if they would have to be counted."""
        ...

    def source_files(self, split: str) -> Sequence[str]:
        """The files that a split is read from; none where its source does not state them."""
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
            first_examples={
                split: _digest(map(example_bytes.to_bytes, examples)) for split, examples in zip(splits, written)
            },
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
        finished, shards, name = self._folder / f"{split}.json", [], f"{self.identity.name}, {split}"
        stated = _read_or_none(finished, Split)
        while (shard := self._intact(split, len(shards))) is not None:
            shards.append(shard)
            show(f"{name}: checking {sum(x.examples for x in shards):,} examples that are written")
        source = _files_digest(self._task.source_files(split))
        total = self._task.known_size(split)
        if stated is not None and stated.shards == shards:
            if "" not in (stated.source, source) and stated.source != source:
                raise self._other_data(split, "the files that they were made of have other names, sizes or times")
            self._check_size(split, sum(shard.examples for shard in shards), total)
            return stated
        records = self._records(split, total, show)
        for shard in shards:
            if _digest(record for record, _ in itertools.islice(records, shard.examples)) != shard.records_sha256:
                raise self._other_data(split, "the task makes other examples now")
        for first in records:
            shards.append(_write_shard(shard_path(self._folder, split, len(shards)), itertools.chain([first], records)))
        if not shards:
            raise UserError(f"{self.identity.name} has no examples in {split}; leave the split out (--split).")
        self._check_size(split, sum(shard.examples for shard in shards), total)
        files = Split(shards=shards, source=source)
        cache_files.write(finished, files)
        return files

    def _records(self, split: str, total: int | None, show: Show) -> Iterator[Record]:
        """All records of a split, with their progress."""
        for done, example in enumerate(self._task.fixed(split)):
            if done % 256 == 0:
                show(f"{self.identity.name}, {split}: {done:,} examples", min(done / total, 1.0) if total else 0.0)
            yield example_bytes.to_bytes(example), [len(example[side]) for side in SIDES]

    def _check_size(self, split: str, written: int, size: int | None) -> None:
        if size is not None and written != size:
            raise self._other_data(split, f"it holds {written:,} of them, and there are {size:,} now")

    def _other_data(self, split: str, why: str) -> UserError:
        return UserError(
            f"{self._folder} holds examples of {split} that were made of other data: {why}; delete it, or give another folder."
        )

    def _intact(self, split: str, number: int) -> Shard | None:
        """A shard that is whole; None if it is missing or damaged."""
        path = shard_path(self._folder, split, number)
        shard = _read_or_none(path.with_suffix(".json"), Shard)
        if shard is None or not is_there(path) or not is_there(counts_path(path)):
            return None
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, counts_path(path))]
        return shard if digests == [shard.sha256, shard.counts_sha256] else None


def _refuse_other_files(folder: epath.Path) -> None:
    if folder.exists() and not is_there(folder / cache_files.TASK):
        strange = [x.name for x in folder.iterdir() if x.name != locks.LOCK and not x.name.startswith(".")]
        if strange:
            raise UserError(f"{folder} holds files that are not a cache, such as {min(strange)}; give another folder.")


def _write_shard(to: epath.Path, records: Iterator[Record]) -> Shard:
    """Writes as many records as make one shard, and its token counts."""
    with tempfile.TemporaryDirectory() as local:
        digest, counts = _write_records(path_of(local) / "shard", records)
        data = (path_of(local) / "shard").read_bytes()
    of_counts = np.array(counts, cache_files.COUNTS).tobytes()
    shard = Shard(
        examples=len(counts),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        records_sha256=digest,
        counts_sha256=hashlib.sha256(of_counts).hexdigest(),
    )
    write_bytes(to, data)
    write_bytes(counts_path(to), of_counts)
    cache_files.write(to.with_suffix(".json"), shard)
    return shard


def _write_records(path: epath.Path, records: Iterator[Record]) -> tuple[str, list[list[int]]]:
    """Writes one file, and returns the digest of its records and their token counts."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, size, digest, counts = ArrayRecordWriter(str(path), OPTIONS), 0, hashlib.sha256(), []
    try:
        for record, of_sides in records:
            writer.write(record)
            digest.update(record)
            counts.append(of_sides)
            if (size := size + len(record)) >= SHARD_BYTES:
                break
    finally:
        writer.close()
    return digest.hexdigest(), counts


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


def _digest(records: Iterable[bytes]) -> str:
    """The digest of records, each of which states its own end."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(record)
    return digest.hexdigest()


def _files_digest(files: Sequence[str]) -> str:
    """The digest of files' names, sizes and times of change; "" where they are not known: no files, or one that is not there."""
    facts = []
    for path in map(path_of, files):
        if not path.exists():
            return ""
        if is_remote(path):
            about = path.stat()
            facts.append((path.name, about.length, about.mtime))
        else:  # epath's `stat` needs the name of the owner, who may have none in a container
            about = os.stat(path)
            facts.append((path.name, about.st_size, about.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest() if facts else ""


def _read_or_none(path: epath.Path, form: type[cache_files.FormT]) -> cache_files.FormT | None:
    """A sealed file; None if it is missing or damaged, so that it is written again."""
    try:
        return cache_files.read(path, form) if is_there(path) else None
    except UserError:
        return None
