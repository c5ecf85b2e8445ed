"""Text, and images, in; text out: one frozen model, each row served by the adapter that it names."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import gin
import jax
import numpy as np

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import NONE, AdaptedModel, abstract_params, make_adapter, stack_adapters
from adalink_jax.data import load_vocabulary
from adalink_jax.data.vocabularies import EOS
from adalink_jax.errors import UserError
from adalink_jax.training.setup import Setup, load_parameters


@gin.configurable
class Predictor:
    """Reads the base and the adapters once, and compiles one program.

    Args:
      setup: backbone, base and decoding; its adapter is not used.
      vocabulary: "bytes", a SentencePiece model, or a checkpoint's folder that holds one.
      task_feature_lengths: `{"inputs": L, "targets": T}`, in tokens; longer inputs are cut.
      batch_size: rows of a compiled batch; the last is padded.
      adapters: name -> folder, of one method.

    Raises:
      UserError, CheckpointError: for files that do not fit each other, and adapters that no bank can hold together.
    """

    def __init__(
        self,
        setup: Setup,
        vocabulary: str,
        task_feature_lengths: Mapping[str, int],
        batch_size: int = 32,
        adapters: Mapping[str, str] | None = None,
    ):
        if setup.initial_adapter_path is not None:
            raise UserError("INITIAL_ADAPTER_PATH is set; a Predictor takes its adapters by name, as `adapters`.")
        backbone, adapters = setup.model.backbone, dict(adapters or {})
        self.names = list(adapters)
        self._vocabulary, self._batch_size = load_vocabulary(vocabulary), batch_size
        self._length, self._stop = task_feature_lengths["inputs"], setup.decoding.stop
        self._images = setup.image_shape
        self._converter = dataclasses.replace(setup.converter(task_feature_lengths), task_name="the rows")
        self._mesh, self._rules = parallel.make_mesh(), parallel.logical_axis_rules()
        plain = dataclasses.replace(setup, model=AdaptedModel(backbone), trainable=())
        with parallel.use_mesh(self._mesh, self._rules):
            loaded = load_parameters(plain, self._mesh, self._rules)
            self._params, model = loaded.frozen, plain.model
            if adapters:
                members = [self._member(setup, folder, loaded.base["fingerprint"]) for folder in adapters.values()]
                bank, stacked = stack_adapters(backbone, members)
                model, self._params = AdaptedModel(backbone, bank), {**self._params, "adapter": stacked}
        key = jax.random.key(setup.random_seed)
        self._generate = jax.jit(
            lambda params, batch: model.apply(
                {"params": params}, batch, task_feature_lengths["targets"], setup.decoding, key, method="generate"
            ).ids[:, 0]
        )

    def _member(self, setup: Setup, folder: str, fingerprint: str):
        _, about = checkpoints.open_adapter(folder)
        module = make_adapter(about["method"], about["settings"])
        place = parallel.replicated(self._mesh)
        shapes = parallel.unbox(abstract_params(AdaptedModel(setup.model.backbone, module))["adapter"])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
        return module, checkpoints.load_adapter(folder, abstract, fingerprint, setup.allow_other_base)[0]

    def __call__(
        self,
        inputs: Sequence[str],
        images: Sequence[np.ndarray] | None = None,
        adapters: Sequence[str | None] | str | None = None,
    ) -> list[str]:
        """Predictions, in order.

        Args:
          inputs: the texts.
          images: float32 [height, width, channels] in [-1, 1], one for each text, where the model sees images.
          adapters: the name that serves each row, or all; None is the plain base.

        Raises:
          UserError: for a name that is not there, and images that are missing, too many or of another size.
        """
        return list(self.stream(inputs, images, adapters))

    def stream(self, inputs, images=None, adapters=None) -> Iterator[str]:
        """The same, batch after batch."""
        rows = self._examples(inputs, images)
        index = self._index(adapters, len(inputs))
        for start in range(0, len(rows), self._batch_size):
            chunk = rows[start : start + self._batch_size]
            batch = self._converter(chunk, self._batch_size)
            batch = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
            if self.names:
                batch["adapter_index"] = np.pad(index[start:][: len(chunk)], (0, self._batch_size - len(chunk)))
            with parallel.use_mesh(self._mesh, self._rules):
                mine = parallel.local_rows(self._batch_size, self._mesh)
                batch = parallel.put_batch({name: x[mine] for name, x in batch.items()}, self._mesh)
                ids = parallel.to_host(parallel.settle(self._generate(self._params, batch)))
            for row in ids[: len(chunk)]:
                text = self._vocabulary.decode(row)
                yield text if self._stop is None else self._stop.cut(text)

    def _examples(self, inputs, images) -> list[dict]:
        if (images is None) != (self._images is None) or (images is not None and len(images) != len(inputs)):
            wanted = "an image for each input" if self._images is not None else "no images"
            raise UserError(
                f"The model takes {wanted}; {len(inputs)} inputs and {len(images or ())} images were given."
            )
        rows = []
        for number, text in enumerate(inputs):
            ids = self._vocabulary.encode(text)[: self._length - 1]
            rows.append({"inputs": [*ids, EOS], "targets": [], "inputs_pretokenized": text})
            if images is not None:
                image = np.asarray(images[number], np.float32)
                if image.shape != self._images:
                    raise UserError(f"Image {number} is {image.shape}; the model takes {self._images}.")
                rows[-1]["image"] = image
        return rows

    def _index(self, adapters, count: int) -> np.ndarray:
        names = [adapters] * count if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(names) != count:
            raise UserError(f"{len(names)} adapters are named for {count} inputs; name one for each, or one for all.")
        unknown = next((name for name in names if name is not None and name not in self.names), None)
        if unknown is not None:
            raise UserError(f"There is no adapter {unknown!r}; there are: {', '.join(self.names) or 'none'}.")
        return np.array([NONE if name is None else self.names.index(name) + 1 for name in names], np.int32)
