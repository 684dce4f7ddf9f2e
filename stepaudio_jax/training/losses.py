"""Auxiliary losses for an encoder trained from scratch: word-level CTC and attributes of a clip.

Their heads exist in training only. Next-token cross-entropy, the main loss, is in `train_step`.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio.lengths import chunk_token_count, encoder_frame_count
from stepaudio_jax.config import AuxiliaryConfig, LengthConvention, ModelConfig
from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.models.layers import Projection

UNKNOWN = -1  # label of an attribute that is not known of a clip


class AuxiliaryHeads(nnx.Module):
    """Linear heads: words from adaptor outputs, each attribute from the encoder's mean feature.

    Args:
        config: the words and attributes.
        model: whose widths the inputs have.
        rngs: the stream `params` gives the initial values.
    """

    def __init__(self, config: AuxiliaryConfig, model: ModelConfig, *, rngs: nnx.Rngs):
        sizes = {"H": model.decoder.hidden, "V": len(config.ctc_words) + 1}  # 0 is CTC's blank
        dtype = jnp.dtype(jnp.float32)
        self.words = Projection(
            "BTH,HV->BTV",
            axes=("embed", "vocab"),
            dim_sizes=sizes,
            use_bias=True,
            param_dtype=dtype,
            rngs=rngs,
        )
        attributes = config.attributes if config.attribute_weight > 0 else {}
        # In the order of the labels: nnx sorts what a module holds by name.
        self.names = tuple(attributes)
        self.attributes = nnx.Dict(
            {
                name: Projection(
                    "BCH,HV->BCV",
                    axes=("embed", "vocab"),
                    dim_sizes={"H": model.encoder.hidden, "V": len(values)},
                    use_bias=True,
                    param_dtype=dtype,
                    rngs=rngs,
                )
                for name, values in attributes.items()
            }
        )


def aux_loss_weights(labels: AuxiliaryLabels) -> dict[str, Float[Array, ""]]:
    """Returns the number of transcribed chunks ("ctc") and of known attributes ("attributes")."""
    is_known = jnp.asarray(labels.attributes) != UNKNOWN
    return {
        "ctc": jnp.sum(jnp.asarray(labels.ctc_weight)),
        "attributes": jnp.sum(is_known, dtype=jnp.float32),
    }


def aux_loss_sums(
    heads: AuxiliaryHeads,
    features: Float[Array, "B C encoder_frames encoder_hidden"],
    outputs: Float[Array, "B C audio_tokens H"],
    batch: Batch,
    convention: LengthConvention,
) -> dict[str, Float[Array, ""]]:
    """Computes the sum of each auxiliary loss over a batch; `aux_loss_weights` has the divisors.

    Args:
        heads: the heads.
        features: of the encoder, zero beyond each chunk.
        outputs: of the adaptor, undefined beyond each chunk.
        batch: with auxiliary labels.
        convention: how the outputs of a chunk are counted.
    """
    labels = batch.auxiliary
    assert labels is not None
    rows, chunks = batch.mel_lengths.shape
    word_logits = heads.words(
        outputs.reshape(rows * chunks, *outputs.shape[2:]).astype(jnp.float32)
    )
    counts = chunk_token_count(jnp.asarray(batch.mel_lengths).reshape(-1), convention)
    words = jnp.asarray(labels.ctc_words).reshape(rows * chunks, -1)
    weights = jnp.asarray(labels.ctc_weight).reshape(-1)
    frame_counts = encoder_frame_count(jnp.asarray(batch.mel_lengths))
    mean_features = (
        jnp.sum(features.astype(jnp.float32), axis=2) / jnp.maximum(frame_counts, 1)[:, :, None]
    )
    attributes_sum = jnp.float32(0)
    for index, name in enumerate(heads.names):
        logits = heads.attributes[name](mean_features)
        attributes_sum += attribute_loss(logits, jnp.asarray(labels.attributes)[:, :, index])
    return {"ctc": ctc_loss(word_logits, counts, words, weights), "attributes": attributes_sum}


def ctc_loss(
    logits: Float[Array, "N audio_tokens words"],
    counts: Int[Array, " N"],
    targets: Int[Array, "N transcript"],
    weights: Float[Array, " N"],
) -> Float[Array, ""]:
    """Computes the weighted sum of the CTC losses of N chunks (Graves et al. 2006).

    Args:
        logits: of each adaptor output; word 0 is the blank.
        counts: of each chunk's outputs; those beyond are ignored.
        targets: the words of each transcript, padded with 0.
        weights: 1 for chunks with a transcript, else 0.
    """
    logit_paddings = jnp.arange(logits.shape[1])[None, :] >= counts[:, None]
    losses = optax.ctc_loss(
        logits,
        logit_paddings.astype(jnp.float32),
        targets,
        (targets == 0).astype(jnp.float32),
    )
    return jnp.sum(losses * weights)


def attribute_loss(
    logits: Float[Array, "B C values"], labels: Int[Array, "B C"]
) -> Float[Array, ""]:
    """Computes the sum of -log p(label) over the chunks whose label is not UNKNOWN."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    label_logprobs = jnp.take_along_axis(logprobs, jnp.maximum(labels, 0)[..., None], axis=-1)
    return -jnp.sum(jnp.where(labels == UNKNOWN, 0.0, label_logprobs[..., 0]))
