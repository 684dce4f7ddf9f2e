"""The update: from rollouts with advantages to new weights, gradients added up over as many batches as there are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from stepaudio_jax.config import PolicyGradient
from stepaudio_jax.data import Array
from stepaudio_jax.models import Parameters, StepAudio, constrain
from stepaudio_jax.rl.losses import (
    kl_estimate,
    kl_loss,
    policy_loss,
    truncated_importance_weights,
    value_loss,
    where_weighted,
)
from stepaudio_jax.rl.packing import RolloutBatch
from stepaudio_jax.training.train_state import ModelDef, TrainState, apply_gradients

# One pass of a model over rollouts: the log-probability and the entropy of every token, a chunk of logits at a time.


def token_logprobs(
    model: StepAudio, batch: RolloutBatch, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log p(target) and the distribution's entropy at every place, [B,T] fp32, of softmax(logits / temperature).

    The third result is the decoder's hidden states [B,T,H]: at each place of the state in which its
    target was chosen.

    The logits of one chunk of tokens exist at a time (a row is cut into `compute.loss_chunks`); a
    backward pass computes them again.
    """
    rows, chunks = batch.features.shape[:2]
    audio = None
    if chunks:
        features = jnp.asarray(batch.features, model.decoder.compute.dtype)
        outputs = model.adaptor(features.reshape(rows * chunks, *features.shape[2:]))
        audio = outputs.reshape(rows, -1, outputs.shape[-1])
    embeddings = model.embed(batch.tokens, audio, batch.audio_index)
    hidden = model.decode(embeddings, batch.positions, batch.segment_ids, batch.prefix_ids)
    compute, kernel = model.decoder.compute, model.decoder.lm_head_kernel()

    @jax.checkpoint
    def of_chunk(
        hidden: jax.Array, targets: jax.Array, kernel: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum(
            "BTH,HV->BTV", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = constrain(logits, ("batch", "tokens", "vocab"), compute.rules) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        # A comparison with every index, not a gather: it stays on the device that holds its part of
        # the vocabulary.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        mean = jnp.sum(jnp.exp(logits - total[..., None]) * logits, axis=-1)
        return picked - total, total - mean

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, compute.loss_chunks, -1, *x.shape[2:]), 1, 0)

    parts = in_chunks(hidden), in_chunks(jnp.asarray(batch.targets))
    _, found = jax.lax.scan(lambda _, chunk: (None, of_chunk(*chunk, kernel)), None, parts)
    logprobs, entropy = (jnp.moveaxis(x, 0, 1).reshape(rows, -1) for x in found)
    return logprobs, entropy, hidden


def state_values(hidden: jax.Array, head: Parameters) -> jax.Array:
    """A linear value head over hidden states [B,T,H] -> [B,T] fp32."""
    return (
        jnp.einsum("BTH,H->BT", hidden, head["kernel"], preferred_element_type=jnp.float32)
        + head["bias"]
    )


Sums = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyTargets:
    """What is learnt from a rollout batch, each [B,T] f32 at the places whose targets the policy wrote, 0 elsewhere.

    weights: of each token in the loss, divided by their global sum already: the losses of all
    batches add up to the whole one. advantages, returns; old_logprobs: of the policy that wrote, by
    the trainer; sampler_logprobs: by the engine; reference_logprobs; old_values: of the value head,
    before the step.
    """

    weights: Array
    advantages: Array
    old_logprobs: Array
    sampler_logprobs: Array
    reference_logprobs: Array
    returns: Array
    old_values: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyChanged:
    """Whether the policy has changed since it wrote the rollouts, and since the stage began, each [] bool.

    Where it has not, what `PolicyTargets` holds of the policy that wrote, or of the reference, is
    not read.
    """

    since_rollout: Array
    since_stage_start: Array


