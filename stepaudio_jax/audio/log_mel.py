"""The log-mel spectrogram: Whisper's front end, with 128 bands and without its padding to 30 s."""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import sparse
from scipy.fft import rfft

from stepaudio_jax.audio.lengths import (
    HOP_SAMPLES,
    MAX_CHUNK_SAMPLES,
    SAMPLE_RATE,
    mel_frame_count,
)
from stepaudio_jax.errors import AudioError

MEL_BINS = 128
WINDOW_SAMPLES = 400
DYNAMIC_RANGE = 8.0  # log10 units: quieter values are raised to the chunk's maximum less this
_FRAMES_PER_BLOCK = 256  # a block's frames and spectra stay in the processor's cache


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes the log-mel spectrogram of one chunk.

    The chunk is padded with 479 zeros on the right; frames of 25 ms are centred on each multiple of
    10 ms, with the left edge reflected, and the last frame is dropped. Each frame's power spectrum,
    under a Hann window, is summed by `mel_filters` into 128 bands p, and

        y = (max(log10 p, max(log10 p) - 8) + 4) / 4.

    Args:
        waveform: [samples] at 16 kHz, 1 to 479680 of them.

    Returns:
        [128, mel_frame_count(samples)] f32.

    Raises:
        AudioError: the chunk is empty, longer than the encoder can take, or its spectrum is not
            finite.
    """
    samples = np.asarray(waveform, np.float32)
    if samples.ndim != 1:
        raise AudioError(
            "<waveform>", f"has shape {samples.shape}; log_mel takes one channel, [samples]"
        )
    if not 1 <= len(samples) <= MAX_CHUNK_SAMPLES:
        raise AudioError(
            "<waveform>",
            f"has {len(samples)} samples; a chunk has 1 to {MAX_CHUNK_SAMPLES} (see split_chunks)",
        )
    frames = mel_frame_count(len(samples))
    half = WINDOW_SAMPLES // 2
    padded = np.zeros((frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES, np.float32)
    padded[half : half + len(samples)] = samples
    padded[:half] = padded[2 * half : half : -1]
    framed = sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    mel = np.empty((MEL_BINS, frames), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # checked once, below
        for start in range(0, frames, _FRAMES_PER_BLOCK):
            block = slice(start, start + _FRAMES_PER_BLOCK)
            spectrum = rfft(framed[block] * _hann_window(), overwrite_x=True)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            mel[:, block] = _sparse_mel_filter_bank() @ np.ascontiguousarray(power.T)
    # log10, in place and by the natural logarithm, which NumPy vectorises.
    np.log(np.maximum(mel, 1e-10, out=mel), out=mel)
    mel *= np.float32(1 / np.log(10))
    peak = mel.max()
    if not np.isfinite(peak):
        raise AudioError(
            "<waveform>",
            "its spectrum is not finite (samples that are NaN, infinite, or far beyond 1)",
        )
    np.maximum(mel, peak - np.float32(DYNAMIC_RANGE), out=mel)
    mel += 4
    mel *= np.float32(0.25)
    return mel


@functools.cache
def mel_filters() -> NDArray[np.float32]:
    """Returns librosa's triangular mel filters from 0 to 8000 Hz: [128, 201] f32.

    On the Slaney scale, of equal area, computed in float64. (In librosa's default float32 some
    values differ by one unit in the last place.)
    """
    from librosa.filters import mel  # seconds to import

    filters = mel(sr=SAMPLE_RATE, n_fft=WINDOW_SAMPLES, n_mels=MEL_BINS, dtype=np.float64)
    return filters.astype(np.float32)


@functools.cache
def _sparse_mel_filter_bank() -> sparse.csr_array:
    """Returns `mel_filters` as a sparse matrix [128, 201].

    A frequency is in at most two bands, and clips that are prepared in parallel do not fight for
    BLAS threads.
    """
    return sparse.csr_array(mel_filters())


@functools.cache
def _hann_window() -> NDArray[np.float32]:
    """Returns the periodic Hann window: [400] f32."""
    return np.square(np.sin(np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)).astype(np.float32)
