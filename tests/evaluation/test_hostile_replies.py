"""No reply makes a rule fail or hang: random text, huge text, deep nesting."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.tasks import make_task

ITEMS = {
    "mmau_mini": {
        "question": "Which of them is it?",
        "choices": ["A dog", "B flat", "nine", "", "first and second", "D", "(((", "苹果和香蕉"],
        "answer": "nine",
    },
    "mmsu": {
        "question": "Which?",
        "choice_a": "C",
        "choice_b": "one hundred",
        "choice_c": None,
        "choice_d": None,
        "answer_gt": "C",
    },
    "mmar": {"question": "什么？", "choices": ["一个", "Two ", "3.5 m"], "answer": "3.5 m"},
    "spoken_mqa": {
        "split": "multi_step_reasoning",
        "question": "How many meters in 2 hours?",
        "answer": ["0.375", "12"],
    },
}
PIECES = st.sampled_from(
    [
        *string.ascii_uppercase[:9],
        *"abi 12.,-:()/\\{}*_\"'\n?!#$%=~<>^ ",
        *("不是", "对", "答案是", "选", "和", "一百", "点", "分之", "½", "−", "Ｂ", "\ufeff", "²"),
        *("The answer is ", "answer: ", "not ", "but ", " or ", " and ", "wait, ", "so "),
        *("\\boxed{", "<think>", "</think>", "<answer>", "</answer>", "```", "**", "~~", "####"),
        *("twenty", "-", " hundred ", "point five", "half", "dozen", "1e9", "99999999999", "1/0"),
        *("A. ", "(B) ", "Option C", "the third option", "hours", " cm", "10^", "\\frac{1}{0}"),
        *("dog ", "flat ", "nine ", "first ", "second ", "which of them is it ", "\u202e", "\x00"),
    ]
)
HUGE = {
    "letters": "A" * 10_000_000,
    "choices": "A. " * 3_000_000,
    "digits": "9" * 10_000_000,
    "numbers": "12 " * 3_000_000,
    "slashes": "1/" * 5_000_000,
    "triggers": "The answer is " * 700_000,
    "lines": "\n" * 10_000_000,
    "boxes": "\\boxed{" * 1_000_000,
    "braces": "{" * 5_000_000 + "}" * 5_000_000,
    "tags": "<answer>" * 1_000_000,
    "thoughts": "<think>" * 1_000_000 + "</think>" * 1_000_000,
    "words": "twenty " * 1_000_000,
    "numerals": "一" * 3_000_000,
    "struck": "~~" * 5_000_000,
    "brackets": "(" * 5_000_000,
    "question": "which " * 1_000_000,
    "quotes": '"' * 10_000_000,
    "spaces": " " * 9_999_999 + "B",
}


def score(name, output):
    task = make_task(name)
    strict = task.strict(ITEMS[name], output)
    assert strict.outcome in ("correct", "wrong", "unparsed")
    assert (strict.answer is None) == (strict.outcome == "unparsed")
    assert task.official(ITEMS[name], output) in ("correct", "wrong", "dropped")
    return strict


@pytest.mark.parametrize("name", ITEMS)
@settings(deadline=None, max_examples=120, derandomize=True, database=None)
@given(output=st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=60)))
def test_no_random_reply_makes_a_rule_fail(name, output):
    score(name, output)
    score(name, f"<think>{output}</think>{output}")


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "thoughts" else pytest.param(kind, marks=pytest.mark.slow) for kind in HUGE],
)
def test_huge_replies_are_scored(kind):
    for name in ITEMS:
        score(name, HUGE[kind])


def test_an_answer_at_the_end_of_a_huge_reply_is_read():
    assert score("mmau_mini", "noise " * 1_000_000 + "\nThe answer is C.").outcome == "correct"
    reasoning = "<think>" + "B or C? " * 1_000_000 + "</think>"
    assert score("mmau_mini", f"{reasoning}\nC").outcome == "correct"
    assert score("spoken_mqa", f"{reasoning}\n#### 12").outcome == "correct"
