"""Rollouts in rows: nothing is lost, nothing overlaps, sound stands in its row once."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.packing import PackedRollouts
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.text import ParsedReply

DATA = DataConfig(batch_size=2, seq_len=40, audio_chunks_per_seq=2, mel_frames_per_chunk=80)
OUTPUTS = 10  # of a chunk of 80 frames
PAD = 999


def rollout(group, prompt, reply, chunk_tokens=()):
    """A prompt whose audio tokens stand first."""
    is_audio = np.arange(prompt) < sum(chunk_tokens)
    start = 100 * group
    return Rollout(
        group=group,
        record=Record(f"r{group}", (), "s", f"file:{group}"),
        prompt_tokens=np.arange(start, start + prompt, dtype=np.int32),
        is_audio=is_audio,
        chunk_tokens=tuple(chunk_tokens),
        completion_tokens=np.arange(start + 50, start + 50 + reply, dtype=np.int32),
        sampler_logprobs=np.zeros(reply, np.float32),
        parsed=ParsedReply("", ""),
        truncated=False,
    )


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
    """Of each prompt, chunks filled with a number of their own."""
    counts = {one.group: len(one.chunk_tokens) for one in rollouts}
    return [
        np.stack([np.full((20, 6), 10 * group + chunk + 1, np.float32) for chunk in range(count)])
        if count
        else np.zeros((0, 0, 0), np.float32)
        for group, count in sorted(counts.items())
    ]


@pytest.fixture(params=[True, False], ids=["shared", "apart"])
def layout(request, rollouts):
    return PackedRollouts(rollouts, DATA, shared=request.param)


def test_every_rollout_is_read_whole(rollouts, layout):
    batch = layout.batch(features_of(rollouts), PAD)
    assert batch.tokens.shape == (layout.rows, 40)
    wrote = layout.scatter([np.ones(len(one.completion_tokens), np.float32) for one in rollouts])
    found = []
    for row in range(layout.rows):
        for segment in {*batch.segment_ids[row][wrote[row] > 0]}:
            own = batch.segment_ids[row] == segment
            seen = own
            if batch.prefix_ids is not None:
                (prefix,) = {*batch.prefix_ids[row][own]}
                seen = own | (batch.segment_ids[row] == prefix)
            assert batch.positions[row][seen].tolist() == list(range(seen.sum()))
            written = own & (wrote[row] > 0)
            found.append((*batch.tokens[row][seen], batch.targets[row][written][-1]))
            assert batch.targets[row][written].tolist() == list(found[-1][-written.sum() :])
    assert sorted(found) == sorted((*one.prompt_tokens, *one.completion_tokens) for one in rollouts)
    assert (batch.tokens[batch.segment_ids == 0] == PAD).all()
    assert (batch.targets[wrote == 0] == PAD).all()


def test_a_prompt_stands_once_in_a_row_where_it_is_shared(rollouts):
    sizes = {
        shared: (PackedRollouts(rollouts, DATA, shared=shared).batch(features_of(rollouts), PAD))
        for shared in (True, False)
    }
    replies = sum(len(one.completion_tokens) for one in rollouts)
    assert (sizes[True].segment_ids > 0).sum() == 7 + 5 + 6 + replies
    assert (sizes[False].segment_ids > 0).sum() == 2 * 7 + 5 + 2 * 6 + replies
    assert sizes[False].prefix_ids is None


def test_values_come_back_as_they_were_spread(rollouts, layout):
    values = [
        np.random.default_rng(index).random(len(one.completion_tokens)).astype(np.float32)
        for index, one in enumerate(rollouts)
    ]
    for ours, theirs in zip(layout.gather(layout.scatter(values)), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (layout.scatter(values) != 0).sum() == sum(
        len(one.completion_tokens) for one in rollouts
    )


def test_sound_stands_once_in_a_row_and_where_it_is_heard(rollouts, layout):
    batch = layout.batch(features_of(rollouts), PAD)
    for row in range(layout.rows):
        held = [chunk[0, 0] for chunk in batch.features[row] if chunk.any()]
        assert len(held) == len(set(held))
        for place in np.flatnonzero(batch.audio_index[row] >= 0):
            group, offset = divmod(int(batch.tokens[row, place]), 100)
            chunk, output = divmod(int(batch.audio_index[row, place]), OUTPUTS)
            (of_prompt,) = {one.chunk_tokens for one in rollouts if one.group == group}
            which = 0 if offset < of_prompt[0] else 1
            assert batch.features[row, chunk, 0, 0] == 10 * group + which + 1
            assert output == offset - (of_prompt[0] if which else 0)
    heard = (
        {one.group: sum(one.chunk_tokens) for one in rollouts}
        if batch.prefix_ids is not None
        else None
    )
    assert (batch.audio_index >= 0).sum() == (
        sum(heard.values()) if heard else sum(sum(one.chunk_tokens) for one in rollouts)
    )


def test_rows_are_a_multiple_of_a_batch(rollouts):
    assert PackedRollouts(rollouts, DATA, shared=True).rows % DATA.batch_size == 0
    assert PackedRollouts(rollouts, dataclasses.replace(DATA, batch_size=7), shared=True).rows == 7
    assert PackedRollouts(rollouts[:1], DATA, shared=True).rows == 2


def test_what_does_not_fit_a_row_is_named():
    with pytest.raises(
        DataError, match="file:3: prompt and reply take 41 tokens and 0 audio chunks"
    ):
        PackedRollouts([rollout(3, 30, 12)], DATA, shared=True)
    with pytest.raises(
        DataError, match=r"take 8 tokens and 3 audio chunks; a row holds .* audio_chunks_per_seq=2"
    ):
        PackedRollouts([rollout(3, 8, 1, (1, 1, 1))], DATA, shared=True)
