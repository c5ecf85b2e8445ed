"""What `adalink_jax.t5x` needs of seqio: a feature converter for models that take images, and a check of tasks."""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf
from seqio import EncDecFeatureConverter, Vocabulary

from adalink_jax.data.seqio_vocabulary import check_mixed
from adalink_jax.data.seqio_vocabulary import check_task as check_inputs
from adalink_jax.errors import UserError

__all__ = ["EncDecFeatureConverter", "ImageFeatureConverter", "Vocabulary", "check_task"]

_IMAGES = ("image", "image_file")


def check_task(name: str, takes_images: bool) -> None:
    """Checks that a model can be trained on a seqio task or mixture in t5x.

    Args:
      name: the task or mixture.
      takes_images: whether the model takes images.

    Raises:
      UserError: if it is not declared, has images if the model takes none or the other way round, has files of images, or
        ends inputs with EOS that its vocabulary does not end with it, and for a mixture of tasks whose features or vocabularies differ.
    """
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"There is no task or mixture {name!r} (MIXTURE_OR_TASK_NAME); set MIXTURE_OR_TASK_MODULE to the module that declares it "
            f"(only `adalink train` reads your own files, gin/tasks/files.gin)."
        )
    check_mixed(tasks := seqio.get_subtasks(seqio.get_mixture_or_task(name)), by_seqio=True)
    for task in tasks:
        check_inputs(task)
        image = next((task.output_features[key] for key in _IMAGES if key in task.output_features), None)
        if (image is not None) != takes_images:
            has, takes = ("images", "no images") if image else ("no images", "images")
            raise UserError(f"{task.name} has {has}, but the model takes {takes}; use another task or another model.")
        if image is not None and image.rank == 0:
            raise UserError(
                f"The images of {task.name} are files, which seqio's evaluator cannot pad; use a task whose `image` is an array of the model's "
                f"size, or `adalink train`, which reads files."
            )


class ImageFeatureConverter(EncDecFeatureConverter):
    """`EncDecFeatureConverter` with `images` float32 [height, width, channels], from an example's `image` of that shape."""

    MODEL_FEATURES = {
        **EncDecFeatureConverter.MODEL_FEATURES,
        "images": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=3),
    }

    def __init__(self, image_shape: tuple[int, int, int], **options: Any):
        """Args:
        image_shape: the images of the model.
        options: see `seqio.FeatureConverter`.
        """
        self._shape = tuple(image_shape)
        super().__init__(**options)

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        """See `seqio.FeatureConverter`; an image has no length, though seqio's evaluator passes one."""
        return super().__call__(ds, {name: task_feature_lengths[name] for name in self.TASK_FEATURES})

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return {
            **super()._convert_example(features),
            "images": tf.ensure_shape(features["image"], self._shape),
        }  # fmt: skip

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """See `seqio.FeatureConverter`."""
        return {**super().get_model_feature_lengths(task_feature_lengths), "images": self._shape[0]}
