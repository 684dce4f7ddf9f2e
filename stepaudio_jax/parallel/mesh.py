"""The mesh of devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from stepaudio_jax.config import MESH_AXES, ConfigError, MeshConfig


def num_slices(devices: Sequence[Any]) -> int:
    """In how many TPU slices the devices lie. GPUs number their hosts in the same way, and any mesh may lie across those."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a configuration describes, laid out so that the fastest links carry the innermost axes.

    Args:
        config: its axes.
        devices: all devices of the run if None; those of a TPU topology description work too.

    Raises:
        ConfigError: the axes do not multiply to the number of devices, or the devices lie in
            another number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    slices = num_slices(devices)
    if slices != config.slices:
        raise ConfigError(f"mesh.slices={config.slices}, and the devices lie in {slices} slices")
    if config.slices > 1:
        within = (shape[0] // config.slices, *shape[1:])
        across = (config.slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
