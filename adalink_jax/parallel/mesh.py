"""The device mesh: axes `("data", "model")`, made from gin even when there is one device."""

import gin
import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from adalink_jax.errors import UserError

AXES = ("data", "model")


@gin.configurable
def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh of `data x model` devices with Auto axis types.

    Args:
      data: devices that split the batch; -1 takes all that `model` leaves.
      model: devices that split the heads, the MLP and the vocabulary (tensor parallelism).

    Raises:
      UserError: if the product is not the number of devices that JAX sees.
    """
    count = jax.device_count()
    if data == -1 and model > 0 and count % model == 0:
        data = count // model
    if data < 1 or model < 1 or data * model != count:
        raise UserError(
            f"The mesh data={data} x model={model} does not cover the {count} devices that JAX sees; "
            f"set make_mesh.data and make_mesh.model so that their product is {count}."
        )
    return jax.make_mesh((data, model), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_axis_size(mesh: Mesh) -> int:
    """Number of ways in which `mesh` splits a batch."""
    return int(np.prod([mesh.shape[name] for name in mesh.axis_names if name != "model"]))
