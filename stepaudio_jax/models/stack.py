"""Applying a stack of layers, whose parameters carry a leading layer axis, as a scan."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from stepaudio_jax.config import ComputeConfig

LayerT = TypeVar("LayerT", bound=nnx.Module)


def scan_layers(
    layers: LayerT,
    apply: Callable[[LayerT, jax.Array, Any], tuple[jax.Array, Any]],
    x: jax.Array,
    per_layer: Any = None,
    *,
    compute: ComputeConfig,
) -> tuple[jax.Array, Any]:
    """Runs x through every layer in turn.

    Compile time is that of one layer. (nnx.scan is not used: the split is explicit here, so the
    parameters stay plain arrays.)

    Args:
        layers: one module whose parameters are stacked [L, ...].
        apply: (layer, x, its slice of per_layer) -> (x, its output).
        x: the activations that flow through.
        per_layer: a pytree of [L, ...] arrays, one slice for each layer, or None.
        compute: `remat` says what is kept for the backward pass beside each layer's input, `unroll`
            how many layers the loop's body has.

    Returns:
        The last layer's x, and the outputs stacked [L, ...].
    """
    graphdef, parameters = nnx.split(layers)
    length = jax.tree.leaves(parameters)[0].shape[0]

    def body(x: jax.Array, inputs: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        layer_parameters, layer_inputs = inputs
        return apply(nnx.merge(graphdef, layer_parameters), x, layer_inputs)

    if compute.remat != "none":
        body = jax.checkpoint(body, prevent_cse=False, policy=_policy(compute))
    return jax.lax.scan(body, x, (parameters, per_layer), unroll=compute.unroll or length)


def _policy(compute: ComputeConfig) -> Any:
    """Which intermediate results, by the names that layers give them (`checkpoint_name`), are not computed again."""
    policies = jax.checkpoint_policies
    match compute.remat:
        case "save":
            named = policies.save_only_these_names(*compute.remat_names)
            return (
                policies.save_from_both_policies(named, is_cudnn_attention)
                if "attn_out" in compute.remat_names
                else named
            )
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(compute.remat_names),
                offload_src="device",
                offload_dst="pinned_host",
            )
        case _:
            return policies.nothing_saveable


def is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is cuDNN's attention, whose result is "attn_out" too: JAX calls it where it cannot be given that name."""
    return bool(primitive.name.startswith("dot_product_attention_fwd"))
