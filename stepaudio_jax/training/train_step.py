"""The train step of next-token prediction: its loss, gradients over micro-batches, and the update.

Each term of the loss is a sum over the batch, divided by a weight that depends on the data alone.
The weights of the step's whole batch are known before its first micro-batch is computed, so each
micro-batch adds its exact share of each mean: the loss does not depend on how the batch is split by
micro-batches or over devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.audio.lengths import MEL_FRAMES_PER_SECOND
from stepaudio_jax.config import ShardingRules, StageConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import (
    Parameters,
    StepAudio,
    constrain,
    current_mesh,
    dense_kernel_grad,
)
from stepaudio_jax.training.losses import AuxiliaryHeads, aux_loss_sums, aux_loss_weights
from stepaudio_jax.training.train_state import ModelDef, TrainState, apply_gradients

Scalar = Float[Array, ""]
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]

NEXT_TOKEN = "next_token"


def make_train_step(
    model_def: ModelDef, stage: StageConfig, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Returns the train step of a stage, not yet jitted.

    The batch is split by rows into `gradient_accumulation_steps` micro-batches, whose gradients add
    up to those of the whole batch. A step whose loss or gradient is not finite, or that has nothing
    to learn, changes nothing but the counts of steps.

    The step's metrics are scalars: the loss, the mean of each of its terms, token_accuracy, those
    of `apply_gradients`, and the batch's tokens, loss_tokens and audio_seconds.
    """
    coefficients = {
        NEXT_TOKEN: 1.0,
        "ctc": stage.auxiliary.ctc_weight,
        "attributes": stage.auxiliary.attribute_weight,
    }

    def loss(
        trainable: Parameters, state: TrainState, batch: Batch, weights: Metrics
    ) -> tuple[Scalar, Metrics]:
        """Computes the sum over terms of coefficient * sum / weight, and metrics.

        The first term is R1.5 eq. (1), negated: -sum over loss tokens of log p(token | audio, text
        before it), for dialogues with and without audio alike. A term without weight (no loss
        token, no transcript in the batch) adds 0.
        """
        model, heads = model_def.merge(state.with_trainable(trainable))
        hidden, aux_sums = forward(model, heads, batch)
        next_token_sum, correct_tokens = chunked_cross_entropy(
            hidden,
            model.decoder.lm_head_kernel(),
            batch.targets,
            batch.loss_weights,
            chunks=model.decoder.compute.loss_chunks,
            rules=model.decoder.compute.rules,
        )
        sums = {**aux_sums, NEXT_TOKEN: next_token_sum}
        means = {name: total / jnp.maximum(weights[name], 1.0) for name, total in sums.items()}
        total = sum((coefficients[name] * mean for name, mean in means.items()), jnp.float32(0))
        metrics = {
            "loss": total,
            "token_accuracy": correct_tokens / jnp.maximum(weights[NEXT_TOKEN], 1.0),
        }
        return total, metrics | {f"loss/{name}": mean for name, mean in means.items()}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = {NEXT_TOKEN: jnp.sum(batch.loss_weights)}
        if batch.auxiliary is not None:
            weights |= aux_loss_weights(batch.auxiliary)
        loss_and_gradients = jax.value_and_grad(loss, has_aux=True)

        def microbatch_gradients(microbatch: Batch) -> tuple[Parameters, Metrics]:
            (_, metrics), gradients = loss_and_gradients(
                state.trainable, state, microbatch, weights
            )
            return gradients, metrics

        gradients, metrics = sum_over_microbatches(
            microbatch_gradients, batch, stage.gradient_accumulation_steps
        )
        state, update_metrics = apply_gradients(state, gradients, metrics["loss"], optimizer)
        return state, metrics | update_metrics | batch_metrics(batch)

    return train_step


def batch_metrics(batch: Batch) -> Metrics:
    """Returns what a step's batch holds: tokens, loss_tokens and audio_seconds, scalars."""
    return {
        "tokens": jnp.sum(jnp.asarray(batch.segment_ids) > 0),
        "loss_tokens": jnp.sum(batch.loss_weights),
        "audio_seconds": jnp.sum(batch.mel_lengths) / MEL_FRAMES_PER_SECOND,
    }


