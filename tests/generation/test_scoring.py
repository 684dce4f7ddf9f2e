"""Scores of given replies against a torch composition that is taught the same tokens."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax.errors import DataError, GenerationError, TextError
from stepaudio_jax.generation import Scorer, score_file
from stepaudio_jax.text import Message, TextPart
from tests.generation.job_files import (
    list_files,
    read_lines,
    scored,
    small_loaded_model,
    write_lines,
)
from tests.generation.small_model import (
    BYTES,
    CONFIG,
    TorchDialogue,
    peaked_parameters,
    user,
    write_clip,
)
from tests.models.random_model import FLOAT32

SPECIAL = BYTES.special


def assistant(reply, reasoning=None, in_loss=True):
    return Message(role="assistant", parts=(TextPart(reply),), reasoning=reasoning, in_loss=in_loss)


def expected_scores(prompt, written):
    """Returns the ids and log p of each token that follows a prompt written by hand."""
    start = len(prompt.tokens)
    prompt.write(*written)
    ids = prompt.tokens[start:]
    return ids, prompt.logprobs()[start - 1 : -1][np.arange(len(ids)), ids]


@pytest.mark.parametrize("convention", [pytest.param("hf", marks=pytest.mark.slow), "vllm"])
def test_two_turns_with_audio_and_reasoning_equal_torch(tmp_path, convention):
    """The second turn is conditioned on the first one's reply, and not on its reasoning.

    0.57 s has 59 mel frames, for which the two conventions count 7 and 8 audio tokens.
    """
    config = dataclasses.replace(CONFIG, length_convention=convention)
    parameters = peaked_parameters(config)
    clips = [
        write_clip(tmp_path / f"{seed}.wav", seconds, seed)
        for seed, seconds in enumerate((0.57, 0.4))
    ]
    messages = [
        Message(role="system", parts=(TextPart("Be brief."),)),
        user("What ", clips[0], "?"),
        assistant("high", "I hear it.", in_loss=False),  # scored whether or not it is learnt
        user(clips[1], "and 现在?"),
        assistant("low ☂", "Lower."),
    ]
    first = TorchDialogue(parameters, config).write(
        SPECIAL.bot, "system\nBe brief.", SPECIAL.eot, SPECIAL.bot, "human\nWhat "
    )
    first.hear(clips[0]).write("?", SPECIAL.eot, SPECIAL.bot, "assistant\n<think>\n")
    assert first.tokens.count(SPECIAL.audio_patch) == {"hf": 7, "vllm": 8}[convention]
    second = TorchDialogue(parameters, config).write(
        SPECIAL.bot, "system\nBe brief.", SPECIAL.eot, SPECIAL.bot, "human\nWhat "
    )
    second.hear(clips[0]).write(
        "?", SPECIAL.eot, SPECIAL.bot, "assistant\nhigh", SPECIAL.eot, SPECIAL.bot, "human\n"
    )
    second.hear(clips[1]).write("and 现在?", SPECIAL.eot, SPECIAL.bot, "assistant\n<think>\n")
    expected = [
        expected_scores(first, ["I hear it.\n</think>\nhigh", SPECIAL.eot]),
        expected_scores(second, ["Lower.\n</think>\nlow ☂", SPECIAL.eot]),
    ]
    scores = Scorer(config, parameters, BYTES, compute=FLOAT32).score(messages)
    assert [list(score.token_ids) for score in scores] == [ids for ids, _ in expected]
    for score, (_, logprobs) in zip(scores, expected, strict=True):
        np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)
        assert np.ptp(logprobs) > 1  # a comparison of equal numbers would show little


def test_a_turn_without_reasoning_is_scored_with_an_empty_one():
    parameters = peaked_parameters()
    prompt = TorchDialogue(parameters).write(
        SPECIAL.bot, "human\n2+2?", SPECIAL.eot, SPECIAL.bot, "assistant\n<think>\n"
    )
    ids, logprobs = expected_scores(prompt, ["\n</think>\n4", SPECIAL.eot])
    (score,) = Scorer(CONFIG, parameters, BYTES, compute=FLOAT32).score(
        [user("2+2?"), assistant("4")]
    )
    assert list(score.token_ids) == ids
    np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)


def test_a_greeting_is_history_and_past_reasoning_stays_where_the_model_was_trained_so():
    parameters = peaked_parameters()
    messages = [
        assistant("Hello!"),
        user("2+2?"),
        assistant("4", "Two, two."),
        user("And 1?"),
        assistant("5", "One more."),
    ]
    start = (
        SPECIAL.bot,
        "assistant\n<think>\n\n</think>\nHello!",
        SPECIAL.eot,
        SPECIAL.bot,
        "human\n2+2?",
        SPECIAL.eot,
    )
    turns = ["assistant\n<think>\nTwo, two.\n</think>\n4", "human\nAnd 1?"]
    prompt = TorchDialogue(parameters).write(*start)
    for turn in turns:
        prompt.write(SPECIAL.bot, turn, SPECIAL.eot)
    ids, logprobs = expected_scores(
        prompt.write(SPECIAL.bot, "assistant\n<think>\n"), ["One more.\n</think>\n5", SPECIAL.eot]
    )
    scores = Scorer(CONFIG, parameters, BYTES, compute=FLOAT32, history_reasoning=True).score(
        messages
    )
    assert len(scores) == 2
    assert list(scores[1].token_ids) == ids
    np.testing.assert_allclose(scores[1].logprobs, logprobs, atol=1e-4)


def test_a_long_dialogue_is_scored_in_parts():
    """384 tokens and more are padded to 512, whose logits are computed 256 tokens at a time."""
    parameters, question = peaked_parameters(), "and then? " * 36
    prompt = TorchDialogue(parameters).write(
        SPECIAL.bot, f"human\n{question}", SPECIAL.eot, SPECIAL.bot, "assistant\n<think>\n"
    )
    ids, logprobs = expected_scores(prompt, ["\n</think>\n4", SPECIAL.eot])
    assert len(prompt.tokens) > 384
    (score,) = Scorer(CONFIG, parameters, BYTES, compute=FLOAT32).score(
        [user(question), assistant("4")]
    )
    assert list(score.token_ids) == ids
    np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)


def test_dialogues_that_cannot_be_scored_are_refused():
    scorer = Scorer(CONFIG, peaked_parameters(), BYTES, compute=FLOAT32)
    with pytest.raises(TextError, match="no assistant turn"):
        scorer.score([user("2+2?")])
    with pytest.raises(
        GenerationError, match="more than the model's 400 positions; shorten the dialogue"
    ):
        scorer.score([user("2+2? " * 80), assistant("4")])


@pytest.fixture(scope="module")
def model():
    return small_loaded_model()


def test_scores_are_those_of_the_scorer(model, tmp_path):
    given = write_lines(tmp_path / "d.jsonl", scored("1+1?", "2"), scored("x?", "y", "z?", "é"))
    assert score_file(model, given, tmp_path / "scores.jsonl") == 2
    first, second = read_lines(tmp_path / "scores.jsonl")
    assert (first["id"], second["id"]) == ("d:1", "d:2")
    scorer = Scorer(CONFIG, model.parameters, BYTES, compute=FLOAT32)
    turns = [
        user("x?"),
        Message("assistant", (TextPart("y"),)),
        user("z?"),
        Message("assistant", (TextPart("é"),)),
    ]
    for written, score in zip(second["turns"], scorer.score(turns), strict=True):
        assert written["token_ids"] == list(score.token_ids)
        np.testing.assert_allclose(written["logprobs"], score.logprobs, rtol=1e-6)


def test_interrupted_scoring_continues_where_it_stopped(model, tmp_path, monkeypatch):
    given = write_lines(
        tmp_path / "d.jsonl", scored("1+1?", "2"), scored("1+1?", "3"), scored("1+1?", "4")
    )
    score_file(model, given, tmp_path / "unbroken.jsonl")
    score, scored_dialogues = Scorer.score, []

    def interrupt(self, messages, **settings):
        scored_dialogues.append(messages)
        if len(scored_dialogues) == 2:
            raise KeyboardInterrupt
        return score(self, messages, **settings)

    monkeypatch.setattr(Scorer, "score", interrupt)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, given, tmp_path / "scores.jsonl")
    assert score_file(model, given, tmp_path / "scores.jsonl") == 3
    assert len(scored_dialogues) == 4
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert not (tmp_path / "scores.jsonl.partial").exists()


BAD_SCORE = {
    "not JSON": ("{", "d.jsonl:2: is not JSON"),
    "no reply": (scored("1+1?"), "d.jsonl:2: no assistant turn"),
    "too long": (scored("x" * 500, "2"), "d.jsonl:2: the dialogue has .* shorten the dialogue"),
}


@pytest.mark.parametrize("kind", BAD_SCORE)
def test_a_dialogue_that_cannot_be_scored_leaves_no_output(model, tmp_path, kind):
    """The first one was scored by then: neither its line nor the folders made for it stay."""
    line, message = BAD_SCORE[kind]
    given = write_lines(tmp_path / "d.jsonl", scored("1+1?", "2"), line)
    (tmp_path / "old.jsonl").write_text("kept")
    before = list_files(tmp_path)
    for output in ("new/folder/scores.jsonl", "old.jsonl"):
        with pytest.raises(DataError, match=message):
            score_file(model, given, tmp_path / output)
    assert list_files(tmp_path) == before
    assert (tmp_path / "old.jsonl").read_text() == "kept"
