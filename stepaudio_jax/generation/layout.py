"""Where the engine's weights and slots lie on a mesh."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ComputeConfig, ModelConfig, Rules
from stepaudio_jax.generation.slots import Slots, slot_letters
from stepaudio_jax.models import abstract_parameters, activation_spec, logical_axes
from stepaudio_jax.parallel import parameter_shardings


def weight_shardings(config: ModelConfig, compute: ComputeConfig, mesh: Mesh) -> Any:
    """The sharding of every leaf of `models.unstack`'s result.

    Raises:
        ShardingError: the rules cannot place a parameter on the mesh.
    """
    stacked = parameter_shardings(logical_axes(config), abstract_parameters(config, compute), compute.rules, mesh)
    layer = jax.tree.map(lambda sharding: NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])), stacked["decoder"]["layers"])
    return {**stacked, "decoder": {**stacked["decoder"], "layers": (layer,) * config.decoder.layers}}


def slot_shardings(slots: Slots, rules: Rules, mesh: Mesh) -> Slots:
    """The sharding of every array of the slots."""

    def place(letters: str) -> NamedSharding:
        return NamedSharding(mesh, activation_spec(letters, rules))

    placed: Slots = jax.tree.map(place, slot_letters(slots))
    return placed


def row_parts(rules: Rules, mesh: Mesh) -> int:
    """Into how many parts the slots are cut."""
    return math.prod(mesh.shape[axis] for axis in rules.batch)
