"""Audio MultiChallenge: the fixed context, the judge's questions, APR, ARS and the pooled share."""

import json

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.audio_mc import (
    AudioMultiChallenge,
    conversation_history,
    fenced_blocks,
    last_user_turn,
)
from stepaudio_jax.text import AudioPart, TextPart
from tests.evaluation.verdicts import figure, json_lines, make_item, score, scored, write_lines

ROW = {
    "id": "c1",
    "axis": "VOICE_EDITING",
    "user_turn_1_audio": "c1_1.wav",
    "user_turn_1_transcript": "Book a table. ",
    "assistant_turn_1_transcript": "For when?",
    "user_turn_2_audio": "c1_2.wav",
    "user_turn_2_transcript": "Six, no, seven.",
    "assistant_turn_2_transcript": "never shown: it answers the last turn",
    "user_turn_3_audio": None,
    "user_turn_3_transcript": "  ",
    "rubric": '["Says seven", "Does not say six"]',
}
MET, NOT_MET = '{"criteria_met": true}', '```json\n{"criteria_met": false}\n```'


@pytest.fixture
def task():
    return AudioMultiChallenge()


def test_the_context_is_fixed(task, tmp_path):
    write_lines(tmp_path / "sample.jsonl", [ROW])
    (item,) = task.items(tmp_path)
    assert (item.id, item.groups) == ("c1", {"axis": "VOICE_EDITING"})
    assert item.data["rubric"] == ["Says seven", "Does not say six"]
    assert not any(key.endswith("_audio") for key in item.data)
    json.dumps(item.data)
    user, assistant, last = item.record.messages
    assert [message.role for message in item.record.messages] == ["user", "assistant", "user"]
    assert user.parts == (AudioPart(f"{tmp_path}/c1_1.wav", transcript="Book a table."),)
    assert assistant.parts == (TextPart("For when?"),)
    assert last.parts == (AudioPart(f"{tmp_path}/c1_2.wav", transcript="Six, no, seven."),)


def test_the_judge_sees_transcripts_and_the_reply_alone(task):
    item = make_item({**ROW, "rubric": ["Says «conversation_history»", "b"]})
    reply = "<think>six?</think>Seven {x} «rubric_item»."
    first, second = task.queries(item, "", reply)
    history = (
        "User: Book a table.\n\nAssistant: For when?\n\nUser: Six, no, seven.\n\n"
        "Assistant: Seven {x} «rubric_item»."
    )
    assert conversation_history(item.data, "Seven {x} «rubric_item».") == history
    assert history in first.text
    assert "Says «conversation_history»" in first.text
    assert "think" not in first.text
    assert (first.system, first.sample) == ("", 0)
    assert second.text != first.text


def test_a_call_that_fails_is_not_met_and_an_abstention(task):
    item = make_item({**ROW, "id": "a"}, "a")
    for answer in ("I think so", None, '{"criteria_met": "maybe"}', '{"criteria_met": 1}'):
        reply = score(task, item, "seven", [MET, answer])
        assert reply.judged.score is None
        assert reply.judged.details["criteria_met"] == [True, None]
        assert "1 of 2 criteria" in reply.judged.reason
        metrics = task.metrics([scored(item, reply)])
        assert figure(metrics, "judge", "APR").value == 0
        assert figure(metrics, "judge", "ARS").value == 0.5
        assert figure(metrics, "judge", "APR").failed == 1


def test_a_verdict_written_as_text_counts_and_is_recorded(task):
    item = make_item(ROW)
    judged = task.judged(item, "", "seven", [MET, '{"criteria_met": "False"}'])
    assert judged.score == 0.5
    assert judged.details == {"criteria_met": [True, False], "verdicts_written_as_text": 1}


def test_an_empty_reply_fails_unasked(task):
    item = make_item(ROW)
    for reply in ("", " \n", "<think>It must be seven"):
        assert task.queries(item, "", reply) == []
        assert task.judged(item, "", reply, []).score == 0


def test_sums_equal_those_of_the_benchmark(task, shared_benchmarks):
    rows = {row["id"]: row for row in json_lines(shared_benchmarks / "AudioMC" / "sample.jsonl")}
    runs = json_lines(shared_benchmarks / "AudioMC" / "aggregation.jsonl")
    assert len(runs) == 4
    for run in runs:
        items = []
        for conversation in run["conversations"]:
            item = make_item(
                rows[conversation["id"]],
                conversation["id"],
                {"axis": conversation["axis"]},
            )
            reply = score(task, item, "a reply", conversation["judge_replies"])
            assert reply.judged.details["criteria_met"] == conversation["criteria_met"]
            items.append(scored(item, reply))
        metrics = task.metrics(items)
        assert figure(metrics, "judge", "APR").value == pytest.approx(run["APR"])
        assert figure(metrics, "judge", "ARS").value == pytest.approx(run["ARS"])
        assert figure(metrics, "judge", "pooled").value == pytest.approx(run["pooled_rubrics"])
        for axis, of_axis in run["by_axis"].items():
            for name in ("APR", "ARS"):
                metric = figure(metrics, "judge", name, f"axis={axis}")
                assert metric.value == pytest.approx(of_axis[name])
                assert metric.denominator == of_axis["n"]


