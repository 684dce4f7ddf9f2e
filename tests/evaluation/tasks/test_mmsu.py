"""MMSU's shards, its re-upload, and items with two options."""

import pytest

from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.mmsu import Mmsu
from tests.evaluation.benchmark_tables import CLIP, clip, prompt_of, write_lines, write_table

TYPES = {"audio": CLIP}


def row(number, **changes):
    values = {
        "id": f"emotion_{number}",
        "audio": clip(300 + number, f"emotion_{number}.wav", ending="MP3" if number else "WAV"),
        "task_name": "emotion",
        "question": "Which word is it?",
        "choice_a": "Calm",
        "choice_b": "Angry",
        "choice_c": "Bored" if number else None,
        "choice_d": "Sad" if number else None,
        "answer_gt": "Angry",
        "category": "Perception",
        "sub-category": "Paralinguistics",
        "sub-sub-category": "Speaking Style",
        "linguistics_sub_discipline": "Prosody",
    }
    return values | changes


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        shard = f"train-0000{number}-of-00002.parquet"
        write_table(tmp_path / "data" / shard, [row(number)], TYPES)
    (tmp_path / "README.md").write_text("MMSU")
    return tmp_path


def test_shards_are_read_in_order(folder):
    items = Mmsu().items(folder)
    assert [item.id for item in items] == ["emotion_0", "emotion_1"]
    assert items[0].groups == {
        "category": "Perception",
        "sub-category": "Paralinguistics",
        "sub-sub-category": "Speaking Style",
        "linguistics sub-discipline": "Prosody",
        "task": "emotion",
    }
    assert prompt_of(items[0])[0].endswith("\nA. Calm\nB. Angry\n")
    assert prompt_of(items[1])[0].endswith("\nA. Calm\nB. Angry\nC. Bored\nD. Sad\n")
    for item in items:
        assert "audio" not in item.data
        assert len(load_clip(item.record.messages[0].audio[0])) > 0


def test_letters_of_options_that_are_not_there_are_never_right(folder):
    two, four = (item.data for item in Mmsu().items(folder))
    assert Mmsu().official(two, "C") == "wrong"
    assert Mmsu().strict(two, "The answer is C.").outcome == "unparsed"
    assert Mmsu().strict(two, "None").outcome == "unparsed"
    assert Mmsu().strict(four, "C").outcome == "wrong"
    assert Mmsu().strict(four, "B").outcome == "correct"


def test_a_re_upload_with_letters_scores_the_same(folder, tmp_path):
    original = [item.data for item in Mmsu().items(folder)]
    other = []
    for values in original:
        renamed = {**values, "answer": "B", "sub_category": values["sub-category"]}
        del renamed["answer_gt"], renamed["sub-category"]
        other.append({**renamed, "audio": None})
    write_lines(tmp_path / "other" / "mmsu.jsonl", other)
    items = Mmsu().items(tmp_path / "other")
    assert items[0].groups["sub-category"] == "Paralinguistics"
    listed = {"question": "Which word is it?", "choices": ["Calm", "Angry"], "answer": "Angry"}
    for output in ("A", "B", "(B)", "Answer: C", "The answer is B.", "B\nA", "", "None", None, "b"):
        verdicts = {Mmsu().official(data, output) for data in (original[0], items[0].data, listed)}
        assert len(verdicts) == 1
        assert Mmsu().strict(items[0].data, output) == Mmsu().strict(original[0], output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_gt": None}, "has no answer"),
        ({"answer_gt": "Happy"}, "none of the choices"),
        ({"choice_a": None, "choice_b": None}, "no option"),
        ({"question": ""}, "'question' must be a text"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, changes, message):
    write_table(tmp_path / "a.parquet", [row(1), row(0, **changes)], TYPES)
    with pytest.raises(DataError, match=rf"a\.parquet#1: .*{message}"):
        Mmsu().items(tmp_path)


def test_the_shared_samples_are_read(shared_benchmarks):
    items = Mmsu().items(shared_benchmarks / "MMSU")
    assert len(items) == 32
    assert sum(item.data["choice_c"] is None for item in items) == 4
    for item in items[::5]:
        assert len(load_clip(item.record.messages[0].audio[0])) > 0
