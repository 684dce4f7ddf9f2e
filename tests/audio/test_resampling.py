"""resample against the definition of torchaudio's default filter, summed directly in float64."""

import math

import numpy as np
import pytest
from scipy.signal import upfirdn

from stepaudio_jax.audio import resample
from stepaudio_jax.audio.resampling import BlockResampler, _sinc_filter, resampled_length

MINIMUM_SNR_DB = 60


def brute_force(waveform, rate_in, rate_out):
    """torchaudio's sinc_interp_hann (lowpass_filter_width 6, rolloff 0.99), summed term by term."""
    samples_out = math.ceil(len(waveform) * rate_out / rate_in)
    cutoff = 0.99 * min(rate_in, rate_out)
    result = np.empty(samples_out)
    times_in = np.arange(len(waveform)) / rate_in
    for index in range(samples_out):
        t = np.clip((times_in - index / rate_out) * cutoff, -6, 6)
        with np.errstate(invalid="ignore"):
            sinc = np.where(t == 0, 1.0, np.sin(np.pi * t) / (np.pi * t))
        result[index] = (
            np.sum(waveform.astype(np.float64) * sinc * np.cos(t * np.pi / 12) ** 2)
            * cutoff
            / rate_in
        )
    return result


def polyphase(waveform, rate_in, rate_out):
    """`upfirdn` by hand: zeros in front of the filter move its centre to a multiple of `down`."""
    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    taps = _sinc_filter(up, down)
    samples_out = resampled_length(len(waveform), rate_in, rate_out)
    lead = -(len(taps) // 2) % down
    filtered = upfirdn(np.concatenate([np.zeros(lead), taps]), waveform, up, down)
    filtered = filtered[(len(taps) // 2 + lead) // down :][:samples_out]
    return np.pad(filtered, (0, samples_out - len(filtered))).astype(np.float32)


def snr_db(signal, noise):
    return 10 * np.log10(np.sum(signal**2) / np.sum(noise**2))


# Down and up; ratios of small and of large integers; a length that is no multiple of the ratio;
# shorter than the filter.
every_kind_of_rate = pytest.mark.parametrize(
    ("rate", "samples"),
    [
        (48_000, 9601),
        (44_100, 8823),
        (24_000, 4801),
        (22_050, 4410),
        (8_000, 1601),
        (11_025, 2207),
        (16_001, 1500),
        (48_000, 7),
    ],
)


@every_kind_of_rate
def test_against_the_definition(rate, samples):
    waveform = np.random.default_rng(rate).normal(0, 0.1, samples).astype(np.float32)
    expected = brute_force(waveform, rate, 16_000)
    resampled = resample(waveform, rate, 16_000)
    assert resampled.dtype == np.float32
    assert resampled.shape == expected.shape
    assert snr_db(expected, resampled - expected) >= MINIMUM_SNR_DB
    # Far above the bar, because nothing but the last rounding to float32 differs.
    np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-6)


@every_kind_of_rate
def test_equals_the_polyphase_filter_in_every_bit(rate, samples):
    waveform = np.random.default_rng(rate).normal(0, 0.1, samples).astype(np.float32)
    np.testing.assert_array_equal(
        resample(waveform, rate, 16_000), polyphase(waveform, rate, 16_000)
    )


def test_a_tone_passes_and_what_would_alias_does_not():
    time = np.arange(48_000) / 48_000
    tone = resample(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 48_000, 16_000)
    np.testing.assert_allclose(
        tone[100:-100], np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)[100:-100], atol=1e-3
    )
    alias = resample(np.sin(2 * np.pi * 12_000 * time).astype(np.float32), 48_000, 16_000)
    assert np.abs(alias[100:-100]).max() < 5e-3  # the filter stops 12 kHz by 55 dB


def test_the_same_rate_changes_nothing():
    waveform = np.random.default_rng(0).normal(size=100).astype(np.float32)
    np.testing.assert_array_equal(resample(waveform, 16_000, 16_000), waveform)


@every_kind_of_rate
def test_blocks_give_the_same_bits_as_the_whole(rate, samples):
    waveform = np.random.default_rng(rate).normal(0, 0.1, samples).astype(np.float32)
    whole = resample(waveform, rate, 16_000)
    rng = np.random.default_rng(samples)
    for size in (1, 100, 5000):
        for first in (0, len(whole) // 2):
            resampler = BlockResampler(rate, 16_000, first)
            position, pieces = resampler.first_input, []
            while position < samples and len(pieces) < 300:
                end = position + int(rng.integers(1, size + 1))
                pieces.append(resampler.push(waveform[position:end]))
                position = end
            pieces.append(resampler.push(waveform[position:]))
            pieces.append(resampler.finish())
            np.testing.assert_array_equal(np.concatenate(pieces), whole[first:])
            assert resampler.inputs_needed(first + 1) <= samples + rate


def test_the_inputs_that_a_resampler_asks_for_are_enough():
    waveform = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    whole = resample(waveform, 44_100, 16_000)
    resampler = BlockResampler(44_100, 16_000, 3000)
    needed = resampler.inputs_needed(5000)
    assert 0 < resampler.first_input < needed < 44_100 * 5100 // 16_000
    outputs = resampler.push(waveform[resampler.first_input : needed])
    np.testing.assert_array_equal(outputs[:2000], whole[3000:5000])
