"""The prompts of a step: an order that its number decides, and records that cannot be used."""

import json

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import log_mel
from stepaudio_jax.config import AugmentationConfig, DataConfig, SourceConfig
from stepaudio_jax.errors import DataError
from stepaudio_jax.rl.prompts import PromptStream
from tests.rl.small_stage import base, write_prompts

COUNT, STEPS = 4, 3


def stream(path, **settings):
    data = DataConfig(
        sources=(SourceConfig(path=str(path)),),
        batch_size=1,
        seq_len=160,
        audio_chunks_per_seq=1,
        **settings,
    )
    return PromptStream(
        data, base().tokenizer, base().config, seed=3, new_tokens=8, validate=lambda record: None
    )


@pytest.fixture
def path(tmp_path):
    return write_prompts(tmp_path)


def ids_by_step(prompts):
    return [
        [example.record.id for example in prompts.examples_at(step, COUNT)] for step in range(STEPS)
    ]


def test_an_unusable_record_ends_the_run_or_is_replaced(path):
    all_ids = ids_by_step(stream(path))
    (path.parent / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"prompts.jsonl:2: .*1.wav"):
        ids_by_step(stream(path))
    skipping = stream(path, on_bad_audio="skip")
    expected = [["p2" if name == "p1" else name for name in step_ids] for step_ids in all_ids]
    assert ids_by_step(skipping) == expected != all_ids
    skipped = sum(
        example.skipped for step in range(STEPS) for example in skipping.examples_at(step, COUNT)
    )
    assert skipped == sum(step_ids.count("p1") for step_ids in all_ids)


def test_prompts_that_are_too_long_can_be_skipped(path):
    with pytest.raises(DataError, match=r"mel_frames_per_chunk=.*, and it is 70"):
        ids_by_step(stream(path, mel_frames_per_chunk=70))
    ids = ids_by_step(stream(path, mel_frames_per_chunk=70, on_too_long="skip"))
    assert {name for step_ids in ids for name in step_ids} == {"p0", "p1", "p2", "p3", "p4"}


def test_a_source_without_usable_records_ends_the_run(path):
    for clip in path.parent.glob("*.wav"):
        clip.write_bytes(b"")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "audio" in line]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="3 records one after the other cannot be used"):
        ids_by_step(stream(path, on_bad_audio="skip"))


def test_prompts_take_the_first_channel_or_the_mean(tmp_path):
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8000)).astype(np.float32)
    channels[0] = 0
    soundfile.write(tmp_path / "a.wav", channels.T, 16_000, subtype="FLOAT")
    path = tmp_path / "prompts.jsonl"
    turn = {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}
    path.write_text(json.dumps({"messages": [turn]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts.jsonl:1: audio .*set data\.channel=mix"):
        stream(path).examples_at(0, 1)
    (example,) = stream(path, channel="mix").examples_at(0, 1)
    np.testing.assert_array_equal(example.prompt.chunks[0], log_mel(channels[1] / 2))
    silent = AugmentationConfig(silence_probability=1.0)
    (silenced,) = stream(path, channel="mix", augmentation=silent).examples_at(0, 1)
    assert silenced.prompt.length == example.prompt.length
    assert (silenced.prompt.chunks[0] == silenced.prompt.chunks[0][0, 0]).all()


def test_history_reasoning_stays_where_the_policy_was_trained_with_it(tmp_path):
    path = tmp_path / "prompts.jsonl"
    turns = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "reasoning_content": "pondering", "content": "Yes."},
        {"role": "user", "content": "Who?"},
    ]
    path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    without, kept = (
        base().tokenizer.decode(
            stream(path, history_reasoning=kept).examples_at(0, 1)[0].prompt.tokens.tolist()
        )
        for kept in (False, True)
    )
    assert "pondering" in kept
    assert "pondering" not in without