def test_a_conversation_that_was_not_answered_counts_as_failed(task):
    items = [make_item({**ROW, "rubric": ["a", "b"]}, str(number)) for number in range(4)]
    done = [scored(item, score(task, item, "x", [MET, MET])) for item in items[:3]]
    metrics = task.metrics([*done, scored(items[3], error="clip is missing")])
    assert (figure(metrics, "judge", "APR").value, figure(metrics, "judge", "APR").failed) == (
        0.75,
        1,
    )
    assert figure(metrics, "judge", "pooled").numerator == 6
    assert figure(metrics, "judge", "pooled").denominator == 8


def test_several_replies_count_in_the_mean(task):
    item = make_item(ROW)
    both = (score(task, item, "x", [MET, MET]), score(task, item, "y", [MET, NOT_MET]))
    metrics = task.metrics([scored(item, *both)])
    assert figure(metrics, "judge", "APR").value == 0.5
    assert figure(metrics, "judge", "ARS").value == 0.75
    assert task.headline_part(both[0], item.data) == (1.0, 1.0)
    assert task.headline_part(both[1], item.data) == (0.0, 1.0)
    assert task.headline_part(None, item.data) == (0.0, 1.0)


def test_the_prompt_is_read_from_the_card(task, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [ROW])
    block = "# Talk\n«conversation_history»\n# Item\n«rubric_item»\n```json\n{}\n```\nbye"
    card = f"---\nlicense: mit\n---\n```python\nx = 1\n```\n## Evals\n````\n{block}\n````\n"
    (tmp_path / "README.md").write_text(card)
    task.items(tmp_path)
    assert task.prompt_sources == {"judge_prompt.txt (of the benchmark's README.md)": block}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "judge_prompt.txt").write_text("«rubric_item» of «conversation_history»")
    task.use_prompts(tmp_path / "mine")
    assert list(task.prompt_sources) == ["judge_prompt.txt (given by the user)"]
    assert fenced_blocks("~~~\na\n~~\n~~~~\nb") == ["a\n~~"]


@pytest.mark.parametrize("rubric", [None, "not a list", "[]", "[1]", '[""]', {"a": 1}, ["x", None]])
def test_a_row_without_a_rubric_is_named(task, tmp_path, rubric):
    write_lines(tmp_path / "rows.jsonl", [ROW, {**ROW, "id": "c2", "rubric": rubric}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 'rubric' must be a list of texts"):
        task.items(tmp_path)


def test_other_faults_of_rows_are_named(task, tmp_path):
    for change, message in (
        ({"id": None}, "'id' must be a text"),
        ({f"user_turn_{number}_transcript": "" for number in (1, 2)}, "has no user turn"),
    ):
        write_lines(tmp_path / "rows.jsonl", [{**ROW, **change}])
        with pytest.raises(DataError, match=message):
            task.items(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [ROW, ROW])
    with pytest.raises(DataError, match="has the id 'c1'"):
        task.items(tmp_path)
    with pytest.raises(DataError):
        task.items(tmp_path / "nowhere")


def test_sound_in_a_parquet_file_is_named_and_not_read(task, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    clip = {"bytes": b"RIFF....WAVE", "path": "a.wav"}
    row = {**ROW, "user_turn_1_audio": clip, "user_turn_2_audio": None}
    row["USER_TURN_3_AUDIO"] = row.pop("user_turn_3_audio")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        pa.field(key, struct if key.lower().endswith("_audio") else pa.string()) for key in row
    ]
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist([row], pa.schema(fields)), path)
    (item,) = task.items(tmp_path)
    clips = [clip.path for message in item.record.messages for clip in message.audio]
    assert clips == [f"{path}#0/user_turn_1_audio", f"{path}#0/user_turn_2_audio"]


def test_the_sample_is_read(task, shared_benchmarks):
    items = task.items(shared_benchmarks / "AudioMC")
    assert [len(item.record.messages) for item in items] == [5, 5, 5, 1, 7, 3]
    assert [last_user_turn(item.data) for item in items] == [3, 3, 3, 1, 4, 2]
    assert all("parquet#" in message.audio[0].path for message in items[0].record.messages[::2])
