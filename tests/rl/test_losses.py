"""The losses against float64 numpy, written from the equations, with junk at masked positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax.rl.losses import (
    KLController,
    cispo_loss,
    importance_weights,
    kl_estimate,
    kl_loss,
    policy_loss,
    segment_means,
    token_weights,
    value_loss,
    where_weighted,
)

TOLERANCE = 1e-6
SHAPE = (6, 40)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    old = -rng.gamma(2, 1, SHAPE)
    return {
        "logprobs": (old + rng.normal(scale=0.3, size=SHAPE)).astype(np.float32),
        "old": old.astype(np.float32),
        "reference": (old + rng.normal(scale=0.5, size=SHAPE)).astype(np.float32),
        "advantages": rng.normal(size=SHAPE).astype(np.float32),
        "mask": (rng.random(SHAPE) < 0.7).astype(np.float32),
    }


def wide(x):
    return np.asarray(x, np.float64)


@pytest.mark.parametrize("dual_clip", [None, 3.0, 1.2])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_policy_loss_equals_the_equation(drawn, low, high, dual_clip):
    ratio = np.exp(wide(drawn["logprobs"]) - wide(drawn["old"]))
    advantages = wide(drawn["advantages"])
    expected = -np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    if dual_clip is not None:
        expected = np.where(advantages < 0, np.minimum(expected, -dual_clip * advantages), expected)
    result = policy_loss(
        *(jnp.asarray(drawn[name]) for name in ("logprobs", "old", "advantages")),
        clip_low=low,
        clip_high=high,
        dual_clip=dual_clip,
    )
    np.testing.assert_allclose(result.loss, expected, atol=TOLERANCE)
    np.testing.assert_allclose(result.ratio, ratio, rtol=TOLERANCE)
    plain = -ratio * advantages
    np.testing.assert_array_equal(result.clipped, np.abs(expected - plain) > 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0])
def test_equal_policies_have_a_ratio_of_1_and_a_kl_of_0_exactly(temperature):
    logits = jax.random.normal(jax.random.key(0), (5, 11))
    logprobs = jax.nn.log_softmax(logits / temperature)[:, 3]
    assert (
        policy_loss(logprobs, logprobs, jnp.ones(5), clip_low=0.2, clip_high=0.2).ratio == 1
    ).all()
    for kind in ("k1", "k2", "k3"):
        assert (kl_estimate(logprobs, logprobs, kind) == 0).all()


def test_kl_estimates_equal_their_definitions(drawn):
    difference = wide(drawn["logprobs"]) - wide(drawn["reference"])
    expected = {
        "k1": difference,
        "k2": difference**2 / 2,
        "k3": np.exp(-difference) - 1 + difference,
    }
    logprobs, reference = jnp.asarray(drawn["logprobs"]), jnp.asarray(drawn["reference"])
    for kind, value in expected.items():
        np.testing.assert_allclose(kl_estimate(logprobs, reference, kind), value, atol=5e-6)


@pytest.mark.parametrize("off_policy", [False, True])
def test_kl_loss_has_the_exact_gradient(off_policy):
    """Its mean over all outcomes, by the old policy, is d/d logits of KL(policy || reference)."""
    logits, reference_logits, old_logits = (
        jax.random.normal(jax.random.key(seed), (5,)) for seed in range(3)
    )
    reference = jax.nn.log_softmax(reference_logits)

    def exact(logits):
        logprobs = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logprobs) * (logprobs - reference))

    def sampled(logits, estimate):
        logprobs = jax.nn.log_softmax(logits)
        old = jax.nn.log_softmax(old_logits) if off_policy else jax.lax.stop_gradient(logprobs)
        return jnp.sum(jnp.exp(old) * estimate(logprobs, old))

    gradient = jax.grad(sampled)(
        logits, lambda logprobs, old: kl_loss(logprobs, reference, old if off_policy else None)
    )
    expected = jax.grad(exact)(logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    if not off_policy:
        for kind, is_exact in (("k1", False), ("k2", True), ("k3", False)):
            gradient = jax.grad(sampled)(
                logits, lambda logprobs, _, kind=kind: kl_estimate(logprobs, reference, kind)
            )
            assert np.allclose(gradient, expected, atol=1e-4) == is_exact
        logprobs = jax.nn.log_softmax(logits)
        np.testing.assert_allclose(
            kl_loss(logprobs, reference), kl_estimate(logprobs, reference, "k3"), atol=1e-6
        )


@pytest.mark.parametrize("off_policy", [False, True])
def test_kl_loss_pulls_a_policy_back_from_beyond_the_clamp(off_policy):
    """The gradient is that of torch's Huber loss of width 20, the value k3 of the clamped ratio."""
    far = np.array(
        [-1e4, -100.0, -25.0, -20.5, -19.5, -1.0, 0.0, 1e-3, 3.0, 19.5, 20.5, 25.0, 100.0, 1e4]
    )
    reference = np.linspace(-3.0, -0.5, far.size).astype(np.float32)
    logprobs = (reference + far).astype(np.float32)
    old = logprobs - np.float32(0.25)
    result, gradient = jax.value_and_grad(
        lambda x: jnp.sum(
            kl_loss(x, jnp.asarray(reference), jnp.asarray(old) if off_policy else None)
        )
    )(jnp.asarray(logprobs))
    ours = torch.tensor(wide(logprobs), requires_grad=True)
    torch.nn.functional.huber_loss(
        ours, torch.tensor(wide(reference)), delta=20.0, reduction="sum"
    ).backward()
    clamped = np.clip(wide(logprobs) - wide(reference), -20, 20)
    weight = np.exp(wide(logprobs) - wide(old)) if off_policy else np.ones(far.size)
    np.testing.assert_allclose(gradient, weight * ours.grad.numpy(), rtol=1e-5, atol=1e-6)
    assert result == pytest.approx(np.sum(weight * (np.exp(-clamped) - 1 + clamped)), rel=1e-4)
    beyond = np.abs(far) > 20
    assert (np.sign(gradient[beyond]) == np.sign(far[beyond])).all(), "towards the reference"
    assert np.abs(gradient).max() <= 20 * weight.max() * (1 + 1e-6)


