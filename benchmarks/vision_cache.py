"""Time saved by caching the frozen vision tower's outputs: of a step, and of an epoch, including reading images and filling the cache.

    python benchmarks/vision_cache.py [--images 128] [--batch_size 8] [--epochs 3]

BLIP-2 with FLAN-T5 XL at an eighth of its widths and a quarter of its depths, random weights, 224 x 224 pixels (257 patches and class
token, 32 visual tokens), 32 tokens in and 16 out, AdaLink of rank 8. Images are JPEG files of 640 x 480, decoded by the feature converter.
Prints the median time of a step with and without the cache, and of the first and a later epoch, all in one process.
"""

import argparse
import io
import statistics
import tempfile
import time

import jax
import numpy as np
import optax
from PIL import Image

from adalink_jax import BLIP2, AdaLinkAdapter, AdaptedModel, QFormerConfig, T5Config, ViTConfig, checkpoints, parallel
from adalink_jax.adapters import fresh_params
from adalink_jax.data import DatasetConfig, EpochIterator
from adalink_jax.training import fill_vision_cache
from adalink_jax.training.console import Console
from adalink_jax.training.interrupt import StopRequest
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step

LENGTHS = {"inputs": 32, "targets": 16}
WARM = 3


def backbone() -> BLIP2:
    """A small model with BLIP-2's proportions."""
    language = T5Config(4016, 256, 4, 64, 640, 6, 6)
    vision = ViTConfig((224, 224), 14, 176, 8, 768, 10, class_token=True, activation="gelu_exact")
    return BLIP2(language, vision, QFormerConfig(32, 96, 6, 384, 3))


class Pictures:
    """A task of `count` random JPEG files."""

    name, has_images, vocab_size = "pictures", True, 4016

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self._examples = []
        for _ in range(count):
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480))
            file = io.BytesIO()
            small.save(file, "JPEG", quality=90)
            ids = {name: rng.integers(3, 4000, n).tolist() for name, n in LENGTHS.items()}
            self._examples.append({**ids, "image": file.getvalue()})

    def examples(self, split: str, seed: int | None = None, start: int = 0):
        """The examples, in order."""
        return self._examples[start:]


def main() -> None:
    """Times training with and without the cache."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="epochs with the cache, of which the first fills it")
    options = parser.parse_args()
    task, mesh, rules = Pictures(options.images), parallel.make_mesh(), parallel.logical_axis_rules()
    model, optimizer = AdaptedModel(backbone(), AdaLinkAdapter(rank=8)), optax.adamw(1e-3)
    steps = options.images // options.batch_size

    with (
        tempfile.TemporaryDirectory() as folder,
        parallel.use_mesh(mesh, rules),
        StopRequest() as stop,
        Console("") as console,
    ):
        params = jax.jit(lambda: parallel.unbox(fresh_params(model, 0)))()
        checkpoints.save_base(f"{folder}/base", params["backbone"], "proportions", {})
        setup = Setup(
            model, ("adapter/.*",), DatasetConfig(task.name, LENGTHS, options.batch_size), f"{folder}/base",
            vision_cache=f"{folder}/vision",
        )  # fmt: skip
        params = load_parameters(setup, mesh, rules)
        step_fn = jax.jit(make_train_step(model, optimizer), donate_argnums=0)

        def epochs(cache, count: int) -> tuple[list[float], list[float], dict]:
            """Seconds of each step and of each epoch, and the adapter."""
            examples = lambda seed, start: task.examples("train", seed, start)
            batches = EpochIterator(examples, setup.converter(LENGTHS, cache), options.batch_size, 0)
            trainable = jax.tree.map(lambda x: x.copy(), params.trainable)
            state = TrainState(np.int32(0), trainable, optimizer.init(trainable))
            inside, whole = [], []
            for _ in range(count):
                started = time.perf_counter()
                for _ in range(steps):
                    batch = parallel.put_batch(next(batches), mesh)
                    at = time.perf_counter()
                    state, _ = jax.block_until_ready(step_fn(state, params.frozen, batch))
                    inside.append(time.perf_counter() - at)
                whole.append(time.perf_counter() - started)
            return inside[WARM:], whole, jax.device_get(state.trainable)

        plain_steps, plain_epochs, one = epochs(None, 2)
        started = time.perf_counter()
        cache = fill_vision_cache.prepare(setup, params, [task], mesh, console, stop, ("train",))
        caching = time.perf_counter() - started
        cached_steps, cached_epochs, _ = epochs(cache, options.epochs)
        same = epochs(cache, 2)[2]
    apart = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same)))
    step, cached = statistics.median(plain_steps), statistics.median(cached_steps)
    epoch, later = plain_epochs[-1], statistics.median(cached_epochs[1:])
    total = caching + later * options.epochs
    print(f"step: {step * 1e3:.0f} ms, cached {cached * 1e3:.0f} ms: {step / cached:.2f} times as fast")
    print(f"epoch of {options.images} images: {epoch:.1f} s, cached {later:.1f} s: {epoch / later:.2f} times as fast")
    print(
        f"{options.epochs} epochs with the caching pass of {caching:.1f} s (with compilation): {total:.1f} s against "
        f"{epoch * options.epochs:.1f} s: {epoch * options.epochs / total:.2f} times as fast"
    )
    moved = max(np.abs(leaf).max() for leaf in jax.tree.leaves({k: v["up"] for k, v in one["adapter"].items()}))
    print(
        f"adapters after 2 epochs: largest difference {apart:.1e}, largest value of the leaves that began at zero {moved:.1e}"
    )


if __name__ == "__main__":
    main()
