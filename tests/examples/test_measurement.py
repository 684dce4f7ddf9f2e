"""Pitch and rate of signals whose fundamental frequency is known."""

import itertools

import numpy as np
import pytest

from examples.spoken_corpus.measurement import (
    PITCHES,
    RATES,
    PitchRange,
    estimate_pitch,
    pitch_label,
    pitch_range,
    rate_label,
    speech_span,
)

RATE = 16_000


def _voice(hz, seconds=0.6, formants=((500, 80), (1500, 120))):
    """Makes a vowel: pulses at a frequency, which may change, through two resonances."""
    samples = int(seconds * RATE)
    phase = np.cumsum(np.broadcast_to(hz, samples) / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    for centre, width in formants:
        radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * centre / RATE
        filtered = np.zeros(samples + 2)
        for n in range(samples):
            filtered[n + 2] = (
                pulses[n] + 2 * radius * np.cos(angle) * filtered[n + 1] - radius**2 * filtered[n]
            )
        pulses = filtered[2:]
    return (pulses / np.abs(pulses).max()).astype(np.float32)


@pytest.mark.parametrize("hz", [62.0, 75.0, 99.0, 130.0, 171.0, 209.0, 262.0, 330.0, 410.0])
def test_the_fundamental_of_a_steady_vowel(hz):
    measured = estimate_pitch(_voice(hz))
    assert len(measured) >= 20
    np.testing.assert_allclose(measured, hz, rtol=0.02)


def test_harmonics_alone_still_have_their_fundamental():
    time = np.arange(RATE // 2) / RATE
    missing = sum(np.sin(2 * np.pi * 120 * harmonic * time) for harmonic in (3, 4, 5, 6)).astype(
        np.float32
    )
    np.testing.assert_allclose(estimate_pitch(missing), 120, rtol=0.02)


def test_noise_and_silence_are_not_voiced():
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert len(estimate_pitch(noise)) <= 2
    for silence in (np.zeros(RATE, np.float32), np.zeros(100, np.float32), np.zeros(0, np.float32)):
        assert len(estimate_pitch(silence)) == 0
        assert pitch_range(silence) is None
    assert pitch_label(None) is None


def test_quiet_frames_do_not_count():
    vowel = _voice(100.0)
    quiet = _voice(300.0) * np.float32(0.05)
    np.testing.assert_allclose(
        estimate_pitch(np.concatenate([vowel, np.zeros(800, np.float32), quiet])), 100, rtol=0.05
    )


def test_a_glide_has_its_quantiles_and_no_label_when_it_leaves_its_class():
    gliding = pitch_range(_voice(np.linspace(130, 160, RATE), seconds=1.0))
    assert gliding.low_hz == pytest.approx(136, rel=0.02)
    assert gliding.median_hz == pytest.approx(145, rel=0.02)
    assert gliding.high_hz == pytest.approx(154, rel=0.02)
    assert pitch_label(gliding) == "medium"
    assert pitch_label(pitch_range(_voice(np.linspace(90, 150, RATE), seconds=1.0))) is None


def test_classes_have_gaps_between_them():
    for classes, gap in ((PITCHES, 1.2), (RATES, 1.2)):
        bounds = list(classes.values())
        assert all(low < high for low, high in bounds)
        assert all(after[0] / before[1] >= gap for before, after in itertools.pairwise(bounds))


@pytest.mark.parametrize(
    ("low_hz", "high_hz", "label"),
    [
        (60, 98, "low"),
        (59, 90, None),
        (90, 99, None),
        (118, 172, "medium"),
        (100, 117, None),
        (208, 360, "high"),
        (173, 207, None),
    ],
)
def test_pitch_labels_at_their_bounds(low_hz, high_hz, label):
    assert pitch_label(PitchRange(low_hz, (low_hz + high_hz) / 2, high_hz)) == label


@pytest.mark.parametrize(
    ("relative_rate", "label"),
    [
        (0.49, None),
        (0.5, "slow"),
        (0.73, "slow"),
        (0.74, None),
        (0.89, "normal"),
        (1.13, "normal"),
        (1.14, None),
        (1.4, "fast"),
    ],
)
def test_rate_labels_at_their_bounds(relative_rate, label):
    assert rate_label(relative_rate) == label


def test_speech_lies_between_its_first_and_last_loud_sample():
    clip = np.zeros(1000, np.float32)
    clip[200:500] = 0.5
    clip[100] = 0.004  # below a hundredth of the peak
    assert speech_span(clip) == slice(200, 500)
    assert speech_span(np.zeros(10, np.float32)) == slice(0, 0)
