"""Time per global batch in one host's input pipeline, against the number of hosts; and the time to resume far into a run.

    python benchmarks/data_hosts.py [--rows 20000] [--batch 2048]

Writes a table of short texts, and reads it as host 0 of 1 to 256 hosts would, in one process: each host reads its own rows, or (`all
rows`) everything, of which it converts its rows. Then it opens the data at step 1,000,000. CPU only; no model. Results:
docs/results/data_hosts.md.
"""

import argparse
import pathlib
import tempfile
import time

from rich import box
from rich.console import Console
from rich.table import Table

from adalink_jax.data import DatasetConfig, EpochIterator, FeatureConverter, FileTask, train_batches

HOSTS = (1, 2, 4, 8, 32, 256)
STEP = 10**6
LENGTHS = {"inputs": 64, "targets": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the table")
    parser.add_argument("--batch", type=int, default=2048, help="rows of the global batch")
    parser.add_argument("--batches", type=int, default=4, help="batches to time, after one that is not timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rows.csv")
        lines = (f"how good is number {i} of this table of short texts?,{i % 7}" for i in range(options.rows))
        path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
        settings = FileTask(
            data=str(path), inputs="{text}", targets="{label}", vocabulary="bytes", limits={"shared": 1.0}
        )
        task = settings.load("rows", LENGTHS)
    config, converter = DatasetConfig("rows", LENGTHS, options.batch), FeatureConverter(LENGTHS)
    per_epoch = task.size("train") // options.batch
    table = Table("hosts", "rows of a host", "own rows, s", "all rows, s", f"step {STEP:,}, s", box=box.SIMPLE)
    for hosts in HOSTS:
        rows = range(options.batch // hosts)
        everything = EpochIterator(
            lambda seed, start: task.examples("train", seed, start), converter, options.batch, 0, rows
        )
        started = time.perf_counter()
        far = train_batches(task, config, converter, rows)
        far.set_state(dict(zip(("epoch", "batch"), divmod(STEP, per_epoch))))
        next(far)
        resumed = time.perf_counter() - started
        times = [
            _mean(batches, options.batches) for batches in (train_batches(task, config, converter, rows), everything)
        ]
        table.add_row(str(hosts), f"{len(rows):,}", *(f"{seconds:.4f}" for seconds in (*times, resumed)))
    Console().print(table)


def _mean(batches, count: int) -> float:
    """Seconds per batch."""
    next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
