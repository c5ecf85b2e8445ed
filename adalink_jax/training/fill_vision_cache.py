"""Fills a vision cache: the frozen tower's outputs, computed once per image before training, evaluation or prediction.

Adapters come after the tower, so training gives the same results as without a cache. Every process reads the data and computes
its rows of a batch; process 0 writes.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax import checkpoints, parallel, preemption
from adalink_jax.data import Task, Tower, VisionCache
from adalink_jax.errors import Taken, UserError
from adalink_jax.files import locks
from adalink_jax.training.console import Console
from adalink_jax.training.interrupt import StopRequest
from adalink_jax.training.setup import Parameters, Setup

SPLITS = ("train", "validation", "test")
PARTS = ("vision", "qformer")  # the parts of the backbone that the features depend on
LOOK = 2.0  # seconds from one look to the next whether another process still fills the same cache
PART_BYTES = 64 * 2**20


def prepare(
    setup: Setup,
    params: Parameters,
    tasks: Sequence[Task],
    mesh: Mesh,
    console: Console,
    stop: StopRequest,
    splits: Sequence[str] = SPLITS,
) -> VisionCache | None:
    """The cache that `setup` names, with all images of the tasks' splits; None if it names none.

    Args:
      setup: names the folder of the cache and the data.
      params: the model's parameters on the mesh.
      tasks: single tasks (no mixtures), whose images are needed.
      mesh: where the tower runs.
      console: shows the progress.
      stop: checked between batches.
      splits: the splits of each task.

    Raises:
      UserError: if the tower's outputs are not constant, because it is trained or has dropout; if the model has no tower; if
        the folder holds another tower's features.
      Stopped: after a stop was requested; finished features are kept.
    """
    if setup.vision_cache is None:
        return None
    _check(setup, params)
    tower = _tower(setup, params)
    cache = VisionCache(setup.vision_cache, tower)
    wanted = [(task, split) for task in tasks if task.has_images for split in splits]
    if all(cache.covers(task.name, split) for task, split in wanted):
        return cache
    with contextlib.ExitStack() as at_end:
        waits = False
        while not parallel.once(_lock, cache, at_end):
            if not waits:
                console.note(f"Another process fills {cache.folder}; this one waits for it.")
            if stop.requested():
                raise stop.stopped(f"Stopped while another process fills {cache.folder}; rerun the same command.")
            waits = True
        parallel.once(cache.begin)
        cache = VisionCache(setup.vision_cache, tower)  # another process may have filled it meanwhile
        for task, split in wanted:
            if not cache.covers(task.name, split):
                cache = _fill(cache, setup, params, task, split, mesh, console, stop)
    return cache


def _lock(cache: VisionCache, at_end: contextlib.ExitStack) -> bool:
    """Locks the cache's folder until `at_end` is closed; returns whether no other process has it."""
    try:
        at_end.enter_context(locks.hold_folder(cache.folder, LOOK))
    except Taken:
        return False
    return True


def _check(setup: Setup, params: Parameters) -> None:
    backbone = setup.model.backbone
    if setup.image_shape is None:
        raise UserError("VISION_CACHE is set, but the model takes no images; leave it out.")
    if not hasattr(backbone, "vision_config"):
        raise UserError("VISION_CACHE is set, but the model has no vision tower; leave it out.")
    inside = tuple(f"backbone/{part}/" for part in PARTS)
    trained = [name for name in params.trainable if name.startswith(inside)]
    if trained:
        raise UserError(
            f"VISION_CACHE is set, but {trained[0]} is trained, so the tower's outputs are not constant; leave VISION_CACHE "
            f"out, or freeze the tower (TRAINABLE)."
        )
    for part, config in checkpoints.configs_of(backbone).items():
        if part in PARTS and config.dropout_rate:
            raise UserError(
                f"VISION_CACHE is set, but {type(config).__name__}.dropout_rate is {config.dropout_rate}: the tower's outputs "
                f"would differ in every step; set it to 0."
            )


