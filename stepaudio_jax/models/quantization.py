"""Weights for generation: the decoder's layers apart, and its matrices in int8 where asked.

For training the layers' parameters are stacked and scanned over. A loop that generates tokens would
slice every layer out of the stack again for each token, and read the weights twice: it takes the
decode layout, with one tree a layer. In int8, matrices take half the memory of bf16, and half as
much is read for each token.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.models.decoder import DecoderLayer
from stepaudio_jax.models.lora import is_lora_kernel
from stepaudio_jax.models.step_audio import (
    Parameters,
    StepAudio,
    abstract_model,
    parameter_metadata,
)


def unstack_layers(parameters: Parameters, *, donate: bool = False) -> Parameters:
    """Returns the decode layout: `decoder.layers` as a tuple with one tree a layer.

    Shardings stay, without that of the layer axis.

    Args:
        parameters: of the model, which may be quantized; a tree in the decode layout is returned as
            it is.
        donate: delete each stacked array on a device once it is split, so that there are never two
            copies of all of them.
    """
    decoder = parameters["decoder"]
    if isinstance(decoder["layers"], tuple):
        return parameters
    stacks, structure = jax.tree.flatten(decoder["layers"])
    per_layer = []
    for stack in stacks:
        per_layer.append([_take_layer(stack, index) for index in range(stack.shape[0])])
        if donate and isinstance(stack, jax.Array):
            stack.delete()
    layers = tuple(jax.tree.unflatten(structure, layer) for layer in zip(*per_layer, strict=True))
    return {**parameters, "decoder": {**decoder, "layers": layers}}


def merge_per_layer(
    graphdef: Any, parameters: Parameters
) -> tuple[StepAudio, tuple[DecoderLayer, ...]]:
    """Returns the model and its decoder's layers, from parameters in the decode layout.

    The model itself cannot run its decoder: `Decoder.prefill` and `decode_step` take the layers.

    Args:
        graphdef: the model's graph definition.
        parameters: in the decode layout; they may be quantized.
    """
    parameters = dequantize_weights(parameters)
    layers = parameters["decoder"]["layers"]
    decoder = {**parameters["decoder"], "layers": layers[0]}
    model: StepAudio = nnx.merge(graphdef, {**parameters, "decoder": decoder})
    layer_graphdef, _ = nnx.split(model.decoder.layers)
    return model, tuple(nnx.merge(layer_graphdef, layer) for layer in layers)


def quantize_weights(
    config: ModelConfig, parameters: Parameters, *, donate: bool = False
) -> Parameters:
    """Returns the tree with every matrix of the decoder as a `qwix.QArray`.

    Values are int8, and scales fp32, one for each output channel: of size 1 along the dimensions
    that a product sums over. Embeddings, biases and norms stay, and so do encoder and adaptor,
    which are read once a prompt and not once a token.

    Args:
        config: the model's shape.
        parameters: its tree, the decoder's layers stacked.
        donate: delete each matrix once its int8 form is there, so that there are never both of all
            of them.
    """
    contracting_dims = parameter_metadata(nnx.merge(*abstract_model(config)), "contracting_dims")

    def quantize(leaf: jax.Array, summed: tuple[int, ...]) -> Any:
        if not summed:
            return leaf
        channels = tuple(axis for axis in range(leaf.ndim) if axis not in summed)
        quantized = _quantize(leaf, channels)
        if donate:
            leaf.delete()
        return quantized

    decoder = jax.tree.map(quantize, parameters["decoder"], contracting_dims["decoder"])
    return {**parameters, "decoder": decoder}


def dequantize_weights(parameters: Parameters) -> Parameters:
    """Returns the tree with plain arrays.

    Inside a compiled program each is made where it is used, as part of the product.
    """
    return jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if is_quantized(leaf) else leaf,
        parameters,
        is_leaf=is_quantized,
    )


def barrier_dequantization(parameters: Parameters, step: Int[Array, ""]) -> Parameters:
    """Prevents XLA from hoisting dequantized weights out of a decoding loop.

    Their plain form is the same in every step: the compiler would make all of it before the loop,
    and keep it beside the int8 arrays. A barrier ties these to the loop's counter.

    Args:
        parameters: which may be quantized.
        step: the loop's counter.
    """
    leaves, structure = jax.tree.flatten(parameters, is_leaf=is_quantized)
    quantized = [leaf for leaf in leaves if is_quantized(leaf)]
    if not quantized:
        return parameters
    tied, _ = jax.lax.optimization_barrier((quantized, step))
    tied_leaves = iter(tied)
    return jax.tree.unflatten(
        structure, [next(tied_leaves) if is_quantized(leaf) else leaf for leaf in leaves]
    )


def quantized_shardings(parameters: Parameters, shardings: Any) -> Any:
    """Returns shardings for a tree that may be quantized and have adapters attached.

    A scale is replicated along dimensions of size 1. An adapter's matrices are sharded as the
    kernel's inputs and outputs, and replicated over the rank.

    Args:
        parameters: the tree.
        shardings: of its plain form.
    """

    def place(leaf: Any, sharding: NamedSharding) -> Any:
        entries = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
        if is_lora_kernel(leaf):
            num_inputs = leaf.down.ndim - 1
            down, up = (*entries[:num_inputs], None), (None, *entries[num_inputs:])
            return dataclasses.replace(
                leaf,
                kernel=place(leaf.kernel, sharding),
                down=NamedSharding(sharding.mesh, PartitionSpec(*down)),
                up=NamedSharding(sharding.mesh, PartitionSpec(*up)),
            )
        if not is_quantized(leaf):
            return sharding
        scale_entries = (
            None if size == 1 else entry
            for entry, size in zip(entries, leaf.scale.shape, strict=True)
        )
        scale_sharding = NamedSharding(sharding.mesh, PartitionSpec(*scale_entries))
        return qwix.QArray(sharding, scale_sharding, qtype=leaf.qtype)

    return jax.tree.map(
        place,
        parameters,
        shardings,
        is_leaf=lambda leaf: is_quantized(leaf) or is_lora_kernel(leaf),
    )


def is_quantized(leaf: Any) -> bool:
    """Returns whether a node of a tree is a matrix in int8."""
    return isinstance(leaf, qwix.QArray)


# Compiled, since one operation at a time would fill the memory with a stack in fp32.
@functools.partial(jax.jit, static_argnums=1)
def _quantize(leaf: jax.Array, channels: tuple[int, ...]) -> Any:
    return qwix.quantize(leaf, jnp.int8, channelwise_axes=channels, scale_dtype=jnp.float32)


# Compiled with the index as an argument: indexing with a number would compile a program a layer.
@jax.jit
def _take_layer(stack: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)
