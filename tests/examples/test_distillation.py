"""Half of a model, and the turns of a dialogue that a teacher by transcript can teach."""

import json

import jax
import numpy as np

from examples.distillation import distillation_config, save_half, write_word_turns
from stepaudio_jax.config import Distillation, load_config
from stepaudio_jax.data import read_records
from stepaudio_jax.generation import load_model
from tests.end_to_end.runs import ROOT
from tests.rl.small_stage import base


def test_a_student_has_every_other_layer(tmp_path):
    save_half(base(), tmp_path / "half")
    student = load_model(tmp_path / "half", "float32")
    assert student.config.decoder.layers == 2
    teacher, half = base().parameters["decoder"], student.parameters["decoder"]
    for name, leaves in (("layers", slice(0, 4, 2)), ("norm", slice(None))):
        for ours, theirs in zip(
            jax.tree.leaves(half[name]), jax.tree.leaves(teacher[name]), strict=True
        ):
            np.testing.assert_array_equal(ours, np.asarray(theirs)[leaves])


def test_turns_about_the_voice_are_not_learnt_by_transcript(tmp_path):
    clip = {"type": "audio", "audio": "../audio/a.flac", "transcript": "the tiger is red"}

    def turns(*answers):
        return [
            turn
            for number, answer in enumerate(answers)
            for turn in (
                {"role": "user", "content": [clip] if number == 0 else "And?"},
                {"role": "assistant", "content": answer, "reasoning_content": "I hear it."},
            )
        ]

    source = tmp_path / "corpus" / "train"
    source.mkdir(parents=True)
    lines = [{"messages": turns(*answers)} for answers in (("high", "red"), ("female",), ("7",))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (source / "audio_qa.jsonl").write_text(text, encoding="utf-8")
    write_word_turns(source, tmp_path / "words")
    first, second = read_records(tmp_path / "words" / "audio_qa.jsonl")
    assert [message.in_loss for message in first.messages if message.role == "assistant"] == [
        False,
        True,
    ]
    assert first.messages[0].audio[0].path == str(tmp_path / "corpus" / "audio" / "a.flac")
    assert second.messages[1].text == "7"


def test_the_run_measures_the_student_before_it_changes(tmp_path):
    config = load_config(str(ROOT / "configs" / "quickstart.py"))
    run = distillation_config(
        *(config, tmp_path / "words", tmp_path / "teacher", tmp_path / "student", tmp_path / "run"),
        "transcripts",
    )
    before, distil = run.stages
    assert before.steps == 1
    # A parameter of 1e-20 is the smallest that this rate could change.
    assert before.optimizer.learning_rate < 1e-20
    for stage in run.stages:
        assert stage.objective == Distillation(
            teacher=str(tmp_path / "teacher"), teacher_inputs="transcripts"
        )
        assert stage.data.augmentation.silence_probability == 0
        assert stage.data.sources[0].path == str(tmp_path / "words" / "train" / "audio_qa.jsonl")
    assert distil.steps == config.stages[0].steps
