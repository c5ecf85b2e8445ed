"""Meshes and logical axis rules: where every array lives. Imports nothing of the project."""

from adalink_jax.parallel.mesh import data_axis_size, make_mesh
from adalink_jax.parallel.sharding import (
    batch_sharding,
    by_shard,
    constrain,
    constrain_shards,
    logical_axis_rules,
    param_shardings,
    put_batch,
    replicated,
    settle,
    shards_of,
    unbox,
    use_mesh,
)

__all__ = [
    "batch_sharding",
    "by_shard",
    "constrain",
    "constrain_shards",
    "data_axis_size",
    "logical_axis_rules",
    "make_mesh",
    "param_shardings",
    "put_batch",
    "replicated",
    "settle",
    "shards_of",
    "unbox",
    "use_mesh",
]
