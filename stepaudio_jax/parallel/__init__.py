"""Devices: the mesh, where parameters and batches lie on it, and processes that exchange values."""

from stepaudio_jax.parallel.batch_placement import BatchPlacement, check_batch_divisible
from stepaudio_jax.parallel.mesh import CHIPS, Chip, make_mesh, num_slices, peak_flops
from stepaudio_jax.parallel.processes import all_gather_json, broadcast_json
from stepaudio_jax.parallel.shardings import (
    batch_sharding,
    num_batch_shards,
    parameter_shardings,
    replicated,
)

__all__ = [
    "CHIPS",
    "BatchPlacement",
    "Chip",
    "all_gather_json",
    "batch_sharding",
    "broadcast_json",
    "check_batch_divisible",
    "make_mesh",
    "num_batch_shards",
    "num_slices",
    "parameter_shardings",
    "peak_flops",
    "replicated",
]
