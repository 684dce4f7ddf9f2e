"""The losses on pairs against float64 numpy, written from the equations, and against TRL's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.training.preference_losses import (
    dpo_loss,
    ipo_loss,
    kto_kl,
    kto_loss,
    orpo_loss,
    simpo_loss,
)
from tests.training.record_trl_losses import PAIRS, RECORDED, TOKENS, draw

TOLERANCE = 1e-6


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(1)
    size = 64
    return {
        "chosen": rng.normal(scale=3, size=size),
        "rejected": rng.normal(scale=3, size=size),
        "labels": rng.choice([0.5, 0.75, 1.0], size=size),
        "offsets": rng.choice([0.0, 0.3, 0.9], size=size),
    }


def check(loss, expected, arguments):
    """Compares values and gradients, which numpy finds by central differences in float64."""
    arguments = [np.asarray(argument, np.float64) for argument in arguments]
    singles = [jnp.asarray(argument, jnp.float32) for argument in arguments]
    # The truth is of the numbers that float32 holds.
    arguments = [np.asarray(single, np.float64) for single in singles]
    np.testing.assert_allclose(loss(*singles), expected(*arguments), rtol=TOLERANCE, atol=TOLERANCE)
    gradients = jax.grad(lambda *x: loss(*x).sum(), argnums=tuple(range(len(singles))))(*singles)
    for index, gradient in enumerate(gradients):
        step = 1e-5
        above, below = (
            expected(*[a + sign * step * (i == index) for i, a in enumerate(arguments)])
            for sign in (1, -1)
        )
        difference = (above - below) / (2 * step)
        np.testing.assert_allclose(gradient, difference, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_equals_the_equation(drawn, smoothing):
    labels, offsets = drawn["labels"], drawn["offsets"]

    def expected(chosen, rejected):
        def clear(difference):
            logits = difference - offsets
            return -(1 - smoothing) * log_sigmoid(logits) - smoothing * log_sigmoid(-logits)

        difference = 0.3 * (chosen - rejected)
        return labels * clear(difference) + (1 - labels) * clear(-difference)

    def loss(chosen, rejected):
        return dpo_loss(
            chosen,
            rejected,
            beta=0.3,
            labels=jnp.asarray(labels, jnp.float32),
            label_smoothing=smoothing,
            offsets=jnp.asarray(offsets, jnp.float32),
        )

    check(loss, expected, [drawn["chosen"], drawn["rejected"]])


def test_ipo_equals_the_equation(drawn):
    labels = drawn["labels"]

    def expected(chosen, rejected):
        difference = chosen - rejected
        return labels * (difference - 1 / 0.6) ** 2 + (1 - labels) * (difference + 1 / 0.6) ** 2

    check(
        lambda chosen, rejected: ipo_loss(
            chosen, rejected, beta=0.3, labels=jnp.asarray(labels, jnp.float32)
        ),
        expected,
        [drawn["chosen"] / 4, drawn["rejected"] / 4],
    )


def test_simpo_equals_the_equation(drawn):
    def expected(chosen, rejected):
        logits = 2.5 * (chosen - rejected) - 0.4
        return -0.9 * log_sigmoid(logits) - 0.1 * log_sigmoid(-logits)

    check(
        lambda chosen, rejected: simpo_loss(
            chosen, rejected, beta=2.5, target_margin=0.4, label_smoothing=0.1
        ),
        expected,
        [drawn["chosen"], drawn["rejected"]],
    )


def test_orpo_equals_the_equation(drawn):
    """Also near a certain reply, where 1 - P rounds to 0 in a plain form."""
    chosen, rejected = (-np.abs(drawn[name]) for name in ("chosen", "rejected"))
    chosen[:4] = [-1e-3, -0.05, -0.6931, -40]

    def expected(chosen, rejected):
        log_odds = [x - np.log(-np.expm1(x)) for x in (chosen, rejected)]
        return -0.4 * log_sigmoid(log_odds[0] - log_odds[1])

    arguments = [jnp.asarray(x, jnp.float32) for x in (chosen, rejected)]
    truth = [np.asarray(x, np.float64) for x in arguments]
    loss, log_odds_ratio = orpo_loss(*arguments, beta=0.4)
    np.testing.assert_allclose(loss, expected(*truth), rtol=2e-6, atol=TOLERANCE)
    assert np.isfinite(log_odds_ratio).all()
    certain = jnp.zeros(3)
    gradient = jax.grad(lambda x: orpo_loss(x, -certain - 1, beta=0.4)[0].sum())(certain)
    assert np.isfinite(gradient).all()


def test_kto_equals_the_equation(drawn):
    desirable = (drawn["labels"] > 0.6).astype(np.float32)

    def expected(log_ratios):
        difference = 0.3 * (log_ratios - 0.7)
        return np.where(
            desirable > 0, 1.2 * (1 - sigmoid(difference)), 0.7 * (1 - sigmoid(-difference))
        )

    def loss(log_ratios):
        return kto_loss(
            log_ratios,
            jnp.asarray(desirable),
            jnp.float32(0.7),
            beta=0.3,
            desirable_weight=1.2,
            undesirable_weight=0.7,
        )

    check(loss, expected, [drawn["chosen"]])
    assert float(kto_kl(jnp.float32(-3), jnp.float32(2))) == 0
    assert float(kto_kl(jnp.float32(3), jnp.float32(2))) == 1.5
    assert float(kto_kl(jnp.float32(0), jnp.float32(0))) == 0


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss])
def test_equal_replies_pull_neither_way_and_a_swap_flips_the_gradient(loss):
    """At step 0 all log-ratios are 0: exactly log 2, and gradients of opposite sign."""
    zeros = jnp.zeros(3)
    labels = jnp.asarray([1.0, 0.5, 0.0])

    def total(chosen, rejected):
        return loss(chosen, rejected, beta=0.1, labels=labels).sum()

    chosen, rejected = jax.grad(total, argnums=(0, 1))(zeros, zeros)
    assert np.array_equal(chosen, -np.asarray(rejected))
    assert chosen[0] == -chosen[2]
    assert chosen[0] < 0
    assert chosen[1] == 0
    if loss is dpo_loss:
        assert np.array_equal(loss(zeros, zeros, beta=0.1), np.full(3, np.log(2), np.float32))


def test_a_certain_preference_has_no_gradient_to_the_reference():
    """The reference is a constant of the caller's; the KL of KTO is one by itself."""
    gradient = jax.grad(lambda kl: kto_loss(jnp.ones(2), jnp.ones(2), kl, beta=0.1).sum())(1.0)
    assert gradient == 0


