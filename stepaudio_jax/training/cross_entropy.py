"""Next-token cross-entropy that never holds the logits of a whole batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stepaudio_jax.config import ConfigError, Rules
from stepaudio_jax.models import constrain, kernel_gradient, mesh_in_use

Sums = tuple[jax.Array, jax.Array]
Chunk = tuple[jax.Array, jax.Array, jax.Array]  # hidden, targets, weights


def next_token_sums(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, *, chunks: int, rules: Rules
) -> Sums:
    """Sums over a batch of -log p(target) and of correct guesses, weighted.

    The logits of one chunk of tokens exist at a time, [B, T / chunks, V] fp32, cut over the mesh axes of the vocabulary. Where
    gradients are asked for they are computed beside the loss, from the same logits, which so are computed once.

    Args:
        hidden: [B,T,H], after the final norm.
        kernel: [H,V] of the language-model head, in its own dtype: its gradient is summed over chunks in that.
        targets: [B,T] i32.
        weights: [B,T] fp32; constants, which have no gradient.
        chunks: T is a multiple of it, on a mesh that cuts tokens the part of each device.
        rules: where logits lie.

    Returns:
        Two fp32 scalars; the second has no gradient.

    Raises:
        ConfigError: T cannot be cut into so many chunks.
    """
    shards, mesh = 1, mesh_in_use()
    if mesh is not None:
        for axis in rules.mesh_axes("tokens"):
            shards *= mesh.shape[axis]
    tokens = targets.shape[1]
    if tokens % (chunks * shards):
        cut = f" on each of {shards} devices" if shards > 1 else ""
        raise ConfigError(f"tokens_per_row={tokens} cannot be cut into compute.loss_chunks={chunks}{cut}; change one of them")

    def in_chunks(x: jax.Array) -> jax.Array:
        """[B,T,..] -> [chunks, B, T / chunks, ..], a chunk made of an equal part of what every device holds."""
        parts = x.reshape(x.shape[0], shards, chunks, tokens // (shards * chunks), *x.shape[2:])
        return jnp.moveaxis(parts, 2, 0).reshape(chunks, x.shape[0], tokens // chunks, *x.shape[2:])

    return _sums(in_chunks(hidden), kernel, in_chunks(jnp.asarray(targets)), in_chunks(jnp.asarray(weights)), rules)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sums(hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, rules: Rules) -> Sums:
    """The same of chunks [C,B,T,..]."""
    in_dtype = kernel.astype(hidden.dtype)

    def add(carry: Sums, chunk: Chunk) -> tuple[Sums, None]:
        return _added(carry, _chunk_sums(chunk, in_dtype, rules)[0]), None

    return _over_chunks(add, _zeros(), (hidden, targets, weights))[0]


def _forward(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, rules: Rules
) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
    in_dtype = kernel.astype(hidden.dtype)

    def add(carry: tuple[Sums, jax.Array], chunk: Chunk) -> tuple[tuple[Sums, jax.Array], jax.Array]:
        sums, d_logits = _chunk_sums(chunk, in_dtype, rules)
        d_hidden = constrain(jnp.einsum("BTV,HV->BTH", d_logits, in_dtype), "BTH", rules)
        d_kernel = kernel_gradient("BTH,HV->BTV", chunk[0], d_logits).astype(kernel.dtype)
        return (_added(carry[0], sums), carry[1] + d_kernel), d_hidden

    (sums, d_kernel), d_hidden = _over_chunks(add, (_zeros(), jnp.zeros_like(kernel)), (hidden, targets, weights))
    return sums, (d_hidden, d_kernel)


def _backward(rules: Rules, saved: tuple[jax.Array, jax.Array], gradients: Sums) -> tuple[jax.Array | None, ...]:
    d_hidden, d_kernel = ((part * gradients[0]).astype(part.dtype) for part in saved)
    return d_hidden, d_kernel, None, None


_sums.defvjp(_forward, _backward)


def _chunk_sums(chunk: Chunk, kernel: jax.Array, rules: Rules) -> tuple[Sums, jax.Array]:
    """Of hidden [B,T,H], targets and weights [B,T]: the sums, and the loss's gradient to the logits [B,T,V]."""
    hidden, targets, weights = chunk
    logits = jnp.einsum("BTH,HV->BTV", hidden, kernel, preferred_element_type=jnp.float32)
    logits = constrain(logits, "BTV", rules)
    # A comparison with every index, not a gather: it stays on the device that holds its part of the vocabulary.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    correct = picked >= jnp.max(logits, axis=-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    d_logits = (jnp.exp(logits - log_total[..., None]) - is_target) * weights[..., None]
    return (jnp.sum((log_total - picked) * weights), jnp.sum(correct * weights)), d_logits.astype(hidden.dtype)


def _over_chunks(add: Callable[..., tuple[Any, Any]], carry: Any, chunks: Chunk) -> tuple[Any, Any]:
    """A scan; of a single chunk, which is the whole batch, just its body."""
    if chunks[0].shape[0] > 1:
        return jax.lax.scan(add, carry, chunks)
    carry, out = add(carry, jax.tree.map(lambda x: x[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], out)


def _added(one: Sums, other: Sums) -> Sums:
    return one[0] + other[0], one[1] + other[1]


def _zeros() -> Sums:
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
