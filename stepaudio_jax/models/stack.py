"""Applying a stack of layers, whose parameters carry a leading layer axis, as a scan."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

LayerT = TypeVar("LayerT", bound=nnx.Module)


def scan_layers(
    layers: LayerT,
    apply: Callable[[LayerT, jax.Array, Any], tuple[jax.Array, Any]],
    x: jax.Array,
    per_layer: Any = None,
    *,
    remat: str,
    unroll: int,
) -> tuple[jax.Array, Any]:
    """Runs x through every layer in turn.

    Compile time is that of one layer. (nnx.scan is not used: the split is explicit here, so the parameters stay plain arrays.)

    Args:
        layers: one module whose parameters are stacked [L, ...].
        apply: (layer, x, its slice of per_layer) -> (x, its output).
        x: the activations that flow through.
        per_layer: a pytree of [L, ...] arrays, one slice for each layer, or None.
        remat: "none" keeps every activation for the backward pass, "full" keeps only each layer's input.
        unroll: layers unrolled in the loop; 0 unrolls all.

    Returns:
        The last layer's x, and the outputs stacked [L, ...].
    """
    graphdef, parameters = nnx.split(layers)
    length = jax.tree.leaves(parameters)[0].shape[0]

    def body(x: jax.Array, inputs: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        layer_parameters, layer_inputs = inputs
        return apply(nnx.merge(graphdef, layer_parameters), x, layer_inputs)

    if remat == "full":
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, x, (parameters, per_layer), unroll=unroll or length)
