"""Converts tokenised examples to model features, in NumPy, for every source of examples.

Feature names are t5x's: `encoder_input_tokens` [B, L], `decoder_target_tokens`, `decoder_input_tokens`,
`decoder_loss_weights` [B, T]; with images, `images` [B, height, width, channels] in [-1, 1], and `image_present` bool [B]
if rows may lack one. Instead of `images` there may be the cached outputs of a frozen vision tower, `image_features`
[B, N, width]. `qformer_input_tokens` [B, L] is the instruction in the vocabulary of the Q-Former.

Rows of packed examples have t5x's `encoder_segment_ids`, `encoder_positions` [B, L], `decoder_segment_ids`, `decoder_positions` [B, T]
as well, int32: the number of a token's example in its row, from 1, and the token's position in that example; both 0 for padding.

An image stays an encoded file until the process that needs its row converts it.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.images import PREPARATION, ImageShape, Preparing, decode_image, load_image, read_image
from adalink_jax.data.task_protocol import Example
from adalink_jax.data.transformers_vocabulary import PAD
from adalink_jax.data.vision_cache import VisionCache, image_key
from adalink_jax.data.wordpiece_vocabulary import WordPieceVocabulary
from adalink_jax.errors import UserError
from adalink_jax.token_ids import T5_IDS, TokenIds

Batch = dict[str, np.ndarray]
_THREADS = concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="images")
INSTRUCTION = "qformer_input_tokens"  # equals the constant of `models.blip2`, whose import would bring JAX


@dataclasses.dataclass(frozen=True)
class FeatureConverter:
    """Pads and stacks examples `{"inputs": ids, "targets": ids, "image" or "image_file": (optional)}`.

    An `image` is a float32 array of the model's size in [-1, 1], or the bytes of an image file of any size and format (empty:
    the example has no image); an `image_file` is the path of such a file.

    Attributes:
      task_feature_lengths: `{"inputs": L, "targets": T}`. Longer sequences are cut.
      image_shape: (height, width, channels) that the model takes; None accepts arrays of any shape, and examples without
        images.
      task_name: the source of the examples, for error messages.
      instructions: the Q-Former's vocabulary, if it reads the text too.
      cache: supplies the vision tower's outputs instead of the images, which are then not decoded.
      preparation: how files of images are scaled, cropped and made opaque.
      token_ids: the model's special ids.
      reads_text: whether the model's encoder reads text; if not, there are no `encoder_input_tokens`, and `preparation` gets the text.
      image_places: the text's id whose places the tokens of an example's image take, and how many they are; batches without images
        then have no `images`. None for a model that reads images before the text, and needs them.
    """

    task_feature_lengths: Mapping[str, int]
    image_shape: ImageShape | None = None
    task_name: str = "the data"
    instructions: WordPieceVocabulary | None = None
    cache: VisionCache | None = None
    preparation: Preparing = PREPARATION
    token_ids: TokenIds = T5_IDS
    reads_text: bool = True
    image_places: tuple[int, int] | None = None

    def __call__(self, examples: Sequence[Example], batch_size: int | None = None) -> Batch:
        """Returns the features of `examples`, with empty rows of loss weight 0 added up to `batch_size`.

        Raises:
          UserError: for an image that is missing or damaged, or an array of another size than the model's, for text without
            the places that the image's tokens take or with places and no image, and for text with an id that the model masks;
            names the example, and the file if it is one.
        """
        rows, ids = batch_size or len(examples), self.token_ids
        if ids.pad != PAD:
            self._refuse_masked(examples)
        inputs, targets = (
            _stack([example[side] for example in examples], rows, self.task_feature_lengths[side], ids.pad)
            for side in ("inputs", "targets")
        )
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.hstack([np.full_like(targets[:, :1], ids.start), targets[:, :-1]]),
            "decoder_loss_weights": (targets != ids.pad).astype(np.float32),
        }
        if not self.reads_text:
            del batch["encoder_input_tokens"]
        if self.instructions is not None:
            instructions = [self.instruction(example) for example in examples]
            batch[INSTRUCTION] = _stack(instructions, rows, inputs.shape[1], PAD)
        if self.image_places is not None:
            self._check_places(examples, inputs, *self.image_places)
        if (self.image_shape is None or self.image_places is not None) and not any(map(has_image, examples)):
            return batch
        if self.cache is None:
            name, values = "images", self._images(examples)
        else:
            name, values = "image_features", [self._cached(self.cache, example) for example in examples]
        padding = rows - len(examples)
        batch[name] = np.stack([*values, *[np.zeros_like(values[0])] * padding])
        if any(map(_encoded, examples)):
            batch["image_present"] = np.array([not lacks_image(example) for example in examples] + [False] * padding)
        return batch

    def packed(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Returns the features of rows that hold several examples each, which must fit.

        Raises:
          UserError: for examples with images, and for text with an id that the model masks.
        """
        examples, ids = [example for row in rows for example in row], self.token_ids
        if any(map(has_image, examples)):
            raise UserError(f"{self.task_name} has images, and only text can be packed; set PACK_EXAMPLES to False.")
        if ids.pad != PAD:
            self._refuse_masked(examples)
        encoder, decoder = (
            [_joined([example[side] for example in row], self.task_feature_lengths[side], ids.pad) for row in rows]
            for side in ("inputs", "targets")
        )
        inputs, encoder_segments, encoder_positions = map(np.stack, zip(*encoder))
        targets, decoder_segments, decoder_positions = map(np.stack, zip(*decoder))
        before = np.where(decoder_positions > 0, np.roll(targets, 1, axis=1), ids.start)
        return {
            "encoder_input_tokens": inputs,
            "encoder_segment_ids": encoder_segments,
            "encoder_positions": encoder_positions,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.where(decoder_segments > 0, before, ids.pad),
            "decoder_loss_weights": (targets != ids.pad).astype(np.float32),
            "decoder_segment_ids": decoder_segments,
            "decoder_positions": decoder_positions,
        }

    def _refuse_masked(self, examples: Sequence[Example]) -> None:
        """Vocabularies pad with 0; where the model pads with another id, that may be a piece of text."""
        for side, length in self.task_feature_lengths.items():
            masked = next((example for example in examples if self.token_ids.pad in list(example[side][:length])), None)
            if masked is not None:
                raise UserError(
                    f"In the {side} of {self._name(masked)}, id {self.token_ids.pad} is text, and the model masks it as padding "
                    f"(its pad_token_id); use a vocabulary without this id."
                )

    def _check_places(self, examples: Sequence[Example], inputs: np.ndarray, placeholder: int, number: int) -> None:
        for example, row in zip(examples, inputs):
            places = np.count_nonzero(row == placeholder)
            if places and not has_image(example):
                raise UserError(
                    f"The inputs of {self._name(example)} have {places} places for the tokens of an image (id {placeholder}), and there is "
                    f"no image; leave out <start_of_image>, or give the image."
                )
            if places != number and has_image(example) and not lacks_image(example):
                raise UserError(
                    f"The inputs of {self._name(example)} have {places} places for the {number} tokens of its image (id {placeholder}); write "
                    f"<start_of_image> once where the image stands, and give TASK_FEATURE_LENGTHS['inputs'] room for all of it."
                )

    def instruction(self, example: Example) -> list[int]:
        """The ids of an example's text in the Q-Former's vocabulary; empty if it reads no text."""
        if self.instructions is None:
            return []
        return self.instructions.encode(self._text(example, "the Q-Former"), self.task_feature_lengths["inputs"])

    def _text(self, example: Example, reader: str) -> str:
        if "inputs_pretokenized" not in example:
            raise UserError(f"{self._name(example)} has ids but no text (`inputs_pretokenized`), which {reader} reads.")
        return text_of(example["inputs_pretokenized"])

    def key(self, example: Example) -> bytes:
        """The key of an example's image in a cache; includes the instruction if the tower reads it."""
        image = example.get("image")
        if image is None:
            image = read_image(text_of(example["image_file"]))
        return image_key(image, self.instruction(example))

    def image(self, example: Example) -> np.ndarray:
        """The image of one example: float32 [height, width, channels] in [-1, 1], or what else `preparation` makes.

        Raises:
          UserError: see `__call__`.
        """
        if not has_image(example):
            raise UserError(
                f"There is no image in {self._name(example)}, and the model takes images; use a task with images, set BLANK_IMAGE = "
                f"True for a table of your own, or use a model of text."
            )
        image, shape = example.get("image"), self.image_shape
        if image is None or isinstance(image, bytes):
            if shape is None:
                raise UserError(
                    f"The image of {self._name(example)} is an encoded file; give FeatureConverter the model's image_shape."
                )
            if lacks_image(example):
                return np.zeros(shape, np.float32)
            preparation = self.preparation
            if not self.reads_text:
                preparation = preparation.for_text(self._text(example, "the model, above its picture,"))
            if image is None:
                return load_image(text_of(example["image_file"]), shape, preparation)
            return decode_image(image, shape, f"The image of {self._name(example)}", preparation)
        if shape is not None and np.shape(image) != tuple(shape):
            raise UserError(
                f"The image of {self._name(example)} is {np.shape(image)} and the model takes {tuple(shape)}; give the "
                f"encoded file, which is scaled, or arrays of the model's size."
            )
        return np.asarray(image, np.float32)

    def _images(self, examples: Sequence[Example]) -> list[np.ndarray]:
        if _encoded(examples[0]) and len(examples) > 1:
            return list(_THREADS.map(self.image, examples))  # Pillow releases the interpreter lock
        return [self.image(example) for example in examples]

    def _cached(self, cache: VisionCache, example: Example) -> np.ndarray:
        if lacks_image(example):
            return np.zeros(cache.tower.shape, np.dtype(cache.tower.dtype))
        return cache.read(self.key(example), self._name(example))

    def _name(self, example: Example) -> str:
        name = example.get("inputs_pretokenized")
        if name is None:
            return f"an example of {self.task_name} (its first ids are {np.asarray(example['inputs'])[:8].tolist()})"
        return f"the example {text_of(name)[:100]!r} of {self.task_name}"


