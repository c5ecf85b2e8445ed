"""Text, and images, in; text out: one frozen model, each row served by the adapter that it names.

Invariant: a program is compiled once for each shape, and shapes are few: lengths and rows are rounded up to powers of two. Adapters
are arguments of the program, so another one is another index.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np
from PIL import Image

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import NONE, AdaptedModel, abstract_params, make_adapter, stack_adapters
from adalink_jax.data import load_vocabulary
from adalink_jax.data.images import decode_image, load_image, picture_array
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.data.vocabularies import EOS
from adalink_jax.errors import UserError
from adalink_jax.serving.opening import LENGTHS, open_model
from adalink_jax.training.setup import Setup, load_parameters

ONLY = object()  # the one adapter that there is, or the plain base
SHORTEST = {"inputs": 16, "targets": 4}  # of the buckets of lengths


@gin.configurable
class Predictor:
    """Reads the base and the adapters once.

        predict = adalink_jax.Predictor("runs/sst2")
        predict("a delight from start to end")                                   # '1'
        predict(texts, choices=["0", "1"], scores=True)                          # [{'1': -0.1, '0': -2.3}, ...]
        predict = adalink_jax.Predictor("hf://google/flan-t5-small", adapters={"a": "runs/a/adapter", "b": "runs/b/adapter"})
        predict("translate this", adapters="b")

    Args:
      model: a run's folder, with its own adapter under the name `adapter`; a base model in any form that INITIAL_CHECKPOINT_PATH
        takes; or a `Setup`, whose adapter is not used.
      adapters: name -> folder, of one method; in place of a run's own.
      vocabulary: "bytes", a SentencePiece model, or a checkpoint's folder that holds one; None for the run's or the base's own.
      task_feature_lengths: `{"inputs": L, "targets": T}` at most, in tokens; longer inputs are cut. None for the run's own; of a
        base 512 and 64.
      batch_size: most rows of a compiled batch.

    Raises:
      UserError, CheckpointError: for files that do not fit each other, and adapters that no bank can hold together.
    """

    def __init__(
        self,
        model: "str | os.PathLike | Setup",
        adapters: Mapping[str, str] | None = None,
        vocabulary: str | None = None,
        task_feature_lengths: Mapping[str, int] | None = None,
        batch_size: int = 32,
    ):
        if isinstance(model, Setup):
            setup, opened = model, None
            if vocabulary is None:
                raise UserError("A Predictor of a Setup needs its vocabulary: 'bytes', or a path.")
        else:
            opened = open_model(os.fspath(model), vocabulary)
            setup, vocabulary = opened.setup, opened.vocabulary
            task_feature_lengths = task_feature_lengths or opened.task_feature_lengths
            adapters = opened.adapters if adapters is None else adapters
        if setup.initial_adapter_path is not None:
            raise UserError("INITIAL_ADAPTER_PATH is set; a Predictor takes its adapters by name, as `adapters`.")
        backbone, adapters = setup.model.backbone, dict(adapters or {})
        self.names = list(adapters)
        written = opened.rows.get("inputs") if opened else None
        self._written = None if written is None else Template("INPUTS", written)
        self._without_images = opened is not None and opened.without_images
        self._vocabulary, self.batch_size = load_vocabulary(vocabulary), batch_size
        self._lengths, self._stop = dict(task_feature_lengths or LENGTHS), setup.decoding.stop
        self.image_shape = setup.image_shape
        self._setup = setup
        self._mesh, self._rules = parallel.make_mesh(), parallel.logical_axis_rules()
        plain = dataclasses.replace(setup, model=AdaptedModel(backbone), trainable=())
        with parallel.use_mesh(self._mesh, self._rules):
            loaded = load_parameters(plain, self._mesh, self._rules)
            self._params, self._model = loaded.frozen, plain.model
            if adapters:
                members = [self._member(setup, folder, loaded.base["fingerprint"]) for folder in adapters.values()]
                bank, stacked = stack_adapters(backbone, members)
                self._model, self._params = AdaptedModel(backbone, bank), {**self._params, "adapter": stacked}
        key, target_length = jax.random.key(setup.random_seed), self._lengths["targets"]
        self._generate = jax.jit(
            lambda params, batch: self._model.apply(
                {"params": params}, batch, target_length, setup.decoding, key, method="generate"
            ).ids[:, 0]
        )
        self._score = jax.jit(lambda params, batch: self._model.apply({"params": params}, batch, method="score"))

    def _member(self, setup: Setup, folder: str, fingerprint: str):
        _, about = checkpoints.open_adapter(folder)
        module = make_adapter(about["method"], about["settings"])
        place = parallel.replicated(self._mesh)
        shapes = parallel.unbox(abstract_params(AdaptedModel(setup.model.backbone, module))["adapter"])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
        return module, checkpoints.load_adapter(folder, abstract, fingerprint, setup.allow_other_base)[0]

    def __call__(
        self,
        inputs: str | Mapping | Sequence[str | Mapping],
        images: Any = None,
        adapters: Sequence[str | None] | str | None = ONLY,
        *,
        scores: bool = False,
        choices: Sequence[str] | None = None,
    ) -> Any:
        """Predictions; of one text one, of several a list in their order.

        Args:
          inputs: a text as the model sees it, or several; or, of a run over one's own files, rows by column (`{"review": "..."}`), which
            are written as the run's were.
          images: where the model sees images, one for each text: a path, a file's bytes, a PIL image, an array uint8 [height, width,
            3] of any size, or float32 of the model's shape in [-1, 1].
          adapters: the name that serves all, or each; None is the plain base. By default the only adapter.
          scores: also give log-likelihoods, in nats: the sum over the tokens of the output, with its EOS.
          choices: what may be answered; the likeliest is given. A longer answer is less likely by its length alone.

        Returns:
          A text; with `scores` `(text, log-likelihood)`; with `choices` and `scores` a dict of all choices, the likeliest first.

        Raises:
          UserError: for a name that is not there, images that are missing, too many or damaged, choices that are too long.
        """
        if isinstance(inputs, (str, Mapping)):
            name = adapters if adapters is ONLY or adapters is None else [adapters]
            found = self([inputs], None if images is None else [images], name, scores=scores, choices=choices)
            return found[0]
        rows, index = self._examples(inputs, images), self._index(adapters, len(inputs))
        if choices is not None:
            if isinstance(choices, str):
                raise UserError(f"`choices` is the text {choices!r}; give a list of answers.")
            likely = self._of_choices(rows, index, list(choices))
            return likely if scores else [next(iter(each)) for each in likely]
        ids = list(self._decoded(rows, index))
        texts = list(map(self._text, ids))
        if not scores:
            return texts
        said = [self._until_end(row) for row in ids]
        likelihoods = self._likelihoods([row | {"targets": x} for row, x in zip(rows, said)], index)
        return list(zip(texts, likelihoods))

    def _of_choices(self, rows, index, choices: list[str]) -> list[dict[str, float]]:
        ids = [[*self._vocabulary.encode(text), EOS] for text in choices]
        if len(set(map(tuple, ids))) < max(2, len(ids)):
            raise UserError("`choices` needs two answers or more, all different to the vocabulary.")
        long = next((text for text, each in zip(choices, ids) if len(each) > self._lengths["targets"]), None)
        if long is not None:
            raise UserError(
                f"The choice {long!r} is longer than {self._lengths['targets']} tokens (task_feature_lengths)."
            )
        pairs = [row | {"targets": each} for row in rows for each in ids]
        found = np.reshape(self._likelihoods(pairs, np.repeat(index, len(choices))), (len(rows), len(choices)))
        return [dict(sorted(zip(choices, map(float, row)), key=lambda each: -each[1])) for row in found]

    # --- batches ---

    def _batches(self, rows: Sequence[dict], index: np.ndarray, targets: bool):
        """Arrays on the devices, batch after batch, all of one shape, and how many rows of each count."""
        lengths = {side: self._bucket(side, max(len(row[side]) for row in rows)) for side in self._lengths}
        devices = parallel.data_axis_size(self._mesh)
        size = -(-min(self.batch_size, _power_of_two(len(rows))) // devices) * devices
        converter = dataclasses.replace(self._setup.converter(lengths), task_name="the rows")
        mine = parallel.local_rows(size, self._mesh)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            batch = converter(chunk, size)
            if not targets:
                batch = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
            if self.names:
                batch["adapter_index"] = np.pad(index[start : start + size], (0, size - len(chunk)))
            yield parallel.put_batch({name: x[mine] for name, x in batch.items()}, self._mesh), len(chunk)

    def _run(self, program, rows: Sequence[dict], index: np.ndarray, targets: bool) -> Iterator:
        """What `program` gives for each row."""
        if not rows:
            return
        with parallel.use_mesh(self._mesh, self._rules):
            for batch, count in self._batches(rows, index, targets):
                yield from parallel.to_host(parallel.settle(program(self._params, batch)))[:count]

    def _decoded(self, rows: Sequence[dict], index: np.ndarray) -> Iterator[np.ndarray]:
        return self._run(self._generate, rows, index, targets=False)

    def _likelihoods(self, rows: Sequence[dict], index: np.ndarray) -> list[float]:
        return [float(x) for x in self._run(self._score, rows, index, targets=True)]

    def _bucket(self, side: str, length: int) -> int:
        return min(self._lengths[side], max(SHORTEST[side], _power_of_two(length)))

    def _until_end(self, ids) -> list[int]:
        ids = [int(i) for i in ids]
        return ids[: ids.index(EOS) + 1] if EOS in ids else ids

    def _text(self, ids) -> str:
        text = self._vocabulary.decode(ids)
        return text if self._stop is None else self._stop.cut(text)

    # --- what a caller gives ---

    def _examples(self, inputs, images) -> list[dict]:
        images = None if images is None else list(images)
        if self.image_shape is not None and images is None and self._without_images:
            images = [b""] * len(inputs)
        if (images is None) != (self.image_shape is None) or (images is not None and len(images) != len(inputs)):
            wanted = "an image for each input" if self.image_shape is not None else "no images"
            raise UserError(
                f"The model takes {wanted}; {len(inputs)} inputs and {len(images or ())} images were given."
            )
        rows = []
        for number, text in enumerate(map(self._as_seen, inputs)):
            ids = self._vocabulary.encode(text)[: self._lengths["inputs"] - 1]
            rows.append({"inputs": [*ids, EOS], "targets": [], "inputs_pretokenized": text})
            if images is not None:
                rows[-1]["image"] = self._picture(images[number], number)
        return rows

    def _as_seen(self, row: str | Mapping) -> str:
        if isinstance(row, str):
            return row
        if self._written is None:
            raise UserError("Rows by column need a run over one's own files, whose INPUTS writes them; give texts.")
        lacking = next((name for name in self._written.columns if name not in row), None)
        if lacking is not None:
            raise UserError(
                f"A row has no {lacking!r}, which the run's INPUTS names; it has {', '.join(map(str, row))}."
            )
        return self._written.text(row)

    def _picture(self, image, number: int):
        if isinstance(image, bytes):  # none of no image, which the converter tells the model
            return decode_image(image, self.image_shape, f"Image {number}") if image else image
        if isinstance(image, (str, os.PathLike)):
            return load_image(os.fspath(image), self.image_shape)
        if isinstance(image, Image.Image):
            return picture_array(image, self.image_shape)
        array = np.asarray(image)
        if array.dtype == np.uint8 and array.ndim in (2, 3):
            return picture_array(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array), self.image_shape)
        if array.shape != self.image_shape or array.dtype.kind != "f":
            raise UserError(
                f"Image {number} is {array.dtype} {array.shape}; the model takes float32 {self.image_shape}, or uint8 of any size."
            )
        return array.astype(np.float32)

    def _index(self, adapters, count: int) -> np.ndarray:
        if adapters is ONLY:
            if len(self.names) > 1:
                raise UserError(f"Which adapter? Name one of {', '.join(self.names)}; None is the plain base.")
            adapters = self.names[0] if self.names else None
        names = [adapters] * count if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(names) != count:
            raise UserError(f"{len(names)} adapters are named for {count} inputs; name one for each, or one for all.")
        unknown = next((name for name in names if name is not None and name not in self.names), None)
        if unknown is not None:
            raise UserError(f"There is no adapter {unknown!r}; there are: {', '.join(self.names) or 'none'}.")
        return np.array([NONE if name is None else self.names.index(name) + 1 for name in names], np.int32)


def _power_of_two(number: int) -> int:
    """The least that is not below."""
    return 1 << (number - 1).bit_length()
