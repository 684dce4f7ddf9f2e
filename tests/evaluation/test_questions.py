"""Questions put to models whose answers are known."""

import json

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.clips import load_silence
from stepaudio_jax.errors import DataError, GenerationError
from stepaudio_jax.evaluation import (
    answer_at_temperatures,
    answer_questions,
    read_questions,
    score,
)
from stepaudio_jax.generation import build_record_prompt
from tests.evaluation.constant_model import (
    replying,
    tokenizer_with_think_end,
    with_random_parameters,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_with_think_end(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tones, and three tasks about them: one clip, text only, two turns with a clip each."""
    folder = tmp_path_factory.mktemp("questions")
    for name, frequency_hz in (("a", 300), ("b", 3000)):
        waveform = 0.1 * np.sin(2 * np.pi * frequency_hz * np.arange(5000) / SAMPLE_RATE)
        soundfile.write(folder / f"{name}.wav", waveform.astype(np.float32), SAMPLE_RATE)
    heard = {
        name: [{"type": "audio", "audio": f"{name}.wav"}, {"type": "text", "text": "Who?"}]
        for name in ("a", "b")
    }
    ask = {name: {"role": "user", "content": content} for name, content in heard.items()}
    given = {"role": "assistant", "reasoning_content": "never shown", "content": "Okay"}
    records = {
        "clip": [[ask["a"]], [ask["b"]], [ask["a"]], [ask["b"]]],
        "text": [[{"role": "user", "content": "One or two?"}]] * 2,
        "turns": [[ask["a"], given, ask["b"]], [ask["b"], given, ask["a"]]],
    }
    for task, dialogues in records.items():
        lines = [
            {"messages": messages, "source": task, "answer": "Wide" if number % 2 else "big"}
            for number, messages in enumerate(dialogues)
        ]
        (folder / f"{task}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="module")
def questions(folder):
    return read_questions(folder / f"{task}.jsonl" for task in ("clip", "text", "turns"))


@pytest.mark.slow
def test_a_constant_reply_is_right_as_often_as_chance(tokenizer, questions):
    answers = answer_questions(
        replying(tokenizer, "So", "wide."), questions, max_new_tokens=12, slots=4
    )
    assert [answer.question for answer in answers] == questions
    assert all(
        answer.parsed.reply == "wide." and answer.parsed.reasoning == "So" for answer in answers
    )
    assert [answer.correct for answer in answers] == [False, True] * 4
    for task, n in (("clip", 4), ("text", 2), ("turns", 2)):
        found = score(answers)[task]
        assert (found.n, found.correct, found.well_formed, found.chance) == (n, n // 2, n, 0.5)


def test_a_reply_without_end_is_truncated_and_malformed(tokenizer, questions):
    answers = answer_questions(
        replying(tokenizer, "So", "wide", ends=False), questions[:2], max_new_tokens=7
    )
    assert [answer.parsed.reply for answer in answers] == ["wide"] * 2
    assert [answer.parsed.problems for answer in answers] == [("not_ended",)] * 2
    assert score(answers)["clip"].correct == score(answers)["clip"].well_formed == 0


def test_a_silenced_prompt_has_the_same_tokens_and_a_constant_spectrum(tokenizer, questions):
    model = replying(tokenizer, "So", "wide")
    for question in questions:
        heard, silent = (
            build_record_prompt(model, question),
            build_record_prompt(model, question, read=load_silence),
        )
        np.testing.assert_array_equal(heard.tokens, silent.tokens)
        assert [chunk.shape for chunk in heard.chunks] == [chunk.shape for chunk in silent.chunks]
        assert len(heard.chunks) == {"clip": 1, "text": 0, "turns": 2}[question.source]
        assert all(np.ptp(chunk) > 0.1 for chunk in heard.chunks)
        assert all((chunk == -1.5).all() for chunk in silent.chunks)  # (log10(1e-10) + 4) / 4


def test_a_model_that_uses_the_audio_scores_less_on_silence(tokenizer, questions):
    model = with_random_parameters(replying(tokenizer, "So", "wide"), seed=5)
    about_clips = [question for question in questions if question.source == "clip"]
    a, b, a_again, _ = (
        answer.parsed for answer in answer_questions(model, about_clips, max_new_tokens=12)
    )
    assert a == a_again
    assert a != b
    drawn, most_probable, again = answer_at_temperatures(
        (1.0, 0.0, 1.0), model, about_clips, max_new_tokens=12
    )
    assert drawn == again
    assert drawn[0].parsed != drawn[2].parsed  # the same question in another place
    assert [answer.parsed for answer in most_probable[:2]] == [a, b]
    silenced = [
        answer.parsed
        for answer in answer_questions(model, about_clips, max_new_tokens=12, silenced=True)
    ]
    assert len(set(silenced)) == 1


def test_silence_leaves_out_questions_without_sound(tokenizer, questions):
    answers = answer_questions(
        replying(tokenizer, "So", "wide"), questions, max_new_tokens=12, silenced=True
    )
    assert [answer.question.source for answer in answers] == ["clip"] * 4 + ["turns"] * 2
    text_only = [question for question in questions if question.source == "text"]
    assert answer_questions(replying(tokenizer, "So", "wide"), text_only, silenced=True) == []


def test_the_first_turn_is_given_with_its_sound_and_without_its_reasoning(tokenizer, questions):
    turns = next(question for question in questions if question.source == "turns")
    prompt = build_record_prompt(replying(tokenizer, "So", "wide"), turns)
    text = tokenizer.decode(
        [token for token in prompt.tokens if token != tokenizer.special.audio_patch]
    )
    clip = "<|BOT|>human\n<audio_start><audio_end>Who?<|EOT|>"
    assert text == f"{clip}<|BOT|>assistant\nOkay<|EOT|>{clip}<|BOT|>assistant\n<think>\n"


def test_a_question_without_answer_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    question = {"messages": [{"role": "user", "content": "Well?"}]}
    path.write_text(
        json.dumps(question | {"answer": "7"}) + "\n" + json.dumps(question) + "\n",
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=rf"{path}:2: has no 'answer'"):
        read_questions([path])


def test_a_file_without_records_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path}: has no records"):
        read_questions([path])


def test_an_answered_question_cannot_be_asked(tokenizer, tmp_path):
    path = tmp_path / "q.jsonl"
    messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "7"}]
    path.write_text(json.dumps({"messages": messages, "answer": "7"}), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path}:1: .*assistant"):
        answer_questions(replying(tokenizer, "So", "wide"), read_questions([path]))


def test_a_missing_clip_is_named(tokenizer, tmp_path):
    path = tmp_path / "q.jsonl"
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "gone.wav"}]}]
    path.write_text(json.dumps({"messages": messages, "answer": "7"}), encoding="utf-8")
    for silenced in (False, True):
        with pytest.raises(DataError, match=rf"{path}:1: .*gone\.wav.*does not exist"):
            answer_questions(
                replying(tokenizer, "So", "wide"), read_questions([path]), silenced=silenced
            )


def test_a_question_that_does_not_fit_the_model_is_named(tokenizer, questions):
    with pytest.raises(GenerationError, match=r"clip\.jsonl:1: .*positions"):
        answer_questions(replying(tokenizer, "So", "wide"), questions, max_new_tokens=250)


def test_no_questions_are_no_answers(tokenizer):
    assert answer_questions(replying(tokenizer, "So", "wide"), []) == []
