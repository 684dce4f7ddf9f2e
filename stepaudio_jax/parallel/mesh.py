"""The mesh of devices, and what chips can do as their makers state it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from stepaudio_jax.config import MESH_AXES, MeshConfig
from stepaudio_jax.errors import ConfigError


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh of a configuration, its innermost axes over the fastest links.

    Args:
        config: the axes of the mesh.
        devices: all devices of the run if None. Compile-only devices of a TPU topology work too.

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


def num_slices(devices: Sequence[Any]) -> int:
    """Returns the number of TPU slices of the devices; 1 for other platforms.

    GPUs number their hosts as TPUs their slices, but any mesh may lie across hosts.
    """
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip as JAX sees it, as a device.

    An Ironwood chip is two devices, and each figure here is of one of them.

    Attributes:
        hbm_bytes: memory that the compiler lets a program use; the runtime keeps the rest.
        flops: bf16 floating-point operations a second.
        hbm_bandwidth: bytes a second between that memory and the chip.
        ici_bandwidth: bytes a second that it can send over all of its links to other chips of the
            slice.
        dcn_bandwidth: bytes a second that it can send to another slice, over the data center's
            network.
        torus_dims: dimensions of the torus.
        max_slice_chips: chips of the largest slice.
        named_by_cores: whether Google's names count cores (two a chip) and not chips.
        devices: devices of one chip.
    """

    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    torus_dims: int
    max_slice_chips: int
    named_by_cores: bool
    devices: int = 1


# From https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x, "Key specifications"; the
# memory is from libtpu 0.0.42.1, in its error for a program that exceeds it. Those pages give the
# links' bandwidth of both directions together; a chip sends half of it. They give no network for
# v4, which is taken to be that of v5e.
CHIPS = {
    "v4": Chip(
        int(30.75 * GIB),
        275e12,
        1228e9,
        300e9,
        3.1e9,
        torus_dims=3,
        max_slice_chips=4096,
        named_by_cores=True,
    ),
    "v5e": Chip(
        int(15.75 * GIB),
        197e12,
        819e9,
        200e9,
        3.1e9,
        torus_dims=2,
        max_slice_chips=256,
        named_by_cores=False,
    ),
    "v5p": Chip(
        int(95.74 * GIB),
        459e12,
        2765e9,
        600e9,
        6.25e9,
        torus_dims=3,
        max_slice_chips=8960,
        named_by_cores=True,
    ),
    "v6e": Chip(
        int(31.25 * GIB),
        918e12,
        1640e9,
        400e9,
        12.5e9,
        torus_dims=2,
        max_slice_chips=256,
        named_by_cores=False,
    ),
    "tpu7x": Chip(
        int(94.75 * GIB),
        2307e12 / 2,
        7380e9 / 2,
        600e9 / 2,
        12.5e9 / 2,
        torus_dims=3,
        max_slice_chips=9216,
        named_by_cores=True,
        devices=2,
    ),
}

# `device_kind` of a TPU -> its chip; part of that of a GPU -> bf16 FLOPs a second, not sparse.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
_GPU_FLOPS: Mapping[str, float] = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def peak_flops(device_kind: str) -> float | None:
    """Returns the bf16 operations a second of a kind of device; None where unknown, as for CPUs."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if name in device_kind), None)
