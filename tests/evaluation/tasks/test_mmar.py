"""MMAR's two files of metadata, blank choices, and clusters of one recording."""

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.mmar import Mmar
from tests.evaluation.benchmark_tables import prompt_of, write_json, write_lines


def row(number, **changes):
    values = {
        "id": f"clip{number}_00-00-01_00-00-09",
        "audio_path": f"./audio/clip{number}.wav",
        "question": "什么声音？" if number else "Which sound is it?",
        "choices": ["Piano", "", "Guitar, Piano", "Bell"],
        "answer": "Guitar, Piano",
        "modality": "sound",
        "category": "Signal Layer",
        "sub-category": "Timbre",
        "language": None,
        "url": "https://example.invalid/a",
        "timestamp": "00:00:01,00:00:09",
    }
    return values | changes


@pytest.mark.parametrize("name", ["MMAR-meta.json", "MMAR-meta.jsonl"])
def test_metadata_in_both_forms_is_read(tmp_path, name):
    write = write_json if name.endswith("json") else write_lines
    write(tmp_path / name, [row(0), row(1)])
    items = Mmar().items(tmp_path)
    text, path = prompt_of(items[0])
    assert text.endswith("\nA. Piano\nC. Guitar, Piano\nD. Bell\n")
    assert path == str(tmp_path / "audio" / "clip0.wav")
    assert items[0].groups == {
        "modality": "sound",
        "category": "Signal Layer",
        "sub-category": "Timbre",
    }
    assert items[0].cluster == items[1].cluster
    assert items[0].data == row(0)


def test_a_blank_choice_keeps_its_letter_and_is_never_chosen():
    task, data = Mmar(), row(0)
    assert task.strict(data, "C").outcome == "correct"
    assert task.strict(data, "B").outcome == "unparsed"
    assert task.official(data, "Piano, Guitar") == "correct"  # a fault of the published rule
    assert task.official(data, "C") == "wrong"
    assert task.official(data, None) == "dropped"


def test_decoding_has_the_protocols_repetition_penalty():
    assert Mmar().sampling.repetition_penalty == 1.07
    assert Mmar().sampling.temperature == 0.7
    assert Mmar().sampling.max_new_tokens == 32_000


def test_the_file_with_rubrics_is_taken_where_both_are_there(tmp_path):
    write_json(tmp_path / "MMAR-meta.json", [row(0)])
    write_lines(tmp_path / "MMAR-meta.jsonl", [row(0, rubric=[]), row(1, rubric=[])])
    assert len(Mmar().items(tmp_path)) == 2


def test_a_faulty_row_is_named(tmp_path):
    write_lines(tmp_path / "MMAR-meta.jsonl", [row(0), row(1, answer="Drum")])
    with pytest.raises(DataError, match=r"MMAR-meta\.jsonl:2: .*none of the choices"):
        Mmar().items(tmp_path)


def test_the_shared_samples_are_read(shared_benchmarks):
    items = Mmar().items(shared_benchmarks / "MMAR")
    assert len(items) == 30
