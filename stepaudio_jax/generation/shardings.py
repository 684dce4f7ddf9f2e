"""The engine's weights and slots on a mesh: their layout, their shardings, and their sizes."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import ComputeConfig, MeshConfig, ModelConfig, ShardingRules
from stepaudio_jax.generation.prompts import bucket
from stepaudio_jax.generation.slots import Slots, slot_logical_axes
from stepaudio_jax.models import (
    Parameters,
    abstract_parameters,
    activation_spec,
    extract_lora,
    is_quantized,
    logical_axes,
    quantized_shardings,
    replace_lora,
    unstack_layers,
)
from stepaudio_jax.parallel import make_mesh, num_batch_shards, parameter_shardings


def decode_mesh(
    config: ModelConfig, devices: Sequence[Any] | None = None, *, tensor: int = 0, slices: int = 1
) -> Mesh:
    """Returns the mesh for generation: each layer sharded over its heads, and replicas of that.

    Sharded as for training, the weights would be gathered for every token.

    Args:
        config: the model's shape.
        devices: all devices of the run if None; those of a TPU topology description work too.
        tensor: devices over which heads are sharded; 0 for as many of a slice as divide them.
        slices: number of slices that the devices lie in.

    Raises:
        ConfigError: `tensor` does not divide the number of devices, or the devices lie in another
            number of slices.
    """
    count = len(jax.devices() if devices is None else devices)
    tensor = tensor or max_tensor_parallel(config, count // slices)
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor, slices=slices), devices)


def max_tensor_parallel(config: ModelConfig, devices: int) -> int:
    """Returns the most devices, a divisor of `devices`, over which every layer is sharded evenly.

    That is, their number divides heads, key heads, feed-forward and vocabulary.
    """
    decoder = config.decoder
    sizes = (decoder.heads, decoder.kv_heads, decoder.ffn, decoder.vocab_size)
    return max(
        parts
        for parts in range(1, devices + 1)
        if devices % parts == 0 and all(size % parts == 0 for size in sizes)
    )


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which programs run on a mesh; with None, on one device."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def bucketed_slot_tokens(longest: int, config: ModelConfig) -> int:
    """Returns the tokens of a slot for prompt and reply of at most `longest` tokens together.

    It is the bucket that holds them, or the model's positions if those are fewer.
    """
    return min(bucket(longest), config.decoder.max_positions)


def round_up_slots(slots: int, rules: ShardingRules, mesh: Mesh | None) -> int:
    """Returns the smallest number of slots, `slots` at least, that the mesh shares out evenly."""
    parts = 1 if mesh is None else num_batch_shards(rules, mesh)
    return parts * -(-slots // parts)


def decode_layout_params(
    parameters: Parameters,
    config: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh | None,
    *,
    donate: bool,
) -> Parameters:
    """Returns the weights as an engine needs them: layers apart, in its dtype, on its devices.

    Args:
        parameters: the tree, its decoder's layers stacked or apart.
        config: the model's shape.
        compute: dtype and sharding rules of the engine.
        mesh: the engine's devices; None for one.
        donate: give up the decoder's parameters layer by layer.
    """
    layers = jax.tree.leaves(parameters["decoder"]["layers"], is_leaf=is_quantized)
    # Where every layer is cast, the result is a copy already, which may be given up.
    all_cast = not any(is_quantized(leaf) or leaf.dtype == compute.dtype for leaf in layers)
    decoder = _cast(parameters["decoder"], compute)
    per_layer = unstack_layers({**parameters, "decoder": decoder}, donate=donate or all_cast)
    shardings = None
    if mesh is not None:
        shardings = quantized_shardings(per_layer, weight_shardings(config, compute, mesh))
    on_devices: Parameters = jax.device_put(per_layer, shardings)
    return on_devices


def replace_adapters(
    layers: tuple[Parameters, ...],
    parameters: Parameters,
    config: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh | None,
) -> Parameters:
    """Returns parameters in an engine's layout that reuse the kernels of its decoder's layers.

    Args:
        layers: the engine's layers, whose kernels stay.
        parameters: the tree that gives the adapters, and the model outside the decoder's layers.
        config, compute, mesh: as in `decode_layout_params`.
    """
    decoder = dict(parameters["decoder"])
    adapters = _cast(extract_lora(decoder.pop("layers")), compute)
    outside_layers: Parameters = {**parameters, "decoder": _cast(decoder, compute)}
    if mesh is not None:
        shardings = weight_shardings(config, compute, mesh)
        of_decoder = {name: shardings["decoder"][name] for name in decoder}
        outside_layers = jax.device_put(outside_layers, {**shardings, "decoder": of_decoder})
    if adapters:
        per_layer = unstack_layers({"decoder": {"layers": adapters}})["decoder"]["layers"]
        places = jax.tree.map(
            lambda leaf: leaf.sharding, tuple(extract_lora(layer) for layer in layers)
        )
        per_layer = jax.device_put(per_layer, places)
        layers = tuple(
            replace_lora(layer, lora) for layer, lora in zip(layers, per_layer, strict=True)
        )
    return {**outside_layers, "decoder": {**outside_layers["decoder"], "layers": layers}}


def weight_shardings(config: ModelConfig, compute: ComputeConfig, mesh: Mesh) -> Any:
    """Returns the sharding of every leaf of the result of `models.unstack_layers`.

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
    """Returns the sharding of every array of the slots."""
    shardings: Slots = jax.tree.map(
        lambda _, axes: NamedSharding(mesh, activation_spec(axes, rules)),
        slots,
        slot_logical_axes(slots),
    )
    return shardings


def _cast(tree: Parameters, compute: ComputeConfig) -> Parameters:
    """Casts a tree to the dtype of the computation, but for matrices in int8.

    Doing it here means once, and not for every token.
    """
    cast: Parameters = jax.tree.map(
        lambda leaf: leaf if is_quantized(leaf) else leaf.astype(compute.dtype),
        tree,
        is_leaf=is_quantized,
    )
    return cast
