"""Lettered lines, right letters, and replies that repeat the question."""

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.multiple_choice import (
    choices_of,
    option_lines,
    right_letters,
    strict_choice,
    without_letters,
)


def test_blank_options_have_no_line_and_keep_their_letter():
    assert option_lines(["one ", "", None, "four"]) == "A. one\nD. four\n"


def test_letters_inside_options_are_removed_where_all_have_their_own():
    assert without_letters(["(A) Man", "(B) Woman"]) == ["Man", "Woman"]
    for choices in (["(A) Man", "Woman"], ["(B) Man", "(A) Woman"], ["(A)Man", "(C)x"]):
        assert without_letters(choices) == choices
    assert without_letters(["(A) Man", None, "(C) Child"]) == ["Man", None, "Child"]


@pytest.mark.parametrize(
    ("answer", "choices", "letters"),
    [
        ("Cat", ["Dog", "Cat", "cat "], "BC"),
        (" Cat", ["Dog", "Cat"], "B"),
        ("(B) Cat", ["(A) Dog", "(B) Cat"], "B"),
        ("B", ["Dog", "Cat"], "B"),
        ("b", ["Dog", "Cat"], "B"),
        ("B", ["B", "Cat"], "A"),
        ("D", ["C", "D", "G", "A"], "B"),
        ("!", ["!", "?"], "A"),
    ],
)
def test_right_letters_are_those_of_the_answers_text(answer, choices, letters):
    assert right_letters(answer, choices) == set(letters)


@pytest.mark.parametrize("answer", ["Bird", "C", "D", "?"])
def test_an_answer_that_is_no_choice_is_an_error(answer):
    with pytest.raises(DataError, match="none of the choices"):
        right_letters(answer, ["Dog", "Cat", "", None])


def test_choices_may_be_written_as_a_text():
    assert choices_of({"choices": "['Dog', 'Cat']"}) == ["Dog", "Cat"]
    for choices in ("Dog\nCat", 3, [1, 2], {"A": "Dog"}):
        with pytest.raises(DataError, match="'choices' must be a list of texts"):
            choices_of({"choices": choices})


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        ("How many cats are there? two", "correct"),
        ("Question: How many cats are there?\nB", "correct"),
        ("<think>one</think>how many CATS are there\n\ntwo cats", "correct"),
        ("How many cats are there?", "unparsed"),
        ("How many cats are there? one", "wrong"),
        (None, "unparsed"),
        ("<think>two", "unparsed"),
    ],
)
def test_a_repeated_question_says_nothing(output, outcome):
    strict = strict_choice(
        output, ["one", "two", "many cats"], "two", question="How many cats are there?"
    )
    assert strict.outcome == outcome
