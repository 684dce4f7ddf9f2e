"""Next-token cross-entropy that never holds the logits of the whole vocabulary at once.

The vocabulary is cut, not the tokens: a chunk of the head is gathered, used for all tokens and
given up, and its gradient is complete, so that a sharded head is gathered in parts and its gradient
is summed over devices once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepaudio_jax.config import ConfigError, ShardingRules
from stepaudio_jax.models import constrain, current_mesh, dense_kernel_grad

Sums = tuple[jax.Array, jax.Array]
Chunk = tuple[jax.Array, jax.Array]  # a part of the kernel, and the ids of its tokens


def chunked_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunks: int,
    rules: ShardingRules,
) -> Sums:
    """Sums over a batch of -log p(target) and of correct guesses, weighted.

    The logits of one chunk of the vocabulary exist at a time, [B, T, V / chunks] fp32, cut over the
    vocabulary's mesh axes. Where gradients are asked for they are computed beside the loss: with a
    single chunk from the same logits, with more from logits that are computed again once the sum
    over the vocabulary is known.

    Args:
        hidden: [B,T,H], after the final norm.
        kernel: [H,V] of the language-model head, in its own dtype, in which its gradient is given.
        targets: [B,T] i32.
        weights: [B,T] fp32; constants, which have no gradient.
        chunks: V is a multiple of it, on a mesh that cuts the vocabulary the part of each device.
        rules: where logits lie.

    Returns:
        Two fp32 scalars; the second has no gradient.

    Raises:
        ConfigError: V cannot be cut into so many chunks.
    """
    shards, mesh = 1, current_mesh()
    if mesh is not None:
        for axis in rules.mesh_axes("vocab"):
            shards *= mesh.shape[axis]
    vocabulary = kernel.shape[1]
    if vocabulary % (chunks * shards):
        cut = f" on each of {shards} devices" if shards > 1 else ""
        raise ConfigError(
            f"vocab_size={vocabulary} cannot be cut into compute.loss_chunks={chunks}{cut}; change one of them"
        )
    return _sums(hidden, kernel, targets, weights, _VocabSplit(chunks, shards, rules))


class _VocabSplit(NamedTuple):
    """How the vocabulary is cut: a chunk is made of an equal part of what every shard holds."""

    chunks: int
    shards: int
    rules: ShardingRules

    def parts(self, x: jax.Array) -> jax.Array:
        """[.., V] -> [chunks, .., V / chunks]."""
        width = x.shape[-1] // (self.chunks * self.shards)
        parts = x.reshape(*x.shape[:-1], self.shards, self.chunks, width)
        return jnp.moveaxis(parts, -2, 0).reshape(self.chunks, *x.shape[:-1], self.shards * width)

    def whole(self, parts: jax.Array) -> jax.Array:
        """The inverse."""
        width = parts.shape[-1] // self.shards
        apart = parts.reshape(*parts.shape[:-1], self.shards, width)
        return jnp.moveaxis(apart, 0, -2).reshape(*parts.shape[1:-1], -1)


class _OnlineSoftmax(NamedTuple):
    """Of the chunks so far, [B,T] fp32 each: the largest logit, the sum of exp(logit - largest), the target's logit."""

    largest: jax.Array
    total: jax.Array
    picked: jax.Array

    @property
    def log_total(self) -> jax.Array:
        return self.largest + jnp.log(self.total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sums(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, cut: _VocabSplit
) -> Sums:
    return _loss_and_correct(
        _seen(hidden, targets, _chunks(hidden, kernel, cut), cut.rules), weights
    )


def _forward(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, cut: _VocabSplit
) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
    chunks = _chunks(hidden, kernel, cut)

    def gradients(
        logits: jax.Array, is_target: jax.Array, seen: _OnlineSoftmax, chunk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of the loss: the chunk's share [B,T,H] fp32 of that to hidden, and that to the chunk of the kernel."""
        d_logits = (jnp.exp(logits - seen.log_total[..., None]) - is_target) * weights[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum("BTV,HV->BTH", d_logits, chunk, preferred_element_type=jnp.float32)
        d_kernel = dense_kernel_grad("BTH,HV->BTV", hidden, d_logits, dtype=jnp.float32).astype(
            kernel.dtype
        )
        return constrain(d_hidden, "BTH", cut.rules), d_kernel

    if cut.chunks == 1:
        chunk = jax.tree.map(lambda x: x[0], chunks)
        logits = _logits(hidden, targets, chunk, cut.rules)
        seen = _add_chunk(_empty(targets), *logits)
        d_hidden, d_kernel = gradients(*logits, seen, chunk[0])
    else:
        seen = _seen(hidden, targets, chunks, cut.rules)

        def add(d_hidden: jax.Array, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
            share, d_kernel = gradients(*_logits(hidden, targets, chunk, cut.rules), seen, chunk[0])
            return d_hidden + share, d_kernel

        d_hidden, d_kernels = jax.lax.scan(add, jnp.zeros(hidden.shape, jnp.float32), chunks)
        d_kernel = cut.whole(d_kernels)
    return _loss_and_correct(seen, weights), (d_hidden.astype(hidden.dtype), d_kernel)


def _backward(
    cut: _VocabSplit, saved: tuple[jax.Array, jax.Array], gradients: Sums
) -> tuple[jax.Array | None, ...]:
    d_hidden, d_kernel = ((part * gradients[0]).astype(part.dtype) for part in saved)
    return d_hidden, d_kernel, None, None


_sums.defvjp(_forward, _backward)


def _chunks(hidden: jax.Array, kernel: jax.Array, cut: _VocabSplit) -> Chunk:
    """[chunks, H, V / chunks] of the kernel in the dtype of hidden, and [chunks, V / chunks] of its tokens' ids."""
    return cut.parts(kernel.astype(hidden.dtype)), cut.parts(jnp.arange(kernel.shape[1]))


def _seen(
    hidden: jax.Array, targets: jax.Array, chunks: Chunk, rules: ShardingRules
) -> _OnlineSoftmax:
    """Of all chunks."""

    def add(seen: _OnlineSoftmax, chunk: Chunk) -> tuple[_OnlineSoftmax, None]:
        return _add_chunk(seen, *_logits(hidden, targets, chunk, rules)), None

    return jax.lax.scan(add, _empty(targets), chunks)[0]


def _logits(
    hidden: jax.Array, targets: jax.Array, chunk: Chunk, rules: ShardingRules
) -> tuple[jax.Array, jax.Array]:
    """The logits [B,T,V] fp32 of a chunk, and where they are a target's."""
    kernel, ids = chunk
    kernel = constrain(
        kernel, "HV", rules
    )  # gathered: it is smaller than what it is multiplied with
    logits = jnp.einsum("BTH,HV->BTV", hidden, kernel, preferred_element_type=jnp.float32)
    # A comparison with every id, not a gather: it stays on the device that holds its part of the
    # vocabulary.
    return constrain(logits, "BTV", rules), ids == targets[..., None]


def _empty(targets: jax.Array) -> _OnlineSoftmax:
    zeros = jnp.zeros(targets.shape, jnp.float32)
    return _OnlineSoftmax(zeros - jnp.inf, zeros, zeros)


def _add_chunk(seen: _OnlineSoftmax, logits: jax.Array, is_target: jax.Array) -> _OnlineSoftmax:
    largest = jnp.maximum(seen.largest, jnp.max(logits, axis=-1))
    total = seen.total * jnp.exp(seen.largest - largest) + jnp.sum(
        jnp.exp(logits - largest[..., None]), axis=-1
    )
    return _OnlineSoftmax(
        largest, total, seen.picked + jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    )


def _loss_and_correct(seen: _OnlineSoftmax, weights: jax.Array) -> Sums:
    correct = seen.picked >= seen.largest
    return jnp.sum((seen.log_total - seen.picked) * weights), jnp.sum(correct * weights)
