"""The divergence of two models' distributions against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import ShardingRules
from stepaudio_jax.models.logprobs import chunked_divergence

ROWS, TOKENS, VOCAB, TEMPERATURE = 2, 6, 37, 0.7


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    sizes = {"hidden": 8, "teacher": 12}
    arrays = {}
    for name, size in sizes.items():
        arrays[name] = rng.normal(size=(ROWS, TOKENS, size)).astype(np.float32)
        arrays[f"{name}_kernel"] = rng.normal(size=(size, VOCAB)).astype(np.float32)
    return arrays


def expected(hidden, kernel, teacher, teacher_kernel, beta):
    def log_softmax(hidden, kernel):
        logits = hidden.astype(np.float64) @ kernel.astype(np.float64) / TEMPERATURE
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_q, log_p = log_softmax(hidden, kernel), log_softmax(teacher, teacher_kernel)

    def kl(log_a, log_b):
        return (np.exp(log_a) * (log_a - log_b)).sum(-1)

    if beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    log_m = np.log(beta * np.exp(log_p) + (1 - beta) * np.exp(log_q))
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergence_and_its_gradient_equal_numpys(drawn, beta):
    arguments = [drawn[name] for name in ("hidden", "hidden_kernel", "teacher", "teacher_kernel")]
    divergence = functools.partial(
        chunked_divergence, beta=beta, chunks=3, temperature=TEMPERATURE, rules=ShardingRules()
    )
    actual, gradients = jax.jit(
        lambda *x: (
            divergence(*x),
            jax.grad(lambda *x: divergence(*x).sum(), argnums=(0, 1, 2, 3))(*x),
        )
    )(*map(jnp.asarray, arguments))
    np.testing.assert_allclose(actual, expected(*arguments, beta), atol=2e-5)
    assert (actual > 0).all()
    rng = np.random.default_rng(1)
    for index in range(2):
        direction = rng.normal(size=arguments[index].shape)
        slope = 0.0
        for sign in (1, -1):
            moved = [x.astype(np.float64) for x in arguments]
            moved[index] = moved[index] + sign * 1e-5 * direction
            slope += sign * expected(*moved, beta).sum() / 2e-5
        assert float((gradients[index] * direction).sum()) == pytest.approx(slope, rel=2e-4)
    # The teacher is a constant.
    assert not np.any(gradients[2])
    assert not np.any(gradients[3])


def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient(drawn):
    hidden, kernel = jnp.asarray(drawn["hidden"]), jnp.asarray(drawn["hidden_kernel"])
    for beta in (0.0, 0.5, 1.0):
        value, gradient = jax.value_and_grad(
            lambda hidden, beta=beta: chunked_divergence(
                hidden,
                kernel,
                jax.lax.stop_gradient(hidden),
                kernel,
                beta=beta,
                chunks=1,
                rules=ShardingRules(),
            ).sum()
        )(hidden)
        assert float(value) == pytest.approx(0, abs=1e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
