"""A batch on the mesh: which of its rows a process prepares, and how they become global arrays."""

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

    Attributes:
        local_rows: of the global batch, those that this process's devices hold and that it
        therefore prepares, in order.
        spans_processes: whether other processes hold others.
    """

    def __init__(self, data: DataConfig, rules: ShardingRules, mesh: Mesh):
        self._sharding = batch_sharding(rules, mesh)
        self._count = data.batch_size
        held: set[int] = set()
        for index in self._sharding.addressable_devices_indices_map((data.batch_size,)).values():
            held.update(range(*_rows_of(index).indices(data.batch_size)))
        self.local_rows = tuple(sorted(held))
        self.spans_processes = len(self.local_rows) < data.batch_size
        self._position = {row: position for position, row in enumerate(self.local_rows)}

    def __call__(self, batch: Any) -> Any:
        """Global arrays [B, ...] from a tree of host arrays [len(local_rows), ...]."""
        return jax.tree.map(self._place, batch)

    def _place(self, array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            wanted = range(*_rows_of(index).indices(self._count))
            return array[self._position[wanted[0]] : self._position[wanted[-1]] + 1]

        return jax.make_array_from_callback((self._count, *array.shape[1:]), self._sharding, part)


def _rows_of(index: tuple[slice, ...] | None) -> slice:
    return slice(None) if index is None else index[0]


def num_batch_shards(rules: ShardingRules, mesh: Mesh) -> int:
    """Into how many parts a mesh cuts the rows of a batch, or the slots of an engine."""
    return math.prod(mesh.shape[axis] for axis in rules.batch)


def check_batch_divisible(config: Config, mesh: Mesh) -> None:
    """Checks that the mesh cuts the rows of every (micro-)batch evenly, and the tokens of each row.

    Raises:
        ConfigError: naming the stage and the numbers.
    """
    rules = config.compute.rules
    for stage in config.stages:
        batches = {"data": (stage.data, stage.gradient_accumulation_steps)}
        if stage.evaluation.enabled:
            batches["evaluation.data"] = (stage.evaluation.data, 1)
        for name, (data, micro_batches) in batches.items():
            for size, value, axes, least in (
                ("batch_size", data.batch_size, rules.batch, micro_batches),
                ("seq_len", data.seq_len, rules.tokens, 1),
            ):
                parts = least * math.prod(mesh.shape[axis] for axis in axes)
                if value % parts:
                    over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
                    each = f" in {least} micro-batches" if least > 1 else ""
                    raise ConfigError(
                        f"stage {stage.name!r}: {name}.{size}={value}{each} cannot be cut over {over}; make it a multiple of "
                        f"{parts}"
                    )
