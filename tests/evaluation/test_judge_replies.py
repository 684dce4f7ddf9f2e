"""What judges reply is read as each benchmark asks for it; everything else is no verdict."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.judge_replies import (
    read_object,
    read_rubric_scores,
    read_share,
    read_truth,
    read_word,
    remove_reasoning,
)
from tests.evaluation.verdicts import json_lines

RUBRIC = [{"name": f"criterion {number}", "choices": [0, 1]} for number in range(3)]
MET = '{"explanation": "short {reason}", "criteria_met": true}'
GARBAGE = [
    "",
    "   ",
    "no idea",
    "{",
    "}{",
    '{"criteria_met": tru',
    '{"criteria_met"',
    "```json\n```",
    "[]",
    "null",
    "NaN",
    "[" * 200_000,
    '{"a":' * 200_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    "x" * 10_000_000,
    "[ " * 5_000_000,
    "[{" * 1_000_000 + "}]" * 1_000_000,
    '{"criteria_met": ' + "9" * 10_000 + "}",
    "\ud800",
    "<think>" + MET,
    None,
]


@pytest.mark.parametrize("reply", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_no_verdict(reply):
    value = read_object(reply, "criteria_met")
    assert value is None or read_truth(value["criteria_met"]) is None
    assert read_word(reply, ("CORRECT", "INCORRECT")) is None
    assert read_rubric_scores(reply, RUBRIC) is None


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(alphabet='{}[]":,`truefalscm_i <>/think0.1 \n'))
def test_no_text_is_an_error(reply):
    value = read_object(reply, "criteria_met")
    assert value is None or "criteria_met" in value
    assert read_word(reply, ("YES", "NO")) in ("YES", "NO", None)
    assert read_rubric_scores(reply, RUBRIC) is None or len(RUBRIC) == 3
    assert isinstance(remove_reasoning(reply), str)


@pytest.mark.parametrize(
    "reply",
    [
        MET,
        f"```json\n{MET}\n```",
        f"```\n{MET}\n```",
        f"````json\n{MET}\n````",
        f"Sure:\n{MET}\nThat is all.",
        f"<think>Is it {{met}}? ```json</think>{MET}",
        f"I weigh it up.</think>\n{MET}",
        '{"explanation": "it writes ``` and </think> {x}", "criteria_met": true}',
        '{"criteria_met": true, "criteria_met": true}',
    ],
)
def test_an_object_is_found_in_a_fence_and_in_text(reply):
    assert read_object(reply, "criteria_met")["criteria_met"] is True


@pytest.mark.parametrize(
    "reply",
    [
        '{"criteria_met": true, "criteria_met": false}',
        '```json\n{"criteria_met": true}\n```\n```json\n{"criteria_met": false}\n```',
        '```json\n{"criteria_met": true}\n```\nor rather ```{"criteria_met": 1}```',
        f"<think>{MET}",
    ],
)
def test_a_judge_that_contradicts_itself_says_nothing(reply):
    assert read_object(reply, "criteria_met") is None


def test_incorrect_contains_correct():
    words = ("CORRECT", "INCORRECT")
    assert read_word("INCORRECT", words) == "INCORRECT"
    assert read_word(" **Incorrect.** ", words) == "INCORRECT"
    assert read_word('"correct"', words) == "CORRECT"
    assert read_word("<think>INCORRECT?</think>\nCORRECT", words) == "CORRECT"
    for reply in ("NOT CORRECT", "CORRECT INCORRECT", "The answer is CORRECT", "CORRECTLY"):
        assert read_word(reply, words) is None


def test_truth_is_a_boolean_or_its_name():
    assert read_truth(True) is True
    assert read_truth(" False ") is False
    for value in (1, 0, "yes", None, [], "truth", 1.0):
        assert read_truth(value) is None


def test_a_share_is_a_number_from_0_to_1():
    assert [read_share(value) for value in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    for value in (True, "0.5", -0.01, 1.01, float("nan"), float("inf"), None, 10**400):
        assert read_share(value) is None


def test_rubric_scores_are_read_as_the_published_program_reads_them(shared_benchmarks):
    lines = json_lines(shared_benchmarks / "MMAR-Rubrics" / "judge_reply_scores.jsonl")
    assert len(lines) == 22
    for line in lines:
        rubric = line["rubric"]
        points = read_rubric_scores(line["judge_reply"], rubric)
        most = sum(max(criterion["choices"]) for criterion in rubric)
        read = None if points is None else sum(points) / most
        assert (read is not None) == (line["official"] == "score"), line["note"]
        assert read == pytest.approx(line["official_score"]) if read is not None else True


def test_rubric_scores_go_by_position_and_by_the_choices():
    def reply(*scores):
        return json.dumps([{"name": "any", "score": score} for score in scores])

    assert read_rubric_scores(reply(1, True, 1.0), RUBRIC) == [1, 1, 1]
    assert read_rubric_scores(f"Here: {reply(0, 0, 1)} done [x]", RUBRIC) == [0, 0, 1]
    for scores in ((1, 1), (1, 1, 1, 1), (1, 1, "1"), (1, 1, 2), (1, 1, None)):
        assert read_rubric_scores(reply(*scores), RUBRIC) is None
    assert read_rubric_scores('[{"score": 1}, {"score": 1}, {"score": 1}]', RUBRIC) is None
