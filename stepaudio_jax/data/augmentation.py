"""Augmentation, in training only: of the waveform (speed, pitch, gain, shift, noise) and log-mel.

Every draw comes from the generator that is passed in: one for each visit of a record gives the same
sound on every machine, in every thread, and after every resume.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AugmentationConfig

Array = NDArray[np.float32]
_MIN_SAMPLES = 1600  # 0.1 s at 16 kHz: no clip gets shorter, or it might have no audio token
_MAX_WINDOW_SAMPLES = 1024  # 64 ms at 16 kHz, of the phase vocoder


def augment_waveform(
    waveform: Array,
    config: AugmentationConfig,
    rng: np.random.Generator,
    *,
    max_shift_samples: int,
    rate: int,
    min_samples: int = 0,
) -> Array:
    """Applies a random speed, pitch, gain, shift and background noise to a clip.

    The speed is a factor, uniform in `speed_range`, and keeps the pitch; a slower clip is at most
    `max_shift_samples` longer, and a faster one has `min_samples` left. The pitch changes by a
    number of semitones, uniform in `pitch_semitones`, and keeps the length. Both are librosa's
    phase vocoder. The gain is uniform in dB. The shift is silence in front, uniform from 0 to
    `max_shift_s`, and at most what the speed has left of `max_shift_samples`. White noise is added
    at a signal-to-noise ratio, uniform in dB, relative to the clip's mean power after the gain.

    Args:
        waveform: [samples] f32.
        config: which changes, and how strong.
        rng: the source of all draws.
        max_shift_samples: by how much the clip may become longer: for so much the caller has room.
        rate: samples a second.
        min_samples: how many the clip keeps of those that it has, however fast it becomes.

    Returns:
        [samples / speed + shift] f32.
    """
    max_samples = waveform.size + max_shift_samples
    waveform = _change_speed(waveform, config, rng, max(min_samples, _MIN_SAMPLES), max_samples)
    waveform = _change_pitch(waveform, config, rng, rate)
    low, high = config.gain_db
    if low or high:
        waveform = waveform * np.float32(10 ** (rng.uniform(low, high) / 20))
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    if config.max_shift_s > 0:
        max_shift = min(round(config.max_shift_s * rate), max_samples - waveform.size)
        waveform = np.concatenate([np.zeros(rng.integers(max_shift + 1), np.float32), waveform])
    if config.noise_probability > 0 and rng.random() < config.noise_probability:
        snr_db = rng.uniform(*config.noise_snr_db)
        scale = np.float32(np.sqrt(power * 10 ** (-snr_db / 10)))
        waveform = waveform + scale * rng.standard_normal(waveform.size, dtype=np.float32)
    return waveform


def mask_log_mel(mel: Array, config: AugmentationConfig, rng: np.random.Generator) -> Array:
    """Masks random bands and time spans of a chunk with its minimum.

    SpecAugment (Park et al. 2019, arXiv 1904.08779) without time warping.

    Args:
        mel: [mel_bins, mel_frames] f32; not changed.
        config: the number of masks and their maximum width; a width is uniform from 0 to that.
        rng: the source of all draws.

    Returns:
        [mel_bins, mel_frames] f32.
    """
    if not (config.frequency_masks or config.time_masks):
        return mel
    masked, floor = mel.copy(), mel.min()
    for _ in range(config.frequency_masks):
        masked[_random_span(mel.shape[0], config.frequency_mask_bins, rng)] = floor
    for _ in range(config.time_masks):
        masked[:, _random_span(mel.shape[1], config.time_mask_frames, rng)] = floor
    return masked


def can_lengthen(config: AugmentationConfig) -> bool:
    """Returns whether `augment_waveform` may make a clip longer."""
    return config.max_shift_s > 0 or (config.speed_probability > 0 and config.speed_range[0] < 1)


def without_lengthening(config: AugmentationConfig) -> AugmentationConfig:
    """Returns a configuration without what `can_lengthen`: no shift, and no slower clip."""
    slowest, fastest = config.speed_range
    return dataclasses.replace(
        config, max_shift_s=0.0, speed_range=(max(slowest, 1.0), max(fastest, 1.0))
    )


def _change_speed(
    waveform: Array,
    config: AugmentationConfig,
    rng: np.random.Generator,
    min_samples: int,
    max_samples: int,
) -> Array:
    """Returns a clip with a random speed, at most `max_samples` long.

    Where it becomes shorter, it keeps `min_samples`.
    """
    if not (config.speed_probability > 0 and rng.random() < config.speed_probability):
        return waveform
    speed = rng.uniform(*config.speed_range)
    samples = min(round(waveform.size / speed), max_samples)
    samples = max(samples, min(waveform.size, min_samples))
    if samples == waveform.size:
        return waveform
    from librosa.effects import time_stretch  # slow to import, and few runs need it

    stretched = time_stretch(waveform, rate=waveform.size / samples, **_window(waveform))
    # librosa rounds the length too, but of a quotient that was rounded before.
    stretched = np.pad(stretched, (0, max(samples - stretched.size, 0)))[:samples]
    return np.asarray(stretched, np.float32)


def _change_pitch(
    waveform: Array, config: AugmentationConfig, rng: np.random.Generator, rate: int
) -> Array:
    """Returns a clip with a random pitch, of the same length."""
    if not (config.pitch_probability > 0 and rng.random() < config.pitch_probability):
        return waveform
    semitones = rng.uniform(*config.pitch_semitones)
    from librosa.effects import pitch_shift

    shifted = pitch_shift(waveform, sr=rate, n_steps=semitones, **_window(waveform))
    return np.asarray(shifted, np.float32)


def _window(waveform: Array) -> dict[str, Any]:
    """Returns the size of the phase vocoder's window: that of speech, or less of a short clip."""
    size = min(_MAX_WINDOW_SAMPLES, 1 << max(waveform.size, 2).bit_length() - 1)
    return {"n_fft": size, "hop_length": max(size // 4, 1)}


def _random_span(length: int, max_width: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(min(max_width, length) + 1))
    start = int(rng.integers(length - width + 1))
    return slice(start, start + width)
