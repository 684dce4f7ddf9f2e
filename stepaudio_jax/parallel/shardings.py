"""Where every parameter lies: from the logical axes that it declares, by the rules, to a sharding."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ShardingRules
from stepaudio_jax.errors import ConfigError


def parameter_shardings(axes: Any, parameters: Any, rules: ShardingRules, mesh: Mesh) -> Any:
    """The sharding of every parameter of a tree.

    Args:
        axes: each leaf the tuple of a parameter's logical axis names, as `models.logical_axes`
        gives them.
        parameters: the same tree, each leaf with a shape (arrays, or the abstract tree).
        rules: logical axis -> mesh axes.
        mesh: where.

    Raises:
        ConfigError: naming the parameter, the axis and the sizes, all problems at once.
    """
    problems: list[str] = []

    def place(path: Any, names: tuple[str, ...], parameter: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        found = _problems(names, parameter.shape, rules, mesh.shape)
        problems.extend(f"{name}: {problem}" for problem in found)
        return NamedSharding(
            mesh, PartitionSpec(*(_entry(rules, axis) for axis in names if not found))
        )

    shardings = jax.tree_util.tree_map_with_path(
        place, axes, parameters, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    if problems:
        raise ConfigError("; ".join(problems))
    return shardings


def batch_sharding(rules: ShardingRules, mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows cut, the rest whole (the model cuts tokens itself where a rule says so)."""
    return NamedSharding(mesh, PartitionSpec(_entry(rules, "batch")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _entry(rules: ShardingRules, axis: str) -> tuple[str, ...] | None:
    return rules.mesh_axes(axis) or None


def _problems(
    names: tuple[str, ...], shape: tuple[int, ...], rules: ShardingRules, sizes: Mapping[str, int]
) -> list[str]:
    """What keeps a parameter from being placed."""
    if len(names) != len(shape):
        return [
            f"{len(names)} logical axes {names} for the {len(shape)} dimensions of shape {shape}"
        ]
    problems = []
    taken: dict[str, str] = {}
    for axis, size in zip(names, shape, strict=True):
        mesh_axes = rules.mesh_axes(axis)
        parts = math.prod(sizes[mesh_axis] for mesh_axis in mesh_axes)
        if size % parts:
            over = " x ".join(f"{mesh_axis}={sizes[mesh_axis]}" for mesh_axis in mesh_axes)
            problems.append(f"axis {axis!r} of size {size} cannot be cut into {parts} ({over})")
        for mesh_axis in mesh_axes:
            if mesh_axis in taken and sizes[mesh_axis] > 1:
                problems.append(
                    f"axes {taken[mesh_axis]!r} and {axis!r} are both cut over the mesh axis {mesh_axis!r}"
                )
            taken[mesh_axis] = axis
    return problems
