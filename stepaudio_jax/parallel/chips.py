"""What accelerators can do, as their makers state it."""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip, as Google's documentation of its generation states it, but for the memory.

    Attributes:
        memory_bytes: what its compiler lets a program use of the high-bandwidth memory; the runtime keeps the rest.
        flops: bf16 floating-point operations a second.
        memory_bandwidth: bytes a second between that memory and the chip.
        interconnect_bandwidth: bytes a second over all of its links to other chips of the slice.
        axes: dimensions of the torus.
        cores_named: whether Google's names count cores (two a chip) and not chips.
        chips_per_host: of the largest machine that a slice is made of.
    """

    memory_bytes: int
    flops: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    axes: int
    cores_named: bool
    chips_per_host: int


# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: "Key chip specifications"; the memory as libtpu 0.0.42.1 says it of a
# program that exceeds it.
CHIPS = {
    "v4": Chip(int(30.75 * GIB), 275e12, 1228e9, 300e9, axes=3, cores_named=True, chips_per_host=4),
    "v5e": Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, axes=2, cores_named=False, chips_per_host=8),
    "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9, 600e9, axes=3, cores_named=True, chips_per_host=4),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1640e9, 448e9, axes=2, cores_named=False, chips_per_host=8),
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
}
_GPU_FLOPS: Mapping[str, float] = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def peak_flops(device_kind: str) -> float | None:
    """bf16 operations a second of a device, by its `device_kind`; None for one that is not known, a CPU for example."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if name in device_kind), None)
