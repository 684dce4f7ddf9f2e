"""Measures where the speech of a clip lies, its pitch, and the rate and pitch labels.

A label describes the sound of a clip, not the synthesizer's settings. Neighbouring classes are
separated by a gap; a clip in the gap has no label.
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
"""Speaking rate relative to the language's default voice at 175 words per minute: (from, to)."""

PITCHES: dict[Pitch, tuple[float, float]] = {
    "low": (60.0, 98.0),
    "medium": (118.0, 172.0),
    "high": (208.0, 360.0),
}
"""Fundamental frequency in Hz: (from, to), which must hold the middle 60 % of the voiced frames."""

_WINDOW = int(0.05 * SAMPLE_RATE)  # three periods of 60 Hz, the minimum for autocorrelation
_HOP = int(0.02 * SAMPLE_RATE)
_TRANSFORM = 1152  # FFT size: at least the window plus the longest lag
_MIN_PITCH_HZ, _MAX_PITCH_HZ = 50.0, 450.0
_MIN_VOICED_CORRELATION = 0.6  # normalized autocorrelation that makes a frame voiced
_MIN_PEAK_RATIO = 0.9  # the shortest period within this ratio of the best correlation is taken
_MIN_FRAME_ENERGY = 0.02  # relative to the loudest frame
_SPEECH_AMPLITUDE = 0.01  # relative to the peak


@dataclasses.dataclass(frozen=True)
class PitchRange:
    """Holds the quantiles 0.2, 0.5 and 0.8 of a clip's fundamental frequency, in Hz."""

    low_hz: float
    median_hz: float
    high_hz: float


def speech_span(waveform: NDArray[np.float32]) -> slice:
    """Returns the slice from the first to the last sample above 1 % of the peak."""
    loud = np.flatnonzero(np.abs(waveform) > _SPEECH_AMPLITUDE * np.abs(waveform).max(initial=0.0))
    return slice(int(loud[0]), int(loud[-1]) + 1) if loud.size else slice(0, 0)


def estimate_pitch(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Estimates the fundamental frequency of voiced frames by autocorrelation (Boersma 1993).

    The autocorrelation of a frame is that of the windowed frame divided by that of the window. The
    period is the shortest lag whose peak reaches 0.9 of the highest one, which excludes multiples
    of the period.

    Args:
        waveform: float32 `[samples]` at 16 kHz.

    Returns:
        float32 `[voiced_frames]` in Hz, between 50 and 450; frames are 20 ms apart.
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
    # The vertex of the parabola through the peak and its two neighbours.
    shift = 0.5 * (left - right) / np.minimum(curvature, -1e-12)
    return (SAMPLE_RATE / (period + shortest + shift))[voiced]


def pitch_range(waveform: NDArray[np.float32]) -> PitchRange | None:
    """Returns the quantiles of a clip's fundamental frequency, or None if no frame is voiced."""
    frequencies = estimate_pitch(waveform)
    if not frequencies.size:
        return None
    low, median, high = np.quantile(frequencies, (0.2, 0.5, 0.8))
    return PitchRange(float(low), float(median), float(high))


def pitch_label(measured: PitchRange | None) -> Pitch | None:
    """Returns the class that contains the range, or None if no class contains all of it."""
    if measured is not None:
        for label, (low, high) in PITCHES.items():
            if low <= measured.low_hz and measured.high_hz <= high:
                return label
    return None


def rate_label(relative_rate: float) -> Rate | None:
    """Returns the class of a relative speaking rate, or None for one in a gap."""
    for label, (low, high) in RATES.items():
        if low <= relative_rate <= high:
            return label
    return None


def _autocorrelation(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes the autocorrelation over the last axis, for lags 0 to `_TRANSFORM - samples`."""
    spectrum = rfft(signal, _TRANSFORM)
    return irfft(np.square(spectrum.real) + np.square(spectrum.imag), _TRANSFORM)
