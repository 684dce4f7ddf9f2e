"""Replies against answers, and the scores of tasks."""

import pytest

from stepaudio_jax.evaluation import normalize_answer, score
from tests.evaluation.answers import answer, answers


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Low", "low"),
        (" low\n", "low"),
        ("low.", "low"),
        ("LOW. ", "low"),
        ("low .", "low"),
        ("女。", "女"),
        ("Straße", "STRASSE"),
    ],
)
def test_case_white_space_and_a_final_full_stop_do_not_count(reply, expected):
    assert answer(expected, reply).correct


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("low..", "low"),
        ("low!", "low"),
        ("low pitch", "low"),
        ("lo w", "low"),
        (".low", "low"),
        ("1", "11"),
        ("11", "1"),
        ("1.5", "15"),
        ("", "low"),
        ("low\nhigh", "low"),
        ("７", "7"),
    ],
)
def test_other_differences_make_a_reply_wrong(reply, expected):
    assert not answer(expected, reply).correct


def test_only_one_final_full_stop_is_ignored():
    assert normalize_answer(" A b.. ") == "a b."


def test_a_malformed_reply_is_wrong_whatever_it_says():
    right_but_malformed = answer("low", "low", problems=("not_ended",))
    assert not right_but_malformed.correct
    found = score([right_but_malformed, answer("low", "low"), answer("high", "low")])["pitch"]
    assert (found.n, found.correct, found.well_formed) == (3, 1, 2)


def test_tasks_are_scored_apart_in_the_order_in_which_they_come():
    mixed = answers("rate", n=9, correct=6, values="abc") + answers("gender", n=4, correct=1)
    mixed.insert(2, mixed.pop())
    found = score(mixed)
    assert list(found) == ["rate", "gender"]
    assert (found["rate"].n, found["rate"].accuracy) == (9, 6 / 9)
    assert (found["gender"].n, found["gender"].accuracy) == (4, 1 / 4)


def test_chance_is_one_over_the_answers_where_they_are_equally_frequent():
    assert (
        score(answers("keyword", n=60, correct=0, values=[f"word{i}" for i in range(20)]))[
            "keyword"
        ].chance
        == 1 / 20
    )


def test_chance_is_what_the_best_constant_reply_reaches_where_they_are_not():
    expected = ["yes"] * 9 + ["no"]
    assert score([answer(value, "yes") for value in expected])["pitch"].chance == 0.9
    assert score([answer(value, "yes") for value in expected])["pitch"].accuracy == 0.9


def test_spellings_of_one_answer_are_one_answer():
    assert (
        score([answer("Red", "?"), answer("red.", "?"), answer("blue", "?")])["pitch"].chance
        == 2 / 3
    )


def test_chance_within_the_interval():
    assert score(answers("gender", n=200, correct=113))["gender"].interval_contains_chance
    assert not score(answers("gender", n=200, correct=115))["gender"].interval_contains_chance
    assert not score(answers("gender", n=200, correct=0))["gender"].interval_contains_chance


def test_grading_no_answers_gives_no_scores():
    assert score([]) == {}
