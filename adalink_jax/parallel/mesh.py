"""The device mesh, with axes `("slice", "data", "model")`. It exists even for one device, so all runs share one code path."""

from collections.abc import Sequence

import gin
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from adalink_jax.errors import UserError
from adalink_jax.typed_values import PositiveInt

SLICE, DATA, MODEL = AXES = ("slice", "data", "model")
BATCH_AXES = (SLICE, DATA)


@gin.configurable(denylist=["devices"])  # pyright: ignore[reportCallIssue]  # gin has no type hints
def make_mesh(
    data: int = -1,
    model: PositiveInt = 1,
    slices: PositiveInt = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # a variable to pyright
) -> Mesh:
    """Makes a mesh of `slices x data x model` devices with Auto axis types.

    Only the outermost axis crosses the network between TPU slices (or between nodes, if devices know of no slices). The batch
    is split over `slice` and `data`; parameters are split over `data` only (FSDP), and gathered in every step.

    Args:
      data: devices of a slice that split the batch; -1 takes all that `model` leaves.
      model: devices that split the heads, the MLP and the vocabulary (tensor parallelism).
      slices: groups of devices that each hold a copy of all parameters.
      devices: the devices; None takes all that JAX sees. Planning passes those of a topology.

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
    actual_slices = len({getattr(device, "slice_index", None) for device in devices})
    if actual_slices > 1 and actual_slices != slices:
        raise UserError(f"The {count} devices are {actual_slices} slices; set make_mesh.slices = {actual_slices}.")
    if actual_slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, data, model), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    # `allow_split`: an axis of the slice is split if no product of whole axes gives the mesh (128 x 2 on 16x16).
    grid = mesh_utils.create_device_mesh((slices, data, model), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_axis_size(mesh: Mesh) -> int:
    """Returns the number of parts that `mesh` splits a batch into."""
    return int(np.prod([mesh.shape[name] for name in BATCH_AXES]))
