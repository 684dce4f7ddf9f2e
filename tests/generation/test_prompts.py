"""Prompts as arrays: buckets, padding, and what does not fit."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation.prompts import (
    Prompt,
    bucket,
    build_prompt,
    check_prompt_fits,
    stack_prompts,
)
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import BYTES, CONFIG, user, write_clip


def with_positions(positions):
    return dataclasses.replace(
        CONFIG, encoder=dataclasses.replace(CONFIG.encoder, positions=positions)
    )


def text_prompt(length, chunk_frames=()):
    rng = np.random.default_rng(length)
    chunks = tuple(rng.normal(size=(128, frames)).astype(np.float32) for frames in chunk_frames)
    counts = tuple(((frames - 2 + 1) // 2 // 2 + 1) // 2 for frames in chunk_frames)
    tokens = rng.integers(0, 256, size=length).astype(np.int32)
    is_audio = np.zeros(length, bool)
    is_audio[1 : 1 + sum(counts)] = True
    return Prompt(tokens, is_audio, np.zeros(length, bool), chunks, counts)


def test_buckets_hold_their_sizes_waste_at_most_half_and_are_few():
    sizes = range(1, 20_000)
    buckets = [bucket(size) for size in sizes]
    assert all(found >= size for size, found in zip(sizes, buckets, strict=True))
    assert all(found <= 1.5 * size for size, found in zip(sizes, buckets, strict=True) if size > 32)
    assert buckets == sorted(buckets)
    assert all(bucket(found) == found for found in set(buckets))
    assert len(set(buckets)) <= 2 * np.log2(20_000 / 32) + 2


def test_prompts_are_padded_and_their_audio_indices_point_at_their_chunks():
    """Indices count from the first adaptor output of each chunk, padding included."""
    first, second = text_prompt(40, (57, 70)), text_prompt(33, (49,))
    batch = stack_prompts([first, second], CONFIG, rows=3)
    assert batch.tokens.shape == (3, 48)
    assert batch.mel.shape == (3, 2, 128, 96)
    per_chunk = 12  # 96 mel frames -> 48 -> 24 -> 12
    assert batch.audio_index[0, :40][first.is_audio].tolist() == [
        *range(7),
        *range(per_chunk, per_chunk + 9),
    ]
    assert batch.audio_index[1, :33][second.is_audio].tolist() == [*range(6)]
    assert (batch.audio_index[0, :40][~first.is_audio] == -1).all()
    assert (batch.audio_index[:, 40:] == -1).all()
    np.testing.assert_array_equal(batch.mel[0, 1, :, :70], first.chunks[1])
    assert not batch.mel[0, 1, :, 70:].any()
    assert batch.mel_lengths.tolist() == [[57, 70], [49, 0], [0, 0]]
    assert batch.lengths.tolist() == [
        40,
        33,
        1,
    ]  # a row nobody asked for holds one token, since a row needs a last one


def test_the_bucket_of_frames_never_exceeds_the_encoders_positions():
    """25 s have 2502 frames, whose bucket of 3072 the positional table of 1500 does not hold."""
    batch = stack_prompts([text_prompt(700, (2502,))], CONFIG, rows=1)
    assert batch.mel.shape[-1] == 3000
    assert stack_prompts([text_prompt(40, (75,))], with_positions(40), rows=1).mel.shape[-1] == 80


def test_prompts_that_do_not_fit_are_errors():
    prompt = text_prompt(100, (75,))
    check_prompt_fits(prompt, CONFIG, new_tokens=300)
    with pytest.raises(
        GenerationError,
        match="100 tokens and may get 301 new ones, 1 more than the model's 400 positions",
    ):
        check_prompt_fits(prompt, CONFIG, new_tokens=301)
    check_prompt_fits(prompt, with_positions(38))
    with pytest.raises(
        GenerationError, match=r"75 mel frames, more than the 74 .*encoder\.positions=37"
    ):
        check_prompt_fits(prompt, with_positions(37))


def test_a_clip_of_two_chunks_is_laid_out_chunk_by_chunk(tmp_path):
    """25 s and 10 ms: the last chunk has no audio token, only its marks, and is not encoded."""
    clip = write_clip(tmp_path / "a.wav", 25.01)
    prompt = build_prompt(render_prompt([user(clip, "?")], BYTES), BYTES, "hf")
    special = BYTES.special
    marks = [
        token
        for token in prompt.tokens.tolist()
        if token in (special.audio_start, special.audio_end)
    ]
    assert marks == [special.audio_start, special.audio_end] * 2
    assert prompt.chunk_tokens == (313,)
    assert len(prompt.chunks) == 1
    assert prompt.is_audio.sum() == 313
