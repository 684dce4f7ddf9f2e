"""Step-Caption: what the judge is shown, its scores, and what is recomputed beside them."""

import json

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.step_caption import FIELDS, StepCaption, render_labels
from stepaudio_jax.text import AudioPart, TextPart
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines

SPEAKER = {**dict.fromkeys(FIELDS, "中速"), "dialect_or_accent": "无", "gender": "女"}
UNSURE = {**SPEAKER, "emotion": "无法判断", "pitch": " 无法识别 "}
ROW = {
    "test_id": "test_0003",
    "audio": "test_0003.mp3",
    "is_multi_speakers": True,
    "speakers": [SPEAKER, UNSURE],
}
REPLY = "多人说话，第一位是女性。{speakers_str}"


@pytest.fixture
def task():
    return StepCaption()


def verdict(overall, *speakers, decision=True, **changes):
    """Returns a judge's reply: the scores of each speaker's fields, by name or for all of them."""
    listed = []
    for number, scores in enumerate(speakers, 1):
        scores = scores if isinstance(scores, dict) else dict.fromkeys(FIELDS, scores)
        fields = {field: {"score": value, "reason": "r"} for field, value in scores.items()}
        listed.append({"speaker_index": number, "field_scores": fields, "average_score": 0})
    value = {
        "multi_speaker_judgment_correct": decision,
        "multi_speaker_judgment_reason": "r",
        "overall_score": overall,
        "speakers": listed,
    }
    return json.dumps({**value, **changes}, ensure_ascii=False)


def test_rows_become_clips_with_the_whole_prompt(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", [ROW])
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "model_user_prompt.txt").write_text("描述。\n第二行\n", encoding="utf-8")
    (prompts / "judge_system_prompt.txt").write_text("评审\n", encoding="utf-8")
    template = "{ground_truth}{num_speakers}{model_output}{speakers_str}{num_speakers}{ }"
    (prompts / "judge_user_prompt_template.txt").write_text(template, encoding="utf-8")
    (item,) = task.items(tmp_path)
    assert item.record.messages[0].parts == (
        AudioPart(f"{tmp_path}/audio/test_0003.mp3"),
        TextPart("描述。\n第二行"),
    )
    assert item.groups == {"speakers": "several"}
    (query,) = task.queries(item, "", f"<think>..</think>{REPLY}")
    assert query.system == "评审"
    assert query.text == f"多人2{REPLY}{render_labels([SPEAKER, UNSURE])}2{{ }}"
    assert all("of the benchmark" in name for name in task.prompt_sources)


def test_labels_are_shown_field_by_field():
    lines = render_labels([SPEAKER, UNSURE]).splitlines()
    assert len(lines) == 32
    assert lines[2] == "- gender: 女"
    assert "- emotion: 无法判断" in lines


def test_the_overall_score_counts_and_the_fields_stand_beside_it(task):
    item = make_item(ROW)
    fields = {field: (1.0 if field == "gender" else 0.5) for field in FIELDS}
    judged = task.judged(item, "", REPLY, [verdict(0.6, fields, 0.25)])
    first, second = (14 * 0.5 + 1) / 15, 0.25
    assert judged.score == 0.6
    assert judged.details["mean_of_speakers"] == pytest.approx((first + second) / 2)
    assert judged.details["mean_of_fields"] == pytest.approx((15 * first + 13 * second) / 28)
    assert len(judged.details["fields"][1]) == 13
    assert "overall_score is 0.6" in judged.details["problems"][0]


def test_scores_of_labels_that_say_nothing_are_left_out(task):
    item = make_item({**ROW, "speakers": [UNSURE], "is_multi_speakers": False})
    scores = {field: 0 if field in ("emotion", "pitch") else 1 for field in FIELDS}
    judged = task.judged(item, "", REPLY, [verdict(1, scores)])
    assert judged.details["mean_of_speakers"] == 1
    assert judged.details["problems"] == []


