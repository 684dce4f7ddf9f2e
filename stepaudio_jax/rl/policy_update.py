"""The policy update: log-probabilities of rollouts, loss, gradients, one optimizer update."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyGradient
from stepaudio_jax.models import Parameters, StepAudio
from stepaudio_jax.models.logprobs import chunked_logprobs
from stepaudio_jax.rl.advantages import Advantages, PolicyLogprobs, compute_loss_weights
from stepaudio_jax.rl.losses import (
    PolicyLoss,
    cispo_loss,
    importance_weights,
    kl_estimate,
    kl_loss,
    policy_loss,
    segment_means,
    value_loss,
    where_weighted,
)
from stepaudio_jax.rl.packing import Array, Minibatch, RolloutBatch
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.training.train_state import ModelDef, TrainState, apply_gradients

Sums = dict[str, jax.Array]
"""Weighted sums over tokens, scalars."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyTargets:
    """What a rollout batch is trained on, where its targets are the policy's tokens; 0 elsewhere.

    Attributes:
        weights: of each token's loss, divided by their sum over all batches of the update: the
            losses of the batches add up to the mean.
        advantages: of each token.
        old_logprobs: by the policy that generated the rollouts, in the trainer's arithmetic. None
            where the stage makes one update a step, which is on-policy.
        sampler_logprobs: log-probabilities by the engine.
        reference_logprobs: log-probabilities by the reference policy; None without one, and not
            used while the policy is the reference.
        returns, old_values: of the value head, before the step; 0 without one.
    """

    weights: Float32[Array, "B T"]
    advantages: Float32[Array, "B T"]
    old_logprobs: Float32[Array, "B T"] | None
    sampler_logprobs: Float32[Array, "B T"]
    reference_logprobs: Float32[Array, "B T"] | None
    returns: Float32[Array, "B T"]
    old_values: Float32[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateScalars:
    """The scalars of an update, as arrays: other values need no other program.

    Attributes:
        kl_coef: beta.
        is_on_policy: whether the policy still is the one that generated the rollouts. Its
            current log-probabilities then stand for `PolicyTargets.old_logprobs`, which a separate
            forward pass computes with other rounding.
        policy_is_reference: whether the policy still is the reference policy; likewise for
            `PolicyTargets.reference_logprobs`.
    """

    kl_coef: Float32[Array, ""]
    is_on_policy: Bool[Array, ""]
    policy_is_reference: Bool[Array, ""]


class PolicyUpdate:
    """The compiled programs of an update.

    Gradients are accumulated over batches, so that an update may be of any number of rollouts.

    Args:
        model_def: the static side of the model.
        config: the stage's objective.
        optimizer: the stage's optimizer.
        shardings: the train state's shardings.

    Attributes:
        begin: (state, batch, targets, scalars) -> zeros of the gradients and sums.
        accumulate: (state, gradients and sums, batch, targets, scalars) -> (these with the batch
            added, log-probabilities [B,T]); donates the former.
        apply: (state, gradients and sums) -> (state after the optimizer update, sums and metrics);
            donates the state.
        logprobs_and_values: (state, batch) -> both [B,T] fp32.
    """

    def __init__(
        self,
        model_def: ModelDef,
        config: PolicyGradient,
        optimizer: optax.GradientTransformation,
        shardings: TrainState,
    ):
        self._model_def, self._config, self._optimizer = model_def, config, optimizer
        self._gradient = jax.value_and_grad(self._loss, has_aux=True)
        replicated = shardings.step  # for the host to read
        gradients_and_sums = (shardings.trainable, None)
        self.begin = jax.jit(self._begin, out_shardings=gradients_and_sums)
        self.accumulate = jax.jit(
            self._accumulate, donate_argnums=1, out_shardings=(gradients_and_sums, replicated)
        )
        self.apply = jax.jit(self._apply, donate_argnums=0, out_shardings=(shardings, None))
        self.logprobs_and_values = jax.jit(self._logprobs_and_values, out_shardings=replicated)

    def __call__(
        self,
        state: TrainState,
        batches: Sequence[RolloutBatch],
        targets: Sequence[PolicyTargets],
        *,
        kl_coef: float,
        is_on_policy: bool,
        policy_is_reference: bool,
    ) -> tuple[TrainState, dict[str, float], NDArray[np.float32]]:
        """Makes one optimizer update from all batches together; donates the state.

        Args:
            state: before the update.
            batches: batches of one shape, on the mesh.
            targets: the targets of each batch.
            kl_coef, is_on_policy, policy_is_reference: see `UpdateScalars`.

        Returns:
            The state after the update, with the same `step`; metrics, means over the tokens; and
            the log-probabilities [rows,T] before the update, the rows of all batches.
        """
        scalars = UpdateScalars(
            jnp.float32(kl_coef), jnp.bool_(is_on_policy), jnp.bool_(policy_is_reference)
        )
        accumulated, logprobs = self.begin(state, batches[0], targets[0], scalars), []
        for batch, batch_targets in zip(batches, targets, strict=True):
            accumulated, batch_logprobs = self.accumulate(
                state, accumulated, batch, batch_targets, scalars
            )
            logprobs.append(batch_logprobs)
        state, sums = self.apply(state, accumulated)
        metrics = {name: float(value) for name, value in jax.device_get(sums).items()}
        return state, metrics, np.concatenate(jax.device_get(logprobs))

    def evaluate(
        self, state: TrainState, batches: Sequence[RolloutBatch], *, policy_is_reference: bool
    ) -> tuple[
        Float32[np.ndarray, "rows T"] | None,
        Float32[np.ndarray, "rows T"] | None,
        Float32[np.ndarray, "rows T"],
    ]:
        """Computes what the advantages and the updates need beforehand, for all rows.

        Returns:
            Log-probabilities by the policy, None unless the config `recomputes_old_logprobs`: else
            the only update computes them; by the reference policy, None without one, and the same
            as the former while the policy is the reference; and values, 0 without a value head.
        """
        old, reference, values = [], [], []
        for batch in batches:
            batch_values: Any = np.zeros(batch.tokens.shape, np.float32)
            if self._config.recomputes_old_logprobs:
                logprobs, batch_values = self.logprobs_and_values(state, batch)
                old.append(np.asarray(logprobs))
            values.append(np.asarray(batch_values))
            if self._config.needs_reference_params and not policy_is_reference:
                logprobs, _ = self.logprobs_and_values(state.with_reference_policy(), batch)
                reference.append(np.asarray(logprobs))
        if self._config.needs_reference_params and policy_is_reference:
            reference = old
        return (
            np.concatenate(old) if old else None,
            np.concatenate(reference) if reference else None,
            np.concatenate(values),
        )

    def _loss(
        self,
        trainable: Parameters,
        state: TrainState,
        batch: RolloutBatch,
        targets: PolicyTargets,
        scalars: UpdateScalars,
    ) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
        """Computes the batch's share of the loss (R1.5, eq. 4 and 5), its sums, and log p [B,T]."""
        config, weights = self._config, targets.weights
        all_logprobs, entropy, values = self._evaluate(state.with_trainable(trainable), batch)
        logprobs = where_weighted(all_logprobs, weights)
        constant_logprobs = jax.lax.stop_gradient(logprobs)
        old_logprobs = constant_logprobs
        if targets.old_logprobs is not None:
            old_logprobs = jnp.where(
                scalars.is_on_policy,
                constant_logprobs,
                where_weighted(targets.old_logprobs, weights),
            )
        segment_ids = jnp.asarray(batch.segment_ids)
        policy = self._policy_loss(logprobs, old_logprobs, targets, segment_ids)
        token_loss = policy.loss
        if config.max_importance_weight is not None:
            log_ratios = old_logprobs - where_weighted(targets.sampler_logprobs, weights)
            if config.importance_level == "sequence":
                log_ratios = segment_means(log_ratios, weights, segment_ids)
            token_loss *= importance_weights(
                log_ratios,
                max_weight=config.max_importance_weight,
                min_weight=config.min_importance_weight,
                outside=config.importance_outside,
            )
        loss = jnp.sum(weights * token_loss)
        sums = {
            "policy_loss": loss,
            "clip_fraction": jnp.sum(weights * policy.clipped),
            "clamped_fraction": jnp.sum(weights * policy.clamped),
            "ratio": jnp.sum(weights * policy.ratio),
            "entropy": jnp.sum(weights * where_weighted(entropy, weights)),
        }
        if config.entropy_coef:
            loss -= config.entropy_coef * sums["entropy"]
        if targets.reference_logprobs is not None:
            reference_logprobs = jnp.where(
                scalars.policy_is_reference,
                constant_logprobs,
                where_weighted(targets.reference_logprobs, weights),
            )
            kl = jnp.sum(weights * kl_loss(logprobs, reference_logprobs, old_logprobs))
            if config.kl_placement == "loss":
                loss += scalars.kl_coef * kl
            sums["kl"] = jnp.sum(weights * kl_estimate(logprobs, reference_logprobs, "k3"))
        if state.value_head_params is not None:
            token_value_loss = value_loss(
                where_weighted(values, weights),
                where_weighted(targets.old_values, weights),
                where_weighted(targets.returns, weights),
                clip=config.value_clip,
            )
            sums["value_loss"] = jnp.sum(weights * token_value_loss)
            loss += config.value_coef * sums["value_loss"]
        return loss, ({"loss": loss, **sums}, all_logprobs)

    def _policy_loss(
        self,
        logprobs: jax.Array,
        old_logprobs: jax.Array,
        targets: PolicyTargets,
        segment_ids: jax.Array,
    ) -> PolicyLoss:
        """Computes the policy loss of each token [B,T] by the configured form."""
        config, weights = self._config, targets.weights
        advantages = where_weighted(targets.advantages, weights)
        clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
        if config.policy_loss == "cispo":
            return cispo_loss(logprobs, old_logprobs, advantages, **clip)
        if config.ratio_level == "sequence":
            # The log-ratio of the reply stands for that of each of its tokens.
            logprobs = segment_means(logprobs - old_logprobs, weights, segment_ids)
            old_logprobs = jnp.zeros_like(logprobs)
        return policy_loss(logprobs, old_logprobs, advantages, dual_clip=config.dual_clip, **clip)

    def _evaluate(
        self, state: TrainState, batch: RolloutBatch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Computes log-probabilities, entropies and values [B,T]; 0 without a value head."""
        model, _ = self._model_def.merge(state)
        logprobs, entropy, hidden = token_logprobs(model, batch, self._config.rollout.temperature)
        if state.value_head_params is None:
            return logprobs, entropy, jnp.zeros_like(logprobs)
        if self._config.value_trunk == "detached":
            hidden = jax.lax.stop_gradient(hidden)
        return logprobs, entropy, state_values(hidden, state.value_head_params)

    def _logprobs_and_values(
        self, state: TrainState, batch: RolloutBatch
    ) -> tuple[jax.Array, jax.Array]:
        logprobs, _, values = self._evaluate(state, batch)
        return logprobs, values

    def _begin(
        self,
        state: TrainState,
        batch: RolloutBatch,
        targets: PolicyTargets,
        scalars: UpdateScalars,
    ) -> tuple[Parameters, Sums]:
        (_, (sums, _)), gradients = jax.eval_shape(
            self._gradient, state.trainable, state, batch, targets, scalars
        )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (gradients, sums))

    def _accumulate(
        self,
        state: TrainState,
        accumulated: tuple[Parameters, Sums],
        batch: RolloutBatch,
        targets: PolicyTargets,
        scalars: UpdateScalars,
    ) -> tuple[tuple[Parameters, Sums], jax.Array]:
        (_, (sums, logprobs)), gradients = self._gradient(
            state.trainable, state, batch, targets, scalars
        )
        return jax.tree.map(jnp.add, accumulated, (gradients, sums)), logprobs

    def _apply(
        self, state: TrainState, accumulated: tuple[Parameters, Sums]
    ) -> tuple[TrainState, Sums]:
        gradients, sums = accumulated
        new_state, metrics = apply_gradients(state, gradients, sums["loss"], self._optimizer)
        # A step of RL may have several updates: its trainer counts the steps.
        return dataclasses.replace(new_state, step=state.step), sums | metrics


def make_targets(
    minibatch: Minibatch,
    rollouts: Sequence[Rollout],
    logprobs: PolicyLogprobs,
    advantages: Advantages,
    config: PolicyGradient,
) -> PolicyTargets:
    """Returns what the rows of a minibatch are trained on; arrays [rows,T] on the host.

    Args:
        minibatch: the rollouts of one update.
        rollouts, logprobs, advantages: the step's rollouts and what was computed of them.
        config: the stage's objective.
    """
    indices, packed = minibatch.indices, minibatch.packed
    weights = compute_loss_weights(rollouts[indices], advantages.valid[indices], config)
    weights_of_rows = packed.scatter(weights)
    old_logprobs = reference_logprobs = None
    if config.updates_per_step > 1:
        assert logprobs.old_logprobs is not None  # several updates have them computed beforehand
        old_logprobs = packed.scatter(logprobs.old_logprobs[indices])
    if logprobs.reference_logprobs is not None:
        reference_logprobs = packed.scatter(logprobs.reference_logprobs[indices])
    elif config.has_reference:  # the policy is the reference: the values are not used
        reference_logprobs = np.zeros_like(weights_of_rows)
    return PolicyTargets(
        weights=weights_of_rows,
        advantages=packed.scatter(advantages.advantages[indices]),
        old_logprobs=old_logprobs,
        sampler_logprobs=packed.scatter(
            [rollout.sampler_logprobs for rollout in rollouts[indices]]
        ),
        reference_logprobs=reference_logprobs,
        returns=packed.scatter(advantages.returns[indices]),
        old_values=packed.scatter(logprobs.values[indices]),
    )


def token_logprobs(
    model: StepAudio, batch: RolloutBatch, temperature: float
) -> tuple[Float[jax.Array, "B T"], Float[jax.Array, "B T"], Float[jax.Array, "B T H"]]:
    """Computes log p(target) and the entropy of softmax(logits / temperature), both fp32.

    The logits exist for `compute.loss_chunks` parts of a row, one at a time.

    Returns:
        Log-probabilities, entropies, and the decoder's hidden states: at each position the state in
        which its target was chosen.
    """
    rows, chunks = batch.features.shape[:2]
    audio_embeddings = None
    if chunks:
        features = jnp.asarray(batch.features, model.decoder.compute.dtype)
        outputs = model.adaptor(features.reshape(rows * chunks, *features.shape[2:]))
        audio_embeddings = outputs.reshape(rows, -1, outputs.shape[-1])
    embeddings = model.embed(batch.tokens, audio_embeddings, batch.audio_index)
    hidden = model.decode(embeddings, batch.positions, batch.segment_ids, batch.prefix_ids)
    logprobs, entropy = chunked_logprobs(
        hidden,
        model.decoder.lm_head_kernel(),
        jnp.asarray(batch.targets),
        chunks=model.decoder.compute.loss_chunks,
        temperature=temperature,
        rules=model.decoder.compute.rules,
    )
    return logprobs, entropy, hidden


def state_values(
    hidden: Float[jax.Array, "B T H"], head: dict[str, Any]
) -> Float[jax.Array, "B T"]:
    """Applies the linear value head, {"kernel": [H], "bias": []}, in fp32."""
    return (
        jnp.einsum("BTH,H->BT", hidden, head["kernel"], preferred_element_type=jnp.float32)
        + head["bias"]
    )
