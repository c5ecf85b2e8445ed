"""seqio's features for a model that takes images, as t5x reads them."""

import numpy as np
import seqio
import tensorflow as tf

from adalink_jax.data.feature_converter import FeatureConverter


class ImageFeatureConverter(seqio.EncDecFeatureConverter):
    """`EncDecFeatureConverter` with `images` float32 [height, width, channels], from an example's `image` or `image_file`.

    What is encoded is decoded as our own loop decodes it.
    """

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
        self._convert = FeatureConverter({"inputs": 1, "targets": 1}, self._shape)
        super().__init__(**more)

    def __call__(self, ds, task_feature_lengths):
        """See `seqio.FeatureConverter`; an image has no length, though seqio's evaluator gives it one."""
        return super().__call__(ds, {name: task_feature_lengths[name] for name in self.TASK_FEATURES})

    def _convert_example(self, features):
        return super()._convert_example(features) | {"images": self._image(features)}

    def _image(self, features) -> tf.Tensor:
        name = next((name for name in ("image", "image_file") if name in features), None)
        if name is None:
            raise ValueError("The task has no feature `image` or `image_file`, and the model takes images.")
        if features[name].dtype != tf.string:
            return tf.ensure_shape(features[name], self._shape)
        decode = lambda value: np.ascontiguousarray(self._convert.image({name: value, "inputs": ()}))
        image = tf.numpy_function(decode, [features[name]], tf.float32, stateful=False)
        return tf.ensure_shape(image, self._shape)

    def get_model_feature_lengths(self, task_feature_lengths):
        """See `seqio.FeatureConverter`."""
        return super().get_model_feature_lengths(task_feature_lengths) | {"images": self._shape[0]}
