"""Audio chunks are encoded in groups of few shapes, and come back in order."""

import functools

import numpy as np
import pytest

from stepaudio_jax.generation.audio_encoder import (
    MAX_GROUP_CHUNKS,
    AudioEncoder,
    bucketed_groups,
    fixed_groups,
)
from stepaudio_jax.generation.prompts import bucket

BUCKETED = functools.partial(bucketed_groups, max_frames=3000)


def chunks_of(*lengths):
    """Chunks whose values say which chunk and which frame they are of."""
    return [
        np.full((2, length), index, np.float32) + np.arange(length, dtype=np.float32) / 4096
        for index, length in enumerate(lengths)
    ]


def sum_of_valid_frames(parameters, batch, lengths):
    """A program whose output shows that a row has its chunk, its length, and zeros behind it."""
    is_padding = np.arange(batch.shape[2]) >= lengths[:, None, None]
    assert not np.where(is_padding, batch, 0).any()
    return parameters * batch.sum(axis=2)


@pytest.mark.parametrize("group", [BUCKETED, functools.partial(fixed_groups, rows=3, frames=80)])
@pytest.mark.parametrize("lengths", [(), (40,), (33, 70, 48, 33, 75, 20, 41)])
def test_each_chunk_gets_the_output_of_its_own_frames(group, lengths):
    chunks = chunks_of(*lengths)
    encoder = AudioEncoder(sum_of_valid_frames, group)
    outputs = encoder.encode(2.0, chunks)
    assert len(outputs) == len(chunks)
    for output, chunk in zip(outputs, chunks, strict=True):
        np.testing.assert_allclose(output, 2 * chunk.sum(axis=1), rtol=1e-6)
    assert encoder.num_encoded == len(chunks)


def test_shapes_are_few_whatever_the_chunks():
    rng = np.random.default_rng(0)
    encoder = AudioEncoder(sum_of_valid_frames, BUCKETED)
    for _ in range(20):
        encoder.encode(1.0, chunks_of(*rng.integers(1, 3001, size=rng.integers(1, 30))))
    sizes = {bucket(length) for length in range(1, 2049)} | {3000}
    assert len(encoder.shapes) <= len(sizes) * 4  # groups of 1, 2, 4, 8


def test_groups_hold_every_chunk_once_and_waste_less_than_half():
    lengths = np.random.default_rng(1).integers(1, 3001, size=100).tolist()
    groups = BUCKETED(lengths)
    assert sorted(index for group in groups for index in group.indices) == list(range(100))
    for group in groups:
        assert len(group.indices) > group.rows / 2
        assert group.rows <= MAX_GROUP_CHUNKS
        assert all(lengths[index] <= group.frames <= 3000 for index in group.indices)


def test_fixed_groups_have_one_shape():
    groups = fixed_groups([5] * 7, rows=3, frames=80)
    assert [group.indices for group in groups] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert {(group.rows, group.frames) for group in groups} == {(3, 80)}
