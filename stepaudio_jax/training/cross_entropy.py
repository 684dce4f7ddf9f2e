"""Next-token cross-entropy that never holds the logits of a whole batch."""

import jax
import jax.numpy as jnp

from stepaudio_jax.config import ConfigError, Rules
from stepaudio_jax.models import constrain, mesh_in_use


def next_token_sums(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, *, chunks: int, rules: Rules
) -> tuple[jax.Array, jax.Array]:
    """Sums over a batch of -log p(target) and of correct guesses, weighted.

    The logits of one chunk of tokens exist at a time, [B, T / chunks, V] fp32, cut over the mesh axes of the vocabulary; the
    backward pass computes them again.

    Args:
        hidden: [B,T,H], after the final norm.
        kernel: [H,V] of the language-model head, in its own dtype: its gradient is summed over chunks in that.
        targets: [B,T] i32.
        weights: [B,T] fp32.
        chunks: T is a multiple of it, on a mesh that cuts tokens the part of each device.
        rules: where logits lie.

    Returns:
        Two fp32 scalars.

    Raises:
        ConfigError: T cannot be cut into so many chunks.
    """

    def sums(hidden: jax.Array, targets: jax.Array, weights: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("BTH,HV->BTV", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = constrain(logits, "BTV", rules)
        # A comparison with every index, not a gather: it stays on the device that holds its part of the vocabulary.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        correct = picked >= jnp.max(logits, axis=-1)
        return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - picked) * weights), jnp.sum(correct * weights)

    if chunks == 1:
        return sums(hidden, targets, weights, kernel)
    mesh = mesh_in_use()
    shards = 1
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

    def add(
        carry: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, correct = sums(*chunk, kernel)
        return (carry[0] + loss, carry[1] + correct), None

    zero = jnp.zeros((), jnp.float32)
    parts = tuple(in_chunks(x) for x in (hidden, targets, weights))
    (loss, correct), _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), (zero, zero), parts)
    return loss, correct
