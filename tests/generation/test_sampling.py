"""Sampling tokens: the distribution against float64 and transformers, draws against chi-squared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from stepaudio_jax.generation.sampling import (
    SamplingArrays,
    apply_presence_frequency_penalties,
    apply_repetition_penalty,
    apply_top_k_top_p_min_p,
    sample_categorical,
    sample_tokens,
)

DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
DEFAULTS |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def mass_above(logits):
    """[B,V] float64: for each token, the mass of those that are strictly more probable."""
    probabilities = softmax(logits)
    return np.where(logits[:, None, :] > logits[:, :, None], probabilities[:, None, :], 0).sum(
        axis=-1
    )


def arrays(rows, seeds=None, **settings):
    """The settings of so many rows: a value for all of them, or one for each."""
    kinds = {"top_k": np.int32}
    columns = {
        name: np.array(np.broadcast_to(value, rows), kinds.get(name, np.float32))
        for name, value in {**DEFAULTS, **settings}.items()
    }
    return SamplingArrays(
        seed=np.asarray(np.arange(rows) if seeds is None else seeds, np.uint32), **columns
    )


def sample_rows(logits, seeds=None, seen=None, token_counts=None, **settings):
    logits = np.asarray(logits, np.float32)
    seen = np.zeros(logits.shape, bool) if seen is None else seen
    token_counts = np.zeros(logits.shape, np.int32) if token_counts is None else token_counts
    count = np.zeros(len(logits), np.int32)
    return jax.device_get(
        jax.jit(sample_tokens)(
            logits, count, arrays(len(logits), seeds, **settings), seen, token_counts
        )
    )


def sampled_tokens(logits, seeds=None, **settings):
    return sample_rows(logits, seeds, **settings).token


def kept(logits, **settings):
    return np.isfinite(
        np.asarray(apply_top_k_top_p_min_p(jnp.asarray(logits), arrays(len(logits), **settings)))
    )


@pytest.mark.parametrize("levels", [0, 5])
def test_nucleus_is_the_smallest_set_whose_mass_reaches_top_p(levels):
    """A token is kept where those above it do not reach top_p; with `levels`, most are tied."""
    rng = np.random.default_rng(levels)
    logits = (
        rng.integers(0, levels, size=(300, 40)) if levels else rng.normal(scale=2, size=(300, 40))
    )
    logits = logits.astype(np.float32)
    top_p = rng.uniform(0.01, 1, size=300).astype(np.float32)
    above = mass_above(logits)
    clear = (np.abs(above - top_p[:, None]) > 1e-5).all(
        axis=1
    )  # where rounding to fp32 cannot decide
    assert clear.sum() > 250
    is_kept = kept(logits, top_p=top_p)
    np.testing.assert_array_equal(is_kept[clear], (above < top_p[:, None])[clear])
    assert 0 < is_kept.mean() < 1


def test_nucleus_of_everything_keeps_everything():
    """The fp32 masses of these rows add up to 1 long before their last token."""
    logits = np.random.default_rng(7).normal(scale=10, size=(4, 2000)).astype(np.float32)
    assert kept(logits).all()


def test_nucleus_keeps_at_least_the_most_probable_token():
    logits = np.asarray([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]], np.float32)
    assert kept(logits, top_p=1e-6).tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7},
        {"top_k": 100},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 0.7, "top_k": 12, "top_p": 0.8},
        {"temperature": 1.4, "top_k": 20, "top_p": 0.95, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_restricted_distribution_equals_transformers(settings):
    logits = np.random.default_rng(3).normal(scale=2, size=(200, 50)).astype(np.float32)
    found = kept(logits, **settings)
    scores = torch.tensor(logits)
    for name, warper in (
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in settings:
            scores = warper(settings[name])(None, scores)
    np.testing.assert_array_equal(found, np.isfinite(scores.numpy()))


def test_the_repetition_penalty_equals_transformers():
    rng = np.random.default_rng(4)
    logits = rng.normal(scale=3, size=(20, 50)).astype(np.float32)
    said = rng.integers(0, 50, size=(20, 12))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, said, True, axis=1)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor(said), torch.tensor(logits)
    ).numpy()
    np.testing.assert_allclose(
        apply_repetition_penalty(*map(jnp.asarray, (logits, seen, np.full(20, 1.3, np.float32)))),
        expected,
        rtol=1e-6,
    )
    assert (
        sample_rows(logits, seen=seen, temperature=0.0, repetition_penalty=1.3).token
        == expected.argmax(-1)
    ).all()
    assert (expected.argmax(-1) != logits.argmax(-1)).any()


def test_presence_and_frequency_penalties_are_those_of_openais_formula():
    """In float64, one penalty a row: after the repetition penalty, before the temperature."""
    rng = np.random.default_rng(6)
    logits = rng.normal(scale=3, size=(20, 50)).astype(np.float32)
    counts = rng.poisson(0.7, size=logits.shape).astype(np.int32)
    presence, frequency = rng.uniform(-2, 2, size=(2, 20)).astype(np.float32)
    presence[0], frequency[1] = 0, 0
    expected = np.empty(logits.shape)
    for row in range(20):
        for token in range(50):
            said = counts[row, token]
            expected[row, token] = (
                np.float64(logits[row, token])
                - said * np.float64(frequency[row])
                - (said > 0) * presence[row]
            )
    np.testing.assert_allclose(
        apply_presence_frequency_penalties(
            *map(jnp.asarray, (logits, counts, presence, frequency))
        ),
        expected,
        rtol=1e-5,
        atol=1e-5,
    )
    penalties = {"presence_penalty": presence, "frequency_penalty": frequency}
    greedy = sample_rows(logits, token_counts=counts, temperature=0.0, **penalties)
    assert (greedy.token == expected.argmax(-1)).all()
    assert (greedy.token != logits.argmax(-1)).any()
    np.testing.assert_allclose(
        greedy.logprob, np.log(softmax(logits))[np.arange(20), greedy.token], atol=1e-5
    )
    drawn = sample_rows(logits, token_counts=counts, temperature=0.7, **penalties)
    np.testing.assert_allclose(
        drawn.sampling_logprob,
        np.log(softmax(expected / 0.7))[np.arange(20), drawn.token],
        atol=1e-4,
    )
    seen = counts > 0
    both = sample_rows(
        logits, seen=seen, token_counts=counts, temperature=0.0, repetition_penalty=1.3, **penalties
    )
    repeated = (
        np.where(seen, np.where(logits > 0, logits / 1.3, logits * 1.3), logits) + expected - logits
    )
    assert (both.token == repeated.argmax(-1)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_p": 0.8},
        {"top_k": 4},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7},
    ],
    ids=str,
)
def test_draws_have_the_tempered_restricted_distribution(settings):
    """20 000 draws."""
    logits = np.array([2.0, 1.5, 1.5, 1.0, 0.0, -1.0, -2.0], np.float32)
    sampled = sample_rows(np.tile(logits, (20_000, 1)), **settings)
    scaled = logits / settings.get("temperature", 1.0)
    in_top_k = np.argsort(np.argsort(-scaled, kind="stable")) < (settings.get("top_k") or 7)
    within = np.where(in_top_k, softmax(scaled), 0)
    within /= within.sum()
    above = np.array([within[scaled > value].sum() for value in scaled])
    allowed = (
        in_top_k
        & (above < settings.get("top_p", 1.0))
        & (softmax(scaled) >= settings.get("min_p", 0) * softmax(scaled).max())
    )
    expected = np.where(allowed, softmax(scaled), 0)
    expected /= expected.sum()
    counts = np.bincount(sampled.token, minlength=len(logits))
    assert (counts[~allowed] == 0).all()
    assert allowed.all() == (not set(settings) - {"temperature"})
    assert scipy.stats.chisquare(counts[allowed], 20_000 * expected[allowed]).pvalue > 1e-3
    np.testing.assert_allclose(sampled.sampling_logprob, np.log(expected[sampled.token]), atol=1e-5)
    np.testing.assert_allclose(sampled.logprob, np.log(softmax(logits)[sampled.token]), atol=1e-5)


@pytest.mark.parametrize("size", [1, 128, 1000])
def test_inversion_finds_the_token_whose_share_the_number_lies_in(size):
    """By sums in float64, over blocks of which most tokens, and both ends, cannot be drawn."""
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=3, size=(400, size)).astype(np.float32)
    if size > 1:
        logits[rng.random(logits.shape) < 0.7] = -np.inf
        logits[:, [0, -1]] = -np.inf
    uniform = rng.random(400).astype(np.float32)
    uniform[:2] = 0, 1 - 2**-23
    token = np.asarray(jax.jit(sample_categorical)(logits, uniform))
    upper = np.cumsum(np.exp(logits.astype(np.float64)), axis=-1)
    upper /= upper[:, -1:]
    rows = np.arange(400)
    assert np.isfinite(logits[rows, token]).all()
    assert (uniform <= upper[rows, token] + 1e-6).all()
    assert (uniform >= np.where(token > 0, upper[rows, token - 1], 0) - 1e-6).all()


def test_a_nucleus_too_small_for_fp32_is_the_most_probable_token():
    logits = np.random.default_rng(3).normal(size=(4, 40)).astype(np.float32)
    np.testing.assert_array_equal(sampled_tokens(logits, top_p=1e-50), logits.argmax(axis=-1))


def test_temperature_zero_is_argmax():
    logits = np.random.default_rng(1).normal(size=(50, 30))
    assert (sampled_tokens(logits, temperature=0.0, top_p=0.9) == logits.argmax(-1)).all()
    assert (sampled_tokens(logits, temperature=1.0) != logits.argmax(-1)).any()


def test_a_tiny_temperature_is_nearly_argmax_and_does_not_overflow():
    logits = np.random.default_rng(2).normal(scale=100, size=(50, 30))
    for temperature in (1e-3, 1e-37):
        assert (
            sampled_tokens(logits, temperature=temperature, top_p=0.9) == logits.argmax(-1)
        ).all()


def test_a_row_does_not_depend_on_its_neighbours():
    """Neither its key's stream nor its settings: rows of different temperatures side by side."""
    logits = np.random.default_rng(3).normal(size=(6, 100))
    temperature = np.array([0.0, 0.5, 1.0, 1.0, 2.0, 0.7], np.float32)
    top_p = np.array([1.0, 0.9, 1.0, 0.2, 0.95, 0.5], np.float32)
    together = sampled_tokens(logits, temperature=temperature, top_p=top_p, seeds=[9] * 6)
    for row in range(6):
        alone = sampled_tokens(
            logits[row : row + 1], temperature=temperature[row], top_p=top_p[row], seeds=[9]
        )
        assert alone[0] == together[row]
