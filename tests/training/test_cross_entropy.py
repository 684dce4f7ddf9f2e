"""The chunked cross-entropy equals its definition, in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import ShardingRules
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.training.train_step import chunked_cross_entropy

ROWS, TOKENS, HIDDEN, VOCAB = 3, 24, 16, 120


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, TOKENS, HIDDEN)).astype(np.float32)
    kernel = rng.normal(size=(HIDDEN, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, size=(ROWS, TOKENS)).astype(np.int32)
    weights = rng.integers(0, 2, size=(ROWS, TOKENS)).astype(np.float32)
    return hidden, kernel, targets, weights


def reference(hidden, kernel, targets, weights):
    """Computes it from the definition in float64."""
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(probabilities, targets[..., None], axis=-1)[..., 0]
    correct = (np.argmax(logits, axis=-1) == targets) * weights
    d_logits = (probabilities - np.eye(VOCAB)[targets]) * weights[..., None]
    gradients = (
        d_logits @ kernel.T.astype(np.float64),
        np.einsum("bth,btv->hv", hidden.astype(np.float64), d_logits),
    )
    return -np.sum(np.log(picked) * weights), np.sum(correct), gradients


@pytest.mark.parametrize("chunks", [1, 2, 8, 120])
def test_value_and_gradients_equal_the_definition(inputs, chunks):
    hidden, kernel, targets, weights = (jnp.asarray(x) for x in inputs)

    def loss(hidden, kernel):
        return chunked_cross_entropy(
            hidden, kernel, targets, weights, chunks=chunks, rules=ShardingRules()
        )

    (value, correct), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        hidden, kernel
    )
    expected, expected_correct, expected_gradients = reference(*inputs)
    assert value == pytest.approx(expected, rel=1e-6)
    assert correct == expected_correct
    value, correct = jax.jit(loss)(hidden, kernel)  # the program without gradients
    assert value == pytest.approx(expected, rel=1e-6)
    assert correct == expected_correct
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_logits_of_one_chunk_exist_at_a_time(inputs):
    hidden, kernel, targets, weights = (jnp.asarray(x) for x in inputs)

    def loss(hidden, kernel):
        return chunked_cross_entropy(
            hidden, kernel, targets, weights, chunks=8, rules=ShardingRules()
        )[0]

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).as_text()
    assert f"{ROWS}x{TOKENS}x{VOCAB // 8}xf32" in text
    assert f"{ROWS}x{TOKENS}x{VOCAB}xf32" not in text


def test_chunks_that_do_not_divide_the_vocabulary_are_an_error(inputs):
    hidden, kernel, targets, weights = (jnp.asarray(x) for x in inputs)
    with pytest.raises(
        ConfigError, match=r"vocab_size=120 cannot be split into compute\.loss_chunks=7"
    ):
        chunked_cross_entropy(hidden, kernel, targets, weights, chunks=7, rules=ShardingRules())
