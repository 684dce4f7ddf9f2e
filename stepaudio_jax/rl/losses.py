"""The objective of one token: clipped policy gradient, KL to the reference, value (R1.5, eq. 4 and 5).

Every function is elementwise over arrays of one shape, any, and gives losses to be minimised;
`rl.aggregation` adds them up. Places that carry no weight may hold anything, if the caller replaces
it before (see `where_weighted`).
"""

import dataclasses
import logging
import math
from typing import Literal

import jax
import jax.numpy as jnp

# From a loss of each token to one number: weights that add up the same however a batch is cut.

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


def token_weights(
    mask: jax.Array, valid: jax.Array, aggregation: Aggregation
) -> tuple[jax.Array, jax.Array]:
    """The weight of every token in the loss, and what the weighted sum is to be divided by, once, over the global batch.

    "token_mean": every token counts alike (DAPO: Yu et al. 2025, eq. 8). "sequence_mean": every
    sample counts alike, a token by its sample's length (GRPO: Shao et al. 2024, eq. 3).
    "sequence_sum": a sample counts by its tokens, and the sum is divided by the number of samples
    (Liu et al. 2025, section 3.2).

    Args:
        mask: [N,T], 1 where the policy wrote the token.
        valid: [N], 0 for a sample that is left out.
        aggregation: how.

    Returns:
        [N,T] fp32 and a scalar; a sample without tokens counts nowhere.
    """
    seen = (mask > 0) & (valid > 0)[:, None]
    lengths = jnp.sum(seen, axis=1)
    weights = seen.astype(jnp.float32)
    if aggregation == "token_mean":
        return weights, jnp.sum(weights)
    if aggregation == "sequence_mean":
        weights /= jnp.maximum(lengths, 1)[:, None]
    return weights, jnp.sum(lengths > 0).astype(jnp.float32)


logger = logging.getLogger(__name__)

# exp of more is no ratio that a policy can have by a step, and overflows a few times further on
MAX_LOG_RATIO = 20.0

KLKind = Literal["k1", "k2", "k3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Of each token: the loss; the ratio; whether the clip decided, and whether the log-ratio was clamped (1 or 0)."""

    loss: jax.Array
    ratio: jax.Array
    clipped: jax.Array
    clamped: jax.Array


def where_weighted(x: jax.Array, weights: jax.Array, filling: float = 0.0) -> jax.Array:
    """`x` where a token has weight, else `filling`: junk elsewhere can then reach neither the loss nor its gradient."""
    return jnp.where(weights > 0, x, filling)


def log_ratio(logprobs: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logprobs - other, clamped to +-20, and where it was clamped (1 or 0)."""
    difference = logprobs - other
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO), (
        jnp.abs(difference) > MAX_LOG_RATIO
    ).astype(jnp.float32)


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), rho = exp(logprobs - old_logprobs) (PPO: Schulman et al. 2017, eq. 7).

    Args:
        logprobs: of the policy that learns.
        old_logprobs: of the policy that wrote.
        advantages: constants.
        clip_low, clip_high: epsilon below and above.
        dual_clip: for negative advantages, the loss is at most -dual_clip A (Ye et al. 2020, eq.
            5); above 1; None for none.
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


def kl_estimate(logprobs: jax.Array, reference: jax.Array, kind: KLKind) -> jax.Array:
    """An estimate of KL(policy || reference) from the log-probabilities of what the policy wrote (Schulman 2020).

    With d = logprobs - reference: k1 = d, unbiased, of large variance; k2 = d^2 / 2; k3 = exp(-d) -
    1 + d, unbiased and never negative.
    """
    difference, _ = log_ratio(logprobs, reference)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    return jnp.expm1(-difference) + difference


def kl_loss(
    logprobs: jax.Array, reference: jax.Array, old_logprobs: jax.Array | None = None
) -> jax.Array:
    """Returns a loss whose value is k3 and whose gradient is that of KL(policy || reference), which is k2's: d.

    k1 as a loss has no gradient in expectation, and k3's is that of the KL the other way round.
    Where |d| exceeds 20 nats, the gradient stays at 20 with d's sign, as that of a Huber loss of
    that width: a policy that is far away is still pulled back, and no token pulls without bound.

    Args:
        logprobs: of the policy that learns.
        reference: constants.
        old_logprobs: of the policy that wrote, where it is another one: tokens are then weighted by
            the ratio of the two.
    """
    constant = jax.lax.stop_gradient(logprobs)
    reference = jax.lax.stop_gradient(reference)
    value = kl_estimate(constant, reference, "k3")
    pull, _ = log_ratio(constant, reference)
    slope = pull * (logprobs - constant)  # zero, but for its gradient
    if old_logprobs is None:
        return value + slope
    weight = jax.lax.stop_gradient(jnp.exp(log_ratio(logprobs, old_logprobs)[0]))
    return weight * (value + slope)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: float | None
) -> jax.Array:
    """Half the squared error, the larger of the plain one and that of values within `clip` of the old ones.

    Schulman et al. 2017 (the clipped form is their implementation's).
    """
    returns = jax.lax.stop_gradient(returns)
    plain = (values - returns) ** 2
    if clip is None:
        return 0.5 * plain
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(plain, (near - returns) ** 2)


def truncated_importance_weights(
    old_logprobs: jax.Array, sampler_logprobs: jax.Array, *, max_weight: float
) -> jax.Array:
    """Weights, at most `max_weight`, for tokens of an engine whose probabilities are not quite the trainer's (Yao et al. 2025)."""
    return jax.lax.stop_gradient(
        jnp.minimum(jnp.exp(log_ratio(old_logprobs, sampler_logprobs)[0]), max_weight)
    )


@dataclasses.dataclass
class KLController:
    """The KL penalty's coefficient, adapted towards a target (Ziegler et al. 2019, section 2.2); its state is `coefficient`.

    Attributes:
        coefficient: beta, now.
        target: of the mean KL a sample; None keeps the coefficient.
        horizon: samples over which it adapts. More of them at once count as so many: what beta is
            multiplied by lies between 0.8 and 1.2, and beta stays positive.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def restore(self, coefficient: float) -> None:
        """Takes up the coefficient of a checkpoint.

        One below 0, which earlier versions could make and which rewards distance, is not: beta
            begins anew.
        """
        if coefficient >= 0:
            self.coefficient = coefficient
        else:
            logger.warning(
                "kl_coef=%g of the checkpoint is negative: it begins anew at %g",
                coefficient,
                self.coefficient,
            )

    def update(self, kl: float, samples: int) -> None:
        """Multiplies beta by 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon.

        Args:
            kl: the mean of the new samples; NaN changes nothing.
            samples: how many there are.
        """
        if self.target is None or math.isnan(kl):
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * min(samples / self.horizon, 1.0)
