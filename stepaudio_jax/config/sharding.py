"""How a run is sharded: the mesh of devices, and the mesh axes of each logical axis."""

import dataclasses
import math
from typing import Literal

from stepaudio_jax.errors import ConfigError

MeshAxis = Literal["data", "fsdp", "sequence", "tensor"]
# From the slowest links to the fastest.
MESH_AXES: tuple[MeshAxis, ...] = ("data", "fsdp", "sequence", "tensor")
FILL_AXIS = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices of a slice along each axis; one axis may be -1, which takes what the others leave.

    Several TPU slices form a longer data axis: only its traffic crosses the data-centre network,
    and every slice holds a whole copy of the parameters.
    """

    data: int = 1  # shards the batch; parameters are replicated
    fsdp: int = FILL_AXIS  # shards parameters and batch (ZeRO 3)
    sequence: int = 1  # shards the tokens of a row
    tensor: int = 1  # shards heads, the feed-forward width and the vocabulary
    slices: int = 1  # TPU slices

    def __post_init__(self) -> None:
        for name in (*MESH_AXES, "slices"):
            size = getattr(self, name)
            if size < 1 and not (size == FILL_AXIS and name != "slices"):
                fill = "" if name == "slices" else ", or -1 for the rest"
                raise ConfigError(f"{name}={size} must be positive{fill}")
        if sum(getattr(self, axis) == FILL_AXIS for axis in MESH_AXES) > 1:
            raise ConfigError("only one axis of the mesh can be -1")

    def sizes(self, devices: int) -> dict[MeshAxis, int]:
        """Returns the size of every axis over all slices.

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
                f"a mesh of {shape} does not take {devices} devices; "
                "change the sizes, or make one of them -1"
            )
        return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Mesh axes over which each logical axis is sharded; empty: replicated.

    Parameters and activations name their logical axes where they are declared; only these rules
    say where they go.
    """

    embed: tuple[MeshAxis, ...] = ("fsdp",)  # of parameters: the width of the model
    # Of feed-forward matrices, which are sharded along their wider side alone: on 256 chips a shard
    # of it still fills a TPU's tiles of 8 rows, where one of the model's width, and what is
    # gathered of it, would be padded by a fifth.
    ffn_embed: tuple[MeshAxis, ...] = ()
    ffn_kernel: tuple[MeshAxis, ...] = ("tensor", "fsdp")  # the wider side of these matrices
    heads: tuple[MeshAxis, ...] = ("tensor",)  # query heads, of parameters and activations
    kv_heads: tuple[MeshAxis, ...] = ("tensor",)  # key and value heads, of both
    vocab: tuple[MeshAxis, ...] = ("tensor",)  # the vocabulary, of both
    # The encoder has 20: no power of two above 4 divides them.
    encoder_heads: tuple[MeshAxis, ...] = ()
    batch: tuple[MeshAxis, ...] = ("data", "fsdp")  # of activations: rows
    ffn: tuple[MeshAxis, ...] = ("tensor",)  # of activations: the feed-forward width
    tokens: tuple[MeshAxis, ...] = ("sequence",)  # of activations: tokens of a row

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            axes = getattr(self, field.name)
            if len(set(axes)) != len(axes):
                raise ConfigError(f"{field.name}={axes} names a mesh axis twice")

    def mesh_axes(self, logical: str | None) -> tuple[MeshAxis, ...]:
        """Returns the mesh axes of a logical axis; none of one without a rule (head_dim)."""
        return getattr(self, logical, ()) if logical is not None else ()
