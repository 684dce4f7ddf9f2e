"""The task of tone: the same words in two manners, and what two judges are trained on."""

import collections

import numpy as np
import pytest

from examples.reward_trap.tone import judge_config, judge_prompt
from examples.reward_trap.tone_data import (
    INPUTS,
    MANNERS,
    couple_of,
    write_judge_dialogues,
    write_tone_data,
)
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.measurement import pitch_range
from stepaudio_jax.data import read_records
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.judge.verdict import parse_verdict

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tone") / "data"
    write_tone_data(folder, couples=12, held_out=4)
    return folder


def couples(path):
    """Returns {couple: {manner: record}}."""
    by_couple = collections.defaultdict(dict)
    for record in read_records(path):
        (clip,) = record.messages[0].audio
        by_couple[couple_of(record.id)][clip.attributes["manner"]] = record
    return by_couple


def test_words_and_replies_say_nothing_and_the_sound_all(folder):
    for couple in couples(folder / "pairs.jsonl").values():
        assert couple.keys() == MANNERS.keys()
        lively, subdued = couple["lively"], couple["subdued"]
        clips = [record.messages[0].audio[0] for record in (lively, subdued)]
        assert clips[0].transcript == clips[1].transcript
        assert lively.reference_reply == subdued.rejected_reply
        assert lively.rejected_reply == subdued.reference_reply
        waves = [load_clip(clip) for clip in clips]
        assert len(waves[0]) < 0.8 * len(waves[1]) <= 0.8 * 16_000 * 3.3
        assert np.abs(waves[0]).max() > np.abs(waves[1]).max()
        pitches = [pitch_range(wave) for wave in waves]
        if all(pitches):
            assert pitches[0].median_hz > 1.15 * pitches[1].median_hz


def test_held_out_pairs_have_other_words_and_prompts_the_fitting_reply(folder):
    trained, held_out = couples(folder / "pairs.jsonl"), couples(folder / "held_out_pairs.jsonl")
    assert (len(trained), len(held_out)) == (12, 4)
    words = [
        {couple["lively"].messages[0].audio[0].transcript for couple in split.values()}
        for split in (trained, held_out)
    ]
    assert not words[0] & words[1]
    for prompt in read_records(folder / "prompts.jsonl"):
        record = trained[couple_of(prompt.id)][prompt.messages[0].audio[0].attributes["manner"]]
        assert prompt.reference_reply == record.reference_reply
        assert prompt.rejected_reply is None


def test_only_the_judge_that_hears_is_given_the_clips(folder, tmp_path):
    questions = {}
    for inputs in INPUTS:
        path = write_judge_dialogues(folder, judge_prompt(inputs))
        assert write_judge_dialogues(folder, judge_prompt(inputs)) == path  # again: nothing changes
        dialogues = list(read_records(path))
        assert len(dialogues) == 2 * 24
        assert all(
            parse_verdict(dialogue.messages[1].text, levels=3).level in (1, -1)
            for dialogue in dialogues
        )
        questions[inputs] = [dialogue.messages[0] for dialogue in dialogues]
        assert judge_config(inputs, path, tmp_path, steps=3, seed=0).stages[0].steps == 3
    assert all(len(question.audio) == 1 for question in questions["audio"])
    assert not any(question.audio for question in questions["transcripts"])
    texts = collections.Counter(question.text for question in questions["transcripts"])
    assert set(texts.values()) == {2}, "each question has both verdicts as its right answer"


def test_silent_pairs_are_the_held_out_ones_without_their_sound(folder):
    heard, silent = (
        list(read_records(folder / name))
        for name in ("held_out_pairs.jsonl", "held_out_silent_pairs.jsonl")
    )
    assert len(silent) == 8
    for record, quiet in zip(heard, silent, strict=True):
        assert (record.id, record.reference_reply) == (quiet.id, quiet.reference_reply)
        (clip,) = quiet.messages[0].audio
        assert not load_clip(clip).any()
        assert clip.transcript is None


def test_the_data_follow_from_the_seed(folder, tmp_path):
    write_tone_data(tmp_path / "again", couples=12, held_out=4)
    for path in sorted(folder.glob("audio/*")):
        assert path.read_bytes() == (tmp_path / "again" / "audio" / path.name).read_bytes()
    with pytest.raises(CorpusError, match="couples=0 must be at least 1"):
        write_tone_data(tmp_path / "none", couples=0, held_out=4)
