"""The train step: a pure function from state and batch to state and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stepaudio_jax.audio.lengths import MEL_FRAMES_PER_SECOND
from stepaudio_jax.config import StageConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.models import Parameters, StepAudio, attach_lora, combine_lora, merge_lora
from stepaudio_jax.training.losses import (
    NEXT_TOKEN,
    AuxiliaryHeads,
    combine,
    loss_term_sums,
    loss_term_weights,
)

HEADS = "auxiliary"  # beside encoder, adaptor and decoder in the tree of trainable parameters
LORA = "lora"  # beside them in the tree of trainable ones: the narrow matrices of the decoder
VALUE = "value"  # beside them too: the head that estimates what a policy's state is worth
# beside them in the tree of frozen ones: the narrow matrices of earlier stages, by stage
FROZEN_LORA = "frozen_lora"
REFERENCE = "reference"  # beside them in the tree of frozen ones: what a policy's stage began with
Metrics = dict[str, jax.Array]
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]
EvalStep = Callable[[Parameters, Batch], Metrics]


_fold = jax.jit(merge_lora, static_argnums=(2, 3))
_fold_in_place = jax.jit(merge_lora, static_argnums=(2, 3), donate_argnums=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes, and the frozen parameters it reads.

    Only `trainable` is differentiated: what is frozen has no gradients, no optimizer state and no
    stored activations.
    """

    step: jax.Array  # i32, steps done in this stage
    # i32, updates since the last one that changed something whose loss or gradient was not finite
    consecutive_skips: jax.Array
    trainable: Parameters
    frozen: Parameters
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """The static side of the model and its auxiliary heads: what `nnx.merge` needs beside parameters.

    Attributes:
        model, heads: graph definitions.
        lora_scale: multiplies the products of the stage's adapter, where it has one.
        frozen_lora: name and scale of each adapter that earlier stages have left beside the
            decoder, in order.
    """

    model: Any
    heads: Any | None
    lora_scale: float = 0.0
    frozen_lora: tuple[tuple[str, float], ...] = ()

    def merge(self, parameters: Parameters) -> tuple[StepAudio, AuxiliaryHeads | None]:
        """The modules holding `parameters`: the model, adapters beside its decoder, and auxiliary heads where there are any."""
        heads = (
            None
            if self.heads is None or HEADS not in parameters
            else nnx.merge(self.heads, parameters[HEADS])
        )
        return nnx.merge(self.model, self.with_lora(parameters)), heads

    def with_lora(self, parameters: Parameters) -> Parameters:
        """Returns encoder, adaptor and decoder, the decoder's adapted kernels with their adapters beside them."""
        parts = _model_parts(parameters)
        if adapters := self._adapters(parameters):
            parts["decoder"] = attach_lora(parts["decoder"], *combine_lora(adapters))
        return parts

    def merged(self, parameters: Parameters, dtype: Any, *, donate: bool = False) -> Parameters:
        """Returns encoder, adaptor and decoder, adapters added to the decoder's kernels in fp32.

        Args:
            parameters: of the stage.
            dtype: of the adapted kernels then; in bf16 small products are rounded away.
            donate: give up the decoder's arrays; where they are of this dtype no second decoder is
                needed.
        """
        parts = _model_parts(parameters)
        if adapters := self._adapters(parameters):
            same = all(leaf.dtype == dtype for leaf in jax.tree.leaves(parts["decoder"]))
            fold = _fold_in_place if donate and same else _fold
            parts["decoder"] = fold(parts["decoder"], *combine_lora(adapters), jnp.dtype(dtype))
        return parts

    def params_after_stage(self, parameters: Parameters, stage: str) -> Parameters:
        """Returns what a stage leaves: encoder, adaptor, decoder and, under FROZEN_LORA by stage, the adapters beside it."""
        parts = _model_parts(parameters)
        adapters = dict(parameters.get(FROZEN_LORA, {}))
        if LORA in parameters:
            adapters[stage] = parameters[LORA]
        return {**parts, FROZEN_LORA: adapters} if adapters else parts

    def _adapters(self, parameters: Parameters) -> list[tuple[Parameters, float]]:
        adapters = [(parameters[FROZEN_LORA][name], scale) for name, scale in self.frozen_lora]
        return [*adapters, (parameters[LORA], self.lora_scale)] if LORA in parameters else adapters


def _model_parts(parameters: Parameters) -> Parameters:
    beside = (HEADS, LORA, VALUE, FROZEN_LORA, REFERENCE)
    return {name: value for name, value in parameters.items() if name not in beside}


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
        trainable: Parameters, frozen: Parameters, batch: Batch, weights: Metrics
    ) -> tuple[jax.Array, Metrics]:
        model, heads = definition.merge({**trainable, **frozen})
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
            (_, metrics), gradients = gradient(state.trainable, state.frozen, part, weights)
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
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def where_changed(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(changes, new, old), new, old)

    new_state = TrainState(
        step=state.step + 1,
        consecutive_skips=jnp.where(changes, 0, state.consecutive_skips + ~finite),
        trainable=where_changed(trainable, state.trainable),
        frozen=state.frozen,
        optimizer=where_changed(optimizer_state, state.optimizer),
    )
    figures = {
        "gradient_norm": norm,
        "skipped_steps": 1.0 - finite,
        "zero_gradient_steps": zero_gradient_steps * 1.0,
    }
    return new_state, figures


def num_optimizer_updates(state: TrainState) -> int:
    """Returns how many of a stage's updates have changed the parameters: those that the optimizer has counted."""
    counts = optax.tree.get_all_with_path(state.optimizer, "count")
    return max(int(count) for _, count in counts)


def make_eval_step(definition: ModelDef, micro_batches: int = 1) -> EvalStep:
    """Sums over one batch, to be added over batches: loss_sum, correct_tokens and loss_tokens.

    Args:
        definition: of the model.
        micro_batches: into which the batch is cut by rows, so that it takes no more memory than
            training.
    """

    def evaluation_step(parameters: Parameters, batch: Batch) -> Metrics:
        model, _ = definition.merge(
            {name: value for name, value in parameters.items() if name != HEADS}
        )

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
