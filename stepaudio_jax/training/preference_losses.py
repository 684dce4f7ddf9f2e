"""Losses on pairs of replies: DPO, IPO, SimPO, ORPO, KTO, as functions of log-probabilities.

Each loss is elementwise over pairs (or replies) and returns float32; the caller weights and
averages it. With y_w the preferred and y_l the rejected reply of a pair to x:

* log-ratio: log pi(y|x) - log pi_ref(y|x), where pi_ref is the policy at the start of the stage;
* label: the probability that y_w is the better reply. 1 is a clear preference, 1/2 means that both
  are equal. The loss of a soft label is its expectation over which reply is the better one.

Gradients flow through the policy's log-probabilities alone: those of the reference are constants.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pairs = Float[Array, "*pairs"]

# exp of a mean log-probability nearer to 0 is 1 in float32, and the log-odds infinite.
_MAX_MEAN_LOGPROB = -1e-6


def dpo_loss(
    chosen_log_ratios: Pairs,
    rejected_log_ratios: Pairs,
    *,
    beta: float,
    labels: Pairs | float = 1.0,
    label_smoothing: float = 0.0,
    offsets: Pairs | float = 0.0,
) -> Pairs:
    """Computes the loss of direct preference optimization (Rafailov et al. 2023, eq. 7).

    -(1 - epsilon) log sigma(h) - epsilon log sigma(-h),
    h = beta (log-ratio of y_w - log-ratio of y_l) - offset

    With epsilon > 0 it is the conservative form, for labels that are the wrong way round with that
    probability (Mitchell 2023). Length-normalised DPO takes log-ratios that are means over tokens.

    Args:
        chosen_log_ratios, rejected_log_ratios: of each pair, sums (or means) over a reply's tokens.
        beta: strength of the KL to the reference policy.
        labels: probability that the chosen reply is the better one.
        label_smoothing: epsilon, below 1/2; 0 for the plain form.
        offsets: by how much the implicit reward of the chosen reply is to be higher (ODPO: Amini et
            al. 2024).
    """
    difference = beta * (chosen_log_ratios - rejected_log_ratios)
    return _logistic_loss(difference, labels, label_smoothing, offsets)


def ipo_loss(
    chosen_log_ratios: Pairs,
    rejected_log_ratios: Pairs,
    *,
    beta: float,
    labels: Pairs | float = 1.0,
) -> Pairs:
    """Computes the loss of identity preference optimization (Azar et al. 2023, eq. 17).

    label (h - 1/(2 beta))^2 + (1 - label) (h + 1/(2 beta))^2, h = log-ratio of y_w - that of y_l

    Args:
        chosen_log_ratios, rejected_log_ratios: of each pair, means over a reply's tokens: with sums
            the target 1/(2 beta) would be nearer for long replies than for short ones.
        beta: tau, strength of the regularisation.
        labels: probability that the chosen reply is the better one.
    """
    difference = chosen_log_ratios - rejected_log_ratios
    target = 1 / (2 * beta)
    return labels * (difference - target) ** 2 + (1 - labels) * (difference + target) ** 2


def simpo_loss(
    chosen_mean_logprobs: Pairs,
    rejected_mean_logprobs: Pairs,
    *,
    beta: float,
    target_margin: Pairs | float,
    labels: Pairs | float = 1.0,
    label_smoothing: float = 0.0,
) -> Pairs:
    """Computes the loss of simple preference optimization (Meng et al. 2024, eq. 6).

    -(1 - epsilon) log sigma(h) - epsilon log sigma(-h),
    h = beta (mean log pi(y_w|x) - mean log pi(y_l|x)) - gamma. It needs no reference policy.

    Args:
        chosen_mean_logprobs, rejected_mean_logprobs: of each pair, means over a reply's tokens.
        beta: scale of the rewards.
        target_margin: gamma, by how much the better reward is to be higher.
        labels: probability that the chosen reply is the better one.
        label_smoothing: epsilon of `dpo_loss`.
    """
    difference = beta * (chosen_mean_logprobs - rejected_mean_logprobs)
    return _logistic_loss(difference, labels, label_smoothing, target_margin)


def orpo_loss(
    chosen_mean_logprobs: Pairs, rejected_mean_logprobs: Pairs, *, beta: float
) -> tuple[Pairs, Pairs]:
    """Computes the odds-ratio loss of ORPO (Hong et al. 2024, eq. 6 and 7) and the log odds ratio.

    -beta log sigma(log(odds(y_w) / odds(y_l))), odds(y) = P(y) / (1 - P(y)), where log P(y) is the
    mean of log pi over a reply's tokens. ORPO adds the next-token loss on y_w, which is not part of
    this. A mean above -1e-6 counts as that: the odds of a certain reply are infinite.

    Args:
        chosen_mean_logprobs, rejected_mean_logprobs: of each pair, means over a reply's tokens.
        beta: lambda, the weight of the odds ratio.

    Returns:
        The loss and the log odds ratio.
    """
    log_odds_ratio = _log_odds(chosen_mean_logprobs) - _log_odds(rejected_mean_logprobs)
    return -beta * jax.nn.log_sigmoid(log_odds_ratio), log_odds_ratio


def kto_loss(
    log_ratios: Pairs,
    is_desirable: Pairs,
    kl: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Pairs:
    """Computes the loss of Kahneman-Tversky optimization (Ethayarajh et al. 2024, section 4.1).

    w (1 - sigma(beta (log-ratio - z))) of a desirable reply, w (1 - sigma(beta (z - log-ratio))) of
    an undesirable one, with a weight w for each kind.

    Args:
        log_ratios: of each reply, sums over its tokens.
        is_desirable: 1 or 0.
        kl: z, the estimate of `kto_kl`; a constant.
        beta: strength of the KL to the reference policy.
        desirable_weight, undesirable_weight: the weights.
    """
    difference = beta * (log_ratios - jax.lax.stop_gradient(kl))
    # 1 - sigma(x) = sigma(-x), without the rounding of the subtraction.
    return jnp.where(
        is_desirable > 0.5,
        desirable_weight * jax.nn.sigmoid(-difference),
        undesirable_weight * jax.nn.sigmoid(difference),
    )


def kto_kl(log_ratio_sum: Float[Array, ""], num_replies: Float[Array, ""]) -> Float[Array, ""]:
    """Estimates the KL to the reference policy for `kto_loss`, as its paper does.

    It is the mean log-ratio of replies to other prompts of the batch than their own, or 0 if that
    is negative, and a constant.

    Args:
        log_ratio_sum: of all such replies of the batch.
        num_replies: how many there are; without one the estimate is 0.
    """
    mean = log_ratio_sum / jnp.maximum(num_replies, 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _logistic_loss(
    difference: Pairs, labels: Pairs | float, label_smoothing: float, offsets: Pairs | float
) -> Pairs:
    """Returns label f(difference) + (1 - label) f(-difference).

    f(d) = -(1 - epsilon) log sigma(d - offset) - epsilon log sigma(offset - d).
    """

    def of_clear_preference(difference: Pairs) -> Pairs:
        logits = difference - offsets
        loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(logits)
        return loss - label_smoothing * jax.nn.log_sigmoid(-logits)

    return labels * of_clear_preference(difference) + (1 - labels) * of_clear_preference(
        -difference
    )


def _log_odds(mean_logprobs: Pairs) -> Pairs:
    """Returns log(p / (1 - p)) of p = exp(mean_logprobs)."""
    logprobs = jnp.minimum(mean_logprobs, _MAX_MEAN_LOGPROB)
    return logprobs - _log1mexp(logprobs)


def _log1mexp(x: Pairs) -> Pairs:
    """Returns log(1 - exp(x)) for x < 0, by the form that is accurate there (Mächler 2012)."""
    is_near_zero = x > -0.6931472
    # Each form sees arguments of its own kind only, so that the other's gradient is finite too.
    near = jnp.log(-jnp.expm1(jnp.where(is_near_zero, x, -0.5)))
    far = jnp.log1p(-jnp.exp(jnp.where(is_near_zero, -1.0, x)))
    return jnp.where(is_near_zero, near, far)
