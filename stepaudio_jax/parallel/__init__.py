"""Devices: the mesh, and where every parameter and batch lies on it."""

from stepaudio_jax.parallel.blocks import block_of
from stepaudio_jax.parallel.chips import CHIPS, Chip, peak_flops
from stepaudio_jax.parallel.mesh import make_mesh, slice_count
from stepaudio_jax.parallel.placement import BatchPlacement, require_whole_rows, row_parts
from stepaudio_jax.parallel.processes import gather_json, told_by_first
from stepaudio_jax.parallel.shardings import ShardingError, batch_sharding, parameter_shardings, replicated

__all__ = [
    "CHIPS",
    "BatchPlacement",
    "Chip",
    "ShardingError",
    "batch_sharding",
    "block_of",
    "gather_json",
    "make_mesh",
    "parameter_shardings",
    "peak_flops",
    "replicated",
    "require_whole_rows",
    "row_parts",
    "slice_count",
    "told_by_first",
]