def make_eval_step(model_def: ModelDef, num_microbatches: int = 1) -> EvalStep:
    """Returns the evaluation step: sums over a batch of loss_sum, correct_tokens and loss_tokens.

    Args:
        model_def: of the model.
        num_microbatches: parts into which rows are split, so that it needs no more memory than
            training.
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        model, _ = model_def.merge(state)

        def microbatch_sums(microbatch: Batch) -> Metrics:
            hidden, _ = forward(model, None, microbatch)
            loss_sum, correct_tokens = chunked_cross_entropy(
                hidden,
                model.decoder.lm_head_kernel(),
                microbatch.targets,
                microbatch.loss_weights,
                chunks=model.decoder.compute.loss_chunks,
                rules=model.decoder.compute.rules,
            )
            return {
                "loss_sum": loss_sum,
                "loss_tokens": jnp.sum(microbatch.loss_weights),
                "correct_tokens": correct_tokens,
            }

        return sum_over_microbatches(microbatch_sums, batch, num_microbatches)

    return eval_step


def forward(
    model: StepAudio,
    heads: AuxiliaryHeads | None,
    batch: Batch,
    features: Float[Array, "B C audio_frames enc_hidden"] | None = None,
) -> tuple[Float[Array, "B T H"], dict[str, Scalar]]:
    """Runs the model over a batch.

    Args:
        model: whose weights are used.
        heads: None: no auxiliary losses.
        batch: of B rows of T tokens.
        features: the encoder's output, if another model with the same encoder has computed it.

    Returns:
        The decoder's hidden states after its final norm, in the compute dtype; and the sum of each
        auxiliary loss, none without audio or labels.
    """
    audio = None
    aux_sums: dict[str, Scalar] = {}
    if batch.mel.shape[1] > 0:
        if features is None:
            features, outputs = model.encode_chunks(batch.mel, batch.mel_lengths)
        else:
            outputs = model.adapt_chunks(features)
        audio = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])
        if heads is not None and batch.auxiliary is not None:
            convention = model.config.length_convention
            aux_sums = aux_loss_sums(heads, features, outputs, batch, convention)
    embeddings = model.embed(batch.tokens, audio, batch.audio_index)
    prefix_ids = None if batch.pairs is None else batch.pairs.prefix_ids
    return model.decode(embeddings, batch.positions, batch.segment_ids, prefix_ids), aux_sums


def sum_over_microbatches(compute: Callable[[Batch], Any], batch: Batch, number: int) -> Any:
    """Returns the sum of the trees that `compute` returns for each of `number` micro-batches."""
    if number == 1:
        return compute(batch)
    microbatches = split_microbatches(batch, number)
    shapes = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, microbatch: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, compute(microbatch)), None

    return jax.lax.scan(add, zeros, microbatches)[0]


def split_microbatches(batch: Batch, number: int) -> Batch:
    """Reshapes every leaf [B, ...] to [number, B / number, ...].

    Micro-batch i has the rows i, i + number, ...: each device splits its own rows, and none moves.
    """
    return jax.tree.map(
        lambda x: jnp.reshape(x, (x.shape[0] // number, number, *x.shape[1:])).swapaxes(0, 1),
        batch,
    )


# Cross-entropy in chunks of the vocabulary. RL and scoring compute log-probabilities in chunks of
# tokens instead (`models.logprobs`), since they need every token's; a sum alone can be split this
# way, which bounds the memory of long rows too.


def chunked_cross_entropy(
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunks: int,
    rules: ShardingRules,
) -> tuple[Scalar, Scalar]:
    """Computes the weighted sums of -log p(target) and of correct predictions over a batch.

    Only the logits of one chunk, [B, T, V / chunks] fp32, exist at a time, sharded like the
    vocabulary. Gradients are computed together with the loss: with one chunk from the same logits,
    with more from logits that are computed again once their sum over the vocabulary is known.

    Args:
        hidden: after the final norm.
        kernel: of the language-model head, in its own dtype, which its gradient has too.
        targets: i32.
        weights: fp32; constants without a gradient.
        chunks: divides V, or each device's part of V if the mesh shards the vocabulary.
        rules: of the shardings.

    Returns:
        Two fp32 scalars; the second has no gradient.

    Raises:
        ConfigError: V cannot be split into this many chunks.
    """
    shards, mesh = 1, current_mesh()
    if mesh is not None:
        for axis in rules.mesh_axes("vocab"):
            shards *= mesh.shape[axis]
    vocab_size = kernel.shape[1]
    if vocab_size % (chunks * shards):
        on_devices = f" on each of {shards} devices" if shards > 1 else ""
        raise ConfigError(
            f"vocab_size={vocab_size} cannot be split into compute.loss_chunks={chunks}"
            f"{on_devices}; change one of them"
        )
    return _cross_entropy(hidden, kernel, targets, weights, _VocabChunks(chunks, shards, rules))


class _VocabChunks(NamedTuple):
    """How the vocabulary is split: each chunk has an equal part of what every shard holds."""

    chunks: int
    shards: int
    rules: ShardingRules

    def split(self, x: Array) -> Array:
        """Reshapes [..., V] to [chunks, ..., V / chunks]."""
        width = x.shape[-1] // (self.chunks * self.shards)
        parts = x.reshape(*x.shape[:-1], self.shards, self.chunks, width)
        return jnp.moveaxis(parts, -2, 0).reshape(self.chunks, *x.shape[:-1], self.shards * width)

    def join(self, parts: Array) -> Array:
        """Inverts `split`."""
        width = parts.shape[-1] // self.shards
        by_shard = parts.reshape(*parts.shape[:-1], self.shards, width)
        return jnp.moveaxis(by_shard, 0, -2).reshape(*parts.shape[1:-1], -1)


# A chunk [H, V / chunks] of the kernel, and the token ids [V / chunks] of its columns.
_Chunk = tuple[Array, Array]


class _OnlineSoftmax(NamedTuple):
    """Statistics of each token's softmax over the chunks so far, fp32.

    Attributes:
        largest: the largest logit.
        total: the sum of exp(logit - largest).
        target_logit: the target's logit; 0 as long as its chunk has not come.
    """

    largest: Float[Array, "B T"]
    total: Float[Array, "B T"]
    target_logit: Float[Array, "B T"]

    @property
    def log_total(self) -> Float[Array, "B T"]:
        return self.largest + jnp.log(self.total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    vocab_chunks: _VocabChunks,
) -> tuple[Scalar, Scalar]:
    softmax = _scan_softmax(
        hidden, targets, _kernel_chunks(hidden, kernel, vocab_chunks), vocab_chunks.rules
    )
    return _loss_and_correct(softmax, weights)


def _cross_entropy_fwd(
    hidden: Float[Array, "B T H"],
    kernel: Float[Array, "H V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    vocab_chunks: _VocabChunks,
) -> tuple[tuple[Scalar, Scalar], tuple[Float[Array, "B T H"], Float[Array, "H V"]]]:
    """Returns the result, and as residuals the gradients of the loss to `hidden` and `kernel`."""
    chunks = _kernel_chunks(hidden, kernel, vocab_chunks)

    def gradients(
        logits: Array, is_target: Array, softmax: _OnlineSoftmax, kernel_chunk: Array
    ) -> tuple[Array, Array]:
        """Returns a chunk's share of the gradient to hidden, fp32, and that to the chunk."""
        d_logits = (jnp.exp(logits - softmax.log_total[..., None]) - is_target) * weights[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum(
            "BTV,HV->BTH", d_logits, kernel_chunk, preferred_element_type=jnp.float32
        )
        d_kernel = dense_kernel_grad("BTH,HV->BTV", hidden, d_logits, dtype=jnp.float32)
        return constrain(d_hidden, ("batch", "tokens", None), vocab_chunks.rules), d_kernel.astype(
            kernel.dtype
        )

    if vocab_chunks.chunks == 1:
        chunk = jax.tree.map(lambda x: x[0], chunks)
        logits, is_target = _logits(hidden, targets, chunk, vocab_chunks.rules)
        softmax = _add_chunk(_empty_softmax(targets), logits, is_target)
        d_hidden, d_kernel = gradients(logits, is_target, softmax, chunk[0])
    else:
        softmax = _scan_softmax(hidden, targets, chunks, vocab_chunks.rules)

        def add_chunk(d_hidden: Array, chunk: _Chunk) -> tuple[Array, Array]:
            logits, is_target = _logits(hidden, targets, chunk, vocab_chunks.rules)
            share, d_kernel = gradients(logits, is_target, softmax, chunk[0])
            return d_hidden + share, d_kernel

        zeros = jnp.zeros(hidden.shape, jnp.float32)
        d_hidden, d_kernels = jax.lax.scan(add_chunk, zeros, chunks)
        d_kernel = vocab_chunks.join(d_kernels)
    return _loss_and_correct(softmax, weights), (d_hidden.astype(hidden.dtype), d_kernel)


def _cross_entropy_bwd(
    vocab_chunks: _VocabChunks,
    residuals: tuple[Float[Array, "B T H"], Float[Array, "H V"]],
    cotangents: tuple[Scalar, Scalar],
) -> tuple[Array | None, ...]:
    d_hidden, d_kernel = ((part * cotangents[0]).astype(part.dtype) for part in residuals)
    return d_hidden, d_kernel, None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _kernel_chunks(
    hidden: Float[Array, "B T H"], kernel: Float[Array, "H V"], vocab_chunks: _VocabChunks
) -> _Chunk:
    """Returns all chunks, stacked: of the kernel in the dtype of `hidden`, and of the token ids."""
    return vocab_chunks.split(kernel.astype(hidden.dtype)), vocab_chunks.split(
        jnp.arange(kernel.shape[1])
    )


def _scan_softmax(
    hidden: Float[Array, "B T H"], targets: Int[Array, "B T"], chunks: _Chunk, rules: ShardingRules
) -> _OnlineSoftmax:
    """Returns the softmax statistics over all chunks."""

    def add(softmax: _OnlineSoftmax, chunk: _Chunk) -> tuple[_OnlineSoftmax, None]:
        return _add_chunk(softmax, *_logits(hidden, targets, chunk, rules)), None

    return jax.lax.scan(add, _empty_softmax(targets), chunks)[0]


def _logits(
    hidden: Float[Array, "B T H"], targets: Int[Array, "B T"], chunk: _Chunk, rules: ShardingRules
) -> tuple[Float[Array, "B T V"], Bool[Array, "B T V"]]:
    """Returns the logits of a chunk in fp32, and which of them are of the target."""
    kernel, token_ids = chunk
    kernel = constrain(kernel, (None, "vocab"), rules)  # gathers it: it is smaller than `hidden`
    logits = jnp.einsum("BTH,HV->BTV", hidden, kernel, preferred_element_type=jnp.float32)
    # Comparing with every id instead of a gather keeps the work on the device that holds the id.
    return constrain(logits, ("batch", "tokens", "vocab"), rules), token_ids == targets[..., None]


def _empty_softmax(targets: Int[Array, "B T"]) -> _OnlineSoftmax:
    zeros = jnp.zeros(targets.shape, jnp.float32)
    return _OnlineSoftmax(zeros - jnp.inf, zeros, zeros)


def _add_chunk(
    softmax: _OnlineSoftmax, logits: Float[Array, "B T V"], is_target: Bool[Array, "B T V"]
) -> _OnlineSoftmax:
    largest = jnp.maximum(softmax.largest, jnp.max(logits, axis=-1))
    total = softmax.total * jnp.exp(softmax.largest - largest) + jnp.sum(
        jnp.exp(logits - largest[..., None]), axis=-1
    )
    target_logit = softmax.target_logit + jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return _OnlineSoftmax(largest, total, target_logit)


def _loss_and_correct(
    softmax: _OnlineSoftmax, weights: Float[Array, "B T"]
) -> tuple[Scalar, Scalar]:
    is_correct = softmax.target_logit >= softmax.largest
    loss = jnp.sum((softmax.log_total - softmax.target_logit) * weights)
    return loss, jnp.sum(is_correct * weights)
