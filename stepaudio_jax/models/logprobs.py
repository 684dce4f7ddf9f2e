"""Log-probabilities of given tokens, with the logits of one chunk of tokens in memory at a time.

The training loss has an algorithm of its own, which splits the vocabulary (`training.train_step`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import ShardingRules
from stepaudio_jax.kernels.partitioning import constrain


def chunked_logprobs(
    hidden: Float[Array, "B T H"],
    lm_head_kernel: Float[Array, "H V"],
    targets: Int[Array, "B T"],
    *,
    chunks: int,
    temperature: float = 1.0,
    rules: ShardingRules,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Computes log p(target) and the entropy of softmax(logits / temperature), both fp32.

    Each row is split into `chunks` parts, which must divide T; a backward pass computes their
    logits again.

    Args:
        hidden: states of the decoder's last layer.
        lm_head_kernel: cast to the dtype of `hidden`; the logits are fp32.
        targets: the token at each position.
        chunks: parts of a row.
        temperature: divides the logits.
        rules: shardings of the logits.
    """
    rows = hidden.shape[0]

    @jax.checkpoint
    def chunk_logprobs(
        hidden: Float[Array, "B T H"], targets: Int[Array, "B T"], kernel: Float[Array, "H V"]
    ) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum(
            "BTH,HV->BTV", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = constrain(logits, ("batch", "tokens", "vocab"), rules) / temperature
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        # A comparison with every index instead of a gather: each device then needs only its part
        # of the vocabulary.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        probabilities = jnp.exp(logits - log_normalizer[..., None])
        mean_logit = jnp.sum(probabilities * logits, axis=-1)
        return target_logit - log_normalizer, log_normalizer - mean_logit

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, chunks, -1, *x.shape[2:]), 1, 0)

    _, outputs = jax.lax.scan(
        lambda _, chunk: (None, chunk_logprobs(*chunk, lm_head_kernel)),
        None,
        (split(hidden), split(targets)),
    )
    logprobs, entropy = (jnp.moveaxis(x, 0, 1).reshape(rows, -1) for x in outputs)
    return logprobs, entropy


def chunked_divergence(
    hidden: Float[Array, "B T H"],
    lm_head_kernel: Float[Array, "H V"],
    teacher_hidden: Float[Array, "B T teacher_hidden"],
    teacher_kernel: Float[Array, "teacher_hidden V"],
    *,
    beta: float,
    chunks: int,
    temperature: float = 1.0,
    rules: ShardingRules,
) -> Float[Array, "B T"]:
    """Computes how far a student's distributions of the next token are from a teacher's, in fp32.

    The generalized Jensen-Shannon divergence (Agarwal et al. 2024, eq. 1) of the teacher's P and
    the student's Q, with M = beta P + (1 - beta) Q:

    * 0 < beta < 1: beta KL(P || M) + (1 - beta) KL(Q || M);
    * beta = 0: KL(P || Q), the forward KL, which covers all that the teacher may say;
    * beta = 1: KL(Q || P), the reverse KL, by which the student keeps to what the teacher would
      say.

    Gradients flow to the student alone. The logits of both exist for one of `chunks` parts of each
    row at a time.

    Args:
        hidden, lm_head_kernel: the student's states and its head.
        teacher_hidden, teacher_kernel: the teacher's, of the same vocabulary.
        beta: from 0 to 1.
        chunks: parts of a row, which must divide T.
        temperature: divides the logits of both.
        rules: shardings of the logits.
    """
    rows = hidden.shape[0]

    def log_softmax(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        logits = jnp.einsum(
            "BTH,HV->BTV", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = constrain(logits, ("batch", "tokens", "vocab"), rules) / temperature
        return jax.nn.log_softmax(logits, axis=-1)

    def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    @jax.checkpoint
    def chunk_divergence(
        hidden: jax.Array, teacher_hidden: jax.Array, kernel: jax.Array, teacher_kernel: jax.Array
    ) -> jax.Array:
        student = log_softmax(hidden, kernel)
        teacher = jax.lax.stop_gradient(log_softmax(teacher_hidden, teacher_kernel))
        if beta == 0:
            return kl(teacher, student)
        if beta == 1:
            return kl(student, teacher)
        mixture = jnp.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
        return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, chunks, -1, *x.shape[2:]), 1, 0)

    _, divergence = jax.lax.scan(
        lambda _, chunk: (None, chunk_divergence(*chunk, lm_head_kernel, teacher_kernel)),
        None,
        (split(hidden), split(teacher_hidden)),
    )
    return jnp.moveaxis(divergence, 0, 1).reshape(rows, -1)
