"""Recognition: every clip with a transcript, and error rates over the corpus."""

import json
import logging

import numpy as np
import pytest
import soundfile

pytest.importorskip("jiwer")

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.recognition import Recognition
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines


@pytest.fixture
def task():
    return Recognition()


def write_clips(folder, *names):
    for name in names:
        soundfile.write(folder / name, np.zeros(160, np.float32), 16_000)


def test_an_audiofolder_is_asked_what_is_said(task, tmp_path):
    write_clips(tmp_path, "a.wav", "b.wav")
    rows = [
        {"file_name": "a.wav", "text": "Hello there.", "language": "en"},
        {"file_name": "b.wav", "text": "你好", "language": "zh"},
    ]
    write_lines(tmp_path / "metadata.jsonl", rows)
    first, second = task.items(tmp_path)
    clip, line = first.record.messages[0].parts
    assert (clip.path, clip.transcript) == (f"{tmp_path}/a.wav", "Hello there.")
    assert line.text == task.prompt_sources["model_prompt.txt (the project's own)"].strip()
    assert first.data == {"reference": "Hello there.", "language": "en"}
    assert second.groups == {"language": "zh"}


def test_each_clip_of_a_dialogue_is_a_question(task, tmp_path, caplog):
    def part(name, **keys):
        return {"type": "audio", "audio": name, **keys}

    write_clips(tmp_path, "long.wav")
    content = [
        part("long.wav", transcript="one", start_s=0, end_s=0.005),
        part("long.wav", transcript="two", start_s=0.005, end_s=0.01),
        part("long.wav"),
    ]
    row = {"id": "d", "messages": [{"role": "user", "content": content}]}
    write_lines(tmp_path / "data.jsonl", [row])
    with caplog.at_level(logging.WARNING):
        items = task.items(tmp_path / "data.jsonl")
    assert [item.id for item in items] == ["d/1", "d/2"]
    assert {item.cluster for item in items} == {f"{tmp_path}/long.wav"}
    assert "1 clips have no transcript" in caplog.text


def test_data_without_transcripts_are_refused(task, tmp_path):
    write_clips(tmp_path, "a.wav")
    content = [{"type": "audio", "audio": "a.wav"}]
    write_lines(tmp_path / "d.jsonl", [{"messages": [{"role": "user", "content": content}]}])
    with pytest.raises(DataError, match="no clip has a transcript"):
        task.items(tmp_path / "d.jsonl")


def test_rates_are_those_of_the_corpus(task):
    rows = [
        ({"reference": "a red cat sleeps", "language": "en"}, "a red dog sleeps"),
        ({"reference": "yes", "language": "en"}, "<think>no</think>no indeed sir"),
        ({"reference": "今天好", "language": "zh"}, "今天很好"),
        ({"reference": "never answered here", "language": "en"}, None),
    ]
    items = []
    for number, (data, reply) in enumerate(rows):
        item = make_item(data, str(number), {"language": data["language"]})
        items.append(scored(item, score(task, item, reply)))
    items.append(scored(make_item({"reference": "gone", "language": "en"}, "9"), error="missing"))
    metrics = task.metrics(items)
    word = figure(metrics, "strict", "WER")
    assert (word.numerator, word.denominator) == (1 + 3 + 3 + 1, 4 + 1 + 3 + 1)
    assert word.lower_is_better
    character = figure(metrics, "strict", "CER")
    assert (character.numerator, character.denominator) == (1, 3)
    rate = figure(metrics, "strict", "error_rate")
    assert rate.value == pytest.approx(9 / 12)
    assert rate.interval.low < rate.value < rate.interval.high
    assert figure(metrics, "strict", "error_rate", "language=zh").value == pytest.approx(1 / 3)
    assert task.headline == ("strict", "error_rate")
    assert task.headline_part(items[1].replies[0], items[1].data) == (3.0, 1.0)
    assert task.headline_part(None, items[3].data) == (3.0, 3.0)


def test_a_verdict_says_what_was_read(task):
    data = {"reference": "Twenty-two cats", "language": "en"}
    right, near, none = (task.strict(data, reply) for reply in ("22 cats.", "22 dogs", "<think>22"))
    assert (right.outcome, right.answer, right.value) == ("correct", "22 cats.", 1)
    assert (near.outcome, near.value) == ("wrong", 0.5)
    assert (none.outcome, none.answer, none.value) == ("unparsed", None, 0)
    assert task.strict(data, "no " * 10).value == 0
    with pytest.raises(DataError, match="'reference' must be a text"):
        task.strict({}, "x")


def test_whispers_spellings_are_read_from_its_folder(task, tmp_path):
    (tmp_path / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    task.use_prompts(tmp_path)
    assert task.strict({"reference": "colour"}, "color").outcome == "correct"
    assert "normalizer.json (given by the user)" in task.prompt_sources
    (tmp_path / "model_prompt.txt").write_text("Transcribe.\n")
    task.use_prompts(tmp_path)
    assert task.prompt_sources["model_prompt.txt (given by the user)"] == "Transcribe.\n"
    task.use_prompts(None)
    assert task.strict({"reference": "colour"}, "color").outcome == "wrong"
    (tmp_path / "normalizer.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="must map spellings"):
        task.use_prompts(tmp_path)
