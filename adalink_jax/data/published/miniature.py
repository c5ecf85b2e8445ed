"""Tasks of the miniature scaling study: small scenes of digits beside text, for models of any width with one vocabulary.

`DATA_DIR` holds the files of `free` (`corpus_openstax`, `instruct_flan_cot`, `instruct_t0_short`) and, in `nlu/`, GLUE's `sst2`
and `cola` in the layouts of `glue`. The scenes are those of `adalink_jax.data.digits`, as PNG files, for a vision tower of 8 x 16
pixels with one channel. Text has no image.

Adaptation: `mini_digits_reverse`, `mini_digits_inverted` and the other tasks of `digits.ADAPTATION`; `mini_sst2`, `mini_cola`.
Pre-training: `mini_raw` (`digits_read` as captions, prose), `mini_instruct` (six questions about scenes, prose, instructions), in
equal parts, with the questions as one part. They hold no example of the adaptation tasks. But `instruct_t0_short` includes
sentiment classification, with 2,000 rows from Rotten Tomatoes, the source of SST-2: bases tuned on it know the kind of task.
"""

import functools
import io

import numpy as np
from PIL import Image

from adalink_jax.data import digits
from adalink_jax.data.published import free
from adalink_jax.data.published.glue import glue_task
from adalink_jax.data.published.registration import (
    PublishedTask,
    Row,
    TextExample,
    add_mixture,
    add_tasks,
    add_twin_without_image,
    metric,
)
from adalink_jax.data.published.settings import PublishedData, SpanCorruption
from adalink_jax.data.splits import as_published

TEXT = ("sst2", "cola")


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    nlu = PublishedData(f"{data.data_dir}/nlu", data.vocabulary, data.source)
    scenes = [_scenes(name) for name in digits.TASKS]
    add_tasks([*scenes, *free.instructions(data), *(glue_task(name, nlu) for name in TEXT)], data)
    free.add_corpus(data, SpanCorruption())
    for name in TEXT:
        add_twin_without_image(f"glue_{name}", f"mini_{name}")
    prose, *instructions = (add_twin_without_image(name) for name in (free.CORPUS, *free.TEXT))
    add_mixture("mini_raw", {**{f"mini_{name}": 1 for name in digits.CAPTION}, prose: 1})
    questions = {f"mini_{name}": 1 / len(digits.INSTRUCT) for name in digits.INSTRUCT}
    add_mixture("mini_instruct", questions | dict.fromkeys([prose, *instructions], 1))


def _scenes(name: str) -> PublishedTask:
    form = lambda row, train: [TextExample(row["inputs"], row["targets"], image=row["image"])]
    identity = lambda row: row["inputs"]  # the digits themselves are split; see `digits`
    splits = as_published("train", "validation", "test")
    rows = lambda split, seed: _encoded(name, split)
    return PublishedTask(f"mini_{name}", rows, form, identity, splits, [metric("accuracy")], image="image")


@functools.cache
def _encoded(name: str, split: str) -> list[Row]:
    scenes = digits.compose(name, split)
    columns = (scenes["inputs"].tolist(), scenes["targets"].tolist(), map(png, scenes["image"]))
    return [dict(zip(("inputs", "targets", "image"), row)) for row in zip(*columns)]


def png(image: np.ndarray) -> bytes:
    """Encodes an image, float32 [height, width, 1] in [-1, 1], as PNG."""
    out = io.BytesIO()
    Image.fromarray(np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)).save(out, "png")
    return out.getvalue()
