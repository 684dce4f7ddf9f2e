"""The log-mel spectrogram that the encoder hears (Whisper's, without its padding to 30 s)."""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import sparse
from scipy.fft import rfft

from stepaudio_jax.audio.lengths import HOP_SAMPLES, MAX_CHUNK_SAMPLES, SAMPLE_RATE, mel_frames
from stepaudio_jax.errors import AudioError

MEL_BINS = 128
WINDOW_SAMPLES = 400
DYNAMIC_RANGE = 8.0  # log10 units below the chunk's maximum: what is quieter is raised to it
_FRAMES_PER_BLOCK = 256  # a block's frames and spectra stay in the processor's cache


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The log-mel spectrogram of one chunk.

    Zeros are put on the right (479 samples), frames of 25 ms are centred on each multiple of 10 ms
    (the left edge reflected), and the last frame is dropped. Of the 128 Slaney bands of the power
    spectrum, the base-10 logarithm is taken, raised to at least its maximum less 8, then mapped by
    (x + 4) / 4.

    Args:
        waveform: [samples] at 16 kHz, 1 to 479680 of them.

    Returns:
        [128, mel_frames(samples)] f32.

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
    frames = mel_frames(len(samples))
    half = WINDOW_SAMPLES // 2
    padded = np.zeros((frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES, np.float32)
    padded[half : half + len(samples)] = samples
    padded[:half] = padded[2 * half : half : -1]
    framed = sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    mel = np.empty((MEL_BINS, frames), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # told below, once
        for start in range(0, frames, _FRAMES_PER_BLOCK):
            block = slice(start, start + _FRAMES_PER_BLOCK)
            spectrum = rfft(framed[block] * _hann_window(), overwrite_x=True)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            mel[:, block] = _sparse_mel_filter_bank() @ np.ascontiguousarray(power.T)
    # In place and by the natural logarithm, which numpy vectorises.
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
    """The Slaney-scale, Slaney-normalised (equal area) triangular filters from 0 to 8000 Hz: [128, 201] f32.

    Band i rises from edge i to edge i + 1 and falls to edge i + 2; the 130 edges are equally spaced
    on the Slaney scale, which is linear up to 1000 Hz (15 mel) and logarithmic above (27 mel for a
    factor of 6.4).
    """
    linear_step, corner_mel, log_step = 200 / 3, 15.0, np.log(6.4) / 27
    top = corner_mel + np.log(SAMPLE_RATE / 2 / 1000) / log_step
    mels = np.linspace(0, top, MEL_BINS + 2)
    edges = np.where(
        mels < corner_mel, mels * linear_step, 1000 * np.exp(log_step * (mels - corner_mel))
    )
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW_SAMPLES // 2 + 1)
    low, centre, high = (edges[i : i + MEL_BINS, None] for i in range(3))
    triangles = np.minimum(
        (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    )
    return (np.maximum(triangles, 0) * 2 / (high - low)).astype(np.float32)


@functools.cache
def _sparse_mel_filter_bank() -> sparse.csr_array:
    """The same, sparse: a frequency is in at most two bands, and clips prepared in parallel do not fight for BLAS threads."""
    return sparse.csr_array(mel_filters())


@functools.cache
def _hann_window() -> NDArray[np.float32]:
    """The periodic Hann window: [400] f32."""
    return np.square(np.sin(np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)).astype(np.float32)
