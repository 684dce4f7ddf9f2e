"""Random changes to a clip, in training only: to the waveform (gain, shift, noise), then to the log-mel (SpecAugment's masks).

Every draw comes from the generator passed in: one generator for each visit of a record gives the
same sound on every machine, in every thread, and after every resume.
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
    """Changes a clip's loudness, start and background.

    Args:
        waveform: [samples] f32.
        config: which changes, and how strong.
        rng: where the draws come from.
        max_shift_samples: samples that may be put in front at most. A shift lengthens the clip, so
        the caller says how much fits.
        rate: samples a second.

    Returns:
        [samples + shift] f32: gain (dB, uniform), then silence in front (uniform, at most
        `max_shift_s` and at most `max_shift_samples`), then white noise at a signal-to-noise ratio
        (dB, uniform) relative to the clip's own mean power.
    """
    low, high = config.gain_db
    if low or high:
        waveform = waveform * np.float32(10 ** (rng.uniform(low, high) / 20))
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    if config.max_shift_s > 0:
        longest = min(round(config.max_shift_s * rate), max_shift_samples)
        waveform = np.concatenate([np.zeros(rng.integers(longest + 1), np.float32), waveform])
    if config.noise_probability > 0 and rng.random() < config.noise_probability:
        snr_db = rng.uniform(*config.noise_snr_db)
        scale = np.float32(np.sqrt(power * 10 ** (-snr_db / 10)))
        waveform = waveform + scale * rng.standard_normal(waveform.size, dtype=np.float32)
    return waveform


def mask_log_mel(mel: Array, config: AugmentationConfig, rng: np.random.Generator) -> Array:
    """Masks bands and stretches of a chunk with its quietest value (Park et al. 2019, arXiv 1904.08779, without time warping).

    Args:
        mel: [M,F] f32, F mel frames.
        config: the number of masks and their greatest width; a width is uniform from 0 to that.
        rng: where the draws come from.
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
