"""Where activations lie on the mesh, and the platform that a program is compiled for."""

import math

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Shaped

from stepaudio_jax.config import ShardingRules

LogicalAxes = tuple[str | None, ...]
"""The logical axis of each dimension of an array; None for one that no rule shards."""


def constrain(
    x: Shaped[Array, "..."], axes: LogicalAxes, rules: ShardingRules
) -> Shaped[Array, "..."]:
    """Returns `x` with the sharding that the rules give its axes; unchanged without a mesh.

    `axes` may be shorter than the array has dimensions: the others are replicated.
    """
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(axes, rules))


def activation_spec(axes: LogicalAxes, rules: ShardingRules) -> PartitionSpec:
    """Returns the mesh axes of each dimension of an activation."""
    return PartitionSpec(*(rules.mesh_axes(axis) or None for axis in axes))


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh of `jax.set_mesh`; None where none is set or it is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def target_platform() -> str:
    """Returns the platform that the program being traced will run on: "cpu", "gpu" or "tpu".

    It is that of the current mesh's devices, and without a mesh that of the default backend. The
    two differ where a plan is compiled for TPUs on a machine that has none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def num_shards(mesh: AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Returns the number of devices along one entry of a PartitionSpec."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)
