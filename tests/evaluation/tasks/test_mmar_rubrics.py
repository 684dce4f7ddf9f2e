"""MMAR-Rubrics: five calls, the published parser, and the mean of the middle three."""

import json

import pytest

pytest.importorskip("stepaudio_jax.evaluation.tasks.mmar")

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.mmar_rubrics import (
    MAX_ATTEMPTS,
    MmarRubrics,
    share_of_points,
    trimmed_mean,
)
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines

RUBRIC = [
    {"name": f"criterion {n}", "scoring_point": f"point {n}", "note": "hidden", "choices": [0, 1]}
    for n in range(5)
]
ROW = {
    "id": "a_00",
    "audio_path": "./audio/a_00.wav",
    "question": "What is heard?",
    "choices": ["A dog", "A cat"],
    "answer": "A dog",
    "modality": "sound",
    "category": "Perception Layer",
    "sub-category": "x",
    "thinking": "It barks.",
    "cue": ["hidden too"],
    "rubric": RUBRIC,
}


@pytest.fixture
def task():
    return MmarRubrics()


def marks(points):
    return json.dumps([{"name": "n", "score": int(n < points)} for n in range(5)])


def test_a_right_answer_is_marked_five_times(task, tmp_path):
    write_lines(tmp_path / "MMAR-meta.jsonl", [ROW])
    (item,) = task.items(tmp_path)
    queries = task.queries(item, "  I hear barking {form}.\n    So", "A dog")
    assert [query.sample for query in queries] == [0, 1, 2, 3, 4]
    (text,) = {query.text for query in queries}
    for shown in ("What is heard?", "It barks.", "point 4", "barking {form}.\nSo", "A dog"):
        assert shown in text
    assert "hidden" not in text
    assert task.queries(item, "It barks.", "A cat") == []
    assert task.queries(item, "It barks.", "") == []


def test_a_wrong_answer_scores_0_without_a_judge(task):
    judged = task.judged(make_item(ROW), "r", "A cat", [])
    assert (judged.score, judged.details) == (0.0, {"answer_correct": False})


def test_the_score_is_the_mean_of_the_middle_three(task):
    judged = task.judged(make_item(ROW), "r", "A dog", [marks(n) for n in (5, 0, 3, 4, 4)])
    assert judged.score == pytest.approx((0.6 + 0.8 + 0.8) / 3)
    assert trimmed_mean([1, 0, 0.5, 0.5, 0.2]) == pytest.approx(0.4)
    assert share_of_points([2, 2], [{"choices": [0, 1, 2]}] * 2) == 1
    assert share_of_points([0], [{"choices": [0]}]) == 0


def test_a_rejected_reply_is_asked_for_again(task):
    item = make_item(ROW)
    answers = [marks(5), "garbage", marks(4), marks(4), "[]"]
    again = task.retry_queries(item, "r", "A dog", answers)
    assert [query.sample for query in again] == [5, 6]
    assert task.judged(item, "r", "A dog", answers).score is None
    answers += [marks(4), "?"]
    assert [query.sample for query in task.retry_queries(item, "r", "A dog", answers)] == [7]
    answers += [marks(0)]
    assert task.retry_queries(item, "r", "A dog", answers) == []
    judged = task.judged(item, "r", "A dog", answers)
    assert judged.score == pytest.approx(0.8)
    assert judged.details["rejected_replies"] == 3
    dead = [marks(5), *["?"] * 4] + ["?"] * 4 * (MAX_ATTEMPTS - 1)
    assert task.retry_queries(item, "r", "A dog", dead) == []
    assert len(task.retry_queries(item, "r", "A dog", dead[:-4])) == 4
    assert task.retry_queries(item, "r", "A dog", [None, "?", "?", "?", "?"]) == []


def test_an_item_that_cannot_be_marked_is_not_counted(task):
    item = make_item(ROW, groups={"modality": "sound"})
    items = [
        scored(item, score(task, item, "A dog", [marks(5)] * 5)),
        scored(item, score(task, item, "A dog", [marks(5)] * 4 + [None])),
        scored(item, score(task, item, "A cat", [])),
        scored(item, error="clip is missing"),
    ]
    metrics = task.metrics(items)
    rubrics = figure(metrics, "judge", "rubrics")
    assert (rubrics.numerator, rubrics.denominator, rubrics.failed) == (1, 2, 2)
    accuracy = figure(metrics, "judge", "accuracy", "modality=sound")
    assert (accuracy.numerator, accuracy.denominator) == (1, 2)
    assert figure(metrics, "strict", "accuracy").numerator == 2
    assert task.headline == ("judge", "rubrics")


@pytest.mark.parametrize(
    "rubric", [None, [], ["x"], [{"name": "n"}], [{**RUBRIC[0], "choices": ["1"]}]]
)
def test_a_row_without_a_rubric_is_named(task, tmp_path, rubric):
    write_lines(tmp_path / "MMAR-meta.jsonl", [ROW, {**ROW, "id": "b", "rubric": rubric}])
    with pytest.raises(DataError, match=r"MMAR-meta\.jsonl:2: .*'rubric'"):
        task.items(tmp_path)


def test_scores_equal_those_of_the_benchmark(task, shared_benchmarks):
    items = task.items(shared_benchmarks / "MMAR-Rubrics")
    assert len(items) == 12
    for item in items:
        row, reply = item.data, item.data["answer_prediction"]
        assert (task.official(row, reply) == "correct") == row["expected_correct"]
        asked = task.queries(item, row["thinking_prediction"], reply)
        assert len(asked) == (5 if row["expected_correct"] else 0)
        judged = task.judged(item, row["thinking_prediction"], reply, row["judge_replies"])
        assert judged.score == pytest.approx(row["expected_score"])
        assert judged.details.get("scores", []) == pytest.approx(row["per_reply_score"])
