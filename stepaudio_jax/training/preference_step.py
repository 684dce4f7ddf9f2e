"""The train step of preferences: log-probabilities of both replies, their loss, and the update.

As in `train_step`, each term is a sum over the batch divided by a weight that the data alone
decides, so that neither micro-batches nor devices change the loss.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from stepaudio_jax.config import Preference, StageConfig
from stepaudio_jax.data.batch import Batch, PairBatch
from stepaudio_jax.data.preference_pairs import CHOSEN, REJECTED, REPLIES_PER_PAIR, UNRELATED
from stepaudio_jax.models import Parameters, StepAudio
from stepaudio_jax.models.logprobs import chunked_divergence, chunked_logprobs
from stepaudio_jax.training.preference_losses import (
    dpo_loss,
    ipo_loss,
    kto_kl,
    kto_loss,
    orpo_loss,
    simpo_loss,
)
from stepaudio_jax.training.train_state import ModelDef, TrainState, apply_gradients
from stepaudio_jax.training.train_step import (
    EvalStep,
    Metrics,
    Scalar,
    TrainStep,
    batch_metrics,
    forward,
    sum_over_microbatches,
)

ReplyValues = Float[Array, "B P replies"]


class ReplySums(NamedTuple):
    """Sums over the tokens of each reply; 0 where there is none.

    Attributes:
        tokens: how many.
        logprobs: log-probabilities by the policy.
        log_ratios: these less those by the reference policy; None without one.
    """

    tokens: ReplyValues
    logprobs: ReplyValues
    log_ratios: ReplyValues | None


# What a metric, a sum over the batch, is divided by: a name of `_counts`.
_DIVISORS = {
    "loss/preference": "pairs",
    "loss/next_token": "chosen_tokens",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/margin": "clear_pairs",
    "rewards/accuracy": "clear_pairs",
    "logprobs/chosen": "chosen_tokens",
    "logprobs/rejected": "rejected_tokens",
    "tokens/chosen": "chosen",
    "tokens/rejected": "rejected",
    "kl": "unrelated",
    "reference_kl": "reply_tokens",
}


def make_preference_step(
    model_def: ModelDef, stage: StageConfig, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Returns the train step of a stage with preferences, not yet jitted; see `make_train_step`.

    The step's metrics are scalars: the loss, rewards of the chosen and of the rejected replies,
    their margin, the share of clear pairs whose margin is positive (one of 0 counts half),
    log-probabilities a token, tokens a reply, the KL of "kto", those of `apply_gradients`, and what
    the batch holds.
    """
    objective, number = stage.preference, stage.gradient_accumulation_steps

    def loss(
        trainable: Parameters, state: TrainState, batch: Batch, counts: Metrics, kl: Scalar | None
    ) -> tuple[Scalar, Metrics]:
        replies = _reply_sums(model_def, state.with_trainable(trainable), state, batch, objective)
        sums = _metric_sums(replies, _pairs(batch), objective, counts, kl)
        means = preference_means(sums | counts, objective)
        return means["loss"], means

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = _counts(_pairs(batch))
        kl = _kl_of_batch(model_def, state, batch, objective, counts, number)
        loss_and_gradients = jax.value_and_grad(loss, has_aux=True)

        def microbatch_gradients(microbatch: Batch) -> tuple[Parameters, Metrics]:
            (_, metrics), gradients = loss_and_gradients(
                state.trainable, state, microbatch, counts, kl
            )
            return gradients, metrics

        gradients, metrics = sum_over_microbatches(microbatch_gradients, batch, number)
        state, update_metrics = apply_gradients(state, gradients, metrics["loss"], optimizer)
        pairs = {"pairs": counts["pairs"]}
        return state, metrics | update_metrics | batch_metrics(batch) | pairs

    return train_step


