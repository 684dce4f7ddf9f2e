"""MMAU's two forms of files, its prompt, and the file for the leaderboard."""

import json

import pyarrow as pa
import pytest

from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.mmau import Mmau, MmauMini
from stepaudio_jax.evaluation.word_sets import matches_by_words
from tests.evaluation.benchmark_tables import (
    CLIP,
    RATE,
    clip,
    prompt_of,
    tone,
    write_json,
    write_table,
)

TYPES = {"context": CLIP, "choices": pa.list_(pa.string())}


def json_row(number, **changes):
    row = {
        "id": f"id-{number}",
        "audio_id": f"./test-mini-audios/id-{number}.wav",
        "question": f"What is number {number}?",
        "choices": ["A dog ", "Cat", "Cat"],
        "answer": "Cat",
        "dataset": "X",
        "task": "sound",
        "split": "test-mini",
        "category": ["Reasoning"] if number else "Reasoning",
        "sub-category": "Naming",
        "difficulty": "easy",
    }
    return row | changes


def parquet_row(number, **changes):
    attributes = {
        "id": f"id-{number}",
        "task": "music",
        "split": "test-mini",
        "difficulty": "hard",
    }
    row = {
        "context": clip(300 + number, ending="MP3" if number else "WAV"),
        "instruction": f"What is number {number}?",
        "choices": ["(A) A dog", "(B) Cat"],
        "answer": "(B) Cat",
        "other_attributes": json.dumps(attributes),
    }
    return row | changes


def test_json_beside_a_folder_of_clips_is_read(tmp_path):
    write_json(tmp_path / "mmau-test-mini.json", [json_row(0), json_row(1)])
    (tmp_path / "test-mini-audios").mkdir()
    (tmp_path / "test-mini-audios" / "id-0.wav").write_bytes(tone(440))
    for folder in (tmp_path, tmp_path / "mmau-test-mini.json"):
        first, second = MmauMini().items(folder)
        assert first.id == "id-0"
        assert first.groups == second.groups
        assert first.groups == {
            "task": "sound",
            "difficulty": "easy",
            "category": "Reasoning",
            "sub-category": "Naming",
        }
        text, path = prompt_of(first)
        assert text.startswith("What is number 0?\n")
        assert text.endswith("\nA. A dog\nB. Cat\nC. Cat\n")
        assert path == str(tmp_path / "test-mini-audios" / "id-0.wav")
        assert first.data == json_row(0)
        assert first.cluster != second.cluster


