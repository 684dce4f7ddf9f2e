"""Verifiers on replies that are right, wrong, and nearly right."""

import pytest

from stepaudio_jax.rl.verifiers import check_answer, find_verifier, format_reward, overlong_penalty
from stepaudio_jax.text import ParsedReply


@pytest.mark.parametrize(
    ("verifier", "reply", "answer", "right"),
    [
        ("exact_text", " A red  Fox. ", "a red fox", True),
        ("exact_text", "a red foxes", "a red fox", False),
        ("exact_text", "", "a", False),
        ("number", "3 and 4 make 7.", "7", True),
        ("number", "It is 1,000.", "1000", True),
        ("number", "2.50", "2.5", True),
        ("number", "-3", "3", False),
        ("number", "17", "7", False),
        ("number", "seven", "7", False),
        ("number", "7 or 8", "7", False),
        ("choice", "The answer is (B).", "B", True),
        ("choice", "B", "b", True),
        ("choice", "A. No, it is C", "C", True),
        ("choice", "Apples", "A", False),
        ("choice", "BC", "B", False),
        ("choice", "I think so", "I", False),
        ("choice", "(B) A dog is barking.", "B", True),
        ("choice", "(B) A dog is barking.", "A", False),
        ("choice", "The answer is B. I am sure.", "B", True),
        ("choice", "B. A woman", "B", True),
        ("choice", "(b)", "B", True),
        ("choice", "A dog barking", "(B) A dog barking", True),
        ("number", "1990-1995", "-1995", False),
        ("number", "COVID-19", "-19", False),
        ("number", ".5", "0.5", True),
        ("number", "about 10-12", "12", False),
        ("number", "10 to 12", "10-12", True),
        ("yes_or_no", "**Yes**", "yes", True),
        ("yes_or_no", "对啊", "对", True),
        ("yes_or_no", "不是的", "不是", True),
        ("exact_text", "Cafe\u0301", "Café", True),
        ("yes_or_no", "Yes, it is.", "yes", True),
        ("yes_or_no", "No.", "yes", False),
        ("yes_or_no", "Nobody knows", "no", False),
        ("yes_or_no", "incorrect", "no", False),
        ("yes_or_no", "不是", "no", True),
        ("yes_or_no", "是", "yes", True),
        ("yes_or_no", "是的，是他", "yes", True),
        ("yes_or_no", "不，不是", "no", True),
        ("yes_or_no", "Yes! It is", "yes", True),
        ("yes_or_no", "不知道", "no", False),
        ("number", "About 10 percent", "10%", True),
        ("choice", "It is (B)", "(B) cats", True),
        ("pattern", "cat 12", r"cat \d+", True),
        ("pattern", "a cat 12", r"cat \d+", False),
    ],
)
def test_verifiers_accept_right_replies_and_reject_wrong_ones(verifier, reply, answer, right):
    assert find_verifier(verifier)(reply, answer) is right


@pytest.mark.parametrize(
    ("verifier", "answer", "problem"),
    [
        ("exact_text", " ", "no reply can be right"),
        ("number", "seven", "must have one number, and has 0"),
        ("number", "7 or 8", "must have one number, and has 2"),
        ("choice", "cats", "must have one letter, and has none that is clear"),
        ("choice", "A dog barking", "must have one letter, and has none that is clear"),
        ("number", "10:30", "must have one number, and has 2"),
        ("yes_or_no", "perhaps", "no reply can be right"),
        ("pattern", "(", "is no regular expression"),
    ],
)
def test_an_answer_that_no_reply_can_match_is_an_error(verifier, answer, problem):
    with pytest.raises(ValueError, match=problem):
        check_answer(verifier, answer)


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "(B) A dog barking", "B. A dog", "b) a dog", "(B) It is not A", "（B）狗叫"],
)
def test_answers_in_the_form_of_benchmarks_are_accepted(answer):
    check_answer("choice", answer)
    assert find_verifier("choice")("The answer is B.", answer)
    assert not find_verifier("choice")("The answer is A.", answer)


def test_an_answer_for_a_custom_verifier_may_be_anything():
    check_answer("operator:eq", "")


def test_custom_verifiers_are_found_and_wrong_names_are_errors():
    assert find_verifier("operator:eq")("a", "a")
    wrong = {
        "numbr": "is none of",
        "nowhere:f": "No module",
        "operator:nothing": "no attribute",
        "os:sep": "not a function",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            find_verifier(name)


def test_format_reward_needs_a_reasoning_and_no_problem():
    assert format_reward(ParsedReply("because", "yes")) == 1
    assert format_reward(ParsedReply(" ", "yes")) == 0
    assert format_reward(ParsedReply("because", "yes", problems=("not_ended",))) == 0


def test_the_overlong_penalty_falls_linearly():
    assert [
        overlong_penalty(tokens, free_tokens=100, max_tokens=200)
        for tokens in (0, 100, 150, 200, 900)
    ] == [0, 0, -0.5, -1, -1]
    with pytest.raises(ValueError, match="free_tokens=200 must lie between 0 and max_tokens=200"):
        overlong_penalty(1, free_tokens=200, max_tokens=200)
