"""Augmentation, in training only: of the waveform (gain, shift, noise) and the log-mel (masks).

Every draw comes from the generator that is passed in: one for each visit of a record gives the same
sound on every machine, in every thread, and after every resume.
"""

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AugmentationConfig

Array = NDArray[np.float32]


def augment_waveform(
    waveform: Array,
    config: AugmentationConfig,
    rng: np.random.Generator,
    *,
    max_shift_samples: int,
    rate: int,
) -> Array:
    """Applies a random gain, shift and background noise to a clip.

    The gain is uniform in dB. The shift is silence in front, uniform from 0 to `max_shift_s`, and
    at most `max_shift_samples`. White noise is added at a signal-to-noise ratio, uniform in dB,
    relative to the clip's mean power after the gain.

    Args:
        waveform: [samples] f32.
        config: which changes, and how strong.
        rng: the source of all draws.
        max_shift_samples: the longest shift for which the caller has room.
        rate: samples a second.

    Returns:
        [samples + shift] f32.
    """
    low, high = config.gain_db
    if low or high:
        waveform = waveform * np.float32(10 ** (rng.uniform(low, high) / 20))
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    if config.max_shift_s > 0:
        max_shift = min(round(config.max_shift_s * rate), max_shift_samples)
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


def _random_span(length: int, max_width: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(min(max_width, length) + 1))
    start = int(rng.integers(length - width + 1))
    return slice(start, start + width)
