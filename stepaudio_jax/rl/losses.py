"""The RL objective: clipped policy gradient, KL to a reference policy, value loss (R1.5, eq. 4, 5).

The losses are elementwise over arrays of one shape; `token_weights` turns them into one number.
Positions that the policy did not write may hold anything, as long as `where_weighted` replaces it
before.
"""

import dataclasses
import logging
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from stepaudio_jax.config import Aggregation

logger = logging.getLogger(__name__)

MAX_LOG_RATIO = (
    20.0  # nats; a step cannot move a policy further, and exp of a few times more overflows
)

KLKind = Literal["k1", "k2", "k3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """The policy loss of each token, and what it was made of; all arrays of one shape, fp32.

    Attributes:
        loss: the loss, to be minimized.
        ratio: ratio of the probabilities, new / old.
        clipped: 1 where the clip decided, else 0.
        clamped: 1 where the log-ratio was clamped to +-MAX_LOG_RATIO, else 0.
    """

    loss: Array
    ratio: Array
    clipped: Array
    clamped: Array


def policy_loss(
    logprobs: Float[Array, "*shape"],
    old_logprobs: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Computes the clipped policy-gradient loss of each token (PPO: Schulman et al. 2017, eq. 7).

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(logprobs - old_logprobs).

    Args:
        logprobs: log-probabilities by the policy that is trained, the only ones with a gradient.
        old_logprobs: log-probabilities by the policy that generated the rollouts.
        advantages: A.
        clip_low, clip_high: epsilon below and above 1.
        dual_clip: above 1; where A < 0, limits the loss to -dual_clip A (Ye et al. 2020, eq. 5).
            None does not.
    """
    advantages = jax.lax.stop_gradient(advantages)
    difference, clamped = log_ratio(logprobs, jax.lax.stop_gradient(old_logprobs))
    ratio = jnp.exp(difference)
    plain = -ratio * advantages
    bounded = -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    loss, clipped = jnp.maximum(plain, bounded), bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        above = (advantages < 0) & (loss > ceiling)
        loss, clipped = jnp.where(above, ceiling, loss), clipped | above
    return PolicyLoss(loss, ratio, clipped.astype(jnp.float32), clamped)


def cispo_loss(
    logprobs: Float[Array, "*shape"],
    old_logprobs: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Computes the CISPO loss of each token (MiniMax 2025, eq. 4 and 5).

    -sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi, sg without a gradient: the ratio is
    clipped as a weight, so that tokens beyond the clip are still trained on. The loss has the
    gradient of that, and the value of -clip(rho) A, which does not depend on the vocabulary.

    Args:
        logprobs, old_logprobs, advantages: as in `policy_loss`.
        clip_low, clip_high: epsilon below and above 1; MiniMax does not clip below.
    """
    advantages = jax.lax.stop_gradient(advantages)
    difference, clamped = log_ratio(
        jax.lax.stop_gradient(logprobs), jax.lax.stop_gradient(old_logprobs)
    )
    ratio = jnp.exp(difference)
    weight = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    zero_with_gradient = logprobs - jax.lax.stop_gradient(logprobs)
    loss = -weight * advantages * (1 + zero_with_gradient)
    return PolicyLoss(loss, ratio, (weight != ratio).astype(jnp.float32), clamped)


def segment_means(
    values: Float[Array, "B T"], weights: Float[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes for each token the mean of the values of its reply's tokens.

    With log-ratios of probabilities it is the log of GSPO's sequence ratio (Zheng et al. 2025,
    eq. 7).

    Args:
        values: of each token; may hold junk where a token has no weight.
        weights: above 0 where a token counts.
        segment_ids: the segment of each token, at most one reply each; from 0 to T.

    Returns:
        The means, 0 at tokens without weight.
    """
    seen = (weights > 0).astype(jnp.float32)
    values = where_weighted(values, weights)

    def of_row(values: jax.Array, seen: jax.Array, ids: jax.Array) -> jax.Array:
        sums, counts = (
            jax.ops.segment_sum(x, ids, num_segments=ids.size + 1) for x in (values, seen)
        )
        return (sums / jnp.maximum(counts, 1.0))[ids] * seen

    return jax.vmap(of_row)(values, seen, segment_ids)


def kl_loss(
    logprobs: Float[Array, "*shape"],
    reference: Float[Array, "*shape"],
    old_logprobs: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Computes a loss with the value of k3 and the gradient of KL(policy || reference), which is d.

    With d = logprobs - reference: k1 as a loss has no gradient in expectation, k3's gradient is
    that of the KL in the other direction, k2's is the right one. Where |d| exceeds MAX_LOG_RATIO,
    the gradient stays at that size, as in a Huber loss: a distant policy is still pulled back, and
    no token pulls without bound.

    Args:
        logprobs: log-probabilities by the policy that is trained, the only ones with a gradient.
        reference: log-probabilities by the reference policy.
        old_logprobs: by the policy that generated the rollouts, where it is another one: tokens are
            then weighted by the ratio of the two.
    """
    constant = jax.lax.stop_gradient(logprobs)
    reference = jax.lax.stop_gradient(reference)
    value = kl_estimate(constant, reference, "k3")
    slope, _ = log_ratio(constant, reference)
    zero_with_gradient = slope * (logprobs - constant)
    if old_logprobs is None:
        return value + zero_with_gradient
    weight = jax.lax.stop_gradient(jnp.exp(log_ratio(logprobs, old_logprobs)[0]))
    return weight * (value + zero_with_gradient)


def kl_estimate(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"], kind: KLKind
) -> Float[Array, "*shape"]:
    """Estimates KL(policy || reference) from samples of the policy (Schulman 2020).

    With d = logprobs - reference: k1 = d, unbiased with a large variance; k2 = d^2 / 2;
    k3 = exp(-d) - 1 + d, unbiased and never negative.
    """
    difference, _ = log_ratio(logprobs, reference)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    return jnp.expm1(-difference) + difference


def value_loss(
    values: Float[Array, "*shape"],
    old_values: Float[Array, "*shape"],
    returns: Float[Array, "*shape"],
    *,
    clip: float | None,
) -> Float[Array, "*shape"]:
    """Computes half the squared error of the values, as PPO's implementation does.

    With a clip it is the larger of that and the error of values clipped to within `clip` of the old
    ones (Schulman et al. 2017; the clipped form is in their code only).
    """
    returns = jax.lax.stop_gradient(returns)
    plain = (values - returns) ** 2
    if clip is None:
        return 0.5 * plain
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(plain, (near - returns) ** 2)


def importance_weights(
    log_ratios: Float[Array, "*shape"],
    *,
    max_weight: float,
    min_weight: float | None = None,
    outside: Literal["truncate", "mask"] = "truncate",
) -> Float[Array, "*shape"]:
    """Computes old / sampler within bounds, a correction for the sampler's other arithmetic.

    The engine that samples computes slightly other probabilities than the trainer (Yao et al.
    2025). "truncate" sets a ratio beyond a bound to the bound (truncated importance sampling);
    "mask" gives such a token no weight at all (masked importance sampling, as in IcePop). The
    weights have no gradient.

    Args:
        log_ratios: log-probability by the trainer, before the update, less that by the engine; or
            the mean of these over a reply (`segment_means`), which bounds whole replies.
        max_weight: upper bound.
        min_weight: lower bound; None for none.
        outside: what becomes of a ratio beyond the bounds.
    """
    ratios = jnp.exp(jnp.clip(log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    low = 0.0 if min_weight is None else min_weight
    if outside == "mask":
        weights = jnp.where((low <= ratios) & (ratios <= max_weight), ratios, 0.0)
    else:
        weights = jnp.clip(ratios, low, max_weight)
    return jax.lax.stop_gradient(weights)


def log_ratio(
    logprobs: Float[Array, "*shape"], other: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns logprobs - other, clamped to +-MAX_LOG_RATIO, and 1 where it was clamped, else 0."""
    difference = logprobs - other
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO), (
        jnp.abs(difference) > MAX_LOG_RATIO
    ).astype(jnp.float32)


def where_weighted(
    x: Shaped[Array, "*shape"], weights: Float[Array, "*shape"], fill: float = 0.0
) -> Shaped[Array, "*shape"]:
    """Returns `x` where a token has weight, else `fill`.

    Undefined values of other tokens can then reach neither the loss nor its gradient.
    """
    return jnp.where(weights > 0, x, fill)


def token_weights(
    mask: Shaped[Array, "rollouts T"], valid: Shaped[Array, " rollouts"], aggregation: Aggregation
) -> tuple[Float[Array, "rollouts T"], Float[Array, ""]]:
    """Computes the weight of every token's loss, and the divisor of the weighted sum.

    The divisor is of the global batch, so the losses of parts of the batch add up exactly.

    * "token_mean": all tokens count alike (DAPO: Yu et al. 2025, eq. 8).
    * "sequence_mean": all rollouts count alike, each the mean of its tokens (GRPO: Shao et al.
      2024, eq. 3).
    * "sequence_sum": a rollout is the sum of its tokens, and the divisor is the number of rollouts
      (Dr. GRPO: Liu et al. 2025, section 3.2).

    Args:
        mask: 1 where the policy wrote the token, else 0.
        valid: 0 for a rollout that is left out, else 1.
        aggregation: one of the above.

    Returns:
        The weights and the divisor, fp32; a rollout without tokens does not count.
    """
    seen = (mask > 0) & (valid > 0)[:, None]
    lengths = jnp.sum(seen, axis=1)
    weights = seen.astype(jnp.float32)
    if aggregation == "token_mean":
        return weights, jnp.sum(weights)
    if aggregation == "sequence_mean":
        weights /= jnp.maximum(lengths, 1)[:, None]
    return weights, jnp.sum(lengths > 0).astype(jnp.float32)


@dataclasses.dataclass
class KLController:
    """Adapts the coefficient of the KL penalty to a target (Ziegler et al. 2019, section 2.2).

    Attributes:
        coefficient: beta; all that has to be saved.
        target: mean KL of a rollout; None keeps the coefficient.
        horizon: number of rollouts over which it adapts; more of them in one update count as this
            many. So beta changes by a factor between 0.8 and 1.2, and stays positive.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def restore(self, coefficient: float) -> None:
        """Takes the coefficient from a checkpoint.

        A negative one, which rewards distance and which an earlier version could write, is
        ignored with a warning.
        """
        if coefficient >= 0:
            self.coefficient = coefficient
        else:
            logger.warning(
                "kl_coef=%g of the checkpoint is negative: it begins anew at %g",
                coefficient,
                self.coefficient,
            )

    def update(self, kl: float, rollouts: int) -> None:
        """Multiplies beta by 1 + clip(kl / target - 1, -0.2, 0.2) * rollouts / horizon.

        Args:
            kl: the mean of the new rollouts; NaN changes nothing.
            rollouts: how many there are.
        """
        if self.target is None or math.isnan(kl):
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * min(rollouts / self.horizon, 1.0)
