"""Step-SPQA: exact matches, the judge's prompt of each task, YES and NO."""

import json

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.step_spqa import TASK_TYPES, StepParalinguistic
from stepaudio_jax.text import AudioPart
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines

ROW = {
    "id": "event:mixed_a1",
    "audio_id": "mixed_a1",
    "audio_path": "audio/event/mixed_a1_input.wav",
    "task_type": "event",
    "label": " a dog barking.",
    "question": "",
    "reference_answer": "听到了狗叫声。",
    "question_wav": "/home/someone/q.wav",
    "answer_wav": "/home/someone/a.wav",
    "input_wav": "/home/someone/i.wav",
    "original_audio_path": "/home/someone/o.wav",
}


@pytest.fixture
def task():
    return StepParalinguistic()


def test_the_question_is_in_the_sound(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", [ROW])
    (item,) = task.items(tmp_path)
    assert (item.id, item.cluster) == ("event:mixed_a1", "mixed_a1")
    assert item.groups == {"task_type": "event"}
    (part,) = item.record.messages[0].parts
    assert part == AudioPart(f"{tmp_path}/audio/event/mixed_a1_input.wav")
    assert "someone" not in json.dumps(item.data)


def test_an_error_does_not_show_internal_paths(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", [{**ROW, "label": None, "reference_answer": None}])
    with pytest.raises(DataError) as raised:
        task.items(tmp_path)
    assert "someone" not in str(raised.value)


@pytest.mark.parametrize(
    "reply", ["听到了狗叫声", "A dog, barking!", "ａ ＤＯＧ barking", " a dog barking."]
)
def test_an_exact_match_is_right_unasked(task, reply):
    item = make_item(ROW)
    assert task.queries(item, "", reply) == []
    judged = task.judged(item, "", reply, [])
    assert (judged.score, judged.details) == (1.0, {"exact_match": True})
    assert task.strict(item.data, reply).outcome == "correct"


def test_the_judge_is_asked_with_the_prompt_of_the_task(task, tmp_path):
    folder = tmp_path / "prompts" / "judge_prompts"
    folder.mkdir(parents=True)
    (tmp_path / "prompts" / "model_user_prompt_template.txt").write_text("{question}")
    names = {"default": "other.txt", "event": "sounds.txt"}
    (folder / "prompt_map.json").write_text(json.dumps(names))
    for name in names.values():
        (folder / name).write_text(f"{name}: {{text1}} | {{text2}}")
    write_lines(tmp_path / "metadata.jsonl", [ROW, {**ROW, "id": "x", "task_type": "new"}])
    event, new = task.items(tmp_path)
    (query,) = task.queries(event, "", "<think>猫</think>狗 {text1}")
    assert query.text == "sounds.txt: 听到了狗叫声。 | 狗 {text1}"
    assert task.queries(new, "", "狗")[0].text == "other.txt: 听到了狗叫声。 | 狗"


def test_a_map_names_files_beside_it(task, tmp_path):
    folder = tmp_path / "prompts" / "judge_prompts"
    folder.mkdir(parents=True)
    write_lines(tmp_path / "metadata.jsonl", [ROW])
    for value in ("../../secret.txt", "/etc/passwd", "", 1, None):
        (folder / "prompt_map.json").write_text(json.dumps({"event": value}))
        with pytest.raises(DataError, match="'event' must be the name of a file beside it"):
            task.items(tmp_path)


def test_yes_and_no_are_in_capitals_and_alone(task):
    item = make_item(ROW)
    replies = ["YES", " NO \n", "<think>hm</think>YES", "yes", "YES.", "YES NO", "", None]
    scores = [task.judged(item, "", "狗", [reply]).score for reply in replies]
    assert scores == [1, 0, 1, None, None, None, None, None]


def test_figures_by_task(task):
    event = make_item(ROW, "1", {"task_type": "event"}, "a")
    pitch = make_item(
        {**ROW, "label": "低音", "reference_answer": "低音", "task_type": "pitch"},
        "2",
        {"task_type": "pitch"},
        "a",
    )
    items = [
        scored(event, score(task, event, "狗叫", ["YES"])),
        scored(event, score(task, event, "猫叫", ["NO"])),
        scored(event, score(task, event, "狗", ["maybe"])),
        scored(pitch, score(task, pitch, "低音", [])),
        scored(pitch, score(task, pitch, "", [])),
    ]
    metrics = task.metrics(items)
    judged = figure(metrics, "judge", "accuracy")
    assert (judged.numerator, judged.denominator, judged.failed) == (2, 4, 1)
    assert figure(metrics, "judge", "accuracy_failures_0").denominator == 5
    assert figure(metrics, "judge", "accuracy", "task_type=pitch").value == 0.5
    assert figure(metrics, "strict", "accuracy", "task_type=event").numerator == 2


def test_the_sample_is_read(task, shared_benchmarks):
    items = task.items(shared_benchmarks / "StepSPQA")
    assert len(items) == 44
    assert {item.groups["task_type"] for item in items} == set(TASK_TYPES)
    for item in items:
        assert len(item.record.messages[0].parts) == 1
        assert "/removed/" not in json.dumps(item.data)
        (query,) = task.queries(item, "", "完全不同的回答")
        assert f"非原文：{item.data['task_type']}）" in query.text
        assert item.data["reference_answer"] in query.text
        assert task.strict(item.data, item.data["label"]).outcome == "correct"
