"""The device mesh: axes `("slice", "data", "model")`, made from gin even when there is one device."""

from collections.abc import Sequence

import gin
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from adalink_jax.errors import UserError

SLICE, DATA, MODEL = AXES = ("slice", "data", "model")
BATCH_AXES = (SLICE, DATA)


@gin.configurable(denylist=["devices"])
def make_mesh(data: int = -1, model: int = 1, slices: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `slices x data x model` devices with Auto axis types.

    The outermost axis alone crosses the network between TPU slices (or between nodes, where devices know of no slices);
    both it and `data` split the batch, and only `data` splits parameters (FSDP), which are gathered in every step.

    Args:
      data: devices of a slice that split the batch; -1 takes all that `model` leaves.
      model: devices that split the heads, the MLP and the vocabulary (tensor parallelism).
      slices: groups of devices that hold a copy of all parameters each.
      devices: all that JAX sees, or those of a topology that is planned for.

    Raises:
      UserError: if the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, others = len(devices), model * slices
    if data == -1 and min(model, slices) > 0 and count % others == 0:
        data = count // others
    if min(data, model, slices) < 1 or data * others != count:
        shown = f"slices={slices} x " if slices != 1 else ""
        raise UserError(
            f"The mesh {shown}data={data} x model={model} does not cover the {count} devices that JAX sees; set make_mesh.data, "
            f"make_mesh.model and make_mesh.slices so that their product is {count}."
        )
    found = len({getattr(device, "slice_index", None) for device in devices})
    if found > 1 and found != slices:
        raise UserError(f"The {count} devices are {found} slices; set make_mesh.slices = {found}.")
    if found > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, data, model), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    # An axis of the slice is split where no product of whole axes gives the mesh (128 x 2 on 16x16).
    grid = mesh_utils.create_device_mesh((slices, data, model), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_axis_size(mesh: Mesh) -> int:
    """Number of ways in which `mesh` splits a batch."""
    return int(np.prod([mesh.shape[name] for name in BATCH_AXES]))
