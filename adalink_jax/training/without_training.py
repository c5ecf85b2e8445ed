"""A model's parameters used without training them: `adalink eval` and `adalink cache-vision`."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence

from adalink_jax import parallel, preemption
from adalink_jax.data import VisionCache
from adalink_jax.errors import UserError
from adalink_jax.files.places import check_run_folder, path_of
from adalink_jax.training import fill_vision_cache, outputs
from adalink_jax.training.evaluation import NUM_SAMPLES
from adalink_jax.training.metric_writer import MetricWriter
from adalink_jax.training.partition import Leaves
from adalink_jax.training.run_checkpoints import RunCheckpoints
from adalink_jax.training.session import open_session
from adalink_jax.training.setup import Setup, load_parameters


def evaluate(
    setup: Setup,
    split: str = "test",
    output_dir: str | None = None,
    run_dir: str | None = None,
    settings: Callable[[], dict[str, str]] = dict,
) -> dict[int, dict[str, float]]:
    """Scores a base model, with an adapter or without, on a split; or each checkpoint that a run keeps.

    Args:
      setup: `initial_checkpoint_path` and, for an adapted model, `initial_adapter_path`; a fresh AdaLink is the identity.
      split: "train", "validation" or "test".
      output_dir: folder for the scores in a run's formats (`metrics.jsonl`, TensorBoard) and, in `samples/`, contact sheets of images and
        confusion matrices; None writes nothing. A run's checkpoints that have scores there already are not scored again.
      run_dir: the `MODEL_DIR` of a run of this configuration, to score all its checkpoints: the newest, and the best.
      settings: returns the settings in use, which must equal the run's.

    Returns:
      step (0 where there is no run) -> metric -> value.

    Raises:
      UserError, CheckpointError: for bad settings and files, and for inputs that begin or end otherwise than those that the adapter
        was trained on, unless `setup.allow_other_base` permits a transfer.
      Stopped: after a stop was requested.
    """
    if output_dir is not None:
        check_run_folder(output_dir, "--output_dir")
    with open_session(setup) as session, contextlib.ExitStack() as at_end:
        params = load_parameters(setup, session.mesh, session.rules)
        # A run's checkpoints were trained on this configuration's inputs, whatever its initial adapter was trained on.
        if run_dir is None and (difference := session.other_inputs(params)):
            if not setup.allow_other_base:
                raise UserError(difference)
            session.console.note(difference)
        evaluator = session.evaluator(session.converter(params, (split,)), setup.model)
        readers: dict[int, Callable[[], Leaves]] = (
            {0: lambda: params.trainable} if run_dir is None else _checkpoints_of(run_dir, params.trainable, settings())
        )
        folder = None if output_dir is None else path_of(output_dir)
        if folder is not None:
            parallel.once(outputs.claim_scores, folder, run_dir, at_end)
        writer = None if folder is None else MetricWriter(folder, resumed_at=None)
        if writer is not None:
            at_end.callback(writer.close)
        scores = {}
        for step, read in readers.items():
            if run_dir is not None and writer is not None and (known := writer.values(step, f"{split}/")):
                scores[step] = known
                continue
            result = evaluator(read(), params.frozen, split, step, NUM_SAMPLES, session.stop.check)
            scores[step] = result.scores
            if folder is not None and writer is not None:
                with outputs.naming(folder):
                    outputs.write_pictures(writer, step, split, result)
                    writer.write(step, result.tagged(split))
                preemption.keeps(f"the scores in {folder} are kept")
        return scores


def _checkpoints_of(run_dir: str, like: Leaves, settings: Mapping[str, str]) -> dict[int, Callable[[], Leaves]]:
    """step -> a function that reads its trainable leaves, for the checkpoints that a run keeps."""
    if not like:
        raise UserError(
            "Nothing is trainable in this configuration, so a run of it has no checkpoints; give the run's config.gin."
        )
    readers = {}
    for name in ("checkpoints", "best"):
        checkpoints = RunCheckpoints(f"{run_dir}/{name}", 1, {})
        readers |= {
            step: functools.partial(checkpoints.read_trainable, step, like, settings) for step in checkpoints.steps()
        }
    if not readers:
        raise UserError(f"{run_dir} holds no checkpoints of a run; give its MODEL_DIR.")
    return dict(sorted(readers.items()))


def cache_vision(setup: Setup, splits: Sequence[str] = fill_vision_cache.SPLITS) -> VisionCache:
    """Computes the vision tower's outputs for all images of the data, into `setup.vision_cache`; resumes what was begun.

    Raises:
      UserError, CheckpointError: for bad settings and files.
      Stopped: after a stop was requested.
    """
    if setup.vision_cache is None:
        raise UserError("VISION_CACHE is not set; name the folder of the cache.")
    with open_session(setup) as session:
        params = load_parameters(setup, session.mesh, session.rules)
        cache = fill_vision_cache.prepare(
            setup, params, session.eval_tasks, session.mesh, session.console, session.stop, splits
        )
    assert cache is not None  # VISION_CACHE is set
    return cache
