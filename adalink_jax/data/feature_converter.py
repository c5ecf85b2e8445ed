"""Tokenised examples -> model features, in NumPy, for every source of examples.

Feature names are t5x's: `encoder_input_tokens` [B, L], `decoder_target_tokens`, `decoder_input_tokens`,
`decoder_loss_weights` [B, T]; with images, `images` [B, height, width, channels] in [-1, 1], and `image_present` bool [B]
where a row may have none. In place of `images` there may be what a frozen vision tower made of them, `image_features`
[B, N, width], from a cache. `qformer_input_tokens` [B, L] is the instruction in the vocabulary of a Q-Former that reads it.

An image stays an encoded file until the process that needs its row converts it.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from adalink_jax.data.images import ImageShape, decode_image, load_image, read_image
from adalink_jax.data.vision_cache import VisionCache, image_key
from adalink_jax.data.vocabularies import PAD, WordPieceVocabulary
from adalink_jax.errors import UserError

INSTRUCTION = "qformer_input_tokens"  # as `models.blip2` reads it, whose import would bring JAX


@dataclasses.dataclass(frozen=True)
class FeatureConverter:
    """Pads and stacks examples `{"inputs": ids, "targets": ids, "image" or "image_file": (optional)}`.

    An `image` is a float32 array of the model's size in [-1, 1], or the bytes of a picture of any size and format (no bytes:
    the example has no image); an `image_file` is the path of one.

    Attributes:
      task_feature_lengths: `{"inputs": L, "targets": T}`. Longer sequences are cut.
      image_shape: (height, width, channels) that the model takes; None where the caller's arrays are right as they are,
        or there are none.
      task_name: what errors call the source of the examples.
      instructions: the Q-Former's vocabulary, where it reads the text too.
      cache: gives the features of each image, which is then not decoded; None: images are given.
    """

    task_feature_lengths: Mapping[str, int]
    image_shape: ImageShape | None = None
    task_name: str = "the data"
    instructions: WordPieceVocabulary | None = None
    cache: VisionCache | None = None

    def __call__(self, examples: Sequence[dict], batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Features of `examples`, with empty rows of loss weight 0 added up to `batch_size`.

        Raises:
          UserError: for an image that is missing or damaged, or an array of another size than the model's; names the
            example, and the file if it is one.
        """
        rows = batch_size or len(examples)
        inputs = self._stack(examples, "inputs", rows)
        targets = self._stack(examples, "targets", rows)
        shifted = np.zeros_like(targets)
        shifted[:, 1:] = targets[:, :-1]
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": shifted,  # starts with id 0, as T5 does
            "decoder_loss_weights": (targets != PAD).astype(np.float32),
        }
        if self.instructions is not None:
            words = [self.instruction(example) for example in examples]
            batch[INSTRUCTION] = self._stack([{INSTRUCTION: ids} for ids in words], INSTRUCTION, rows, inputs.shape[1])
        if self.image_shape is None and not has_image(examples[0]):
            return batch
        name, read = ("images", self._images) if self.cache is None else ("image_features", self._features)
        found = read(examples)
        batch[name] = np.zeros((rows, *found[0].shape), found[0].dtype)
        batch[name][: len(examples)] = np.stack(found)
        if any(map(_encoded, examples)):
            batch["image_present"] = np.zeros(rows, bool)
            batch["image_present"][: len(examples)] = [not _absent(example) for example in examples]
        return batch

    def instruction(self, example: dict) -> list[int]:
        """The ids of an example's text in the Q-Former's vocabulary; none where it reads no text."""
        if self.instructions is None:
            return []
        if "inputs_pretokenized" not in example:
            raise UserError(f"There is no text (`inputs_pretokenized`) beside the ids of {self._name(example)}.")
        return self.instructions.encode(text_of(example["inputs_pretokenized"]))[: self.task_feature_lengths["inputs"]]

    def key(self, example: dict) -> bytes:
        """What the example's image is known by in a cache, with its instruction where the tower reads it."""
        image = example.get("image")
        if image is None:
            image = read_image(text_of(example["image_file"]))
        return image_key(image, self.instruction(example))

    def image(self, example: dict) -> np.ndarray:
        """The image of one example: float32 [height, width, channels] in [-1, 1].

        Raises:
          UserError: as from a call.
        """
        if not has_image(example):
            raise UserError(
                f"There is no image in {self._name(example)}, and the model takes images; use a task with images, or a "
                f"model of text."
            )
        image, shape = example.get("image"), self.image_shape
        if image is None or isinstance(image, bytes):
            if shape is None:
                raise UserError(
                    f"The image of {self._name(example)} is an encoded file; give FeatureConverter the model's image_shape."
                )
            if _absent(example):
                return np.zeros(shape, np.float32)
            if image is None:
                return load_image(text_of(example["image_file"]), shape)
            return decode_image(image, shape, f"The image of {self._name(example)}")
        if shape is not None and np.shape(image) != tuple(shape):
            raise UserError(
                f"The image of {self._name(example)} is {np.shape(image)} and the model takes {tuple(shape)}; give the "
                f"encoded file, which is scaled, or arrays of the model's size."
            )
        return np.asarray(image, np.float32)

    def _images(self, examples: Sequence[dict]) -> list[np.ndarray]:
        if _encoded(examples[0]) and len(examples) > 1:
            return list(_threads().map(self.image, examples))  # Pillow works beside the interpreter
        return [self.image(example) for example in examples]

    def _features(self, examples: Sequence[dict]) -> list[np.ndarray]:
        shape, dtype = self.cache.tower.shape, np.dtype(self.cache.tower.dtype)
        read = lambda ex: np.zeros(shape, dtype) if _absent(ex) else self.cache.read(self.key(ex), self._name(ex))
        return [read(example) for example in examples]

    def _name(self, example: dict) -> str:
        name = example.get("inputs_pretokenized")
        if name is None:
            return f"an example of {self.task_name} (its first ids are {np.asarray(example['inputs'])[:8].tolist()})"
        return f"the example {text_of(name)[:100]!r} of {self.task_name}"

    def _stack(self, examples, name, rows, length=None):
        length = length or self.task_feature_lengths[name]
        out = np.full((rows, length), PAD, np.int32)
        for row, example in zip(out, examples):
            ids = np.asarray(example[name])[:length]
            row[: len(ids)] = ids
        return out


def has_image(example: dict) -> bool:
    """Whether an example has an image, in whatever form."""
    return "image" in example or "image_file" in example


def _encoded(example: dict) -> bool:
    return isinstance(example.get("image"), bytes) or "image_file" in example


def _absent(example: dict) -> bool:
    image = example.get("image", example.get("image_file"))
    return isinstance(image, (bytes, str)) and not image


def text_of(value) -> str:
    """The text of an example, as str, bytes or an array of them, as seqio has it."""
    value = np.asarray(value).item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="images")