def test_exponents_are_clamped_and_clamps_counted():
    """Unclamped, k3 of a difference of 100 is infinite, and its gradient NaN."""
    far = jnp.asarray([-100.0, 100.0, 0.5])
    for kind in ("k1", "k2", "k3"):
        assert np.isfinite(kl_estimate(far, jnp.zeros(3), kind)).all()
    result = policy_loss(
        far, jnp.zeros(3), jnp.asarray([1.0, -1.0, 1.0]), clip_low=0.2, clip_high=0.2
    )
    assert np.isfinite(result.loss).all()
    assert result.clamped.tolist() == [1, 1, 0]
    gradient = jax.grad(
        lambda x: policy_loss(x, jnp.zeros(3), jnp.ones(3), clip_low=0.2, clip_high=0.2).loss.sum()
    )(far)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_equals_its_definition(clip):
    rng = np.random.default_rng(1)
    values, old, returns = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    expected = (wide(values) - wide(returns)) ** 2
    if clip is not None:
        near = wide(old) + np.clip(wide(values) - wide(old), -clip, clip)
        expected = np.maximum(expected, (near - wide(returns)) ** 2)
    loss = value_loss(*map(jnp.asarray, (values, old, returns)), clip=clip)
    np.testing.assert_allclose(loss, expected / 2, atol=5e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_aggregations_equal_their_definitions(drawn, aggregation):
    mask = drawn["mask"].copy()
    mask[2] = 0  # a rollout without tokens
    valid = np.array([1, 1, 1, 0, 1, 1], np.float32)
    losses = wide(drawn["advantages"])
    rows = [losses[row][mask[row] > 0] for row in range(6) if valid[row] and mask[row].any()]
    expected = {
        "token_mean": np.concatenate(rows).mean(),
        "sequence_mean": np.mean([row.mean() for row in rows]),
        "sequence_sum": np.mean([row.sum() for row in rows]),
    }[aggregation]
    weights, total = token_weights(jnp.asarray(mask), jnp.asarray(valid), aggregation)
    assert np.sum(wide(weights) * losses) / float(total) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_aggregation_does_not_depend_on_micro_batches(drawn, aggregation):
    """Micro-batches of very different lengths: a mean of their means would be another number."""
    mask = drawn["mask"].copy()
    mask[:3, 5:] = 0
    weights, total = (
        np.asarray(x) for x in token_weights(jnp.asarray(mask), jnp.ones(6), aggregation)
    )
    expected = np.sum(weights * drawn["advantages"]) / total
    parts = [
        np.sum(weights[rows] * drawn["advantages"][rows]) / total
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(parts) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("junk", [1e9, np.nan, np.inf, -np.inf])
def test_junk_at_positions_without_weight_reaches_nothing(drawn, junk):
    weights, total = token_weights(jnp.asarray(drawn["mask"]), jnp.ones(6), "token_mean")

    def loss(logprobs, old, advantages):
        result = policy_loss(
            where_weighted(logprobs, weights),
            where_weighted(old, weights),
            where_weighted(advantages, weights),
            clip_low=0.2,
            clip_high=0.2,
            dual_clip=3.0,
        )
        return jnp.sum(result.loss * weights) / total

    clean = [drawn["logprobs"], drawn["old"], drawn["advantages"]]
    dirty = [np.where(drawn["mask"] > 0, x, junk).astype(np.float32) for x in clean]
    for ours, theirs in zip(
        jax.value_and_grad(loss)(*map(jnp.asarray, dirty)),
        jax.value_and_grad(loss)(*map(jnp.asarray, clean)),
        strict=True,
    ):
        np.testing.assert_array_equal(
            np.where(drawn["mask"] > 0, ours, 0), np.where(drawn["mask"] > 0, theirs, 0)
        )


def test_importance_weights_are_truncated():
    trainer = jnp.asarray([-1.0, -2.0, -3.0, jnp.nan])
    sampler = jnp.asarray([-1.1, -2.0, -6.0, 0.0])
    np.testing.assert_allclose(
        importance_weights(trainer - sampler, max_weight=2.0)[:3],
        [np.exp(0.1), 1, 2],
        rtol=1e-5,
    )


def test_the_kl_controller_moves_towards_its_target_by_a_fifth_at_most():
    controller = KLController(0.1, target=0.05, horizon=1000)
    controller.update(0.5, rollouts=100)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    controller.update(0.04, rollouts=100)
    assert controller.coefficient == pytest.approx(0.102 * (1 - 0.2 * 0.1))
    still = KLController(0.1)
    still.update(9.0, rollouts=100)
    assert still.coefficient == 0.1


def test_a_negative_coefficient_of_a_checkpoint_is_ignored(caplog):
    controller = KLController(0.01, target=0.05)
    controller.restore(0.003)
    assert controller.coefficient == 0.003
    controller.restore(-0.006)
    assert controller.coefficient == 0.003
    assert "kl_coef=-0.006 of the checkpoint is negative" in caplog.text


@pytest.mark.parametrize("num_rollouts", [1, 63, 64, 65, 512, 100_000])
@pytest.mark.parametrize("kl", [0.0, 0.045, 0.05, 0.0501, 7.0, math.inf, -0.3])
def test_the_kl_controller_follows_its_equation_and_stays_positive(num_rollouts, kl):
    """Also with more rollouts than the horizon; a mean of k1 may be negative."""
    controller, expected = KLController(0.01, target=0.05, horizon=64), 0.01
    for _ in range(50):
        before = controller.coefficient
        controller.update(kl, num_rollouts)
        expected *= 1 + np.clip(np.float64(kl) / 0.05 - 1, -0.2, 0.2) * min(num_rollouts, 64) / 64
        assert controller.coefficient == pytest.approx(expected, rel=1e-12)
        assert (
            0 < 0.8 * before <= controller.coefficient * (1 + 1e-12) <= 1.2 * before * (1 + 2e-12)
        )
    controller.update(math.nan, num_rollouts)
    assert controller.coefficient == pytest.approx(expected, rel=1e-12)


def test_cispo_keeps_the_gradient_of_clipped_tokens(drawn):
    ratio = np.exp(wide(drawn["logprobs"]) - wide(drawn["old"]))
    weight = np.clip(ratio, 0.8, 1.28)
    advantages = wide(drawn["advantages"])
    arguments = [jnp.asarray(drawn[name]) for name in ("logprobs", "old", "advantages")]

    def loss(logprobs, *others):
        return cispo_loss(logprobs, *others, clip_low=0.2, clip_high=0.28)

    result = loss(*arguments)
    np.testing.assert_allclose(result.loss, -weight * advantages, atol=TOLERANCE)
    np.testing.assert_array_equal(result.clipped, np.abs(ratio - weight) > 1e-7)
    gradient = jax.grad(lambda *x: loss(*x).loss.sum(), argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(gradient[0], -weight * advantages, atol=TOLERANCE)
    assert not np.any(gradient[1])
    assert not np.any(gradient[2])


def test_the_sequence_ratio_equals_gspos_with_junk_at_masked_places(drawn):
    """In rows with several replies, whose tokens without weight hold infinities and NaN."""
    rng = np.random.default_rng(3)
    ids = np.sort(rng.integers(0, 5, SHAPE), axis=1).astype(np.int32)
    mask = drawn["mask"] * (ids > 0)
    junk = rng.choice([np.nan, np.inf, -np.inf, 1e30], SHAPE).astype(np.float32)
    old = np.where(mask > 0, drawn["old"], 0.0).astype(np.float32)
    difference = wide(drawn["logprobs"]) - wide(old)
    expected_loss, expected_gradient = 0.0, np.zeros(SHAPE)
    advantage_of = rng.normal(size=(SHAPE[0], 5)).astype(np.float32)
    advantages = np.take_along_axis(advantage_of, ids, axis=1)
    for row in range(SHAPE[0]):
        for segment in range(1, 5):
            here = (ids[row] == segment) & (mask[row] > 0)
            if not here.any():
                continue
            ratio = np.exp(difference[row, here].mean())
            advantage = float(advantage_of[row, segment])
            clipped = np.clip(ratio, 0.8, 1.2)
            expected_loss -= min(ratio * advantage, clipped * advantage)
            if ratio * advantage <= clipped * advantage:
                expected_gradient[row, here] = -advantage * ratio / here.sum()
    weights = mask / np.maximum(
        np.array(
            [
                [(here & (mask[row] > 0)).sum() for here in ids[row] == ids[row][:, None]]
                for row in range(SHAPE[0])
            ]
        ),
        1,
    )
    weights = weights.astype(np.float32)

    def loss(logprobs):
        logprobs = jnp.where(mask > 0, logprobs, junk)
        difference = jnp.where(mask > 0, logprobs - old, junk)
        ratios = segment_means(difference, jnp.asarray(weights), jnp.asarray(ids))
        policy = policy_loss(
            ratios, jnp.zeros(SHAPE), jnp.asarray(advantages), clip_low=0.2, clip_high=0.2
        )
        return (weights * policy.loss).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(drawn["logprobs"]))
    assert float(value) == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6)


@pytest.mark.parametrize("outside", ["truncate", "mask"])
@pytest.mark.parametrize("low", [None, 0.5])
def test_importance_weights_are_bounded_from_both_sides(drawn, outside, low):
    difference = wide(drawn["old"]) - wide(drawn["reference"])
    ratio = np.exp(difference)
    lowest = 0.0 if low is None else low
    inside = (ratio >= lowest) & (ratio <= 1.5)
    expected = np.where(inside, ratio, np.clip(ratio, lowest, 1.5) if outside == "truncate" else 0)
    weights = importance_weights(
        jnp.asarray(drawn["old"] - drawn["reference"]),
        max_weight=1.5,
        min_weight=low,
        outside=outside,
    )
    assert not inside.all()
    np.testing.assert_allclose(weights, expected, rtol=2e-6)
