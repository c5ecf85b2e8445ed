"""Time per global batch in one host's input pipeline, against the number of hosts; and the time to resume far into a run.

    python benchmarks/data_hosts.py [--rows 20000] [--batch 2048]

Reads short texts as host 0 of 1 to 256 hosts would, in one process: the rows of your own file, a task of seqio, the same task cached, and a
mixture of two cached tasks; then it opens each at step 1,000,000. Each host reads its own rows, except of the uncached task, which every host
reads whole. The last column compares checksums: the rows of all hosts are the global batch of one. CPU only; no model. Results:
docs/results/data_hosts.md.
"""

import argparse
import functools
import hashlib
import pathlib
import tempfile
import time

import numpy as np
import seqio
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from adalink_jax.data import DatasetConfig, FeatureConverter, FileTask, MixtureOf, train_batches
from adalink_jax.data.seqio_source import SeqioTask, get_tasks
from adalink_jax.data.task_cache.cache_writer import CacheWriter

HOSTS = (1, 2, 4, 8, 32, 256)
COMPARED = (1, 2, 4, 8)
STEP = 10**6
LENGTHS = {"inputs": 64, "targets": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the table")
    parser.add_argument("--batch", type=int, default=2048, help="rows of the global batch")
    parser.add_argument("--batches", type=int, default=4, help="batches to time, after one that is not timed")
    options = parser.parse_args()
    table = Table("data", "hosts", "rows of a host", "batch, s", f"step {STEP:,}, s", "checksums", box=box.SIMPLE)
    with tempfile.TemporaryDirectory() as folder:
        for name, task in tasks(pathlib.Path(folder), options.rows).items():
            for hosts in HOSTS if name != "seqio" else HOSTS[:4]:
                table.add_row(name, str(hosts), *row(task, hosts, options, name == "seqio"))
        Console().print(table)


def tasks(folder: pathlib.Path, rows: int) -> dict:
    """The tasks, by the name of their kind."""
    text = lambda i: f"how good is number {i} of this table of short texts?"
    (folder / "rows.csv").write_text("\n".join(["text,label", *(f"{text(i)},{i % 7}" for i in range(rows))]))
    own_file = FileTask(
        data=str(folder / "rows.csv"), inputs="{text}", targets="{label}", vocabulary="bytes", limits={"shared": 1.0}
    )
    for name, size in (("rows", rows), ("few_rows", rows // 4)):
        data = {"inputs": list(map(text, range(size))), "targets": [str(i % 7) for i in range(size)]}
        read = lambda split, shuffle_files, seed=None, data=data: tf.data.Dataset.from_tensor_slices(data)
        seqio.TaskRegistry.add(
            name, source=seqio.FunctionDataSource(read, splits=["train"]), metric_fns=[],
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features={side: seqio.Feature(seqio.ByteVocabulary()) for side in LENGTHS},
        )  # fmt: skip
        task_at = lambda lengths, name=name: SeqioTask(seqio.TaskRegistry.get(name), lengths or {})
        CacheWriter(task_at, LENGTHS, str(folder), ["train"]).write(lambda *_: None)
    open_task = functools.partial(get_tasks, "rows", None, LENGTHS)
    return {
        "own file": own_file.load("rows", LENGTHS),
        "cached": open_task(cache=str(folder))[0],
        "mixture, cached": open_task(cache=str(folder), mixture_of=MixtureOf(("rows", "few_rows")))[0],
        "seqio": open_task()[0],
    }


def row(task, hosts: int, options: argparse.Namespace, is_stream: bool) -> list[str]:
    """The cells of one number of hosts."""
    config = DatasetConfig("rows", LENGTHS, options.batch)
    batches = functools.partial(train_batches, task, config, FeatureConverter(LENGTHS))
    rows = range(options.batch // hosts)
    timed = batches(rows)
    next(timed)
    started = time.perf_counter()
    for _ in range(options.batches):
        next(timed)
    seconds = (time.perf_counter() - started) / options.batches
    # A mixture has one endless epoch.
    per_epoch = task.size("train", 0) // options.batch
    started = time.perf_counter()
    far = batches(rows)
    far.set_state(dict(zip(("epoch", "batch"), divmod(STEP, per_epoch))))
    next(far)
    resumed = time.perf_counter() - started
    same = ""
    if hosts in COMPARED:
        parts = [batches(range(host, options.batch, hosts)) for host in range(hosts)]
        same = checksum(parts, options.batch)[:8]
    return [f"{len(rows):,}", f"{seconds:.4f}", f"{resumed:.4f}" + (" (in its epoch)" if is_stream else ""), same]


def checksum(parts: list, batch: int) -> str:
    """The checksum of the first two global batches, whose rows are those of each host in turn."""
    digest = hashlib.sha256()
    for _ in range(2):
        several = [next(part) for part in parts]
        for name in sorted(several[0]):
            whole = np.empty((batch, *several[0][name].shape[1:]), several[0][name].dtype)
            for host, values in enumerate(several):
                whole[host :: len(parts)] = values[name]
            digest.update(whole.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
