"""What is minimised: next-token cross-entropy over reasoning and reply, plus auxiliary terms where a stage asks for them.

Every term is a sum over the batch and a weight that depends on the data alone. The weights of the
whole step's batch are known before the first micro-batch is computed, so each micro-batch
contributes exactly its share of each mean, and accumulation or data parallelism cannot change the
loss.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.training.auxiliary import AuxiliaryHeads, aux_loss_sums, aux_loss_weights
from stepaudio_jax.training.cross_entropy import chunked_cross_entropy

NEXT_TOKEN = "next_token"


def loss_term_weights(batch: Batch) -> dict[str, jax.Array]:
    """What each term's sum is divided by, over this batch: term -> scalar fp32."""
    weights = {NEXT_TOKEN: jnp.sum(batch.loss_weights)}
    if batch.auxiliary is not None:
        weights |= aux_loss_weights(batch.auxiliary)
    return weights


def loss_term_sums(
    model: StepAudio, heads: AuxiliaryHeads | None, batch: Batch
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Each term's sum over a batch, and counts for metrics.

    The first term is R1.5 eq. (1), negated: -sum over learnt tokens of log p(token | audio, text
    before it), for samples with audio and without alike.

    Returns:
        (term -> scalar fp32, metric -> scalar fp32 sum over learnt tokens).
    """
    audio = None
    sums: dict[str, jax.Array] = {}
    if batch.mel.shape[1] > 0:
        features, outputs = model.encode_chunks(batch.mel, batch.mel_lengths)
        audio = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])
        if heads is not None and batch.auxiliary is not None:
            sums |= aux_loss_sums(heads, features, outputs, batch, model.config.length_convention)
    embeddings = model.embed(batch.tokens, audio, batch.audio_index)
    hidden = model.decode(embeddings, batch.positions, batch.segment_ids)
    compute = model.decoder.compute
    sums[NEXT_TOKEN], correct = chunked_cross_entropy(
        hidden,
        model.decoder.lm_head_kernel(),
        batch.targets,
        batch.loss_weights,
        chunks=compute.loss_chunks,
        rules=compute.rules,
    )
    return sums, {"correct_tokens": correct}


def combine(
    sums: Mapping[str, jax.Array], weights: Mapping[str, jax.Array], auxiliary: AuxiliaryConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The total loss, sum over terms of coefficient * sum / weight, and each term's mean.

    A term without weight (no learnt token, no transcript in the batch) contributes nothing.
    """
    coefficients = {
        NEXT_TOKEN: 1.0,
        "ctc": auxiliary.ctc_weight,
        "attributes": auxiliary.attribute_weight,
    }
    means = {name: total / jnp.maximum(weights[name], 1.0) for name, total in sums.items()}
    return sum(
        (coefficients[name] * mean for name, mean in means.items()), start=jnp.float32(0)
    ), means
