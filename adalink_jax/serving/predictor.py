"""`Predictor`: texts and images in, texts out, by one frozen model; each row is served by the adapter that it names.

Invariant: a program is compiled once per shape, and there are few shapes, since lengths and numbers of rows are rounded up to powers of
two. Adapters are arguments of the program: each row has an index into the bank.
"""

import dataclasses
import enum
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import gin
import jax
import numpy as np

from adalink_jax import checkpoints, configuration, parallel, timings
from adalink_jax.adapters import NONE, AdaptedModel, abstract_params, make_adapter, stack_adapters
from adalink_jax.data import check_rows, load_vocabulary
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.decoding import Decoded, sampling_keys
from adalink_jax.serving.model_inputs import bucket_lengths, pixels, power_of_two
from adalink_jax.serving.opening import LENGTHS, Loaded, Opened, open_model
from adalink_jax.training.setup import Setup, check_adapter, load_parameters
from adalink_jax.typed_values import PositiveInt, Seed, shown


class AdapterChoice(enum.Enum):
    """Values of `adapters` that are not names."""

    ONLY = "the only adapter, or the base model without adapters"


ONLY = AdapterChoice.ONLY
Names = Sequence[str | None] | str | AdapterChoice | None


# A run's configuration must not give the consent that opening it needs.
@gin.configurable(denylist=["trust_modules"])  # pyright: ignore[reportCallIssue]  # gin has no type hints
class Predictor:
    """Loads the base model and the adapters once, then predicts.

        predict = adalink_jax.Predictor("runs/sst2")
        predict("a delight from start to end")                                   # '1'
        predict(texts, choices=["0", "1"], scores=True)                          # [{'1': -0.1, '0': -2.3}, ...]
        predict = adalink_jax.Predictor("hf://google/flan-t5-small", adapters={"a": "runs/a/adapter", "b": "runs/b/adapter"})
        predict("translate this", adapters="b")

    Args:
      model: a run's folder, whose adapter gets the name `adapter`; a base model in any form that INITIAL_CHECKPOINT_PATH takes; a
        `Setup`, whose adapter is ignored; or what is opened already.
      adapters: name -> folder or `hf://OWNER/NAME`, all of one method; they replace a run's own adapter.
      vocabulary: "bytes", a SentencePiece model, or a checkpoint's folder that has one; None for that of the run or the base model.
      task_feature_lengths: maximum lengths `{"inputs": L, "targets": T}`, in tokens; longer inputs are cut. None for those of the run; 512
        and 64 for a base model.
      batch_size: the most rows of a compiled batch.
      seed: of the draws of a decoding that samples; None for the run's RANDOM_SEED. A row's draws depend on the seed and on how many rows
        were predicted before (`rows_sampled`), not on its batch or its call.
      trust_modules: whether to import the modules outside this package that a run's `config.gin` imports. They are code: set it for runs
        of people you trust only.

    Raises:
      UserError, CheckpointError: for a run that needs `trust_modules`, files that do not fit each other, and adapters that cannot share a bank.
    """

    def __init__(
        self,
        model: "str | os.PathLike | Setup | Opened",
        adapters: Mapping[str, str] | None = None,
        vocabulary: str | None = None,
        task_feature_lengths: Mapping[str, PositiveInt] | None = None,
        batch_size: PositiveInt = 32,
        seed: Seed | None = None,
        trust_modules: bool = False,
    ):
        configuration.check_argument("adapters", adapters, Mapping[str, Any] | None)
        configuration.check_argument("vocabulary", vocabulary, str | None)
        configuration.check_argument("task_feature_lengths", task_feature_lengths, Mapping[str, PositiveInt] | None)
        configuration.check_argument("batch_size", batch_size, PositiveInt)
        configuration.check_argument("seed", seed, Seed | None)
        if isinstance(model, Opened):
            opened = model
        elif isinstance(model, Setup):
            if vocabulary is None:
                raise UserError("A Predictor of a Setup needs a vocabulary; give vocabulary='bytes' or a path.")
            opened = Opened(model, vocabulary, LENGTHS, {})
        elif not isinstance(model, (str, os.PathLike)):
            raise UserError(
                f"`model` is {shown(model)}; give a run's folder, or a base model such as 'hf://google/flan-t5-small'."
            )
        else:
            opened = open_model(os.fspath(model), vocabulary, trust_modules)
        setup = opened.setup
        if setup.initial_adapter_path is not None:
            raise UserError("INITIAL_ADAPTER_PATH is set; a Predictor takes its adapters by name, as `adapters`.")
        backbone = setup.model.backbone
        served = dict(opened.adapters if adapters is None else adapters)
        self.names = list(served)
        template = opened.rows.get("inputs")
        self._template = None if template is None else Template("INPUTS", template)
        self._without_images, self.labels = opened.without_images, opened.labels
        self._vocabulary, self.batch_size = load_vocabulary(opened.vocabulary), batch_size
        check_rows(f"The vocabulary {opened.vocabulary}", self._vocabulary.vocab_size, backbone.config.vocab_size)
        if self._vocabulary.eos not in backbone.token_ids.ends:
            raise UserError(
                f"The vocabulary {opened.vocabulary} ends texts with id {self._vocabulary.eos}, and the model with "
                f"{backbone.token_ids.eos}; use the model's own vocabulary."
            )
        self.task_feature_lengths, self._stop = (
            dict(task_feature_lengths or opened.task_feature_lengths or LENGTHS),
            setup.decoding.stop,
        )
        self.image_shape, self.preparation = setup.image_shape, setup.preparation
        self._setup = setup
        if opened.loaded is None:
            self._mesh, self._rules = parallel.make_mesh(), parallel.logical_axis_rules()
        else:
            self._mesh, self._rules = opened.loaded.mesh, opened.loaded.rules
        self._model, self._params = self._load(setup, served, opened.loaded)
        self.inputs_cut = 0  # rows whose text was longer than the model reads
        self.rows_sampled, target_length = 0, self.task_feature_lengths["targets"]
        random_seed = setup.random_seed if seed is None else seed

        def decode(params, batch):
            keys = sampling_keys(random_seed, batch["sampling_ids"])
            return self._model.apply({"params": params}, batch, target_length, setup.decoding, keys, method="generate")

        self._generate = jax.jit(lambda params, batch: cast(Decoded, decode(params, batch)).ids[:, 0])
        self._score = jax.jit(lambda params, batch: self._model.apply({"params": params}, batch, method="score"))

    @timings.phase("model")
    def _load(
        self, setup: Setup, adapters: Mapping[str, Any], loaded_base: Loaded | None
    ) -> tuple[AdaptedModel, dict[str, Any]]:
        """The base model, with the bank of `adapters` if there are any, and its parameters."""
        plain = dataclasses.replace(setup, model=AdaptedModel(setup.model.backbone), trainable=())
        with parallel.use_mesh(self._mesh, self._rules):
            in_memory = None if loaded_base is None else loaded_base.parameters
            loaded = in_memory or load_parameters(plain, self._mesh, self._rules)
            if not adapters:
                return plain.model, loaded.tree()
            base: Any = loaded.base  # not None: all parameters are frozen, so they come from a checkpoint
            self._members = [self._member(setup, adapter, base) for adapter in adapters.values()]
            bank, stacked = stack_adapters(setup.model.backbone, self._members)
            return AdaptedModel(setup.model.backbone, bank), {**loaded.tree(), "adapter": stacked}

    def replace(self, name: str, params: Mapping[str, Any]) -> None:
        """Replaces the parameters of the adapter `name` by others of the same shapes; nothing is compiled again."""
        number = self.names.index(name)
        self._members[number] = (self._members[number][0], params)
        with parallel.use_mesh(self._mesh, self._rules):
            _, stacked = stack_adapters(self._setup.model.backbone, self._members)
        self._params = {**self._params, "adapter": stacked}

    def _member(
        self, setup: Setup, adapter: Any, base: checkpoints.BaseReference
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Module and parameters of an adapter, which is in a folder or in memory."""
        if isinstance(adapter, tuple):
            return adapter
        folder: str = adapter
        _, facts = checkpoints.open_adapter(folder)
        if problem := facts.other_inputs(folder, self._vocabulary.input_ids("")):
            raise UserError(problem)
        check_adapter(setup, folder, facts)
        module = make_adapter(facts.method, facts.settings)
        place = parallel.replicated(self._mesh)
        shapes = parallel.unbox(abstract_params(AdaptedModel(setup.model.backbone, module))["adapter"])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
        scale = setup.model.backbone.inputs_embeds_scale
        leaves, _ = checkpoints.load_adapter(
            folder, abstract, base, setup.allow_other_base, setup.allow_other_precision, inputs_embeds_scale=scale
        )
        return module, paths.unflatten(leaves)

    def __call__(
        self,
        inputs: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        images: Any = None,
        adapters: Names = ONLY,
        *,
        scores: bool = False,
        choices: Sequence[str | Sequence[str]] | None = None,
    ) -> Any:
        """Predicts the output for one input, or for each of several.

        Args:
          inputs: a text as the model sees it, or several; or, with a run on your own files, rows by column (`{"review": "..."}`), which
            the run's INPUTS formats.
          images: for models with images, one for each input (None if no text has a place for one): a path, a file's bytes (b"" for a text without an image), a PIL image, a uint8 array [height, width, 3] of any
            size, or a float32 array of the model's shape in [-1, 1].
          adapters: a name for all inputs, or one for each; None is the base model without an adapter. By default the only adapter.
          scores: also return log-likelihoods, in nats: the sum over the tokens of the output, including EOS.
          choices: the possible answers; the most likely one is returned. Longer answers are less likely by their length alone. Where
            targets are sets of labels, each is a whole set: a list of labels, or their text.

        Returns:
          For one input a text; with `scores`, `(text, log-likelihood)`; with `choices` and `scores`, a dict of all choices, the most likely
          first. For several inputs, a list of these in their order. Where the run's targets are sets of labels (LISTS), a list of labels stands
          for a text, but for the keys of a dict.

        Raises:
          UserError: for an unknown adapter, images that are missing, too many or damaged, and choices that are too long.
        """
        if isinstance(inputs, (str, Mapping)):
            one_image = None if images is None else [images]
            one_name = [adapters] if isinstance(adapters, str) else adapters
            return self([inputs], one_image, one_name, scores=scores, choices=choices)[0]
        rows, index = self._examples(inputs, images), self._index(adapters, len(inputs))
        if choices is not None:
            if isinstance(choices, str):
                raise UserError(f"`choices` is the text {choices!r}; give a list of answers.")
            likelihoods = self._choice_likelihoods(rows, index, self._choice_texts(choices))
            return likelihoods if scores else [self._answer(next(iter(row))) for row in likelihoods]
        ids = list(self._run(self._generate, rows, index, targets=False))
        self.rows_sampled += len(rows)
        texts = [self._answer(self._text(row)) for row in ids]
        if not scores:
            return texts
        targets = [self._until_end(row) for row in ids]
        likelihoods = self._likelihoods([row | {"targets": target} for row, target in zip(rows, targets)], index)
        return list(zip(texts, likelihoods))

    def _answer(self, text: str) -> str | list[str]:
        return text if self.labels is None else self.labels.split(text)

    def _choice_texts(self, choices: Sequence[str | Sequence[str]]) -> list[str]:
        """The choices as the targets that they were in training."""
        labels = self.labels
        if labels is None:
            return list(choices)  # pyright: ignore[reportReturnType]  # the vocabulary refuses other things than texts
        try:
            return [labels.text(labels.split(choice) if isinstance(choice, str) else choice) for choice in choices]
        except TypeError as e:
            raise UserError(f"A choice cannot be written: {e}.") from e

    def _choice_likelihoods(self, rows: list[dict], index: np.ndarray, choices: list[str]) -> list[dict[str, float]]:
        targets = [[*self._vocabulary.encode(text), self._vocabulary.eos] for text in choices]
        if len(set(map(tuple, targets))) < max(2, len(targets)):
            raise UserError("`choices` needs two answers or more, all different to the vocabulary.")
        longest = self.task_feature_lengths["targets"]
        long = next((text for text, target in zip(choices, targets) if len(target) > longest), None)
        if long is not None:
            raise UserError(f"The choice {long!r} is longer than {longest} tokens (task_feature_lengths).")
        pairs = [row | {"targets": target} for row in rows for target in targets]
        scores = np.reshape(self._likelihoods(pairs, np.repeat(index, len(choices))), (len(rows), len(choices)))
        return [dict(sorted(zip(choices, map(float, row)), key=lambda pair: -pair[1])) for row in scores]

    # --- batches ---

    def _run(self, program: Callable, rows: Sequence[dict], index: np.ndarray, targets: bool) -> Iterator[np.ndarray]:
        """The result of `program` for each row; all batches have one shape."""
        if not rows:
            return
        lengths = bucket_lengths(rows, self.task_feature_lengths)
        devices = parallel.data_axis_size(self._mesh)
        size = -(-min(self.batch_size, power_of_two(len(rows))) // devices) * devices
        converter = dataclasses.replace(self._setup.converter(lengths), task_name="the rows")
        local_rows = parallel.local_rows(size, self._mesh)
        with parallel.use_mesh(self._mesh, self._rules):
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                batch = converter(chunk, size)
                if not targets:
                    batch = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
                    batch["sampling_ids"] = self.rows_sampled + np.arange(start, start + size, dtype=np.int32)[:, None]
                if self.names:
                    batch["adapter_index"] = np.pad(index[start : start + size], (0, size - len(chunk)))
                batch = parallel.put_batch({name: x[local_rows] for name, x in batch.items()}, self._mesh)
                with timings.phase("predicting"):
                    results = parallel.to_host(parallel.settle(program(self._params, batch)))[: len(chunk)]
                yield from results

    def _likelihoods(self, rows: Sequence[dict], index: np.ndarray) -> list[float]:
        return [float(x) for x in self._run(self._score, rows, index, targets=True)]

    def _until_end(self, ids: np.ndarray) -> list[int]:
        tokens, before = ids.tolist(), self._setup.model.backbone.token_ids.before_end(ids)
        return tokens[: len(before) + 1]

    def _text(self, ids: np.ndarray) -> str:
        text = self._vocabulary.decode(self._setup.model.backbone.token_ids.before_end(ids))
        return text if self._stop is None else self._stop.cut(text)

    # --- the caller's inputs ---

    def _examples(self, inputs: Sequence[str | Mapping[str, Any]], images: Any) -> list[dict]:
        images = None if images is None else list(images)
        if self.image_shape is not None and images is None and self._without_images:
            images = [b""] * len(inputs)
        lacks = images is None and self._setup.needs_images
        if lacks or (images is not None and (self.image_shape is None or len(images) != len(inputs))):
            wanted = "an image for each input (b'' for none)" if self.image_shape is not None else "no images"
            raise UserError(f"The model takes {wanted}, not {len(inputs)} inputs and {len(images or ())} images.")
        rows = []
        for number, text in enumerate(map(self._as_seen, inputs)):
            most = self.task_feature_lengths["inputs"]
            ids = self._vocabulary.input_ids(text, most)
            self.inputs_cut += len(ids) == most and len(self._vocabulary.input_ids(text)) > most
            rows.append({"inputs": ids, "targets": [], "inputs_pretokenized": text})
            if images is not None and self.image_shape is not None:
                preparation = self.preparation.for_text(text)
                rows[-1]["image"] = pixels(images[number], self.image_shape, f"Image {number}", preparation)
        return rows

    def _as_seen(self, row: str | Mapping[str, Any]) -> str:
        if isinstance(row, str):
            return row
        if self._template is None:
            raise UserError("Only a run on your own files has INPUTS that formats rows by column; give texts instead.")
        missing = next((name for name in self._template.columns if name not in row), None)
        if missing is not None:
            raise UserError(
                f"A row has no {missing!r}, which the run's INPUTS names; it has {', '.join(map(str, row))}."
            )
        return self._template.text(row)

    def _index(self, adapters: Names, count: int) -> np.ndarray:
        """int32 [rows]: where each row's adapter is in the bank."""
        if isinstance(adapters, AdapterChoice):
            if len(self.names) > 1:
                raise UserError(f"Which adapter? Name one of {', '.join(self.names)}; None is the base model.")
            adapters = self.names[0] if self.names else None
        names = [adapters] * count if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(names) != count:
            raise UserError(f"{len(names)} adapters are named for {count} inputs; name one for each, or one for all.")
        unknown = next((name for name in names if name is not None and name not in self.names), None)
        if unknown is not None:
            raise UserError(f"There is no adapter {unknown!r}; there are: {', '.join(self.names) or 'none'}.")
        return np.array([NONE if name is None else self.names.index(name) + 1 for name in names], np.int32)
