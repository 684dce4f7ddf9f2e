"""resample against the definition of torchaudio's default filter, summed directly in float64."""

import math

import numpy as np
import pytest
from scipy.signal import upfirdn

from stepaudio_jax.audio import resample
from stepaudio_jax.audio.resampling import _sinc_filter, resampled_length

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