class PolicyUpdate:
    """The compiled parts of an update.

    Args:
        definition: the static side of the model.
        config: of the stage.
        optimizer: of the stage.
        shardings: of the state.
    """

    def __init__(
        self,
        definition: ModelDef,
        config: PolicyGradient,
        optimizer: optax.GradientTransformation,
        shardings: TrainState,
    ):
        temperature, policy = config.rollout.temperature, config

        def statistics(
            state: TrainState, batch: RolloutBatch
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            """Log-probabilities, entropies and values [B,T]; values of 0 without a value head."""
            logprobs, entropy, hidden = token_logprobs(
                definition.merge(state)[0], batch, temperature
            )
            if state.value_head_params is None:
                return logprobs, entropy, jnp.zeros_like(logprobs)
            if policy.value_trunk == "detached":
                hidden = jax.lax.stop_gradient(hidden)
            return logprobs, entropy, state_values(hidden, state.value_head_params)

        def loss(
            trainable: Parameters,
            state: TrainState,
            batch: RolloutBatch,
            learning: PolicyTargets,
            beta: jax.Array,
            changed: PolicyChanged,
        ) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
            found, entropy, values = statistics(state.with_trainable(trainable), batch)
            weights = learning.weights
            now, old, reference, sampler = (
                where_weighted(values, weights)
                for values in (
                    found,
                    learning.old_logprobs,
                    learning.reference_logprobs,
                    learning.sampler_logprobs,
                )
            )
            # A policy that has not changed is the other one: what another pass found would differ
            # by its rounding.
            same = jax.lax.stop_gradient(now)
            old = jnp.where(changed.since_rollout, old, same)
            reference = jnp.where(changed.since_stage_start, reference, same)
            clipped = policy_loss(
                now,
                old,
                where_weighted(learning.advantages, weights),
                clip_low=policy.clip_low,
                clip_high=policy.clip_high,
                dual_clip=policy.dual_clip,
            )
            own = clipped.loss
            if policy.max_importance_weight is not None:
                own *= truncated_importance_weights(
                    old, sampler, max_weight=policy.max_importance_weight
                )
            total = jnp.sum(weights * own)
            sums = {
                "policy_loss": total,
                "clip_fraction": jnp.sum(weights * clipped.clipped),
                "clamped_fraction": jnp.sum(weights * clipped.clamped),
                "ratio": jnp.sum(weights * clipped.ratio),
                "entropy": jnp.sum(weights * where_weighted(entropy, weights)),
            }
            if state.reference_params is not None:
                kl = jnp.sum(weights * kl_loss(now, reference, old))
                if policy.kl_placement == "loss":
                    total += beta * kl
                sums["kl"] = jnp.sum(weights * kl_estimate(now, reference, "k3"))
            if state.value_head_params is not None:
                returns, before = (
                    where_weighted(x, weights) for x in (learning.returns, learning.old_values)
                )
                sums["value_loss"] = jnp.sum(
                    weights
                    * value_loss(
                        where_weighted(values, weights), before, returns, clip=policy.value_clip
                    )
                )
                total += policy.value_coef * sums["value_loss"]
            return total, ({"loss": total, **sums}, found)

        gradient = jax.value_and_grad(loss, has_aux=True)

        def begin(state: TrainState, batch: RolloutBatch, *learning: Any) -> tuple[Any, Sums]:
            shapes = jax.eval_shape(gradient, state.trainable, state, batch, *learning)
            return jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes[1], shapes[0][1][0])
            )

        def accumulate(
            state: TrainState, carried: tuple[Any, Sums], batch: RolloutBatch, *learning: Any
        ) -> tuple[tuple[Any, Sums], jax.Array]:
            (_, (sums, logprobs)), gradients = gradient(state.trainable, state, batch, *learning)
            return jax.tree.map(jnp.add, carried, (gradients, sums)), logprobs

        def apply(state: TrainState, carried: tuple[Any, Sums]) -> tuple[TrainState, Sums]:
            gradients, sums = carried
            new_state, metrics = apply_gradients(state, gradients, sums["loss"], optimizer)
            return dataclasses.replace(new_state, step=state.step), sums | metrics

        gradients, whole = (
            (shardings.trainable, None),
            shardings.step,
        )  # whole everywhere, for the host to read
        self.begin = jax.jit(begin, out_shardings=gradients)
        self.accumulate = jax.jit(accumulate, donate_argnums=1, out_shardings=(gradients, whole))
        self.apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, None))
        self.statistics = jax.jit(
            lambda *given: statistics(*given)[::2], out_shardings=whole
        )  # log-probabilities and values

    def __call__(
        self,
        state: TrainState,
        parts: Sequence[tuple[RolloutBatch, PolicyTargets]],
        *,
        beta: float,
        changed: PolicyChanged,
    ) -> tuple[TrainState, dict[str, float], NDArray[np.float32]]:
        """One update from all of `parts` together; the given state is used up, and `step` stays.

        Args:
            state: before.
            parts: batches of one shape, on the mesh.
            beta: coefficient of the KL.
            changed: whether the policy is still the one that wrote, and the reference.

        Returns:
            The state after it; metrics: the sums over all parts, which are means, for the weights
            add up to 1, and those of `apply_gradients`; and what the policy was before, as the
            log-probabilities [B,T] of the parts one after the other.
        """
        settings = jnp.float32(beta), jax.tree.map(jnp.bool_, changed)
        carried, logprobs = self.begin(state, *parts[0], *settings), []
        for batch, learning in parts:
            carried, found = self.accumulate(state, carried, batch, learning, *settings)
            logprobs.append(found)
        state, sums = self.apply(state, carried)
        metrics = {name: float(value) for name, value in jax.device_get(sums).items()}
        return state, metrics, np.concatenate(jax.device_get(logprobs))
