"""The mesh of devices."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from stepaudio_jax.config import MESH_AXES, MeshConfig
from stepaudio_jax.errors import ConfigError

# What accelerators can do, as their makers state it.

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip as JAX sees it: a device. An Ironwood chip is two devices, and each figure here is of one of them.

    Attributes:
        hbm_bytes: what its compiler lets a program use of the high-bandwidth memory; the runtime
        keeps the rest.
        flops: bf16 floating-point operations a second.
        hbm_bandwidth: bytes a second between that memory and the chip.
        ici_bandwidth: bytes a second that it can send over all of its links to other chips of the
        slice.
        dcn_bandwidth: bytes a second that it can send to another slice, over the data centre's
        network.
        torus_dims: dimensions of the torus.
        max_slice_chips: chips of the largest slice.
        named_by_cores: whether Google's names count cores (two a chip) and not chips.
        devices: how many devices a chip is.
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


# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x: "Key specifications"; the memory
# as libtpu 0.0.42.1 says it of a program that exceeds it. Those pages give the links' bandwidth of
# both directions together; half of it is what a chip sends. The network of v4, of which they say
# nothing, is taken to be that of v5e.
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

# What JAX calls a device -> bf16 floating-point operations a second, without sparsity.
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
    """bf16 operations a second of a device, by its `device_kind`; None for one that is not known, a CPU for example."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if name in device_kind), None)


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