def test_tables_are_read_without_unpacking_them(tmp_path):
    rows = [parquet_row(0), parquet_row(1)]
    for number, row in enumerate(rows):
        write_table(tmp_path / "data" / f"test-0000{number}-of-00002.parquet", [row], TYPES)
    items = MmauMini().items(tmp_path)
    assert [item.id for item in items] == ["id-0", "id-1"]
    assert items[0].groups == {"task": "music", "difficulty": "hard"}
    for item in items:
        (text, _), (part,) = prompt_of(item), item.record.messages[0].audio
        assert text.endswith("\nA. A dog\nB. Cat\n")
        assert abs(len(load_clip(part)) - RATE // 10) < RATE // 10
        assert item.data["choices"] == ["(A) A dog", "(B) Cat"]
        assert item.data["form"] == "hf_parquet"
        assert MmauMini().official(item.data, "(B) Cat") == "correct"
        assert MmauMini().official(item.data, "Cat") == "wrong"
        assert MmauMini().strict(item.data, "Cat").outcome == "correct"
    json.dumps([item.data for item in items])


def test_a_clip_without_sound_is_missed_when_it_is_opened(tmp_path):
    rows = [parquet_row(0), parquet_row(1, context={"bytes": None, "path": None})]
    write_table(tmp_path / "mini.parquet", rows, TYPES)
    _, item = MmauMini().items(tmp_path)
    (part,) = item.record.messages[0].audio
    with pytest.raises(Exception, match="no sound"):
        load_clip(part)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": None}, "'choices' must be a list"),
        ({"choices": []}, "no option"),
        ({"choices": ["a"] * 27}, "27 options"),
        ({"answer": "Bird"}, "none of the choices"),
        ({"answer": 3}, "'answer' must be a text"),
        ({"answer": ""}, "has no answer.*'mmau'"),
        ({"question": " "}, "'question' must be a text"),
        ({"id": None}, "no value of 'id'"),
        ({"id": "id-0"}, "which .*#0 has too"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, changes, message):
    write_json(tmp_path / "mmau-test-mini.json", [json_row(0), json_row(1, **changes)])
    with pytest.raises(DataError, match=rf"mmau-test-mini\.json#1: .*{message}"):
        MmauMini().items(tmp_path)


def test_a_row_without_a_key_is_named(tmp_path):
    row = json_row(1)
    del row["audio_id"]
    write_json(tmp_path / "mmau-test-mini.json", [json_row(0), row])
    with pytest.raises(DataError, match=r"#1: has no 'context' or 'audio' or 'audio_id'"):
        MmauMini().items(tmp_path)


def test_attributes_that_are_no_object_are_an_error(tmp_path):
    write_table(tmp_path / "a.parquet", [parquet_row(0, other_attributes="[1]")], TYPES)
    with pytest.raises(DataError, match="'other_attributes' must be an object"):
        MmauMini().items(tmp_path)


@pytest.mark.parametrize("names", [(), ("README.md",), ("a.json", "b.json")])
def test_a_folder_without_its_files_is_an_error(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"give mmau-test-mini\.json|several files"):
        MmauMini().items(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        MmauMini().items(tmp_path / "absent")


def test_a_missing_shard_is_an_error(tmp_path):
    write_table(tmp_path / "data" / "test-00001-of-00002.parquet", [parquet_row(0)], TYPES)
    with pytest.raises(DataError, match="files are missing"):
        MmauMini().items(tmp_path)


def test_the_test_is_answered_for_the_leaderboard(tmp_path):
    rows = [json_row(number, split="test") for number in range(4)]
    for row in rows:
        del row["answer"]
    write_json(tmp_path / "mmau-test.json", rows)
    write_json(tmp_path / "mmau-test-mini.json", [json_row(0)])
    task = Mmau()
    items = task.items(tmp_path)
    assert len(items) == 4
    assert task.strict(items[0].data, "B") is None
    assert task.official(items[0].data, "B") is None
    assert task.metrics([]) == []
    outputs = ["<think>dog</think>\nA", "I hear cat.", "Who knows?", None]
    submission = task.submission(list(zip(items, outputs, strict=True)))
    assert submission.name.endswith(".json")
    predictions = [row.get("model_output") for row in submission.rows]
    assert predictions == ["A dog", "Cat", "Who knows?", None]
    assert "model_prediction" not in submission.rows[3]
    for row, original in zip(submission.rows, rows, strict=True):
        assert {key: row[key] for key in original} == original
    assert matches_by_words(predictions[0], "A dog", rows[0]["choices"])
    with pytest.raises(DataError, match="mmau_mini"):
        task.items(tmp_path / "mmau-test-mini.json")


def test_other_prompts_are_read_from_a_file(tmp_path):
    write_json(tmp_path / "mmau-test-mini.json", [json_row(0, question="Is {options} it?")])
    task = MmauMini()
    before = task.prompt_sources
    (tmp_path / "multiple_choice.txt").write_text("{options}Q: {question} {else}")
    task.use_prompts(tmp_path)
    assert task.prompt_sources != before
    text, _ = prompt_of(task.items(tmp_path)[0])
    assert text == "A. A dog\nB. Cat\nC. Cat\nQ: Is {options} it? {else}"
    (tmp_path / "multiple_choice.txt").write_text("{question}")
    with pytest.raises(DataError, match=r"lacks \{options\}"):
        task.use_prompts(tmp_path)


def test_the_shared_samples_are_read(shared_benchmarks):
    folder = shared_benchmarks / "MMAU"
    items = MmauMini().items(folder / "mmau-test-mini.json")
    assert len({item.id for item in items}) == 1000
    assert {item.groups["category"] for item in items} == {"Reasoning", "Information Extraction"}
    assert sum(item.groups["task"] == "speech" for item in items) == 333
    samples = MmauMini().items(folder / "sample_hf.parquet")
    by_id = {item.id: item for item in items}
    for sample in samples:
        assert prompt_of(sample)[0] == prompt_of(by_id[sample.id])[0]
        assert len(load_clip(sample.record.messages[0].audio[0])) > 0
