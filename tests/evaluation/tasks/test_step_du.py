"""Step-DU: half points by rule and by judge."""

import json

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.step_du import StepDialogueUnderstanding
from stepaudio_jax.text import AudioPart, TextPart
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines

ROW = {
    "id": 14,
    "primary_dimension": "理解",
    "secondary_dimension": "语速理解",
    "qa_pair": "不给模型看",
    "recording_requirement_or_qa_category": "快速 ",
    "audio_path": "audio/05.wav",
    "input_question_text": "语速是快还是慢",
}


@pytest.fixture
def task():
    return StepDialogueUnderstanding()


def test_rows_become_questions(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", [ROW])
    (item,) = task.items(tmp_path)
    assert (item.id, item.groups) == ("14", {"dimension": "语速理解"})
    assert item.record.messages[0].parts == (
        AudioPart(f"{tmp_path}/audio/05.wav"),
        TextPart("语速是快还是慢"),
    )
    (query,) = task.queries(item, "", "<think>慢？</think>很快{question}")
    assert "参考标签：快速\n" in query.text
    assert "很快{question}" in query.text
    assert "不给模型看" not in query.text
    assert "慢？" not in query.text
    assert query.system


def test_rule_and_judge_give_half_points(task):
    item = make_item({"answer": "青年；男", "question": "?"}, groups={"dimension": "年龄"})
    replies = [
        score(task, item, "青年男性", ['{"score": 1.0, "matched_points": ["青年"]}']),
        score(task, item, "男性", ['```json\n{"score": 0.5}\n```']),
        score(task, item, "老年女性", ['{"score": 0}']),
        score(task, item, "不知道", ['{"score": 1.5}']),
    ]
    assert [reply.strict.value for reply in replies] == [1, 0.5, 0, 0]
    assert [reply.strict.outcome for reply in replies] == ["correct", "wrong", "wrong", "unparsed"]
    assert [reply.judged.score for reply in replies] == [1, 0.5, 0, None]
    assert replies[0].judged.details == {"matched_points": ["青年"]}
    metrics = task.metrics([scored(item, reply) for reply in replies])
    judged = figure(metrics, "judge", "score")
    assert (judged.numerator, judged.denominator, judged.failed) == (1.5, 3, 1)
    assert figure(metrics, "judge", "score_failures_0").denominator == 4
    strict = figure(metrics, "strict", "score", "dimension=年龄")
    assert (strict.numerator, strict.denominator, strict.unparsed) == (1.5, 4, 1)
    assert all(m.scoring == "strict" for m in task.metrics([scored(item, score(task, item, "男"))]))


@pytest.mark.parametrize(
    "answer",
    [None, "", "0.5", '{"score": "0.5"}', '{"score": true}', '{"score": -1}', '{"points": 1}'],
)
def test_a_reply_without_a_score_is_an_abstention(task, answer):
    assert task.judged(make_item(ROW), "", "快", [answer]).score is None


def test_an_empty_reply_scores_0_unasked(task):
    item = make_item(ROW)
    assert task.queries(item, "", "<think>快") == []
    assert task.judged(item, "", "", []).score == 0


@pytest.mark.parametrize(
    "key", ["id", "input_question_text", "recording_requirement_or_qa_category"]
)
def test_a_row_that_lacks_a_key_is_named(task, tmp_path, key):
    row = {name: value for name, value in ROW.items() if name != key}
    write_lines(tmp_path / "metadata.jsonl", [row])
    with pytest.raises(DataError, match=rf"metadata\.jsonl:1: .*'{key}'"):
        task.items(tmp_path)


def test_all_questions_are_read_with_their_own_clips(task, shared_benchmarks):
    folder = shared_benchmarks / "StepDU"
    items = task.items(folder)
    assert len(items) == 87
    for item in items:
        clip, question = item.record.messages[0].parts
        assert clip.path == f"{folder}/{item.data['audio_path']}"
        assert question.text == item.data["input_question_text"]
    dimensions = {item.groups["dimension"] for item in items}
    assert len(dimensions) == 8
    replies = [json.dumps({"score": index % 3 / 2}) for index in range(87)]
    done = [
        scored(item, score(task, item, "快", [reply]))
        for item, reply in zip(items, replies, strict=True)
    ]
    assert figure(task.metrics(done), "judge", "score").numerator == 43.5
