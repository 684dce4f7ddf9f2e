"""The decoder's layers apart: the layout for generating.

For training the layers' parameters are stacked and scanned over. A loop that generates tokens would
cut every layer out of the stack again for each token, and read the weights twice.
"""

from typing import Any

import jax
from flax import nnx

from stepaudio_jax.models.decoder import DecoderLayer
from stepaudio_jax.models.quantized import dequantize_weights
from stepaudio_jax.models.step_audio import Parameters, StepAudio


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
