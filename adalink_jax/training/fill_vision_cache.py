"""The frozen vision tower's outputs, computed once an image before anything is trained, evaluated or predicted.

An adapter stands after the tower, so what is trained is the same as without a cache. Every process reads the data and
computes its rows of a batch; the first writes.
"""

import json
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from adalink_jax import checkpoints, parallel
from adalink_jax.data import Task, Tower, VisionCache
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training.console import Console
from adalink_jax.training.interrupt import StopRequest
from adalink_jax.training.setup import Parameters, Setup

SPLITS = ("train", "validation", "test")
PARTS = ("vision", "qformer")  # of the backbone, that the features depend on
PART_BYTES = 64 * 2**20


def prepare(
    setup: Setup,
    params: Parameters,
    tasks: Sequence[Task],
    mesh,
    console: Console,
    stop: StopRequest,
    splits: Sequence[str] = SPLITS,
) -> VisionCache | None:
    """The cache that `setup` asks for, with all images of the tasks' splits; None if it asks for none.

    Args:
      setup: with the folder of the cache and the data.
      params: of the model, in their places.
      tasks: single ones, whose images are needed.
      mesh: where the tower runs.
      console: shows the progress.
      stop: asked between batches.
      splits: of each task.

    Raises:
      UserError: if the tower's outputs are no constants: it is trained, or has dropout; if the model has no tower; if the
        folder holds another tower's features.
      Stopped: after a stop was asked for; what was computed is kept.
    """
    if setup.vision_cache is None:
        return None
    _check(setup, params)
    cache = VisionCache(setup.vision_cache, _tower(setup, params))
    for task in tasks:
        for split in splits:
            if not cache.covers(task.name, split):
                cache = _fill(cache, setup, params, task, split, mesh, console, stop)
    return cache


def _check(setup: Setup, params: Parameters) -> None:
    backbone = setup.model.backbone
    if setup.image_shape is None:
        raise UserError("VISION_CACHE is set, but the model takes no images; leave it out.")
    inside = tuple(f"backbone/{part}/" for part in PARTS)
    moved = [name for name in paths.flatten(params.trainable) if name.startswith(inside)]
    if moved:
        raise UserError(
            f"VISION_CACHE is set, but {moved[0]} is trained, so the tower's outputs are no constants; leave VISION_CACHE "
            f"out, or freeze the tower (TRAINABLE)."
        )
    for part, config in checkpoints.configs_of(backbone).items():
        if part in PARTS and config.dropout_rate:
            raise UserError(
                f"VISION_CACHE is set, but {type(config).__name__}.dropout_rate is {config.dropout_rate}: the tower's outputs "
                f"would be others in every step; set it to 0."
            )


def _tower(setup: Setup, params: Parameters) -> Tower:
    backbone = setup.model.backbone
    tower = {part: leaves for part, leaves in params.frozen["backbone"].items() if part in PARTS}
    shapes = jax.eval_shape(_features(setup), params.frozen["backbone"], _abstract_inputs(setup, 1))
    configs = {part: config for part, config in checkpoints.configs_of(backbone).items() if part in PARTS}
    settings = {
        part: checkpoints.settings_of(config, part) | {"dtype": config.dtype} for part, config in configs.items()
    }
    settings["image"] = [*setup.image_shape, backbone.vision_config.patch_size]
    settings["weights"] = setup.frozen_dtype
    return Tower(
        checkpoints.fingerprint(tower), json.dumps(settings, sort_keys=True), tuple(shapes.shape[1:]), shapes.dtype.name
    )


def _abstract_inputs(setup: Setup, rows: int) -> dict:
    shapes = setup.model.backbone.abstract_batch(rows, setup.dataset.task_feature_lengths["inputs"], 1)
    return {name: leaf for name, leaf in shapes.items() if not name.startswith(("encoder_", "decoder_"))}


def _features(setup: Setup):
    """`(backbone's parameters, images and what goes with them) -> features` in the dtype that they are stored in."""
    backbone = setup.model.backbone

    def features(params, batch):
        made = backbone.apply({"params": params}, batch, method="image_features")
        return made if backbone.features_dtype is None else made.astype(backbone.features_dtype)

    return features


def _fill(
    cache: VisionCache, setup: Setup, params: Parameters, task: Task, split: str, mesh, console, stop
) -> VisionCache:
    """Computes what is missing of one split; the cache, read again."""
    converter = setup.converter(setup.dataset.task_feature_lengths)
    missing = {key for example in task.examples(split) if (key := converter.key(example)) not in cache}
    size = setup.dataset.batch_size
    run = jax.jit(_features(setup))
    names, mine = _abstract_inputs(setup, 1), parallel.local_rows(size, mesh)
    parallel.once(cache.begin)
    keys, kept, nbytes = [], [], 0
    with console.counting(f"vision tower, {task.name}, {split}", len(missing)) as advance:
        for batch_keys, examples in _batches(task.examples(split), converter.key, missing, size):
            own = [examples[min(row, len(examples) - 1)] for row in mine]
            batch = {name: x for name, x in converter(own).items() if name in names}
            made = parallel.to_host(parallel.settle(run(params.frozen["backbone"], parallel.put_batch(batch, mesh))))
            keys += batch_keys
            kept.append(made[: len(batch_keys)])
            nbytes += kept[-1].nbytes
            advance(len(batch_keys))
            stopped = stop.requested()
            if nbytes >= PART_BYTES or stopped:
                parallel.once(cache.add, keys, np.concatenate(kept))
                keys, kept, nbytes = [], [], 0
            if stopped:
                raise stop.stopped(
                    f"Stopped while the vision tower's outputs were computed; what was done is kept in {cache.folder}, and the "
                    f"same command goes on from there."
                )
    if keys:
        parallel.once(cache.add, keys, np.concatenate(kept))
    parallel.once(cache.finish, task.name, split)
    return cache if parallel.is_first() else VisionCache(setup.vision_cache, cache.tower)


def _batches(examples: Iterable[dict], key_of, missing: set[bytes], size: int):
    """`(keys, examples)` of up to `size` images that are still `missing`, each once."""
    keys, rows = [], []
    for example in examples:
        key = key_of(example)
        if key in missing:
            missing.remove(key)
            keys.append(key)
            rows.append(example)
        if len(keys) == size:
            yield keys, rows
            keys, rows = [], []
    if keys:
        yield keys, rows
