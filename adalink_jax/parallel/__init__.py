"""Meshes and logical axis rules: where every array lives. Imports nothing of the project."""

from adalink_jax.parallel.mesh import data_axis_size, make_mesh
from adalink_jax.parallel.sharding import (
    batch_sharding,
    constrain,
    logical_axis_rules,
    param_shardings,
    put_batch,
    replicated,
    settle,
    unbox,
    use_mesh,
)

__all__ = [
    "batch_sharding",
    "constrain",
    "data_axis_size",
    "logical_axis_rules",
    "make_mesh",
    "param_shardings",
    "put_batch",
    "replicated",
    "settle",
    "unbox",
    "use_mesh",
]
