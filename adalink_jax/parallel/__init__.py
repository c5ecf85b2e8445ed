"""Processes, meshes and logical axis rules: which device holds which part of every array. Imports no other layer."""

from adalink_jax.parallel.distributed import Agreement, all_agree, expect_devices, initialize, is_first, leave, once
from adalink_jax.parallel.mesh import data_axis_size, make_mesh
from adalink_jax.parallel.read_once import Readers, host_zeros
from adalink_jax.parallel.sharding import (
    LogicalRules,
    batch_sharding,
    by_shard,
    constrain,
    constrain_shards,
    local_rows,
    logical_axis_rules,
    on_mesh,
    param_shardings,
    put_batch,
    replicated,
    settle,
    shards_of,
    to_host,
    unbox,
    use_mesh,
)

__all__ = [
    "Agreement",
    "LogicalRules",
    "Readers",
    "all_agree",
    "batch_sharding",
    "by_shard",
    "constrain",
    "constrain_shards",
    "data_axis_size",
    "expect_devices",
    "host_zeros",
    "initialize",
    "is_first",
    "leave",
    "local_rows",
    "logical_axis_rules",
    "make_mesh",
    "on_mesh",
    "once",
    "param_shardings",
    "put_batch",
    "replicated",
    "settle",
    "shards_of",
    "to_host",
    "unbox",
    "use_mesh",
]
