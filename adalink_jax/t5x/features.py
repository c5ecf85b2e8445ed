"""seqio's features for a model that takes images, as t5x reads them."""

import seqio
import tensorflow as tf


class ImageFeatureConverter(seqio.EncDecFeatureConverter):
    """`EncDecFeatureConverter` with `images` float32 [height, width, channels], from an example's `image` of that form."""

    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "images": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=3),
    }

    def __init__(self, image_shape: tuple[int, int, int], **more):
        """Args:
        image_shape: what the model takes.
        more: see `seqio.FeatureConverter`.
        """
        self._shape = tuple(image_shape)
        super().__init__(**more)

    def __call__(self, ds, task_feature_lengths):
        """See `seqio.FeatureConverter`; an image has no length, though seqio's evaluator gives it one."""
        return super().__call__(ds, {name: task_feature_lengths[name] for name in self.TASK_FEATURES})

    def _convert_example(self, features):
        return super()._convert_example(features) | {"images": tf.ensure_shape(features["image"], self._shape)}

    def get_model_feature_lengths(self, task_feature_lengths):
        """See `seqio.FeatureConverter`."""
        return super().get_model_feature_lengths(task_feature_lengths) | {"images": self._shape[0]}