def make_preference_eval_step(
    model_def: ModelDef, objective: Preference, num_microbatches: int = 1
) -> EvalStep:
    """Returns the evaluation step: the sums over a batch of which `preference_means` makes metrics.

    Beside the metrics of training there is the KL of the policy to the reference policy, of their
    distributions at all tokens of the replies, where the reference policy is at hand.
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        counts = _counts(_pairs(batch))
        kl = _kl_of_batch(model_def, state, batch, objective, counts, num_microbatches)

        def microbatch_sums(microbatch: Batch) -> Metrics:
            replies = _reply_sums(model_def, state, state, microbatch, objective)
            sums = _metric_sums(replies, _pairs(microbatch), objective, counts, kl)
            if state.reference_params is not None:
                sums["reference_kl"] = _reference_kl(model_def, state, microbatch)
            return sums

        return sum_over_microbatches(microbatch_sums, batch, num_microbatches) | counts

    return eval_step


def preference_means(sums: Mapping[str, Any], objective: Preference) -> dict[str, Any]:
    """Returns the loss and the metrics from sums over one or several batches."""
    means = {
        name: sums[name] / jnp.maximum(sums[divisor], 1.0)
        for name, divisor in _DIVISORS.items()
        if name in sums
    }
    loss = means["loss/preference"]
    if objective.next_token_weight:
        loss += objective.next_token_weight * means["loss/next_token"]
    else:
        del means["loss/preference"]
    return {"loss": loss, **means}


def make_reference_step(model_def: ModelDef) -> EvalStep:
    """Returns a step that computes the log-probability of every reply of a batch, [B, P, replies].

    Its model is the state's policy, which is the reference policy before the first step. Beside
    these `logprobs` it returns the `tokens` of each reply, 0 where there is none.
    """

    def reference_step(state: TrainState, batch: Batch) -> Metrics:
        model, _ = model_def.merge(state)
        logprobs = _token_logprobs(model, batch)
        return {
            "logprobs": sum_by_reply(logprobs, _pairs(batch)),
            "tokens": sum_by_reply(jnp.ones_like(logprobs), _pairs(batch)),
        }

    return reference_step


def sum_by_reply(values: Float[Array, "B T"], pairs: PairBatch) -> ReplyValues:
    """Returns the sums of values over the targets of each reply; other positions may hold junk."""
    rows, num_pairs = pairs.weights.shape
    num_replies = num_pairs * REPLIES_PER_PAIR
    values = jnp.where(pairs.reply_ids >= 0, values, 0.0)

    def sum_row(values: Float[Array, " T"], reply_ids: Array) -> Array:
        # Positions without a reply go to a last place of their own.
        ids = jnp.where(reply_ids >= 0, reply_ids, num_replies)
        return jax.ops.segment_sum(values, ids, num_segments=num_replies + 1)[:-1]

    sums = jax.vmap(sum_row)(values, jnp.asarray(pairs.reply_ids))
    return sums.reshape(rows, num_pairs, REPLIES_PER_PAIR)


def _pairs(batch: Batch) -> PairBatch:
    assert batch.pairs is not None
    return batch.pairs


def _token_logprobs(
    model: StepAudio, batch: Batch, features: Array | None = None
) -> Float[Array, "B T"]:
    hidden, _ = forward(model, None, batch, features)
    logprobs, _ = chunked_logprobs(
        hidden,
        model.decoder.lm_head_kernel(),
        jnp.asarray(batch.targets),
        chunks=model.decoder.compute.loss_chunks,
        rules=model.decoder.compute.rules,
    )
    return logprobs


def _shared_features(model: StepAudio, state: TrainState, batch: Batch) -> Array | None:
    """Returns the encoder's output, which policy and reference share while it is frozen.

    Returns None without audio, and where the stage trains the encoder.
    """
    if "encoder" in state.params or batch.mel.shape[1] == 0:
        return None
    features, _ = model.encode_chunks(batch.mel, batch.mel_lengths)
    return features


def _reply_sums(
    model_def: ModelDef,
    policy: TrainState,
    state: TrainState,
    batch: Batch,
    objective: Preference,
) -> ReplySums:
    """Computes the sums of each reply, by the policy and the reference policy of `state`."""
    pairs = _pairs(batch)
    model, _ = model_def.merge(policy)
    features = _shared_features(model, state, batch)
    logprobs = _token_logprobs(model, batch, features)
    tokens = sum_by_reply(jnp.ones_like(logprobs), pairs)
    of_replies = sum_by_reply(logprobs, pairs)
    log_ratios = None
    if pairs.reference_logprobs is not None:
        reference = jnp.where(tokens > 0, pairs.reference_logprobs, 0.0)
        log_ratios = of_replies - reference
    elif objective.has_reference:
        reference_model, _ = model_def.merge(state.with_reference_policy())
        reference = jax.lax.stop_gradient(_token_logprobs(reference_model, batch, features))
        # Subtracted token by token: a policy that is the reference has a ratio of exactly 0.
        log_ratios = sum_by_reply(logprobs - reference, pairs)
    return ReplySums(tokens, of_replies, log_ratios)


def _counts(pairs: PairBatch) -> Metrics:
    """Returns what the data alone decides of the metrics' divisors, scalars."""
    tokens = sum_by_reply(jnp.ones(pairs.reply_ids.shape, jnp.float32), pairs)
    has_reply = (tokens > 0).astype(jnp.float32)
    chosen_tokens, rejected_tokens = (jnp.sum(tokens[..., kind]) for kind in (CHOSEN, REJECTED))
    return {
        "pairs": jnp.sum(pairs.weights),
        "clear_pairs": jnp.sum(_is_clear(has_reply, pairs)),
        "chosen": jnp.sum(has_reply[..., CHOSEN]),
        "rejected": jnp.sum(has_reply[..., REJECTED]),
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
        "reply_tokens": chosen_tokens + rejected_tokens,
        "unrelated": jnp.sum(has_reply[..., UNRELATED]),
    }


