"""One pass of a model over rollouts: the log-probability and the entropy of every token, a chunk of logits at a time."""

import jax
import jax.numpy as jnp

from stepaudio_jax.models import Parameters, StepAudio, constrain
from stepaudio_jax.rl.layout import RolloutBatch


def token_logprobs(
    model: StepAudio, batch: RolloutBatch, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log p(target) and the distribution's entropy at every place, [B,T] fp32, of softmax(logits / temperature).

    The third result is the decoder's hidden states [B,T,H]: at each place of the state in which its
    target was chosen.

    The logits of one chunk of tokens exist at a time (a row is cut into `compute.loss_chunks`); a
    backward pass computes them again.
    """
    rows, chunks = batch.features.shape[:2]
    audio = None
    if chunks:
        features = jnp.asarray(batch.features, model.decoder.compute.dtype)
        outputs = model.adaptor(features.reshape(rows * chunks, *features.shape[2:]))
        audio = outputs.reshape(rows, -1, outputs.shape[-1])
    embeddings = model.embed(batch.tokens, audio, batch.audio_index)
    hidden = model.decode(embeddings, batch.positions, batch.segment_ids, batch.prefix_ids)
    compute, kernel = model.decoder.compute, model.decoder.lm_head_kernel()

    @jax.checkpoint
    def of_chunk(
        hidden: jax.Array, targets: jax.Array, kernel: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum(
            "BTH,HV->BTV", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = constrain(logits, "BTV", compute.rules) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        # A comparison with every index, not a gather: it stays on the device that holds its part of
        # the vocabulary.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        mean = jnp.sum(jnp.exp(logits - total[..., None]) * logits, axis=-1)
        return picked - total, total - mean

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, compute.loss_chunks, -1, *x.shape[2:]), 1, 0)

    parts = in_chunks(hidden), in_chunks(jnp.asarray(batch.targets))
    _, found = jax.lax.scan(lambda _, chunk: (None, of_chunk(*chunk, kernel)), None, parts)
    logprobs, entropy = (jnp.moveaxis(x, 0, 1).reshape(rows, -1) for x in found)
    return logprobs, entropy, hidden


def state_values(hidden: jax.Array, head: Parameters) -> jax.Array:
    """A linear value head over hidden states [B,T,H] -> [B,T] fp32."""
    return (
        jnp.einsum("BTH,H->BT", hidden, head["kernel"], preferred_element_type=jnp.float32)
        + head["bias"]
    )