def _stack(sequences: Sequence[Sequence[int]], rows: int, length: int, pad: int) -> np.ndarray:
    """Token ids padded and cut to int32 [rows, length]."""
    out = np.full((rows, length), pad, np.int32)
    for row, sequence in zip(out, sequences):
        ids = np.asarray(sequence)[:length]
        row[: len(ids)] = ids
    return out


def _joined(sequences: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row [length] of token ids, the number of each token's sequence, from 1, and its position there; int32."""
    tokens, segments, positions = np.full(length, pad, np.int32), np.zeros(length, np.int32), np.zeros(length, np.int32)
    start = 0
    for number, sequence in enumerate(sequences, 1):
        ids = np.asarray(sequence)[:length]
        part = slice(start, start := start + len(ids))
        tokens[part], segments[part], positions[part] = ids, number, np.arange(len(ids))
    return tokens, segments, positions


def has_image(example: Container[str]) -> bool:
    """Whether an example, or the features of a task, include an image in any form."""
    return "image" in example or "image_file" in example


def _encoded(example: Example) -> bool:
    return isinstance(example.get("image"), bytes) or "image_file" in example


def lacks_image(example: Example) -> bool:
    """Whether an example of a task with images has none: its text stands alone, and the model gets a blank image."""
    image = example.get("image", example.get("image_file"))
    return isinstance(image, (bytes, str)) and not image


def text_of(value: Any) -> str:
    """Converts text as examples hold it (str, bytes, or seqio's array of one of them) to str."""
    value = np.asarray(value).item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value