def _is_clear(has_reply: ReplyValues, pairs: PairBatch) -> Float[Array, "B P"]:
    """Returns 1 where one reply of a pair is better than the other, else 0."""
    has_both = has_reply[..., CHOSEN] * has_reply[..., REJECTED]
    return has_both * (jnp.asarray(pairs.labels) > 0.5)


def _kl_of_batch(
    model_def: ModelDef,
    state: TrainState,
    batch: Batch,
    objective: Preference,
    counts: Metrics,
    num_microbatches: int,
) -> Scalar | None:
    """Computes the KL of "kto", which all micro-batches of a step share, before the first of them.

    Returns None where the only pass over the batch computes it by itself.
    """
    if objective.loss != "kto" or num_microbatches == 1:
        return None

    def log_ratio_sum(microbatch: Batch) -> Scalar:
        sums = _reply_sums(model_def, state, state, microbatch, objective)
        assert sums.log_ratios is not None  # "kto" has a reference
        return jnp.sum(sums.log_ratios[..., UNRELATED])

    total = sum_over_microbatches(log_ratio_sum, batch, num_microbatches)
    return kto_kl(total, counts["unrelated"])


def _reference_kl(model_def: ModelDef, state: TrainState, batch: Batch) -> Scalar:
    """Returns the sum over the tokens of the replies of KL(policy || reference policy)."""
    policy, _ = model_def.merge(state)
    reference, _ = model_def.merge(state.with_reference_policy())
    features = _shared_features(policy, state, batch)
    (hidden, _), (reference_hidden, _) = (
        forward(model, None, batch, features) for model in (policy, reference)
    )
    kl = chunked_divergence(
        hidden,
        policy.decoder.lm_head_kernel(),
        reference_hidden,
        reference.decoder.lm_head_kernel(),
        beta=1.0,
        chunks=policy.decoder.compute.loss_chunks,
        rules=policy.decoder.compute.rules,
    )
    of_replies = sum_by_reply(kl, _pairs(batch))
    return jnp.sum(of_replies[..., (CHOSEN, REJECTED)])


