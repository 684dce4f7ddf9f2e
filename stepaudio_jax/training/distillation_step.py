"""The train step of distillation: the student's distributions towards the teacher's, on data."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from stepaudio_jax.config import Distillation, StageConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.models import Parameters, StepAudio
from stepaudio_jax.models.logprobs import chunked_divergence, chunked_logprobs
from stepaudio_jax.training.teacher import TeacherDef
from stepaudio_jax.training.train_state import ModelDef, TrainState, apply_gradients
from stepaudio_jax.training.train_step import (
    Metrics,
    Scalar,
    batch_metrics,
    forward,
    sum_over_microbatches,
)

DistillationStep = Callable[[TrainState, Batch, Parameters], tuple[TrainState, Metrics]]
DistillationEvalStep = Callable[[TrainState, Batch, Parameters], Metrics]

# Metrics that are sums over the tokens in the loss.
_TOKEN_SUMS = ("loss/divergence", "loss/next_token", "student_kl")


def make_distillation_step(
    model_def: ModelDef,
    stage: StageConfig,
    optimizer: optax.GradientTransformation,
    teacher: TeacherDef,
) -> DistillationStep:
    """Returns the train step of a stage with a teacher, not yet jitted; see `make_train_step`.

    Its third argument are the teacher's parameters. The loss is the mean over the tokens in the
    loss of the divergence between both distributions of the next token (see
    `models.logprobs.chunked_divergence`), with `next_token_coef` times that of -log p(token).
    """
    objective, number = stage.distillation, stage.gradient_accumulation_steps

    def loss(
        trainable: Parameters,
        state: TrainState,
        batch: Batch,
        teacher_params: Parameters,
        loss_tokens: Scalar,
    ) -> tuple[Scalar, Metrics]:
        state = state.with_trainable(trainable)
        sums = _token_sums(model_def, teacher, objective, state, batch, teacher_params)
        means = distillation_means(sums | {"loss_tokens": loss_tokens}, objective)
        return means["loss"], means

    def train_step(
        state: TrainState, batch: Batch, teacher_params: Parameters
    ) -> tuple[TrainState, Metrics]:
        loss_tokens = jnp.sum(batch.loss_weights)
        loss_and_gradients = jax.value_and_grad(loss, has_aux=True)

        def microbatch_gradients(microbatch: Batch) -> tuple[Parameters, Metrics]:
            (_, metrics), gradients = loss_and_gradients(
                state.trainable, state, microbatch, teacher_params, loss_tokens
            )
            return gradients, metrics

        gradients, metrics = sum_over_microbatches(microbatch_gradients, batch, number)
        state, update_metrics = apply_gradients(state, gradients, metrics["loss"], optimizer)
        return state, metrics | update_metrics | batch_metrics(batch)

    return train_step


def make_distillation_eval_step(
    model_def: ModelDef, stage: StageConfig, num_microbatches: int, teacher: TeacherDef
) -> DistillationEvalStep:
    """Returns the evaluation step: sums of which `distillation_means` makes metrics."""

    def eval_step(state: TrainState, batch: Batch, teacher_params: Parameters) -> Metrics:
        def microbatch_sums(microbatch: Batch) -> Metrics:
            sums = _token_sums(
                model_def, teacher, stage.distillation, state, microbatch, teacher_params
            )
            return sums | {"loss_tokens": jnp.sum(microbatch.loss_weights)}

        return sum_over_microbatches(microbatch_sums, batch, num_microbatches)

    return eval_step


def distillation_means(sums: Mapping[str, Any], objective: Distillation) -> dict[str, Any]:
    """Returns the loss and the metrics from sums over the tokens in the loss."""
    means = {name: sums[name] / jnp.maximum(sums["loss_tokens"], 1.0) for name in _TOKEN_SUMS}
    loss = means["loss/divergence"] + objective.next_token_coef * means["loss/next_token"]
    return {"loss": loss, **means}


def _token_sums(
    model_def: ModelDef,
    teacher: TeacherDef,
    objective: Distillation,
    state: TrainState,
    batch: Batch,
    teacher_params: Parameters,
) -> Metrics:
    """Returns sums over the tokens in the loss: of the divergence, and of -log p(token).

    `student_kl` is KL(teacher || student), whatever divergence is trained.
    """
    model, _ = model_def.merge(state)
    teacher_model = teacher.merge(teacher_params)
    compute = model.decoder.compute
    hidden, _ = forward(model, None, batch)
    teacher_hidden = _teacher_hidden(teacher_model, batch)
    kernel = model.decoder.lm_head_kernel()
    teacher_kernel = teacher_model.decoder.lm_head_kernel()
    chunks, rules = compute.loss_chunks, compute.rules

    def divergence(hidden: jax.Array, kernel: jax.Array, beta: float) -> jax.Array:
        return chunked_divergence(
            hidden,
            kernel,
            jax.lax.stop_gradient(teacher_hidden),
            teacher_kernel,
            beta=beta,
            temperature=objective.temperature,
            chunks=chunks,
            rules=rules,
        )

    logprobs, _ = chunked_logprobs(
        hidden, kernel, jnp.asarray(batch.targets), chunks=chunks, rules=rules
    )
    trained = divergence(hidden, kernel, objective.beta)
    kl = trained
    if objective.beta > 0:
        constants = jax.lax.stop_gradient((hidden, kernel))
        kl = divergence(*constants, 0.0)
    weights = batch.loss_weights
    of_tokens = {"loss/divergence": trained, "loss/next_token": -logprobs, "student_kl": kl}
    return {name: jnp.sum(weights * values) for name, values in of_tokens.items()}


def _teacher_hidden(teacher: StepAudio, batch: Batch) -> Float[Array, "B T teacher_hidden"]:
    """Computes the teacher's states that predict the batch's targets.

    A teacher that reads has rows of its own, in which the targets are predicted elsewhere; of
    targets that the loss does not count it gives any state.
    """
    if batch.teacher is None:
        return forward(teacher, None, batch)[0]
    read = batch.teacher
    hidden = teacher.decode(teacher.embed(read.tokens), read.positions, read.segment_ids)
    return jnp.take_along_axis(hidden, jnp.maximum(read.target_index, 0)[..., None], axis=1)
