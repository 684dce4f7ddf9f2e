"""The train step: a pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stepaudio_jax.audio.lengths import MEL_FRAMES_PER_SECOND
from stepaudio_jax.config import StageConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.models import Parameters
from stepaudio_jax.training.losses import (
    NEXT_TOKEN,
    combine,
    loss_term_sums,
    loss_term_weights,
)
from stepaudio_jax.training.train_state import ModelDef, TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]


def make_train_step(
    definition: ModelDef, stage: StageConfig, optimizer: optax.GradientTransformation
) -> TrainStep:
    """The step of a stage, not yet jitted.

    The batch is cut into `gradient_accumulation_steps` micro-batches by rows; their gradients add
    up to those of the whole batch. A step whose loss or gradient is not finite, or that has nothing
    to learn, changes nothing but the counts of steps.

    Metrics are scalars: the loss, the mean of each of its terms, token_accuracy, those of
    `apply_gradients`, and the batch's tokens, loss_tokens and audio_seconds.
    """

    def loss(
        trainable: Parameters, state: TrainState, batch: Batch, weights: Metrics
    ) -> tuple[jax.Array, Metrics]:
        model, heads = definition.merge(state.with_trainable(trainable))
        sums, counts = loss_term_sums(model, heads, batch)
        total, means = combine(sums, weights, stage.auxiliary)
        accuracy = counts["correct_tokens"] / jnp.maximum(weights[NEXT_TOKEN], 1.0)
        return total, {"loss": total, "token_accuracy": accuracy} | {
            f"loss/{name}": mean for name, mean in means.items()
        }

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = loss_term_weights(batch)
        gradient = jax.value_and_grad(loss, has_aux=True)

        def of_part(part: Batch) -> tuple[Parameters, Metrics]:
            (_, metrics), gradients = gradient(state.trainable, state, part, weights)
            return gradients, metrics

        gradients, metrics = _accumulate(of_part, batch, stage.gradient_accumulation_steps)
        new_state, figures = apply_gradients(state, gradients, metrics["loss"], optimizer)
        metrics |= figures
        metrics |= {
            "tokens": jnp.sum(jnp.asarray(batch.segment_ids) > 0),
            "loss_tokens": weights[NEXT_TOKEN],
            "audio_seconds": jnp.sum(batch.mel_lengths) / MEL_FRAMES_PER_SECOND,
        }
        return new_state, metrics

    return train_step


def apply_gradients(
    state: TrainState,
    gradients: Parameters,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Returns the state after a step, and metrics.

    Only the counts of the state change where loss or gradient are not finite, and where there is
    nothing to learn: where every gradient is exactly 0, as it is when no token has weight or all
    advantages are 0. Momentum and weight decay would move the parameters even then, Muon's by a
    whole step. The optimizer's state stays as well, and with it the place in the learning rate's
    schedule, which counts updates and not steps.

    Args:
        state: before.
        gradients: of the whole step, like `state.trainable`.
        loss: of the whole step, a scalar.
        optimizer: of the stage.

    Returns:
        The state, and as metrics gradient_norm, skipped_steps (1 where something was not finite,
        else 0) and zero_gradient_steps (1 or 0).
    """
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    # Not from the norm: the squares of small gradients are 0 in float32.
    any_gradient = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients)]))
    zero_gradient_steps = finite & ~any_gradient
    changes = finite & any_gradient
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def where_changed(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(changes, new, old), new, old)

    new_state = dataclasses.replace(
        state.with_trainable(where_changed(trainable, state.trainable)),
        step=state.step + 1,
        consecutive_skips=jnp.where(changes, 0, state.consecutive_skips + ~finite),
        opt_state=where_changed(opt_state, state.opt_state),
    )
    figures = {
        "gradient_norm": norm,
        "skipped_steps": 1.0 - finite,
        "zero_gradient_steps": zero_gradient_steps * 1.0,
    }
    return new_state, figures


def num_optimizer_updates(state: TrainState) -> int:
    """Returns how many of a stage's updates have changed the parameters: those that the optimizer has counted."""
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    return max(int(count) for _, count in counts)


def make_eval_step(definition: ModelDef, micro_batches: int = 1) -> EvalStep:
    """Sums over one batch, to be added over batches: loss_sum, correct_tokens and loss_tokens.

    Args:
        definition: of the model.
        micro_batches: into which the batch is cut by rows, so that it takes no more memory than
            training.
    """

    def evaluation_step(state: TrainState, batch: Batch) -> Metrics:
        model, _ = definition.merge(state)

        def of_part(part: Batch) -> Metrics:
            sums, counts = loss_term_sums(model, None, part)
            return {
                "loss_sum": sums[NEXT_TOKEN],
                "loss_tokens": jnp.sum(part.loss_weights),
                **counts,
            }

        return _accumulate(of_part, batch, micro_batches)

    return evaluation_step


def _accumulate(of_part: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """The sum of a function's trees over the parts of a batch, one after the other."""
    if parts == 1:
        return of_part(batch)
    cut = split_microbatches(batch, parts)
    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], cut))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None), zeros, cut
    )[0]


def split_microbatches(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, B / parts, ...] in every leaf, rows dealt in turn: each device's rows are cut where they lie."""
    return jax.tree.map(
        lambda x: jnp.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:])).swapaxes(0, 1), batch
    )
