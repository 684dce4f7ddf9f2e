"""Chunks, frames and tokens against the output sizes of torch's convolutions and pools."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax.audio import (
    CHUNK_SAMPLES,
    MAX_CHUNK_SAMPLES,
    audio_token_count,
    chunk_token_count,
    clip_chunks,
    log_mel,
    mel_frame_count,
    split_chunks,
)
from stepaudio_jax.audio.lengths import (
    audio_indices,
    max_chunk_samples,
    max_clip_samples,
    min_token_samples,
)

SECOND = 16_000


@functools.cache
def frames_of_stft(samples):
    """Frames of a centred STFT, its last one dropped, by torch on the meta device."""
    with torch.device("meta"):
        padded = torch.nn.functional.pad(torch.empty(1, samples + 479), (200, 200), mode="reflect")
        return padded[0].unfold(0, 400, 160).shape[0] - 1


def features_of_frames(frames):
    """Length behind encoder (convolution k3 s2 p1, average pool 2) and adaptor (k3 s2 p1)."""
    with torch.device("meta"):
        after_encoder = torch.nn.Conv1d(1, 1, 3, stride=2, padding=1)(torch.empty(1, 1, frames))
        if after_encoder.shape[-1] < 2:
            return 0
        pooled = torch.nn.AvgPool1d(2, stride=2)(after_encoder)
        return torch.nn.Conv1d(1, 1, 3, stride=2, padding=1)(pooled).shape[-1]


@functools.cache
def brute_force_tokens(frames, length_convention):
    counted = frames - 2 if length_convention == "hf" else frames
    return features_of_frames(counted) if counted > 0 else 0


def brute_force(samples, length_convention):
    total = 0
    while samples > 0:
        chunk = min(samples, 25 * SECOND)
        total += brute_force_tokens(frames_of_stft(chunk), length_convention)
        samples -= chunk
    return total


@pytest.mark.parametrize(("seconds", "tokens"), [(1, 13), (5, 63), (10, 125), (25, 313)])
def test_token_counts_equal_the_released_models(seconds, tokens):
    assert audio_token_count(seconds * SECOND) == tokens


def test_the_longest_chunk_has_3000_frames_and_374_tokens():
    assert chunk_token_count(mel_frame_count(round(29.9 * SECOND))) == 374
    assert mel_frame_count(MAX_CHUNK_SAMPLES) == 3000
    assert mel_frame_count(MAX_CHUNK_SAMPLES + 1) == 3001


@pytest.mark.parametrize("length_convention", ["hf", "vllm"])
def test_token_counts_equal_brute_force_from_0_to_60_s(length_convention):
    for samples in range(0, 60 * SECOND + 1, 160):
        assert audio_token_count(samples, length_convention) == brute_force(
            samples, length_convention
        ), samples


@pytest.mark.parametrize("length_convention", ["hf", "vllm"])
@pytest.mark.parametrize("offset", [-1, 1, 79, 81])
def test_lengths_between_frames(length_convention, offset):
    for samples in [
        *range(160, 4 * SECOND, 160),
        *range(24 * SECOND, 26 * SECOND, 160),
        *range(50 * SECOND - 800, 50 * SECOND + 801, 160),
    ]:
        assert audio_token_count(samples + offset, length_convention) == brute_force(
            samples + offset, length_convention
        ), samples


def test_the_conventions_differ_where_the_reference_says():
    differ = {
        frames % 8
        for frames in range(8, 3001)
        if chunk_token_count(frames, "hf") != chunk_token_count(frames, "vllm")
    }
    assert differ == {3, 4}


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 320, 321, 5000, 16_001])
def test_frames_are_those_of_log_mel(samples):
    assert mel_frame_count(samples) == log_mel(np.zeros(samples, np.float32)).shape[1]


@pytest.mark.parametrize(
    ("samples", "chunks"),
    [
        (0, []),
        (1, [1]),
        (CHUNK_SAMPLES - 1, [CHUNK_SAMPLES - 1]),
        (CHUNK_SAMPLES, [CHUNK_SAMPLES]),
        (CHUNK_SAMPLES + 10, [CHUNK_SAMPLES, 10]),
        (2 * CHUNK_SAMPLES, [CHUNK_SAMPLES, CHUNK_SAMPLES]),
    ],
)
def test_split_chunks(samples, chunks):
    waveform = np.arange(samples, dtype=np.float32)
    pieces = split_chunks(waveform)
    assert [len(piece) for piece in pieces] == chunks
    assert [size.samples for size in clip_chunks(samples)] == chunks
    np.testing.assert_array_equal(np.concatenate([*pieces, np.zeros(0, np.float32)]), waveform)


def test_a_last_chunk_of_20_ms_is_kept_and_has_no_token():
    for rest in (1, 320):
        assert audio_token_count(CHUNK_SAMPLES + rest) == 313
        assert log_mel(split_chunks(np.ones(CHUNK_SAMPLES + rest, np.float32))[1]).shape == (
            128,
            mel_frame_count(rest),
        )
    assert audio_token_count(CHUNK_SAMPLES + 321) == 314
    assert audio_token_count(CHUNK_SAMPLES + 1, "vllm") == 314


def test_negative_lengths_and_unknown_conventions_are_refused():
    with pytest.raises(ValueError, match="-1 samples"):
        audio_token_count(-1)
    with pytest.raises(ValueError, match="'hf', 'vllm'"):
        chunk_token_count(100, "whisper")


@pytest.mark.parametrize("length_convention", ["hf", "vllm"])
def test_numpy_and_jax_arrays_give_what_ints_give(length_convention):
    frames = range(3001)
    expected = [chunk_token_count(count, length_convention) for count in frames]
    assert (
        chunk_token_count(np.arange(3001, dtype=np.int32), length_convention).tolist() == expected
    )
    traced = jax.jit(lambda counts: chunk_token_count(counts, length_convention))
    assert traced(jnp.arange(3001)).tolist() == expected


def test_the_longest_chunk_of_so_many_frames():
    for frames in range(2, 3001):
        samples = max_chunk_samples(frames)
        assert mel_frame_count(samples) == frames < mel_frame_count(samples + 1)


@pytest.mark.parametrize("length_convention", ["hf", "vllm"])
def test_the_longest_clip_of_so_many_tokens(length_convention):
    def tokens(samples):
        sizes = clip_chunks(samples, length_convention)
        return sum(size.tokens + 2 for size in sizes)

    for room in (-5, 0, 1, 2, 3, 50, 313, 316, 317, 400, 628, 5000):
        for chunks in (0, 1, 2, 5):
            samples = max_clip_samples(room, chunks, 2504, length_convention)
            assert samples == 0 or tokens(samples) <= room
            assert samples == chunks * CHUNK_SAMPLES or tokens(samples + 1) > room
    # Chunks of fewer frames than 25 s have: a clip is one of them at most.
    assert max_clip_samples(5000, 3, 160, length_convention) == max_chunk_samples(160)
    assert max_clip_samples(5000, 0, 160, length_convention) == 0
    assert max_clip_samples(5000, 3, 2502, length_convention) == 3 * CHUNK_SAMPLES


def test_audio_indices_count_on_from_the_first_chunk():
    assert audio_indices([3, 0, 2], 4).tolist() == [0, 1, 2, 8, 9]
    indices = audio_indices((2, 1), 313, first_chunk=5)
    assert indices.tolist() == [1565, 1566, 1878]
    assert indices.dtype == np.int32
    assert audio_indices([], 313).tolist() == []


@pytest.mark.parametrize("length_convention", ["hf", "vllm"])
def test_the_fewest_samples_of_so_many_tokens(length_convention):
    for tokens in (1, 2, 3, 50, 312):
        samples = min_token_samples(tokens, length_convention)
        for size, expected in ((samples, tokens), (samples - 1, tokens - 1)):
            assert chunk_token_count(mel_frame_count(size), length_convention) == expected
    assert min_token_samples(0, length_convention) == 0
