"""Packed examples against padded rows: examples a second of a training step on SST-2 and CoLA, and every example's loss in both.

    python benchmarks/packing.py ../shared/data [--tasks sst2 cola] [--padded 512/64 128/8] [--packed 512/64] [--rows 4] [--repeats 3]

DATA has `nlu/sst2/train.tsv` (sentence, label), `nlu/cola/in_domain_train.tsv` (source, label, mark, sentence) and
`t5_vocab/spiece.model`; without them it prints what is missing. Texts are in T5's form (`sst2 sentence: ...` and `positive`). The model is a T5 1.1
small with random weights and AdaLink of rank 64, in float32.

Steps of all shapes alternate. A batch of shorter rows has more of them, so that every step has as many encoder positions. The table has the
medians of the CPU time of all cores, which other programs disturb little, and of the time that passed. Losses are compared for all
examples of one packed batch.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.adapters import AdaLinkAdapter, AdaptedModel, fresh_params
from adalink_jax.data import Batch, BatchIterator, EpochIterator, Example, FeatureConverter, SentencePieceVocabulary
from adalink_jax.data.packed_examples import PackedIterator
from adalink_jax.models import T5, T5Config, paths
from adalink_jax.parallel import unbox
from adalink_jax.training import partition
from adalink_jax.training.step import TrainState, make_train_step

SMALL = T5Config(32128, 512, 6, 64, 1024, 8, 8, scan_layers=True)
TASKS = {  # file, lines of header, columns of text and label, labels
    "sst2": ("nlu/sst2/train.tsv", 1, 0, 1, ("negative", "positive")),
    "cola": ("nlu/cola/in_domain_train.tsv", 0, 3, 1, ("unacceptable", "acceptable")),
}
VOCABULARY = "t5_vocab/spiece.model"


def read(data: pathlib.Path, task: str, count: int) -> list[Example]:
    """The first examples of a task, tokenised."""
    file, header, text, label, labels = TASKS[task]
    encode = SentencePieceVocabulary(str(data / VOCABULARY)).encode
    lines = [line.split("\t") for line in (data / file).read_text().splitlines()[header : header + count]]
    ids = lambda words: [*encode(words), 1]
    return [
        {"inputs": ids(f"{task} sentence: {x[text].strip()}"), "targets": ids(labels[int(x[label])])} for x in lines
    ]


class Contender:
    """A way to make batches, with the training step compiled for it.

    Attributes:
      name: what the table calls it.
      batches: the iterator.
      examples: of each timed step.
      cpu, wall: seconds of each timed step, with its batch.
    """

    def __init__(self, name: str, batches: BatchIterator, step: Callable):
        self.name, self.batches, self._step = name, batches, step
        self.examples: list[float] = []
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def run(self, state: TrainState, frozen: partition.Leaves) -> None:
        """Makes a batch and trains on it."""
        cpu, wall = time.process_time(), time.perf_counter()
        batch = next(self.batches)
        metrics = jax.block_until_ready(self._step(state, frozen, batch))[1]
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.examples.append(float(metrics.get("examples", len(batch["decoder_target_tokens"]))))

    def rate(self, seconds: Sequence[float]) -> float:
        """Examples a second, without the first step, which compiles."""
        return statistics.mean(self.examples[1:]) / statistics.median(seconds[1:])


def make_losses(model: AdaptedModel, most: int) -> Callable[[dict, Batch, np.ndarray], np.ndarray]:
    """`(params, batch, segments) -> losses [examples]`, row by row; `segments` int32 [B, T] numbers a row's examples, at most `most`, from 1."""
    apply: Callable = model.apply  # its result is that of the method

    @jax.jit
    def run(params, batch, segments):
        log_p = jax.nn.log_softmax(apply({"params": params}, batch))
        log_p = jnp.take_along_axis(log_p, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
        of_example = segments[..., None] == jnp.arange(1, most + 1)
        return -jnp.einsum("bt,bti->bi", log_p * batch["decoder_loss_weights"], of_example.astype(jnp.float32))

    def losses(params, batch, segments):
        return np.asarray(run(params, batch, segments))[segments.max(1)[:, None] >= np.arange(1, most + 1)]

    return losses


def compare_losses(losses: Callable, params: dict, examples: list[Example], packed: dict, rows: int) -> float:
    """The largest relative difference of an example's loss in a packed batch and in `rows` padded rows."""
    batches = PackedIterator(lambda seed, start: examples[start:], FeatureConverter(packed), rows, 0)
    batch = next(batches)
    together = losses(params, batch, batch["decoder_segment_ids"])
    converter, alone = FeatureConverter(packed), {}
    for first in range(0, len(together), rows):
        part = converter(examples[first : first + rows], rows)
        ones = np.ones_like(part["decoder_target_tokens"])
        values = losses(params, part, ones)
        alone |= {tuple(example["inputs"]): x for example, x in zip(examples[first : first + rows], values)}
    starts = np.argwhere((batch["encoder_positions"] == 0) & (batch["encoder_segment_ids"] > 0))
    order = []
    for row, start in starts:
        own_segment = batch["encoder_segment_ids"][row] == batch["encoder_segment_ids"][row, start]
        order.append(alone[tuple(batch["encoder_input_tokens"][row][own_segment].tolist())])
    print(f"losses of {len(order)} examples: {np.min(order):.2f} to {np.max(order):.2f}", file=sys.stderr)
    return float(np.max(np.abs(together.astype(np.float64) / np.array(order, np.float64) - 1)))


def main() -> None:
    """Times the contenders on each task, and compares losses."""
    parser = argparse.ArgumentParser(description="Packed examples against padded rows.")
    lengths = lambda text: dict(zip(("inputs", "targets"), map(int, text.split("/"))))
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--padded", nargs="+", type=lengths, default=[lengths("512/64"), lengths("128/8")])
    parser.add_argument("--packed", type=lengths, default=lengths("512/64"))
    parser.add_argument("--rows", type=int, default=4, help="of a packed batch")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    missing = [
        name for name in (VOCABULARY, *(TASKS[task][0] for task in options.tasks)) if not (options.data / name).exists()
    ]
    if missing:
        sys.exit(f"{options.data} lacks {', '.join(missing)}; nothing was measured.")
    model, optimizer = AdaptedModel(T5(SMALL), AdaLinkAdapter(rank=64)), optax.adamw(1e-3)
    params = jax.jit(lambda: unbox(fresh_params(model, 0)))()
    trainable, frozen = partition.split(paths.flatten(params), ("adapter/.*",))
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step, losses = jax.jit(make_train_step(model, optimizer)), make_losses(model, options.packed["targets"])
    name = lambda sides: f"{sides['inputs']}/{sides['targets']}"
    print(
        "| task | padded | packed | examples per row | examples a CPU second: padded | packed | ratio | examples a second: padded | packed | ratio | largest difference of a loss |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for task in options.tasks:
        examples = read(options.data, task, 4000)
        epoch = lambda seed, start, examples=examples: examples[start:]
        padded = [
            Contender(
                name(sides),
                EpochIterator(
                    epoch, FeatureConverter(sides), options.rows * options.packed["inputs"] // sides["inputs"], 0
                ),
                step,
            )
            for sides in options.padded
        ]
        packed = Contender(
            name(options.packed), PackedIterator(epoch, FeatureConverter(options.packed), options.rows, 0), step
        )
        for _ in range(1 + options.repeats):
            for contender in (*padded, packed):
                contender.run(state, frozen)
        difference = compare_losses(losses, params, examples, options.packed, options.rows)
        for contender in padded:
            cpu, wall = (
                (contender.rate(x), packed.rate(y))
                for x, y in ((contender.cpu, packed.cpu), (contender.wall, packed.wall))
            )
            print(
                f"| {task} | {contender.name} | {packed.name} | {statistics.mean(packed.examples) / options.rows:.1f} "
                f"| {cpu[0]:.2f} | {cpu[1]:.2f} | {cpu[1] / cpu[0]:.1f} | {wall[0]:.2f} | {wall[1]:.2f} | {wall[1] / wall[0]:.1f} | {difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