def test_a_wrong_decision_makes_everything_0(task):
    item = make_item(ROW)
    judged = task.judged(item, "", REPLY, [verdict(0.4, 0.4, 0.4, decision=False)])
    assert judged.score == 0
    assert judged.details["mean_of_speakers"] == 0
    assert judged.details["problems"] == ["overall_score is 0.4 although the decision is wrong"]
    assert task.judged(item, "", REPLY, [verdict(0, decision="false")]).score == 0


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "no JSON",
        verdict(1.2, 1, 1),
        verdict(-0.1, 1, 1),
        verdict("0.5", 1, 1),
        verdict(None, 1, 1),
        verdict(True, 1, 1),
        verdict(0.5, 1, 1, decision=None),
        '{"multi_speaker_judgment_correct": true}',
        '{"overall_score": 0.5',
    ],
)
def test_a_reply_in_another_form_is_an_abstention(task, answer):
    judged = task.judged(make_item(ROW), "", REPLY, [answer])
    assert judged.score is None
    assert judged.reason


@pytest.mark.parametrize(
    "speakers",
    [None, {}, [], [1, 2], [{"field_scores": 1}], [{"speaker_index": "x", "field_scores": {}}] * 3],
)
def test_the_overall_score_stands_without_usable_fields(task, speakers):
    judged = task.judged(make_item(ROW), "", REPLY, [verdict(0.5, speakers=speakers)])
    assert judged.score == 0.5
    assert judged.details["mean_of_speakers"] is None
    assert judged.details["problems"]


def test_speakers_are_matched_by_their_index(task):
    item = make_item(ROW)
    value = json.loads(verdict(0.5, 0.2, 0.8))
    value["speakers"].reverse()
    judged = task.judged(item, "", REPLY, [json.dumps(value)])
    assert judged.details["fields"][0]["gender"] == 0.2


def test_figures_of_all_clips_and_dimensions(task):
    single = make_item({**ROW, "is_multi_speakers": False, "speakers": [SPEAKER]}, "1")
    several = make_item(ROW, "2", {"speakers": "several"})
    items = [
        scored(single, score(task, single, REPLY, [verdict(0.8, 0.8)])),
        scored(several, score(task, several, REPLY, [verdict(0.3, 1, 1)])),
        scored(several, score(task, several, REPLY, [verdict(0.9, 1, 1, decision=False)])),
        scored(several, score(task, several, REPLY, ["garbage"])),
        scored(several, score(task, several, "", [])),
        scored(several, error="clip is missing"),
    ]
    metrics = task.metrics(items)
    overall = figure(metrics, "judge", "overall_score")
    assert overall.value == pytest.approx((0.8 + 0.3 + 0 + 0) / 4)
    assert (overall.denominator, overall.failed) == (4, 2)
    assert figure(metrics, "judge", "overall_score_failures_0").denominator == 6
    assert figure(metrics, "judge", "mean_of_speakers").value == pytest.approx(1.8 / 4)
    assert figure(metrics, "judge", "differs").numerator == 2
    assert figure(metrics, "judge", "dimension", "dimension=speaker_count").numerator == 2
    emotion = figure(metrics, "judge", "dimension", "dimension=emotion")
    assert emotion.value == pytest.approx(1.8 / 4)
    names = {metric.group for metric in metrics if metric.name == "dimension"}
    assert len(names) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_multi_speakers": "yes"}, "'is_multi_speakers' must be true or false"),
        ({"speakers": []}, "'speakers' must be a list"),
        ({"speakers": [{"gender": 1}]}, "'speakers' must hold labels as texts"),
        ({"audio": ""}, "'audio' must be a text"),
        ({"test_id": None}, "'test_id' must be"),
    ],
)
def test_faults_of_rows_are_named(task, tmp_path, change, message):
    write_lines(tmp_path / "metadata.jsonl", [ROW, {**ROW, "test_id": "b", **change}])
    with pytest.raises(DataError, match=rf"metadata\.jsonl:2: {message}"):
        task.items(tmp_path)


def test_the_sample_is_read(task, shared_benchmarks):
    items = task.items(shared_benchmarks / "StepCaption")
    assert len(items) == 20
    assert sum(item.groups["speakers"] == "several" for item in items) == 6
    (query,) = task.queries(items[3], "", REPLY)
    assert '"field_scores": { "language"' in query.text
    assert "{num_speakers}" not in query.text
