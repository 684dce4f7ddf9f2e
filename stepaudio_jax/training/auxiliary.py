"""Auxiliary heads for an encoder that starts from nothing: word-level CTC and attributes of a clip. Used in training only.

CTC (Graves et al. 2006) reads the adaptor's outputs at 12.5 Hz; attribute classifiers read the mean
of the encoder's features.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stepaudio_jax.config import AuxiliaryConfig, LengthConvention, ModelConfig
from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.models import audio_token_counts
from stepaudio_jax.models.layers import Projection

UNKNOWN = -1  # an attribute that is not known of a clip


class AuxiliaryHeads(nnx.Module):
    """Linear heads: words from the adaptor's outputs, each attribute from the encoder's mean feature."""

    def __init__(self, config: AuxiliaryConfig, model: ModelConfig, *, rngs: nnx.Rngs):
        sizes = {"H": model.decoder.hidden, "V": len(config.ctc_words) + 1}  # 0 is CTC's blank
        dtype = jnp.dtype(jnp.float32)
        self.words = Projection("BTH,HV->BTV", sizes, use_bias=True, param_dtype=dtype, rngs=rngs)
        attributes = config.attributes if config.attribute_weight > 0 else {}
        self.names = tuple(
            attributes
        )  # in the order of the labels; nnx sorts what it holds by name
        self.attributes = nnx.Dict(
            {
                name: Projection(
                    "BCH,HV->BCV",
                    {"H": model.encoder.hidden, "V": len(values)},
                    use_bias=True,
                    param_dtype=dtype,
                    rngs=rngs,
                )
                for name, values in attributes.items()
            }
        )


def aux_loss_weights(labels: AuxiliaryLabels) -> dict[str, jax.Array]:
    """Transcribed chunks, and known attributes, in the batch."""
    known = jnp.asarray(labels.attributes) != UNKNOWN
    return {"ctc": jnp.sum(labels.ctc_weight), "attributes": jnp.sum(known, dtype=jnp.float32)}


def aux_loss_sums(
    heads: AuxiliaryHeads,
    features: jax.Array,
    outputs: jax.Array,
    batch: Batch,
    convention: LengthConvention,
) -> dict[str, jax.Array]:
    """Sums of the CTC loss over transcribed chunks and of the cross-entropy over known attributes.

    Args:
        heads: the heads.
        features: [B,C,E,H_encoder], zero beyond each chunk.
        outputs: [B,C,A,H].
        batch: with auxiliary labels.
        convention: how outputs of a chunk are counted.
    """
    labels = batch.auxiliary
    assert labels is not None
    rows, chunks = batch.mel_lengths.shape
    logits = heads.words(outputs.reshape(rows * chunks, *outputs.shape[2:]).astype(jnp.float32))
    counts = audio_token_counts(jnp.asarray(batch.mel_lengths).reshape(-1), convention)
    beyond = (jnp.arange(logits.shape[1])[None, :] >= counts[:, None]).astype(jnp.float32)
    words = jnp.asarray(labels.ctc_words).reshape(rows * chunks, -1)
    losses = optax.ctc_loss(logits, beyond, words, (words == 0).astype(jnp.float32))
    sums = {"ctc": jnp.sum(losses * jnp.asarray(labels.ctc_weight).reshape(-1))}

    lengths = -(-jnp.asarray(batch.mel_lengths) // 2) // 2
    mean = jnp.sum(features.astype(jnp.float32), axis=2) / jnp.maximum(lengths, 1)[:, :, None]
    total = jnp.float32(0)
    for index, name in enumerate(heads.names):
        value = jnp.asarray(labels.attributes)[:, :, index]
        log_probs = jax.nn.log_softmax(heads.attributes[name](mean), axis=-1)
        picked = jnp.take_along_axis(log_probs, jnp.maximum(value, 0)[..., None], axis=-1)[..., 0]
        total -= jnp.sum(jnp.where(value == UNKNOWN, 0.0, picked))
    sums["attributes"] = total
    return sums
