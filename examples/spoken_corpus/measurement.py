"""What a clip measures: where its speech lies, its pitch, and the labels that follow from them.

A label says how a clip sounds, not what the synthesizer was asked for. Between two classes lies a
gap, and a clip inside it has no label.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import irfft, rfft

from stepaudio_jax.audio import SAMPLE_RATE

Rate = Literal["slow", "normal", "fast"]
Pitch = Literal["low", "medium", "high"]

RATES: dict[Rate, tuple[float, float]] = {
    "slow": (0.5, 0.73),
    "normal": (0.89, 1.13),
    "fast": (1.4, 2.6),
}
"""Times faster than the language's own voice at 175 words a minute, saying the same text: from, to."""

PITCHES: dict[Pitch, tuple[float, float]] = {
    "low": (60.0, 98.0),
    "medium": (118.0, 172.0),
    "high": (208.0, 360.0),
}
"""Fundamental frequency in Hz: from, to. The middle 60 % of a clip's voiced frames must lie within."""

_WINDOW = int(0.05 * SAMPLE_RATE)  # three periods of 60 Hz, the least that autocorrelation needs
_HOP = int(0.02 * SAMPLE_RATE)
_TRANSFORM = 1152  # at least the window and the longest lag
_MIN_PITCH_HZ, _MAX_PITCH_HZ = 50.0, 450.0
_MIN_VOICED_CORRELATION = 0.6  # normalised autocorrelation of a voiced frame, at least
_MIN_PEAK_RATIO = (
    0.9  # the shortest period that correlates this well, relative to the best, is taken
)
_MIN_FRAME_ENERGY = 0.02  # of the loudest frame's energy
_SPEECH_AMPLITUDE = 0.01  # of the peak


@dataclasses.dataclass(frozen=True)
class PitchRange:
    """The fundamental frequency of a clip's voiced frames: its quantiles 0.2, 0.5 and 0.8, in Hz."""

    low_hz: float
    median_hz: float
    high_hz: float


def speech_span(waveform: NDArray[np.float32]) -> slice:
    """Where a clip's sound begins and ends: its samples above a hundredth of the peak."""
    loud = np.flatnonzero(np.abs(waveform) > _SPEECH_AMPLITUDE * np.abs(waveform).max(initial=0.0))
    return slice(int(loud[0]), int(loud[-1]) + 1) if loud.size else slice(0, 0)


def estimate_pitch(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fundamental frequency of the voiced frames, by normalised autocorrelation (Boersma 1993).

    A frame's autocorrelation r_x is that of the windowed frame divided by that of the window. Its
    period is the shortest lag at which r_x has a peak of at least 0.9 of its highest, which keeps
    multiples of the period out.

    Args:
        waveform: [samples] at 16 kHz.

    Returns:
        [voiced frames] in Hz, between 50 and 450; frames are 20 ms apart.
    """
    if len(waveform) < _WINDOW:
        return np.empty(0, np.float32)
    frames = sliding_window_view(np.asarray(waveform, np.float32), _WINDOW)[::_HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    energy = np.square(frames).sum(axis=1)
    frames = frames[energy > _MIN_FRAME_ENERGY * energy.max()]
    window = np.hanning(_WINDOW).astype(np.float32)
    shortest, longest = int(SAMPLE_RATE / _MAX_PITCH_HZ), int(SAMPLE_RATE / _MIN_PITCH_HZ)
    correlation = _autocorrelation(frames * window)[:, : longest + 2]
    correlation /= correlation[:, :1]
    correlation /= _autocorrelation(window)[: longest + 2] / np.square(window).sum()
    inner = correlation[:, shortest : longest + 1]
    before, after = (
        correlation[:, shortest - 1 : longest],
        correlation[:, shortest + 1 : longest + 2],
    )
    is_peak = (inner >= before) & (inner > after)
    best = np.max(inner, axis=1, where=is_peak, initial=0.0)
    period = np.argmax(is_peak & (inner >= _MIN_PEAK_RATIO * best[:, None]), axis=1)
    rows = np.arange(len(inner))
    left, peak, right = before[rows, period], inner[rows, period], after[rows, period]
    voiced = (best >= _MIN_VOICED_CORRELATION) & (peak >= _MIN_VOICED_CORRELATION)
    curvature = np.where(voiced, left - 2 * peak + right, -1.0)
    shift = (
        0.5 * (left - right) / np.minimum(curvature, -1e-12)
    )  # the vertex of the parabola through the three
    return (SAMPLE_RATE / (period + shortest + shift))[voiced]


def pitch_range(waveform: NDArray[np.float32]) -> PitchRange | None:
    """Quantiles of a clip's fundamental frequency; None where no frame is voiced."""
    frequencies = estimate_pitch(waveform)
    if not frequencies.size:
        return None
    low, median, high = np.quantile(frequencies, (0.2, 0.5, 0.8))
    return PitchRange(float(low), float(median), float(high))


def pitch_label(measured: PitchRange | None) -> Pitch | None:
    """The class that holds the middle of the measured range; None in a gap, or where the range leaves its class."""
    if measured is not None:
        for label, (low, high) in PITCHES.items():
            if low <= measured.low_hz and measured.high_hz <= high:
                return label
    return None


def rate_label(relative_rate: float) -> Rate | None:
    """The class of a speaking rate relative to the reference's; None in a gap."""
    for label, (low, high) in RATES.items():
        if low <= relative_rate <= high:
            return label
    return None


def _autocorrelation(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the last axis, lags from 0; right for lags up to `_TRANSFORM` less the signal's length."""
    spectrum = rfft(signal, _TRANSFORM)
    return irfft(np.square(spectrum.real) + np.square(spectrum.imag), _TRANSFORM)
