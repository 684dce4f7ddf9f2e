"""Where the engine's weights and slots lie on a mesh."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ComputeConfig, MeshConfig, ModelConfig, ShardingRules
from stepaudio_jax.generation.prompts import bucket
from stepaudio_jax.generation.slots import Slots, slot_logical_axes
from stepaudio_jax.models import abstract_parameters, activation_spec, logical_axes
from stepaudio_jax.parallel import make_mesh, num_batch_shards, parameter_shardings


def max_tensor_parallel(config: ModelConfig, devices: int) -> int:
    """The largest number of devices, a divisor of theirs, that cuts heads, key heads, feed-forward and vocabulary evenly."""
    decoder = config.decoder
    sizes = (decoder.heads, decoder.kv_heads, decoder.ffn, decoder.vocab_size)
    return max(
        parts
        for parts in range(1, devices + 1)
        if devices % parts == 0 and all(size % parts == 0 for size in sizes)
    )


def decode_mesh(
    config: ModelConfig, devices: Sequence[Any] | None = None, *, tensor: int = 0, slices: int = 1
) -> Mesh:
    """The mesh for a model that writes: each layer cut over the heads; what remains has weights, and slots, of its own.

    Cut as for training, the weights would be gathered for every token.

    Args:
        config: the model's shape.
        devices: all devices of the run if None; those of a TPU topology description work too.
        tensor: over how many devices heads are cut; 0 for as many of a slice as divide them.
        slices: in which the devices lie.

    Raises:
        ConfigError: `tensor` does not divide the number of devices, or the devices lie in another
            number of slices.
    """
    count = len(jax.devices() if devices is None else devices)
    tensor = tensor or max_tensor_parallel(config, count // slices)
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor, slices=slices), devices)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """Within it programs are laid out on a mesh; with None, on one device."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def weight_shardings(config: ModelConfig, compute: ComputeConfig, mesh: Mesh) -> Any:
    """The sharding of every leaf of `models.unstack_layers`'s result.

    Raises:
        ConfigError: the rules cannot place a parameter on the mesh.
    """
    stacked = parameter_shardings(
        logical_axes(config), abstract_parameters(config, compute), compute.rules, mesh
    )
    layer = jax.tree.map(
        lambda sharding: NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])),
        stacked["decoder"]["layers"],
    )
    return {
        **stacked,
        "decoder": {**stacked["decoder"], "layers": (layer,) * config.decoder.layers},
    }


def slot_shardings(slots: Slots, rules: ShardingRules, mesh: Mesh) -> Slots:
    """The sharding of every array of the slots."""

    def place(_: jax.Array, axes: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(mesh, activation_spec(axes, rules))

    placed: Slots = jax.tree.map(place, slots, slot_logical_axes(slots))
    return placed


def bucketed_slot_tokens(longest: int, config: ModelConfig) -> int:
    """Tokens of a slot for prompts and replies of so many: the bucket that holds them, as far as the model has positions."""
    return min(bucket(longest), config.decoder.max_positions)


def round_up_slots(slots: int, rules: ShardingRules, mesh: Mesh | None) -> int:
    """At least so many slots, as many for each part of a mesh."""
    parts = 1 if mesh is None else num_batch_shards(rules, mesh)
    return parts * -(-slots // parts)