def _metric_sums(
    replies: ReplySums,
    pairs: PairBatch,
    objective: Preference,
    counts: Metrics,
    kl: Scalar | None,
) -> Metrics:
    """Returns a (micro-)batch's share of the loss and of the metrics, not yet divided.

    Args:
        replies: sums of each reply.
        pairs: of the (micro-)batch.
        objective: of the stage.
        counts: of the whole batch.
        kl: of "kto"; None computes it of this batch.
    """
    means = replies.logprobs / jnp.maximum(replies.tokens, 1.0)
    if replies.log_ratios is None:
        compared = means  # SimPO, ORPO
    elif objective.loss == "ipo" or objective.length_normalized:
        compared = replies.log_ratios / jnp.maximum(replies.tokens, 1.0)
    else:
        compared = replies.log_ratios
    has_reply = (replies.tokens > 0).astype(jnp.float32)
    rewards = jax.lax.stop_gradient(objective.beta * compared * has_reply)
    margins = rewards[..., CHOSEN] - rewards[..., REJECTED]
    is_clear = _is_clear(has_reply, pairs)
    sums = {
        "rewards/chosen": rewards[..., CHOSEN],
        "rewards/rejected": rewards[..., REJECTED],
        "rewards/margin": margins * is_clear,
        "rewards/accuracy": (0.5 + 0.5 * jnp.sign(margins)) * is_clear,
        "logprobs/chosen": replies.logprobs[..., CHOSEN],
        "logprobs/rejected": replies.logprobs[..., REJECTED],
        "tokens/chosen": replies.tokens[..., CHOSEN],
        "tokens/rejected": replies.tokens[..., REJECTED],
    }
    if objective.next_token_weight:
        sums["loss/next_token"] = -replies.logprobs[..., CHOSEN]
    if objective.loss == "kto":
        assert replies.log_ratios is not None  # it has a reference
        sums["kl"] = replies.log_ratios[..., UNRELATED]
        if kl is None:
            kl = kto_kl(jnp.sum(sums["kl"]), counts["unrelated"])
        pair_losses = _kto_losses(compared, has_reply, objective, kl)
        # Its mean is over replies, and the divisor is the number of pairs.
        replies_per_pair = (counts["chosen"] + counts["rejected"]) / jnp.maximum(
            counts["pairs"], 1.0
        )
        pair_losses /= jnp.maximum(replies_per_pair, 1.0)
    else:
        pair_losses = _pair_losses(compared, pairs, objective)
    sums["loss/preference"] = pair_losses * jnp.asarray(pairs.weights)
    return {name: jnp.sum(of_pairs) for name, of_pairs in sums.items()}


def _pair_losses(
    compared: ReplyValues, pairs: PairBatch, objective: Preference
) -> Float[Array, "B P"]:
    """Returns the loss of each pair; of unused places it is finite and means nothing.

    Args:
        compared: what the loss compares, of each reply: log-ratios or log-probabilities.
        pairs: labels and margins.
        objective: of the stage; not "kto".
    """
    chosen, rejected = compared[..., CHOSEN], compared[..., REJECTED]
    labels = jnp.asarray(pairs.labels)
    offsets = objective.target_margin_per_level * jnp.asarray(pairs.margins)
    if objective.loss == "dpo":
        return dpo_loss(
            chosen,
            rejected,
            beta=objective.beta,
            labels=labels,
            label_smoothing=objective.label_smoothing,
            offsets=offsets,
        )
    if objective.loss == "ipo":
        return ipo_loss(chosen, rejected, beta=objective.beta, labels=labels)
    if objective.loss == "simpo":
        return simpo_loss(
            chosen,
            rejected,
            beta=objective.beta,
            target_margin=objective.target_margin + offsets,
            labels=labels,
            label_smoothing=objective.label_smoothing,
        )
    loss, _ = orpo_loss(chosen, rejected, beta=objective.beta)
    return loss


def _kto_losses(
    compared: ReplyValues, has_reply: ReplyValues, objective: Preference, kl: Scalar
) -> Float[Array, "B P"]:
    """Returns the sum of the losses of a pair's replies, or of its only one."""
    of_replies = [
        kto_loss(
            compared[..., kind],
            jnp.full(compared.shape[:2], float(kind == CHOSEN)),
            kl,
            beta=objective.beta,
            desirable_weight=objective.desirable_weight,
            undesirable_weight=objective.undesirable_weight,
        )
        * has_reply[..., kind]
        for kind in (CHOSEN, REJECTED)
    ]
    return of_replies[0] + of_replies[1]
