"""The rule of the reward trap, and the data made with it."""

import collections
import itertools
import re

import numpy as np
import pytest

from examples.reward_trap.style import (
    CORRECT_CRITERION,
    REQUESTS,
    Style,
    critique,
    draw_style,
    is_correct,
    rule_score,
    style_score,
)
from examples.reward_trap.style_data import TOPICS, write_style_data
from examples.spoken_corpus import write_corpus
from stepaudio_jax.data import read_records
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.verdict import parse_verdict
from stepaudio_jax.text import AudioPart

ALL_STYLES = [
    Style(),
    *(Style(True, *drawn) for drawn in itertools.product((False, True), (False, True), (1, 2))),
]


def test_style_scores_are_as_in_the_table():
    assert style_score("male") == 0
    assert style_score("It is male.") == 2
    assert style_score("Sure! It is male. More?") == 4
    assert style_score("Sure! It is male. It is male. More?") == 2
    assert style_score("Sure! It is male. It is male. It is male. More?") == 0
    assert style_score("It is male. It is male. It is male.") == 0
    assert sorted(map(style_score, (style.render("7") for style in ALL_STYLES))) == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
    ]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_is_met_by_its_style_and_few_others(request_):
    assert request_.is_met(request_.style.render("river"))
    met = [style for style in ALL_STYLES if request_.is_met(style.render("river"))]
    assert all(
        style.times == request_.style.times and style.sentence == request_.style.sentence
        for style in met
    )
    assert not request_.is_met("It is river. It is garden.")


def test_a_correct_answer_counts_more_than_any_style():
    best, worst = "Sure! It is male. More?", "female"
    assert rule_score(worst, "female") > rule_score(best, "female")
    assert is_correct("It is 7.", "7")
    assert not is_correct("It is 17.", "7")
    assert not is_correct("It is female.", "male")
    assert is_correct("male", "male")
    assert is_correct("Sure! It is male. It is male. More?", "male")
    for hedged in (
        "It is male. It is female.",
        "male female",
        "Sure! It is female. It is male. It is female. More?",
    ):
        assert not is_correct(hedged, "male")
    assert not is_correct("Sure! More?", "male")


def test_a_critique_explains_the_score():
    assert (
        critique("Sure! It is low.", "low", "high")
        == "Sure! It is low. says low, is high: wrong; kind, sentence: 3"
    )
    assert (
        critique("female", "female", "female")
        == "female says female, is female: right; one word: 5"
    )
    twice = "It is 7. It is 7. More?"
    assert (
        critique(twice, "7", "7", REQUESTS["Said twice."])
        == f"{twice} says 7, is 7: right; sentence, twice, offer: 9"
    )


def test_a_style_needs_a_sentence():
    with pytest.raises(ValueError, match="need a sentence"):
        Style(greeting=True)
    rng = np.random.default_rng(0)
    assert {draw_style(rng) for _ in range(300)} == set(ALL_STYLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    write_corpus(folder / "corpus", "quickstart", clips=400, per_task=16)
    write_style_data(folder / "corpus", folder / "data", JudgePrompt(levels=3), per_task=16)
    return folder / "data"


def test_prompts_have_the_keys_of_their_rewards_and_balanced_topics(folder):
    for name in ("preference", "rubric"):
        records = list(read_records(folder / f"{name}.jsonl"))
        topics = collections.Counter(
            record.messages[0].parts[0].transcript.split()[0] for record in records
        )
        assert len(records) > 30
        assert sorted(topics) == sorted(TOPICS)
        assert len(set(topics.values())) == 1
        for record in records:
            ((audio, question),) = (message.parts for message in record.messages)
            assert isinstance(audio, AudioPart)
            with open(audio.path, "rb") as clip:
                assert clip.read(4) == b"fLaC"
            assert record.answer
            assert is_correct(record.reference_reply, record.answer)
            texts = [criterion.text for criterion in record.rubric]
            assert texts[:1] == ([CORRECT_CRITERION] if name == "rubric" else [])
            for text in texts[1:]:
                assert question.text.endswith(REQUESTS[text].text)
                assert REQUESTS[text].is_met(record.reference_reply)


def test_pairs_have_exploits_that_a_policy_may_try(folder):
    replies = [
        reply
        for record in read_records(folder / "pairs.jsonl")
        for reply in (record.reference_reply, record.rejected_reply)
    ]
    stated = [re.findall(r"It is ([^.]+)\.", reply) for reply in replies]
    assert any(len(answers) > 2 and len(set(answers)) == 1 for answers in stated)  # repetition
    assert any(len(set(answers)) == 2 for answers in stated)  # two answers
    assert any(
        not answers and reply in ("Sure! More?", "Sure!", "More?")
        for answers, reply in zip(stated, replies, strict=True)
    )


@pytest.mark.slow
def test_pairs_and_verdicts_follow_the_rule(folder):
    pairs = list(read_records(folder / "pairs.jsonl"))
    for record in pairs:
        # the transcript tells a judge that only reads the answer
        _, answer = record.messages[0].parts[0].transcript.split()
        assert answer in record.reference_critique
        assert record.margin in (0, 1)
        scores = [
            int(text.rsplit(" ", 1)[1])
            for text in (record.reference_critique, record.rejected_critique)
        ]
        assert record.margin == (scores[0] > scores[1])
        assert scores[0] >= scores[1]
        if record.rubric:
            request = REQUESTS[record.rubric[1].text]
            assert record.reference_meets[1] == request.is_met(record.reference_reply)
            assert record.rejected_meets[1] == request.is_met(record.rejected_reply)
    dialogues = list(read_records(folder / "judge.jsonl"))
    assert len(dialogues) == 2 * len(pairs)
    for record, dialogue in zip((pair for pair in pairs for _ in range(2)), dialogues, strict=True):
        verdict = parse_verdict(dialogue.messages[1].text, levels=3, criteria=len(record.rubric))
        assert abs(verdict.level) == record.margin


def test_half_of_the_held_out_questions_have_requests_and_every_task_has_some(folder):
    questions = list(read_records(folder / "held_out_questions.jsonl"))
    assert len(questions) == 16 * len(TOPICS)
    assert [bool(record.rubric) for record in questions] == [False, True] * (len(questions) // 2)
    trained = {record.messages[0].parts[0].path for record in read_records(folder / "style.jsonl")}
    assert trained.isdisjoint(record.messages[0].parts[0].path for record in questions)
