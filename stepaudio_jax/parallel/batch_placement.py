"""Batches on the mesh: which rows a process prepares, and how they become global arrays."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stepaudio_jax.config import Config, DataConfig, ShardingRules
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.parallel.shardings import batch_sharding


class BatchPlacement:
    """Puts the batches of one DataConfig on a mesh.

    Args:
        data: its `batch_size` is that of the global batch.
        rules: say over which mesh axes rows are sharded.
        mesh: the devices.

    Attributes:
        local_rows: the rows of the global batch that this process's devices hold, which it
            therefore prepares, in order.
        spans_processes: whether other processes hold other rows.
    """

    def __init__(self, data: DataConfig, rules: ShardingRules, mesh: Mesh):
        self._sharding = batch_sharding(rules, mesh)
        self._batch_size = data.batch_size
        rows: set[int] = set()
        for index in self._sharding.addressable_devices_indices_map((data.batch_size,)).values():
            rows.update(self._rows_of(index))
        self.local_rows = tuple(sorted(rows))
        self.spans_processes = len(self.local_rows) < data.batch_size
        self._local_index = {row: index for index, row in enumerate(self.local_rows)}

    def __call__(self, batch: Any) -> Any:
        """Returns global arrays [B, ...] from a tree of host arrays [len(local_rows), ...]."""
        return jax.tree.map(self._place, batch)

    def _place(self, array: np.ndarray) -> jax.Array:
        def device_rows(index: tuple[slice, ...] | None) -> np.ndarray:
            rows = self._rows_of(index)
            return array[self._local_index[rows[0]] : self._local_index[rows[-1]] + 1]

        shape = (self._batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding, device_rows)

    def _rows_of(self, index: tuple[slice, ...] | None) -> range:
        """Returns the rows of one device, from the index that a sharding gives for it."""
        rows = slice(None) if index is None else index[0]
        return range(*rows.indices(self._batch_size))


def check_batch_divisible(config: Config, mesh: Mesh) -> None:
    """Checks that the mesh shards the rows of each (micro-)batch evenly, and a row's tokens.

    Raises:
        ConfigError: with the stage and the numbers.
    """
    rules = config.compute.rules
    for stage in config.stages:
        batches = {"data": (stage.data, stage.gradient_accumulation_steps)}
        if stage.evaluation.enabled:
            batches["evaluation.data"] = (stage.evaluation.data, 1)
        for name, (data, micro_batches) in batches.items():
            for key, size, mesh_axes, accumulation in (
                ("batch_size", data.batch_size, rules.batch, micro_batches),
                ("seq_len", data.seq_len, rules.tokens, 1),
            ):
                parts = accumulation * math.prod(mesh.shape[axis] for axis in mesh_axes)
                if size % parts:
                    over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in mesh_axes)
                    each = f" in {accumulation} micro-batches" if accumulation > 1 else ""
                    raise ConfigError(
                        f"stage {stage.name!r}: {name}.{key}={size}{each} cannot be sharded over "
                        f"{over}; make it a multiple of {parts}"
                    )