def _tower(setup: Setup, params: Parameters) -> Tower:
    backbone = setup.model.backbone
    frozen = params.tree()["backbone"]
    tower = {part: leaves for part, leaves in frozen.items() if part in PARTS}
    shapes = jax.eval_shape(_features(setup), frozen, _abstract_inputs(setup, 1))
    configs = {part: config for part, config in checkpoints.configs_of(backbone).items() if part in PARTS}
    settings: dict[str, Any] = {
        part: checkpoints.settings_of(config) | {"dtype": config.dtype} for part, config in configs.items()
    }
    settings["preparation"] = dataclasses.asdict(cast(Any, setup.preparation))
    settings["image"] = [*(setup.image_shape or ()), backbone.vision_config.patch_size]
    settings["weights"] = _weights(setup, params)
    return Tower(
        checkpoints.fingerprint(tower), json.dumps(settings, sort_keys=True), tuple(shapes.shape[1:]), shapes.dtype.name
    )


def _weights(setup: Setup, params: Parameters) -> str | dict[str, Any]:
    """How the tower's weights are stored; FROZEN_DTYPE alone, unless it quantises."""
    if not setup.storage.quantises:
        return setup.frozen_dtype
    stated = {"dtype": setup.frozen_dtype, "block": setup.quantised_block, "exact": list(setup.quantised_exact)}
    return stated | {"matmul": setup.frozen_matmul, "parent": params.base and params.base.parent}


def _abstract_inputs(setup: Setup, rows: int) -> dict:
    shapes = setup.model.backbone.abstract_batch(rows, setup.data.task_feature_lengths["inputs"], 1)
    return {name: leaf for name, leaf in shapes.items() if not name.startswith(("encoder_", "decoder_"))}


def _features(setup: Setup) -> Callable:
    """`(the backbone's parameters, images and their accompanying inputs) -> features`, in the dtype of the cache."""
    backbone = setup.model.backbone

    def features(params, batch):
        outputs = cast(jax.Array, backbone.apply({"params": params}, batch, method="image_features"))
        return outputs if backbone.features_dtype is None else outputs.astype(backbone.features_dtype)

    return features


def _fill(
    cache: VisionCache,
    setup: Setup,
    params: Parameters,
    task: Task,
    split: str,
    mesh: Mesh,
    console: Console,
    stop: StopRequest,
) -> VisionCache:
    """Computes the missing features of one split; returns the cache, read again."""
    converter = setup.converter(setup.data.task_feature_lengths)
    missing = {key for example in task.examples(split) if (key := converter.key(example)) not in cache}
    size = setup.data.batch_size
    run, backbone = jax.jit(_features(setup)), params.tree()["backbone"]
    names, local_rows = _abstract_inputs(setup, 1), parallel.local_rows(size, mesh)
    keys, parts = [], []
    with console.counting(f"vision tower, {task.name}, {split}", len(missing)) as advance:
        for batch_keys, examples in _batches(task.examples(split), converter.key, missing, size):
            rows = [examples[min(row, len(examples) - 1)] for row in local_rows]
            batch = {name: x for name, x in converter(rows).items() if name in names}
            features = parallel.to_host(parallel.settle(run(backbone, parallel.put_batch(batch, mesh))))
            keys += batch_keys
            parts.append(features[: len(batch_keys)])
            preemption.something_to_save()
            advance(len(batch_keys))
            stopped = stop.requested()
            if stopped or sum(part.nbytes for part in parts) >= PART_BYTES:
                parallel.once(cache.add, keys, np.concatenate(parts))
                keys, parts = [], []
                preemption.keeps(f"the outputs in {cache.folder} are kept")
            if stopped:
                raise stop.stopped(
                    f"Stopped while computing the vision tower's outputs; the finished ones are kept in {cache.folder}; rerun the "
                    f"same command to resume."
                )
    if keys:
        parallel.once(cache.add, keys, np.concatenate(parts))
    parallel.once(cache.finish, task.name, split)
    preemption.keeps(f"the outputs in {cache.folder} are kept")
    preemption.all_saved()
    return cache if parallel.is_first() else VisionCache(str(cache.folder), cache.tower)


def _batches(
    examples: Iterable[dict], key_of: Callable[[dict], bytes], missing: set[bytes], size: int
) -> Iterator[tuple[list[bytes], list[dict]]]:
    """`(keys, examples)` of up to `size` images that are still `missing`, which is emptied; each image occurs once."""
    batch = {}
    for example in examples:
        key = key_of(example)
        if key in missing:
            missing.remove(key)
            batch[key] = example
        if len(batch) == size:
            yield list(batch), list(batch.values())
            batch = {}
    if batch:
        yield list(batch), list(batch.values())
