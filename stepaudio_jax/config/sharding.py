"""How a run is spread over devices: the mesh, and which mesh axes each logical axis is cut over."""

import dataclasses
import math
from typing import Literal

from stepaudio_jax.errors import ConfigError

MeshAxis = Literal["data", "fsdp", "sequence", "tensor"]
MESH_AXES: tuple[MeshAxis, ...] = (
    "data",
    "fsdp",
    "sequence",
    "tensor",
)  # from the slowest links to the fastest
FILL_AXIS = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices of a slice along each axis of the mesh; one axis may be -1, which takes what the others leave.

    `data` replicates the parameters and cuts the batch; `fsdp` cuts both (ZeRO 3); `tensor` cuts
    heads, the feed-forward width and the vocabulary; `sequence` cuts the tokens of a row. Several
    TPU slices are alike, and lie along the data axis: only its traffic crosses the data-centre
    network, and every slice holds whole copies of the parameters.
    """

    data: int = 1
    fsdp: int = FILL_AXIS
    sequence: int = 1
    tensor: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        for name in (*MESH_AXES, "slices"):
            size = getattr(self, name)
            if size < 1 and not (size == FILL_AXIS and name != "slices"):
                raise ConfigError(
                    f"{name}={size} must be positive{'' if name == 'slices' else ', or -1 for the rest'}"
                )
        if sum(getattr(self, axis) == FILL_AXIS for axis in MESH_AXES) > 1:
            raise ConfigError("only one axis of the mesh can be -1")

    def sizes(self, devices: int) -> dict[MeshAxis, int]:
        """The size of every axis over all slices, for so many devices.

        Raises:
            ConfigError: the axes do not multiply to the number of devices.
        """
        sizes: dict[MeshAxis, int] = {axis: getattr(self, axis) for axis in MESH_AXES}
        sizes["data"] *= self.slices if sizes["data"] != FILL_AXIS else 1
        known = math.prod(size for size in sizes.values() if size != FILL_AXIS)
        for axis, size in sizes.items():
            if size == FILL_AXIS:
                sizes[axis] = devices // known
        if math.prod(sizes.values()) != devices or sizes["data"] % self.slices:
            shape = ", ".join(f"{axis}={getattr(self, axis)}" for axis in (*MESH_AXES, "slices"))
            raise ConfigError(
                f"a mesh of {shape} does not take {devices} devices; change the sizes, or make one of them -1"
            )
        return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Logical axis -> the mesh axes it is cut over; empty for whole on every device.

    Parameters and activations name their logical axes where they are declared; this is the only
    place that says where they go.
    """

    # of parameters
    embed: tuple[MeshAxis, ...] = ("fsdp",)
    # Feed-forward matrices are cut along their wider side alone: on 256 chips a part of it still
    # fills a TPU's tiles of 8 rows, where one of the model's width would be padded by a fifth, and
    # its gathered form with it.
    ffn_embed: tuple[MeshAxis, ...] = ()
    ffn_kernel: tuple[MeshAxis, ...] = ("tensor", "fsdp")
    heads: tuple[MeshAxis, ...] = ("tensor",)
    kv_heads: tuple[MeshAxis, ...] = ("tensor",)
    vocab: tuple[MeshAxis, ...] = ("tensor",)
    encoder_heads: tuple[MeshAxis, ...] = ()  # 20 of them: no power of two divides them beyond 4
    # of activations, which share heads, kv_heads and vocab with the parameters
    batch: tuple[MeshAxis, ...] = ("data", "fsdp")
    ffn: tuple[MeshAxis, ...] = ("tensor",)
    tokens: tuple[MeshAxis, ...] = ("sequence",)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            axes = getattr(self, field.name)
            if len(set(axes)) != len(axes):
                raise ConfigError(f"{field.name}={axes} names a mesh axis twice")

    def mesh_axes(self, logical: str | None) -> tuple[MeshAxis, ...]:
        """What a logical axis is cut over; one that no rule names (head_dim, layers, ..) is whole."""
        return getattr(self, logical, ()) if logical is not None else ()
