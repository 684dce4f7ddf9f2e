"""Drawing tokens: the nucleus against its definition in float64, draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stepaudio_jax.generation.sampling import nucleus, sample


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def mass_above(logits):
    """[B,V] float64: for each token, the mass of those that are strictly more probable."""
    probabilities = softmax(logits)
    return np.where(logits[:, None, :] > logits[:, :, None], probabilities[:, None, :], 0).sum(axis=-1)


def draw(logits, *, temperature=1.0, top_p=1.0, seeds=None):
    rows = len(logits)
    seeds = np.arange(rows) if seeds is None else seeds
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    temperature, top_p = (np.broadcast_to(np.float32(value), rows) for value in (temperature, top_p))
    return np.asarray(jax.jit(sample)(np.asarray(logits, np.float32), keys, temperature=temperature, top_p=top_p))


@pytest.mark.parametrize("levels", [0, 5])
def test_nucleus_is_the_smallest_set_whose_mass_reaches_top_p(levels):
    """A token is kept where those above it do not reach top_p by themselves; with `levels`, most tokens are tied."""
    rng = np.random.default_rng(levels)
    logits = rng.integers(0, levels, size=(300, 40)) if levels else rng.normal(scale=2, size=(300, 40))
    logits = logits.astype(np.float32)
    top_p = rng.uniform(0.01, 1, size=300).astype(np.float32)
    above = mass_above(logits)
    clear = (np.abs(above - top_p[:, None]) > 1e-5).all(axis=1)  # where rounding to fp32 cannot decide
    assert clear.sum() > 250
    kept = np.asarray(nucleus(jnp.asarray(logits), jnp.asarray(top_p)))
    np.testing.assert_array_equal(kept[clear], (above < top_p[:, None])[clear])
    assert 0 < kept.mean() < 1


def test_nucleus_of_everything_keeps_everything():
    """The fp32 masses of these rows add up to 1 long before their last token."""
    logits = np.random.default_rng(7).normal(scale=10, size=(4, 2000)).astype(np.float32)
    assert np.asarray(nucleus(jnp.asarray(logits), jnp.ones(4))).all()


def test_nucleus_keeps_at_least_the_most_probable_token():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]])
    assert np.asarray(nucleus(logits, jnp.full(2, 1e-6))).tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8)])
def test_draws_have_the_tempered_truncated_distribution(temperature, top_p):
    logits = np.array([2.0, 1.5, 1.5, 1.0, 0.0, -1.0, -2.0], np.float32)
    draws = draw(np.tile(logits, (4000, 1)), temperature=temperature, top_p=top_p)
    scaled = logits[None] / temperature
    expected = np.where(mass_above(scaled) < top_p, softmax(scaled), 0)[0]
    expected /= expected.sum()
    counts = np.bincount(draws, minlength=len(logits))
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert possible.sum() < len(logits) or top_p == 1
    assert scipy.stats.chisquare(counts[possible], 4000 * expected[possible]).pvalue > 1e-3


def test_temperature_zero_is_argmax():
    logits = np.random.default_rng(1).normal(size=(50, 30))
    assert (draw(logits, temperature=0.0, top_p=0.9) == logits.argmax(-1)).all()
    assert (draw(logits, temperature=1.0) != logits.argmax(-1)).any()


def test_a_tiny_temperature_is_nearly_argmax_and_does_not_overflow():
    logits = np.random.default_rng(2).normal(scale=100, size=(50, 30))
    for temperature in (1e-3, 1e-37):
        assert (draw(logits, temperature=temperature, top_p=0.9) == logits.argmax(-1)).all()


def test_a_row_does_not_depend_on_its_neighbours():
    """Neither its key's stream nor its settings: rows of different temperatures side by side."""
    logits = np.random.default_rng(3).normal(size=(6, 100))
    temperature = np.array([0.0, 0.5, 1.0, 1.0, 2.0, 0.7], np.float32)
    top_p = np.array([1.0, 0.9, 1.0, 0.2, 0.95, 0.5], np.float32)
    together = draw(logits, temperature=temperature, top_p=top_p, seeds=[9] * 6)
    for row in range(6):
        alone = draw(logits[row : row + 1], temperature=temperature[row], top_p=top_p[row], seeds=[9])
        assert alone[0] == together[row]
