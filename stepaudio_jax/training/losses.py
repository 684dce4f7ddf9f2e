"""What is minimised: next-token cross-entropy over reasoning and reply, plus auxiliary terms where a stage asks for them.

Every term is a sum over the batch and a weight that depends on the data alone. The weights of the
whole step's batch are known before the first micro-batch is computed, so each micro-batch
contributes exactly its share of each mean, and accumulation or data parallelism cannot change the
loss.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stepaudio_jax.audio.lengths import chunk_token_count, encoder_frame_count
from stepaudio_jax.config import AuxiliaryConfig, LengthConvention, ModelConfig, ShardingRules
from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import (
    StepAudio,
    constrain,
    current_mesh,
    dense_kernel_grad,
)
from stepaudio_jax.models.layers import Projection

# Next-token cross-entropy that never holds the logits of the whole vocabulary at once.

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
        return constrain(d_hidden, ("batch", "tokens", None), cut.rules), d_kernel

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
        kernel, (None, "vocab"), rules
    )  # gathered: it is smaller than what it is multiplied with
    logits = jnp.einsum("BTH,HV->BTV", hidden, kernel, preferred_element_type=jnp.float32)
    # A comparison with every id, not a gather: it stays on the device that holds its part of the
    # vocabulary.
    return constrain(logits, ("batch", "tokens", "vocab"), rules), ids == targets[..., None]


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


# Auxiliary heads for an encoder that starts from nothing: word-level CTC and attributes of a clip. Used in training only.

UNKNOWN = -1  # an attribute that is not known of a clip


class AuxiliaryHeads(nnx.Module):
    """Linear heads: words from the adaptor's outputs, each attribute from the encoder's mean feature."""

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
        self.names = tuple(
            attributes
        )  # in the order of the labels; nnx sorts what it holds by name
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
    counts = chunk_token_count(jnp.asarray(batch.mel_lengths).reshape(-1), convention)
    beyond = (jnp.arange(logits.shape[1])[None, :] >= counts[:, None]).astype(jnp.float32)
    words = jnp.asarray(labels.ctc_words).reshape(rows * chunks, -1)
    losses = optax.ctc_loss(logits, beyond, words, (words == 0).astype(jnp.float32))
    sums = {"ctc": jnp.sum(losses * jnp.asarray(labels.ctc_weight).reshape(-1))}

    lengths = encoder_frame_count(jnp.asarray(batch.mel_lengths))
    mean = jnp.sum(features.astype(jnp.float32), axis=2) / jnp.maximum(lengths, 1)[:, :, None]
    total = jnp.float32(0)
    for index, name in enumerate(heads.names):
        value = jnp.asarray(labels.attributes)[:, :, index]
        log_probs = jax.nn.log_softmax(heads.attributes[name](mean), axis=-1)
        picked = jnp.take_along_axis(log_probs, jnp.maximum(value, 0)[..., None], axis=-1)[..., 0]
        total -= jnp.sum(jnp.where(value == UNKNOWN, 0.0, picked))
    sums["attributes"] = total
    return sums


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