# What TRL computes: the mean over pairs (for KTO over replies), and its gradient to each token.


def of_pairs(loss):
    return lambda chosen, rejected: loss(chosen, rejected).mean()


TRL_LOSSES = {
    "dpo": ("sums", of_pairs(lambda *ratios: dpo_loss(*ratios, beta=0.3))),
    "dpo_conservative": (
        "sums",
        of_pairs(lambda *ratios: dpo_loss(*ratios, beta=0.3, label_smoothing=0.1)),
    ),
    "dpo_length_normalized": ("means", of_pairs(lambda *ratios: dpo_loss(*ratios, beta=0.3))),
    "ipo": ("means", of_pairs(lambda *ratios: ipo_loss(*ratios, beta=0.3))),
    "simpo": (
        "means of logprobs",
        of_pairs(
            lambda *logprobs: simpo_loss(
                *logprobs, beta=2.5, target_margin=0.4, label_smoothing=0.1
            )
        ),
    ),
    "orpo": ("means of logprobs", of_pairs(lambda *logprobs: orpo_loss(*logprobs, beta=0.4)[0])),
}


@pytest.mark.parametrize("name", [*TRL_LOSSES, "kto"])
def test_losses_and_gradients_equal_trls(name):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["losses"][name]
    policy, reference, lengths = draw()
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(np.float32)
    policy, reference = (jnp.asarray(x, jnp.float32) for x in (policy, reference))

    def trl_loss(policy):
        if name == "kto":
            kl = kto_kl(((policy - reference)[::-1] * mask).sum(), jnp.float32(2 * PAIRS))
            desirable = jnp.arange(2 * PAIRS) < PAIRS
            log_ratios = ((policy - reference) * mask).sum(-1)
            return kto_loss(
                log_ratios,
                desirable.astype(jnp.float32),
                kl,
                beta=0.3,
                desirable_weight=1.2,
                undesirable_weight=0.7,
            ).mean()
        kind, loss = TRL_LOSSES[name]
        of_tokens = policy if kind == "means of logprobs" else policy - reference
        of_replies = (of_tokens * mask).sum(-1)
        if kind != "sums":
            of_replies /= mask.sum(-1)
        return loss(of_replies[:PAIRS], of_replies[PAIRS:])

    loss, gradient = jax.value_and_grad(trl_loss)(policy)
    assert float(loss) == pytest.approx(recorded["loss"], rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, recorded["gradient"], rtol=1e-6, atol=1e-6)
