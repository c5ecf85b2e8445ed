"""The files that a run writes to its folder, apart from checkpoints and metrics.

All processes call the functions that take arrays, and process 0 writes; the other functions are called in process 0 only
(`parallel.once`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from adalink_jax import checkpoints, parallel, timings
from adalink_jax.adapters import AdaptedModel, describe_adapter
from adalink_jax.errors import UserError, disk_error
from adalink_jax.files import locks, metric_log
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_bytes, write_json, write_text
from adalink_jax.training import confusion, contact_sheet, parameter_tables, partition, segments, verdict
from adalink_jax.training.evaluation import Result
from adalink_jax.training.metric_writer import MetricWriter
from adalink_jax.training.partition import Leaves
from adalink_jax.training.setup import Parameters, Setup

SUMMARY, BEFORE, PICTURE, SAMPLES = "summary.json", "before.json", "samples.png", "samples.json"
SCORES_OF = "scores_of.json"
CONFUSION = "confusion"
count = parameter_tables.count


class _Before(Form):
    scores: dict[str, float]
    samples: list[dict[str, Any]]
    baselines: dict[str, dict[str, float]] = {}


class _ScoresOf(Form):
    run: str | None


@contextlib.contextmanager
def naming(folder: epath.Path) -> Iterator[None]:
    """Turns an error of the disk into one sentence that names the file, or `folder`."""
    try:
        yield
    except ImportError as e:
        if "gcsfs" not in str(e):
            raise
        raise UserError(f"{folder} cannot be reached ({e}); pip install 'adalink-jax[gcs]'.") from e
    except OSError as e:
        error = disk_error(e, str(folder))
        if error is None:
            raise
        raise error from e


def write_start(folder: epath.Path, params: Parameters, config: str) -> None:
    """`config.gin` and `model-info.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.gin", config)
    write_text(folder / "model-info.txt", parameter_tables.model_info(params.trainable, params.frozen))


@dataclasses.dataclass(frozen=True)
class Before:
    """What is known before the first step.

    Attributes:
      result: of the untrained model on test.
      baselines: test scores without a model, see `verdict.baselines_of`.
    """

    result: Result
    baselines: dict[str, dict[str, float]]


def write_before(folder: epath.Path, before: Before) -> None:
    """Keeps `before`, with the samples' predictions but not their images, for a run that is resumed."""
    result = before.result
    samples = [{name: x for name, x in sample.items() if name != "image"} for sample in result.samples]
    write_json(folder / BEFORE, {"scores": result.scores, "samples": samples, "baselines": before.baselines})


def read_before(folder: epath.Path) -> Before | None:
    """What `write_before` wrote; None if it is missing or damaged."""
    saved = parallel.once(read_state, folder / BEFORE, _Before)
    return None if saved is None else Before(Result(saved["scores"], saved["samples"]), saved["baselines"])


def claim_scores(folder: epath.Path, run_dir: str | None, at_end: contextlib.ExitStack) -> None:
    """Records in `folder` whose checkpoints are scored there, and locks it until `at_end` is closed.

    Raises:
      UserError: if it holds the scores of another run.
      Taken: if another process writes it.
    """
    at_end.enter_context(locks.hold_folder(folder))
    mark, claim = folder / SCORES_OF, {"run": None if run_dir is None else str(path_of(run_dir).resolve())}
    recorded = read_state(mark, _ScoresOf) or claim
    if (
        not mark.exists()
        and run_dir is not None
        and metric_log.has_metrics(folder)
        and folder.resolve() != path_of(run_dir).resolve()
    ):
        recorded = {"run": None}
    if recorded != claim:
        raise UserError(
            f"{folder} holds the scores of {recorded['run'] or 'something else'}; give another --output_dir."
        )
    if run_dir is not None:
        write_json(mark, claim)


def write_parameters(
    folder: epath.Path, setup: Setup, params: Parameters, trainable: Leaves, last: Leaves, summary: dict
) -> list[tuple[str, str]]:
    """Writes the model if the backbone was trained, and the adapters.

    Args:
      folder: destination.
      setup: the setup that they were trained with.
      params: the run's parameters, of which `frozen` and `base` are used.
      trainable: the trainable leaves of the best step by validation.
      last: the trainable leaves of the last step; only its adapter is written. {} writes none.
      summary: the contents of `summary.json`.

    Returns:
      `(file, description)` for display.
    """
    about = {
        "task": summary["task"],
        "empty_input": summary["empty_input"],
        "step": summary["step"],
        "metrics": {name: value for name, value in summary.items() if name.startswith(("frozen_", "adapted_"))},
        "versions": library_versions(),
    }
    leaves, base, written = {**trainable, **params.frozen}, params.base, []
    adapter, last_adapter = partition.below(leaves, "adapter"), partition.below(last, "adapter")
    backbone_trained = bool(partition.below(trainable, "backbone"))
    if backbone_trained:
        settings = checkpoints.stated_settings(setup.model.backbone)
        saved = checkpoints.save_base(
            folder / "model", partition.below(leaves, "backbone"), name=folder.name, about=about | settings
        )
        family = checkpoints.family_of_config(setup.model.backbone.config)
        base = checkpoints.BaseReference(saved["name"], saved["fingerprint"], family.name)
        written.append(("model/", "the trained base model; INITIAL_CHECKPOINT_PATH takes it"))
    if adapter:
        assert base is not None and setup.model.adapter is not None  # an adapter is trained on a base
        facts = adapter_facts(setup.model, base, **about)
        checkpoints.save_adapter(folder / "adapter", adapter, facts)
        size = parallel.once(lambda: sum(f.stat().length for f in (folder / "adapter").iterdir()))
        which = (
            "the adapter" if summary["step"] or summary["metric"] is None else "the adapter before training, of step 0"
        )
        written.append(("adapter/", f"{which}, {size / 1000:.0f} kB; INITIAL_ADAPTER_PATH takes it"))
        if not backbone_trained and last_adapter:
            last_facts = dataclasses.replace(facts, step=summary["steps"], metrics=None)
            checkpoints.save_adapter(folder / "adapter_last", last_adapter, last_facts)
            written.append(("adapter_last/", "the adapter of the last step"))
    return written


def versions() -> dict[str, str]:
    """The versions that summaries and adapter files name."""
    return segments.versions("jax", "flax", "optax")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that adapter files name beside that of this package."""
    return {name: version for name, version in versions().items() if name != "adalink-jax"}


def adapter_facts(model: AdaptedModel, base: checkpoints.BaseReference, **about: Any) -> checkpoints.AdapterFacts:
    """What the file of `model`'s adapter states; `about` are further fields of `AdapterFacts`."""
    assert model.adapter is not None
    base_settings = checkpoints.settings_by_part(model.backbone)
    return checkpoints.AdapterFacts(**describe_adapter(model.adapter), base=base, base_settings=base_settings, **about)


def write_summary(folder: epath.Path, summary: dict) -> None:
    """Writes `summary.json`, which marks the run as finished."""
    write_json(folder / SUMMARY, summary)


def write_pictures(writer: MetricWriter, step: int, split: str, result: Result) -> None:
    """Writes the contact sheet of an evaluation, if the samples have images, and its confusion matrices to `samples/` and TensorBoard."""
    if not parallel.is_first():
        return
    shown = ", ".join(f"{name} {value:.3f}" for name, value in list(result.scores.items())[:3])
    title = f"{split}, step {step}: {shown}"
    if pictured := [sample for sample in result.samples if "image" in sample]:
        writer.write_picture(step, split, contact_sheet.contact_sheet(pictured, title))
    for kind, matrix in _matrices(result).items():
        writer.write_picture(step, split, confusion.draw(matrix, title), kind)


def _matrices(result: Result) -> dict[str, confusion.Confusion]:
    """The confusion matrices by the names of their pictures: `confusion`, or `confusion_TASK` of several tasks."""
    several = any("/" in name for name in result.scores)
    return {f"{CONFUSION}_{task}" if several else CONFUSION: matrix for task, matrix in result.confusions.items()}


@timings.phase("results")
def write_end(
    folder: epath.Path,
    setup: Setup,
    params: Parameters,
    trainable: Leaves,
    last: Leaves,
    before: Result | None,
    after: Result | None,
    summary: dict,
) -> list[tuple[str, str]]:
    """Writes the parameters, the samples with their picture and `summary.json`; returns `(file, description)` for each file.

    Without a metric there is no `before` and no `after`, and so no samples and no picture.
    """
    written = write_parameters(folder, setup, params, trainable, last, summary)
    if before is not None and after is not None:
        samples = [
            {"inputs": new["inputs"], "target": new["target"], "before": old["prediction"], "after": new["prediction"]}
            for old, new in zip(before.samples, after.samples)
        ]
        parallel.once(write_json, folder / SAMPLES, {"samples": samples})
        written.append((SAMPLES, "sample predictions, before and after"))
        for kind, matrix in _matrices(after).items():
            title = f"{kind.removeprefix(CONFUSION)[1:] or summary['task']}, test, step {summary['step']}"
            parallel.once(lambda: write_bytes(folder / f"{kind}.png", confusion.draw(matrix, title)))  # noqa: B023
            description = "which class was predicted for which, on test; for each evaluation in samples/"
            written.append((f"{kind}.png", "; ".join(filter(None, (description, matrix.others_note())))))
        pictured = [(old["prediction"], new) for old, new in zip(before.samples, after.samples) if "image" in new]
    else:
        pictured = []
    if pictured:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in verdict.frozen_and_adapted(summary).items())
        old, new = zip(*pictured)
        sheet = lambda: contact_sheet.contact_sheet(new, f"{summary['task']}: {shown}", old)
        parallel.once(lambda: write_bytes(folder / PICTURE, sheet()))
        written.append((PICTURE, "sample images with the predictions; those of each evaluation are in samples/"))
    parallel.once(write_summary, folder, summary)
    return written + [
        (SUMMARY, "scores, counts, seconds"),
        (path_of(metric_log.shown(folder)).name, "every metric by step"),
        *([("tensorboard/", "the same for TensorBoard")] if (folder / "tensorboard").exists() else ()),
        ("config.gin", "the configuration that was used"),
        ("model-info.txt", "every parameter: shape, dtype, sharding, trained or frozen"),
    ]
