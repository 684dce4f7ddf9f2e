"""Packed rollouts: nothing is lost, nothing overlaps, audio is in a row once."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.packing import PackedRollouts
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout
from stepaudio_jax.text import ParsedReply

DATA = DataConfig(batch_size=2, seq_len=40, audio_chunks_per_seq=2, mel_frames_per_chunk=80)
OUTPUTS = 10  # of a chunk of 80 frames
PAD = 999


def rollout(group, prompt, reply, chunk_tokens=()):
    """Makes a rollout whose prompt begins with its audio tokens."""
    is_audio = np.arange(prompt) < sum(chunk_tokens)
    start = 100 * group
    turn = PolicyTurn(
        prompt_tokens=np.arange(start, start + prompt, dtype=np.int32),
        is_audio=is_audio,
        chunk_tokens=tuple(chunk_tokens),
        completion_tokens=np.arange(start + 50, start + 50 + reply, dtype=np.int32),
        sampler_logprobs=np.zeros(reply, np.float32),
        parsed=ParsedReply("", ""),
        truncated=False,
    )
    return Rollout(group, Record(f"r{group}", (), "s", f"file:{group}"), (turn,))


@pytest.fixture
def rollouts():
    return [
        rollout(0, 8, 5, (3, 2)),
        rollout(0, 8, 9, (3, 2)),
        rollout(1, 6, 4),
        rollout(2, 7, 6, (4,)),
        rollout(2, 7, 1, (4,)),
    ]


def features_of(rollouts):
    """Returns features for each prompt; those of a chunk are all the same number, its own."""
    counts = {rollout.group: len(rollout.turns[0].chunk_tokens) for rollout in rollouts}
    return [
        np.stack([np.full((20, 6), 10 * group + chunk + 1, np.float32) for chunk in range(count)])
        if count
        else np.zeros((0, 0, 0), np.float32)
        for group, count in sorted(counts.items())
    ]


@pytest.fixture(params=[True, False], ids=["shared", "apart"])
def packed(request, rollouts):
    return PackedRollouts(rollouts, DATA, shared=request.param)


def test_every_rollout_is_in_the_batch_exactly_once(rollouts, packed):
    batch = packed.batch(features_of(rollouts), PAD)
    assert batch.tokens.shape == (packed.num_rows, 40)
    is_target = packed.scatter(
        [np.ones(len(rollout.completion_tokens), np.float32) for rollout in rollouts]
    )
    sequences = []
    for row in range(packed.num_rows):
        for segment in {*batch.segment_ids[row][is_target[row] > 0]}:
            in_segment = batch.segment_ids[row] == segment
            visible = in_segment
            if batch.prefix_ids is not None:
                (prefix,) = {*batch.prefix_ids[row][in_segment]}
                visible = in_segment | (batch.segment_ids[row] == prefix)
            assert batch.positions[row][visible].tolist() == list(range(visible.sum()))
            targets = batch.targets[row][in_segment & (is_target[row] > 0)]
            sequences.append((*batch.tokens[row][visible], targets[-1]))
            assert targets.tolist() == list(sequences[-1][-len(targets) :])
    assert sorted(sequences) == sorted(
        (*rollout.turns[0].prompt_tokens, *rollout.completion_tokens) for rollout in rollouts
    )
    assert (batch.tokens[batch.segment_ids == 0] == PAD).all()
    assert (batch.targets[is_target == 0] == PAD).all()


def test_a_shared_prompt_is_in_a_row_once(rollouts):
    batches = {
        shared: PackedRollouts(rollouts, DATA, shared=shared).batch(features_of(rollouts), PAD)
        for shared in (True, False)
    }
    reply_tokens = sum(len(rollout.completion_tokens) for rollout in rollouts)
    assert (batches[True].segment_ids > 0).sum() == 7 + 5 + 6 + reply_tokens
    assert (batches[False].segment_ids > 0).sum() == 2 * 7 + 5 + 2 * 6 + reply_tokens
    assert batches[False].prefix_ids is None


def test_gather_is_the_inverse_of_scatter(rollouts, packed):
    values = [
        np.random.default_rng(index).random(len(rollout.completion_tokens)).astype(np.float32)
        for index, rollout in enumerate(rollouts)
    ]
    scattered = packed.scatter(values)
    for ours, theirs in zip(packed.gather(scattered), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (scattered != 0).sum() == sum(map(len, values))


def test_each_chunk_is_in_a_row_once_and_at_its_tokens(rollouts, packed):
    batch = packed.batch(features_of(rollouts), PAD)
    for row in range(packed.num_rows):
        chunks = [chunk[0, 0] for chunk in batch.features[row] if chunk.any()]
        assert len(chunks) == len(set(chunks))
        for position in np.flatnonzero(batch.audio_index[row] >= 0):
            group, offset = divmod(int(batch.tokens[row, position]), 100)
            chunk, output = divmod(int(batch.audio_index[row, position]), OUTPUTS)
            (chunk_tokens,) = {
                rollout.turns[0].chunk_tokens for rollout in rollouts if rollout.group == group
            }
            is_second = offset >= chunk_tokens[0]
            assert batch.features[row, chunk, 0, 0] == 10 * group + is_second + 1
            assert output == offset - (chunk_tokens[0] if is_second else 0)
    audio_tokens = [(rollout.group, sum(rollout.turns[0].chunk_tokens)) for rollout in rollouts]
    if batch.prefix_ids is not None:
        audio_tokens = list(set(audio_tokens))
    assert (batch.audio_index >= 0).sum() == sum(count for _, count in audio_tokens)


def test_rows_are_a_multiple_of_the_batch_size(rollouts):
    sevens = dataclasses.replace(DATA, batch_size=7)
    assert PackedRollouts(rollouts, DATA, shared=True).num_rows % DATA.batch_size == 0
    assert PackedRollouts(rollouts, sevens, shared=True).num_rows == 7
    assert PackedRollouts(rollouts[:1], DATA, shared=True).num_rows == 2


def test_a_rollout_that_fits_no_row_is_named():
    with pytest.raises(
        DataError, match="file:3: prompt and reply take 41 tokens and 0 audio chunks"
    ):
        PackedRollouts([rollout(3, 30, 12)], DATA, shared=True)
    with pytest.raises(
        DataError, match=r"take 8 tokens and 3 audio chunks; a row holds .* audio_chunks_per_seq=2"
    ):
        PackedRollouts([rollout(3, 8, 1, (1, 1, 1))], DATA, shared=True)
