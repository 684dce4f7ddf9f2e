"""The decoder's layers apart: the layout for generating.

For training the layers' parameters are stacked and scanned over. A loop that generates tokens would
cut every layer out of the stack again for each token, and read the weights twice.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.models.decoder import DecoderLayer
from stepaudio_jax.models.lora import is_lora_kernel
from stepaudio_jax.models.step_audio import (
    Parameters,
    StepAudio,
    abstract_model,
    parameter_metadata,
)

# The decoder's matrices in int8, a scale for each output channel: half the memory of bf16, and half to read for each token.


def quantize_weights(
    config: ModelConfig, parameters: Parameters, *, donate: bool = False
) -> Parameters:
    """The tree with every matrix of the decoder as a `qwix.QArray`: int8, and fp32 scales of size 1 where a product sums.

    Embeddings, biases and norms stay, and so do encoder and adaptor, which are read once a prompt
    and not once a token.

    Args:
        config: the model's shape.
        parameters: its tree, the decoder's layers stacked.
        donate: give up each matrix once its int8 form is there, so that there are never both of all
            of them.
    """
    contracting_dims = parameter_metadata(nnx.merge(*abstract_model(config)), "contracting_dims")

    def quantize(leaf: jax.Array, summed: tuple[int, ...]) -> Any:
        if not summed:
            return leaf
        found = _quantize(leaf, tuple(axis for axis in range(leaf.ndim) if axis not in summed))
        if donate:
            leaf.delete()
        return found

    decoder = jax.tree.map(quantize, parameters["decoder"], contracting_dims["decoder"])
    return {**parameters, "decoder": decoder}


@functools.partial(
    jax.jit, static_argnums=1
)  # compiled: one by one, its operations would fill a stack's memory in fp32
def _quantize(leaf: jax.Array, channels: tuple[int, ...]) -> Any:
    return qwix.quantize(leaf, jnp.int8, channelwise_axes=channels, scale_dtype=jnp.float32)


def dequantize_weights(parameters: Parameters) -> Parameters:
    """The tree with plain arrays; inside a compiled program each is made where it is used, as part of the product."""
    return jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if is_quantized(leaf) else leaf,
        parameters,
        is_leaf=is_quantized,
    )


def barrier_dequantization(parameters: Parameters, step: jax.Array) -> Parameters:
    """The same tree inside a loop, its matrices in int8 tied to the loop's `step`.

    Else the compiler finds that their plain form is the same in every step: it would make all of
    them before the loop, and keep them beside the small ones.
    """
    leaves, structure = jax.tree.flatten(parameters, is_leaf=is_quantized)
    small = [leaf for leaf in leaves if is_quantized(leaf)]
    if not small:
        return parameters
    tied, _ = jax.lax.optimization_barrier((small, step))
    after = iter(tied)
    return jax.tree.unflatten(
        structure, [next(after) if is_quantized(leaf) else leaf for leaf in leaves]
    )


def quantized_shardings(parameters: Parameters, shardings: Any) -> Any:
    """Shardings for a tree that may be quantised and have adapters, from those of its plain form.

    A scale is whole where its size is 1. An adapter's matrices are cut as the kernel's inputs and
    outputs, and whole over the rank.
    """

    def place(leaf: Any, sharding: NamedSharding) -> Any:
        entries = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
        if is_lora_kernel(leaf):
            inputs = leaf.down.ndim - 1
            down, up = (*entries[:inputs], None), (None, *entries[inputs:])
            return dataclasses.replace(
                leaf,
                kernel=place(leaf.kernel, sharding),
                down=NamedSharding(sharding.mesh, PartitionSpec(*down)),
                up=NamedSharding(sharding.mesh, PartitionSpec(*up)),
            )
        if not is_quantized(leaf):
            return sharding
        kept = (
            None if size == 1 else entry
            for entry, size in zip(entries, leaf.scale.shape, strict=True)
        )
        return qwix.QArray(
            sharding, NamedSharding(sharding.mesh, PartitionSpec(*kept)), qtype=leaf.qtype
        )

    return jax.tree.map(
        place,
        parameters,
        shardings,
        is_leaf=lambda leaf: is_quantized(leaf) or is_lora_kernel(leaf),
    )


def is_quantized(leaf: Any) -> bool:
    """Whether a node of a tree is a matrix in int8."""
    return isinstance(leaf, qwix.QArray)


def unstack_layers(parameters: Parameters, *, donate: bool = False) -> Parameters:
    """The tree with `decoder.layers` as a tuple of one tree a layer; shardings stay, but for the layers' own axis.

    Args:
        parameters: of the model, which may be quantised; a tree whose layers are apart is returned
        as it is.
        donate: give up each stacked array on a device once it is cut, so that there are never two
            copies of all of them.
    """
    decoder = parameters["decoder"]
    if isinstance(decoder["layers"], tuple):
        return parameters
    stacks, structure = jax.tree.flatten(decoder["layers"])
    per_layer = []
    for stack in stacks:
        per_layer.append([_layer(stack, index) for index in range(stack.shape[0])])
        if donate and isinstance(stack, jax.Array):
            stack.delete()
    layers = tuple(jax.tree.unflatten(structure, layer) for layer in zip(*per_layer, strict=True))
    return {**parameters, "decoder": {**decoder, "layers": layers}}


@jax.jit  # one program for all layers: indexing with a number would compile one for each
def _layer(stack: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


def merge_per_layer(
    graphdef: Any, parameters: Parameters
) -> tuple[StepAudio, tuple[DecoderLayer, ...]]:
    """The model, and its decoder's layers, from the graph definition and an unstacked tree, which may be quantised.

    The model itself cannot run its decoder: `Decoder.prefill` and `decode_step` take the layers.
    """
    parameters = dequantize_weights(parameters)
    layers = parameters["decoder"]["layers"]
    model: StepAudio = nnx.merge(
        graphdef, {**parameters, "decoder": {**parameters["decoder"], "layers": layers[0]}}
    )
    layer, _ = nnx.split(model.decoder.layers)
    return model, tuple(nnx.merge(layer, one) for one in layers)
