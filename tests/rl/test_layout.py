"""Rollouts in rows: nothing is lost, nothing overlaps, sound stands in its row once."""

import dataclasses
import itertools

import numpy as np
import pytest

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import DataError, Record
from stepaudio_jax.rl.layout import Layout
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.text import ParsedReply

DATA = DataConfig(rows=2, tokens_per_row=40, chunks_per_row=2, frames_per_chunk=80)
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
        reply=np.arange(start + 50, start + 50 + reply, dtype=np.int32),
        sampler_logprobs=np.zeros(reply, np.float32),
        written=ParsedReply("", ""),
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


def test_every_rollout_stands_whole_in_a_segment_of_its_own(rollouts):
    layout = Layout(rollouts, DATA)
    batch = layout.batch(features_of(rollouts), PAD)
    assert batch.tokens.shape == (layout.rows, 40)
    found = []
    for row in range(layout.rows):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            found.append(tuple(batch.tokens[row][here]))
            assert batch.positions[row][here].tolist() == list(range(here.sum()))
            assert batch.targets[row][here].tolist() == [*found[-1][1:], PAD]
    assert sorted(found) == sorted((*one.prompt_tokens, *one.reply) for one in rollouts)
    assert (batch.tokens[batch.segment_ids == 0] == PAD).all()
    wrote = layout.spread([np.ones(len(one.reply), np.float32) for one in rollouts])
    assert wrote.sum() == sum(len(one.reply) for one in rollouts)
    written = [batch.targets[row][wrote[row] > 0].tolist() for row in range(layout.rows)]
    assert sorted(itertools.chain.from_iterable(written)) == sorted(token for one in rollouts for token in one.reply)


def test_values_come_back_as_they_were_spread(rollouts):
    layout = Layout(rollouts, DATA)
    values = [np.random.default_rng(index).random(len(one.reply)).astype(np.float32) for index, one in enumerate(rollouts)]
    for ours, theirs in zip(layout.gather(layout.spread(values)), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (layout.spread(values) != 0).sum() == sum(len(one.reply) for one in rollouts)


def test_sound_stands_once_in_a_row_and_where_it_is_heard(rollouts):
    layout = Layout(rollouts, DATA)
    batch = layout.batch(features_of(rollouts), PAD)
    for row in range(layout.rows):
        held = [chunk[0, 0] for chunk in batch.features[row] if chunk.any()]
        assert len(held) == len(set(held))
        for place in np.flatnonzero(batch.audio_slot[row] >= 0):
            group, offset = divmod(int(batch.tokens[row, place]), 100)
            chunk, output = divmod(int(batch.audio_slot[row, place]), OUTPUTS)
            (of_prompt,) = {one.chunk_tokens for one in rollouts if one.group == group}
            which = 0 if offset < of_prompt[0] else 1
            assert batch.features[row, chunk, 0, 0] == 10 * group + which + 1
            assert output == offset - (of_prompt[0] if which else 0)
    assert (batch.audio_slot >= 0).sum() == sum(sum(one.chunk_tokens) for one in rollouts)


def test_rows_are_a_multiple_of_a_batch(rollouts):
    assert Layout(rollouts, DATA).rows % DATA.rows == 0
    assert Layout(rollouts, dataclasses.replace(DATA, rows=7)).rows == 7
    assert Layout(rollouts[:1], DATA).rows == 2


def test_what_does_not_fit_a_row_is_named():
    with pytest.raises(DataError, match="file:3: prompt and reply have 41 tokens and 0 audio chunks"):
        Layout([rollout(3, 30, 11)], DATA)
    with pytest.raises(DataError, match=r"have 9 tokens and 3 audio chunks; a row holds .* chunks_per_row=2"):
        Layout([rollout(3, 8, 1, (1, 1, 1))], DATA)
