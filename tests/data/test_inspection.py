"""Inspections: what is said of a source, and of what is wrong with it."""

import pytest

from stepaudio_jax.data import open_source
from stepaudio_jax.data.inspection import inspect_source
from stepaudio_jax.data.inspection_report import describe, render_example
from stepaudio_jax.text import Tokenizer
from tests.data.corpus import text_record, write_clip, write_records

TOKENIZER = Tokenizer.byte_level()


def lines_of(source, **settings):
    inspection = inspect_source(source, show_progress=False, **settings)
    return inspection, "\n".join(describe(source, inspection, **settings))


def test_what_is_said_of_a_source(formats):
    path = formats / "ms_swift" / "sft.jsonl"
    inspection, text = lines_of(open_source(path))
    assert inspection.content.records == 2
    assert inspection.content.clips == 3
    assert inspection.forms == {"ms_swift": 2}
    assert inspection.scripts["assistant"].keys() == {"Latin"}
    assert "container    JSON Lines; 2 rows" in text
    assert "dialogues    with replies" in text
    assert "3, 3.73 s of sound, the shortest 1.16 s, the longest 1.41 s" in text
    assert "<|BOT|>human\n    <audio a.wav, 1.16 s>When is it?<|EOT|>" in text
    assert "refused      none" in text


def test_rows_of_several_forms_are_counted(formats):
    _, text = lines_of(open_source(formats / "webdataset"))
    assert "form         ms_swift 2, recognition 1" in text
    assert "container    WebDataset tar (2 files); 3 rows" in text
    assert "<audio talks-000000.tar#a.wav, 1.16 s>" in text


def test_what_is_wrong_is_said(tmp_path, formats):
    clip = str(formats / "clips" / "a.wav")
    rows = [
        {"audio": clip, "text": "A", "language": "de"},
        *({"audio": f"none{number}.wav", "text": "B"} for number in range(3)),
        {"messages": [{"role": "assistant", "content": "nobody asked"}]},
        {"surprise": 1},
    ]
    path = write_records(tmp_path / "r.jsonl", rows)
    inspection, text = lines_of(open_source(path))
    assert len(inspection.refused) == 5
    assert [refusal.place for refusal in inspection.refused] == [f"{path}:{n}" for n in range(2, 7)]
    assert f"missing      3 files: {tmp_path / 'none0.wav'}" in text
    assert "refused      5 rows" in text
    assert f"{path}:4: audio" in text
    assert f"{path}:5:" not in text  # the first three are shown
    assert "no user turn" in inspection.refused[3].reason
    assert "language     de" in text


def test_scripts_of_each_field(tmp_path):
    record = text_record(0, 1)
    record["messages"][0]["content"] = "\u4f60\u597d abc \u043f 123"
    source = open_source(write_records(tmp_path / "r.jsonl", [record]))
    inspection, text = lines_of(source)
    assert inspection.scripts["user"] == {"Han": 2, "Latin": 3, "Cyrillic": 1}
    assert "user: Latin 50 %, Han 33 %, Cyrillic 17 %" in text


def test_lengths(tmp_path):
    write_clip(tmp_path / "long.wav", 26.0, seed=0)
    rows = [{"audio": "long.wav", "text": "A"}, text_record(0, 3), text_record(1, 300)]
    source = open_source(write_records(tmp_path / "r.jsonl", rows))
    inspection, text = lines_of(source, seq_len=500, tokenizer=TOKENIZER)
    assert (inspection.long_clips, inspection.too_long) == (1, 1)
    assert "1 longer than the 25 s of one chunk" in text
    assert "1 dialogue longer than --seq-len 500" in text
    # 300 times "word ", what surrounds it, and "thought 1" and "reply 1".
    assert inspection.longest == 5 * 300 + 51 + 3
    limited, text = lines_of(source, limit=2)
    assert limited.content.records == 2
    assert "3 rows, of which the first 2 were read" in text


def test_a_dialogue_that_is_only_a_prompt_is_shown_as_one(formats):
    source = open_source(formats / "trl" / "preference.jsonl")
    assert render_example(source[0], TOKENIZER).endswith("<|BOT|>assistant\n<think>\n")
    _, text = lines_of(source)
    assert text.endswith("<think>\n  reference    At seven.\n  rejected     At six.")
    assert "dialogues    preferences" in text


def test_what_a_dialogue_is_for_and_what_nothing_reads(tmp_path, formats):
    clip = {"audio": str(formats / "clips" / "a.wav")}
    asked = {"messages": [{"role": "user", "content": "1 + 1?"}]}
    reply = {"role": "assistant", "content": "2"}
    rows = [
        {**clip, "text": "A", "speaker": "s1", "duration": 1.2, "words": [1]},
        {**asked, "answer": "2", "topic": "sums", "empty": ""},
        asked,
        {"messages": [*asked["messages"], reply], "label": False},
        {"messages": [*asked["messages"], reply], "topic": "sums"},
    ]
    inspection, text = lines_of(open_source(write_records(tmp_path / "r.jsonl", rows)))
    assert inspection.kinds == {
        "with replies": 2,
        "prompts with what a reply is compared with": 1,
        "prompts": 1,
        "with bad replies only": 1,
    }
    assert "attributes   speaker\n" in text
    assert inspection.unread == {"words": 1, "topic": 2}
    assert "not read     keys 'words', 'topic'" in text


@pytest.mark.parametrize("name", ["audiofolder", "kaldi", "tfds/talks/plain/1.0.0", "hf_parquet"])
def test_other_containers(formats, name):
    path = formats / name
    if name == "hf_parquet":
        path = path / "train-00000-of-00001.parquet"
    inspection, text = lines_of(open_source(path))
    assert inspection.content.clips == 3
    assert not inspection.refused
    assert "The meeting is at seven." in text or "Please close the window." in text
