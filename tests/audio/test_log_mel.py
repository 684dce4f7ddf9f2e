"""log_mel against torch.stft and librosa's filters, combined as in the released front end."""

import librosa
import numpy as np
import pytest
import torch

from stepaudio_jax.audio import (
    MAX_CHUNK_SAMPLES,
    load_audio,
    log_mel,
    mel_frame_count,
    split_chunks,
)
from stepaudio_jax.audio.log_mel import mel_filters
from stepaudio_jax.errors import AudioError

TOLERANCE = 1e-4


def reference_log_mel(waveform, dtype=torch.float32):
    """The released front end, in torch."""
    padded = torch.nn.functional.pad(torch.from_numpy(waveform).to(dtype), (0, 479))
    spectrum = torch.stft(
        padded, 400, 160, window=torch.hann_window(400, dtype=dtype), return_complex=True
    )
    power = spectrum[..., :-1].abs() ** 2
    filters = torch.from_numpy(
        librosa.filters.mel(sr=16000, n_fft=400, n_mels=128, dtype=np.float64)
    ).to(dtype)
    log_spec = torch.clamp(filters @ power, min=1e-10).log10()
    log_spec = torch.maximum(log_spec, log_spec.max() - 8.0)
    return ((log_spec + 4.0) / 4.0).numpy()


def test_log_mel_of_the_eight_clips_equals_the_reference(shared_audio):
    paths = sorted(shared_audio.glob("*.wav"))
    assert len(paths) == 8
    for path in paths:
        for chunk in split_chunks(load_audio(path)):
            mel = log_mel(chunk)
            assert mel.dtype == np.float32
            assert mel.shape == (128, mel_frame_count(len(chunk)))
            np.testing.assert_allclose(
                mel, reference_log_mel(chunk), rtol=0, atol=TOLERANCE, err_msg=path.name
            )


# 1..200: the reflected left edge reaches into the padding; around multiples of the hop: where a
# frame is gained.
@pytest.mark.parametrize(
    "samples",
    [1, 2, 160, 161, 199, 200, 201, 320, 321, 480, 481, 1599, 1600, 1601, 40_961, 400_000, 479_680],
)
def test_log_mel_of_every_kind_of_length_equals_the_reference(samples):
    waveform = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    mel = log_mel(waveform)
    assert mel.shape == (128, mel_frame_count(samples))
    np.testing.assert_allclose(
        mel, reference_log_mel(waveform, torch.float64), rtol=0, atol=TOLERANCE
    )


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32)), (-10 + 4) / 4, atol=1e-6)


def test_log_mel_does_not_change_its_input():
    waveform = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    before = waveform.copy()
    log_mel(waveform)
    np.testing.assert_array_equal(waveform, before)


def slaney_filters():
    """Band i rises from edge i to i + 1 and falls to i + 2; edges equally spaced in mel."""
    linear_step, corner_mel, log_step = 200 / 3, 15.0, np.log(6.4) / 27
    top = corner_mel + np.log(8) / log_step
    mels = np.linspace(0, top, 130)
    edges = np.where(
        mels < corner_mel, mels * linear_step, 1000 * np.exp(log_step * (mels - corner_mel))
    )
    frequencies = np.linspace(0, 8000, 201)
    low, centre, high = (edges[i : i + 128, None] for i in range(3))
    triangles = np.minimum(
        (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    )
    return np.maximum(triangles, 0) * 2 / (high - low)


def test_filters_are_those_of_the_slaney_scale_in_every_bit():
    np.testing.assert_array_equal(mel_filters(), slaney_filters().astype(np.float32))


def test_filters_are_those_of_the_released_front_end():
    released = librosa.filters.mel(sr=16000, n_fft=400, n_mels=128)  # rounded to float32 early
    np.testing.assert_allclose(mel_filters(), released, rtol=2e-7)


@pytest.mark.parametrize(
    ("waveform", "reason"),
    [
        (np.zeros(0, np.float32), "has 0 samples"),
        (np.zeros(MAX_CHUNK_SAMPLES + 1, np.float32), "split_chunks"),
        (np.zeros((2, 1600), np.float32), "one channel"),
        (np.full(1600, np.nan, np.float32), "not finite"),
        (np.full(1600, np.inf, np.float32), "not finite"),
        (np.full(1600, 1e30, np.float32), "not finite"),
    ],
)
def test_unusable_waveforms_are_refused(waveform, reason):
    with pytest.raises(AudioError, match=reason):
        log_mel(waveform)
