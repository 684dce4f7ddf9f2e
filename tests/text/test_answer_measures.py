"""Numbers in any notation: words, percentages, converted and compound units."""

import pytest

from stepaudio_jax.text.answers import NumberMatch, matches_number

ROPE = "A rope of seven point five meters is cut into three parts. How long is each?"
CAKE = "Which part of the cake does each get, as a decimal?"
FILM = "A film lasts some hours. How long is it?"

MATCHES = [
    ("The answer is 2.5.", "2.5", "", True),
    ("<think>3</think>2.5", "2.5", "", True),
    ("two and a half", "2.5", "", True),
    ("The answer is minus twenty-two point four two.", "-22.42", "", True),
    ("negative five", "-5", "", True),
    ("答案是一百零一。", "101", "", True),
    ("1 0 1", "101", "", True),
    ("one zero one", "101", "", True),
    ("The answer is fourteen, since 6 and 8 make it.", "14", "", True),
    ("The two boys have 14 apples.", "14", "", True),
    ("fifteen", "14", "", False),
    ("Not fourteen.", "14", "", False),
    ("37.5%", "0.375", CAKE, True),
    ("37.5 percent", "0.375", CAKE, True),
    ("百分之三十七点五", "0.375", CAKE, True),
    ("35%", "35", "What percentage is free?", True),
    ("35%", "0.35", "What percentage is free?", False),
    ("three eighths", "0.375", CAKE, True),
    ("3/8", "0.375", CAKE, True),
    ("0.38", "0.375", CAKE, False),
    ("250 cm", "2.5", ROPE, True),
    ("2500 mm", "2.5", ROPE, True),
    ("2.5 m", "2.5", ROPE, True),
    ("2.5 m = 250 cm", "2.5", ROPE, True),
    ("2.5 m = 250 cm", "2.5", "", True),
    ("2.5 cm", "2.5", ROPE, False),
    ("250 cm", "250", "", True),
    ("0.375 m2", "0.375", CAKE, True),
    ("1 hour and 30 minutes", "1.5", FILM, True),
    ("1 hour and 30 minutes", "90", FILM, True),
    ("1 hour and 30 minutes", "30", FILM, False),
    ("It is 1 h 30 min long.", "90", "", True),
    ("3 dollars and 50 cents", "3.5", "", True),
    ("50 cents", "0.5", "What is it in dollars?", True),
    ("两小时三十分钟", "150", "", True),
    ("5 apples and 3 pears", "8", "", False),
    ("14", "(a)", "", False),
    ("(a)", "(a)", "", True),
    ("", "3", "", False),
    ("<think>3", "3", "", False),
    ("3 or 4", "3", "", False),
    ("9" * 5000, "9", "", False),
]


@pytest.mark.parametrize(("reply", "answer", "question", "is_match"), MATCHES)
def test_a_number_matches_in_every_notation(reply, answer, question, is_match):
    assert matches_number(reply, answer, question=question).is_match is is_match


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("The answer is 2.50", "2.5"),
        ("-5.00", "-5"),
        ("1/3", "1/3"),
        ("one thousand", "1000"),
        ("5-10", "5 to 10"),
        ("3e-2", "0.03"),
        ("no idea", None),
        ("3 or 4", None),
    ],
)
def test_the_number_that_was_read_is_told(reply, read):
    assert matches_number(reply, "7") == NumberMatch(is_match=False, read=read)
