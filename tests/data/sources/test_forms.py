"""Every sample of another library's form becomes what its `expected` file says."""

import csv
import json

import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip, Row
from stepaudio_jax.data.sources.forms import (
    FORMS,
    FormOptions,
    row_form,
    to_project_form,
)
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import ConfigError, DataError

# The samples in text -> the form that is found out.
SAMPLES = {
    "project/dialogues.jsonl": "project",
    "ms_swift/sft.jsonl": "ms_swift",
    "ms_swift/dpo.jsonl": "ms_swift",
    "ms_swift/grpo.jsonl": "ms_swift",
    "ms_swift/query_response.jsonl": "ms_swift",
    "ms_swift/conversation.jsonl": "ms_swift",
    "ms_swift/untagged.jsonl": "ms_swift",
    "llama_factory/talks.json": "llama_factory",
    "llama_factory/mllm_audio.json": "ms_swift",
    "llama_factory/alpaca.json": "llama_factory",
    "llama_factory/preferences.json": "llama_factory",
    "trl/messages.jsonl": "project",
    "trl/prompt_completion.jsonl": "trl",
    "trl/prompt_only.jsonl": "trl",
    "trl/preference.jsonl": "project",
    "trl/kto.jsonl": "trl",
    "trl/text.jsonl": "trl",
    "trl/tool_calls.jsonl": "trl",
    "openai/chat.jsonl": "openai",
    "openai/audio_url.jsonl": "openai",
    "openai/developer_role.jsonl": "openai",
    "openai/preference.jsonl": "openai",
    "qwen_audio/chat.jsonl": "qwen",
    "qwen_audio/asr.jsonl": "qwen",
    "nemo_manifest/manifest.json": "recognition",
    "lhotse/cuts.jsonl": "lhotse",
}
# Where the issue asks for more than the sample's `expected`: the path and the row -> the row.
RICHER = {
    ("nemo_manifest/manifest.json", 2): {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "audio",
                        "audio": "clips/c.wav",
                        "start_s": 0.1,
                        "end_s": 0.6,
                        "transcript": "three",
                    }
                ],
            },
            {"role": "assistant", "content": "three"},
        ]
    },
    ("trl/kto.jsonl", 0): {
        "label": True,
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}],
    },
    ("trl/tool_calls.jsonl", 0): {
        "messages": [
            {
                "role": "tool_json_schemas",
                "content": '[{"type": "function", "function": {"name": "light", "description":'
                ' "switches", "parameters": {"type": "object", "properties": {"on": {"type":'
                ' "boolean"}}}}}]',
            },
            {"role": "user", "content": "Turn on the lights."},
            {
                "role": "assistant",
                "content": '<tool_call>function\nlight\n{"on": true}</tool_call>',
            },
            {"role": "input", "content": "done"},
            {"role": "assistant", "content": "Done!"},
        ]
    },
}


def rows_of(path):
    """Returns the raw rows of a text file."""
    text = path.read_text(encoding="utf-8")
    if path.name.endswith(".json") and text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def adapted(value, **options):
    return to_project_form(Row(value, "d.jsonl:1", "/data", "d:1"), FormOptions(**options))


def parsed(value, folder="/data"):
    return parse_record(value, origin="d.jsonl:1", folder=folder, source="d", default_id="d:1")


def meaning(value):
    """What a row says, with its parts spelled out: the record that it becomes."""
    return parsed({key: item for key, item in value.items() if key != "label"})


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_becomes_what_its_expected_file_says(formats, name):
    path = formats / name
    expected_path = path.with_name(path.name + ".expected.jsonl")
    rows = rows_of(path)
    expected = rows_of(expected_path) if expected_path.exists() else rows
    assert len(rows) == len(expected)
    for index, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
        assert row_form(Row(row, "d.jsonl:1", "", "")) == SAMPLES[name]
        wanted = RICHER.get((name, index), wanted)
        if "error" in wanted:
            with pytest.raises(DataError, match=r"^d\.jsonl:1: "):
                adapted(row)
            continue
        got = adapted(row)
        assert meaning(got) == meaning(wanted)
        assert got.get("label") == wanted.get("label")


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("llama_factory/")])
def test_dataset_info_names_columns_and_roles(formats, name):
    info = json.loads((formats / "llama_factory/dataset_info.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in info.values() if entry["file_name"] == name.split("/")[1])
    expected = rows_of(formats / f"{name}.expected.jsonl")
    for row, wanted in zip(rows_of(formats / name), expected, strict=True):
        assert meaning(adapted(row, dataset_info=entry)) == meaning(wanted)


def embedded(place):
    return EmbeddedClip(place)


# What containers give for the samples that are no text: the folder -> rows.
RAW = {
    "webdataset/talks-000000.tar": [
        {
            "__key__": key,
            "wav": embedded(f"talks-000000.tar#{key}.wav"),
            "txt": said,
            "json": {
                "messages": [
                    {"role": "user", "content": "<audio>What is said?"},
                    {"role": "assistant", "content": said},
                ],
                "speaker": "spk1",
            },
        }
        for key, said in (("a", "The meeting is at seven."), ("b", "Please close the window."))
    ],
    "webdataset/talks-000001.tar": [
        {
            "__key__": "c",
            "flac": embedded("talks-000001.tar#c.flac"),
            "json": {"text": "Three plus four."},
        }
    ],
    "hf_parquet/train-00000-of-00001.parquet": [
        {
            "audio": embedded(f"train-00000-of-00001.parquet#{n}/audio"),
            "text": said,
            "speaker": "spk1",
        }
        for n, said in enumerate(
            ("The meeting is at seven.", "Please close the window.", "Three plus four.")
        )
    ],
    "hf_parquet/chat-00000-of-00001.parquet": [
        {
            "messages": [
                {"role": "user", "content": f"<audio>{asked}"},
                {"role": "assistant", "content": said},
            ],
            "audios": [embedded(f"chat-00000-of-00001.parquet#{n}/audios/0")],
        }
        for n, (asked, said) in enumerate(
            (("When is it?", "At seven."), ("How much is it?", "Seven."))
        )
    ],
    "verl/train.parquet": [
        {
            "data_source": "spoken_arithmetic",
            "prompt": [{"role": "user", "content": "<audio>How much is it?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "7"},
            "extra_info": {"split": "train", "index": 0},
            "audios": ["clips/c.wav"],
        },
        {
            "data_source": "spoken_arithmetic",
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<audio>When is it?"},
            ],
            "ability": "listening",
            "reward_model": {"style": "rule", "ground_truth": "seven"},
            "extra_info": {"split": "train", "index": 1},
            "audios": ["clips/a.wav"],
        },
    ],
    "tfrecord/talks-00000-of-00001.tfrecord": [
        {
            "audio": embedded(f"talks-00000-of-00001.tfrecord#{n}/audio"),
            "messages": json.dumps(
                [
                    {"role": "user", "content": "<audio>What is said?"},
                    {"role": "assistant", "content": said},
                ]
            ),
            "id": "abc"[n],
        }
        for n, said in enumerate(
            ("The meeting is at seven.", "Please close the window.", "Three plus four.")
        )
    ],
    "tfds/talks/plain/1.0.0/": [
        {
            "id": identity,
            "label": label,
            "speaker_id": 1,
            "speech": embedded(f"talks-train.array_record-00000-of-00001#{n}/speech"),
            "text": said,
        }
        for n, (identity, label, said) in enumerate(
            (
                ("b1", "request", "Please close the window."),
                ("a0", "statement", "The meeting is at seven."),
                ("c2", "question", "Three plus four."),
            )
        )
    ],
    "kaldi/": [
        {"id": key, "audio": f"clips/{key}.wav", "text": said, "speaker": "spk1"}
        for key, said in (
            ("a", "The meeting is at seven."),
            ("b", "Please close the window."),
            ("c", "Three plus four."),
        )
    ],
    "audiofolder_labels/train/": [
        {"audio": "question/c.wav", "label": "question"},
        {"audio": "request/b.wav", "label": "request"},
        {"audio": "statement/a.wav", "label": "statement"},
    ],
}


@pytest.mark.parametrize("name", RAW)
def test_the_rows_of_a_container_become_what_its_expected_file_says(formats, name):
    path = formats / (f"{name}expected.jsonl" if name.endswith("/") else f"{name}.expected.jsonl")
    for row, wanted in zip(RAW[name], rows_of(path), strict=True):
        assert meaning(adapted(row)) == meaning(wanted)
        by_parts = dict(row)  # a JSON string of typed parts whose audio parts have no path
        if isinstance(row.get("messages"), str):
            turns = json.loads(row["messages"])
            text = turns[0]["content"].removeprefix("<audio>")
            turns[0]["content"] = [{"type": "audio"}, {"type": "text", "text": text}]
            by_parts["messages"] = json.dumps(turns)
            assert meaning(adapted(by_parts)) == meaning(wanted)


@pytest.mark.parametrize("name", ["audiofolder", "audiofolder_jsonl"])
def test_the_metadata_of_an_audiofolder_is_read(formats, name):
    folder = formats / name / "train"
    path = next(folder.glob("metadata.*"))
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = rows_of(path)
    for row, wanted in zip(rows, rows_of(folder / "expected.jsonl"), strict=True):
        assert meaning(adapted(row)) == meaning(wanted)  # by the key `file_name`
        named = {"audio" if key == "file_name" else key: item for key, item in row.items()}
        assert meaning(adapted(named)) == meaning(wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "ms-swift"}, "format: unknown form .*did you mean 'ms_swift'"),
        ({"columns": {"txt": "sentence"}}, "columns: unknown key .*did you mean 'text'"),
    ],
)
def test_settings_that_name_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        adapted({"audio": "a.wav", "sentence": "x"}, **options)


def test_columns_rename_those_of_the_row():
    row = {"utt": "u1", "sound": "a.wav", "said": "x", "text": "other"}
    columns = {"id": "utt", "audio": "sound", "text": "said"}
    got = parsed(adapted(row, columns=columns))
    assert (got.id, got.messages[1].text) == ("u1", "x")
    with pytest.raises(DataError, match=r"d\.jsonl:1: has no column 'say', which 'columns' names"):
        adapted(row, columns={**columns, "text": "say"})
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    talk = {"conversations": [{"from": "human", "value": "x"}], "talk": turns}
    assert len(parsed(adapted(talk, columns={"messages": "talk"})).messages) == 2


def test_a_row_of_two_dialogues_or_of_none_says_what_to_do():
    turns = [{"role": "user", "content": "Hi"}]
    for row, message in (
        ({"messages": turns, "conversations": turns}, "has 'messages' and 'conversations'"),
        ({"a": 1, "b": "x"}, "is in no form that is known \\(keys: 'a', 'b'\\); name the columns"),
        ({}, "is in no form that is known"),
        (["x"], "a row must be a JSON object"),
    ):
        with pytest.raises(DataError, match=rf"^d\.jsonl:1: {message}"):
            adapted(row)


def test_a_named_form_is_not_looked_for():
    row = {
        "conversations": [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "7"}],
        "audios": ["a.wav"],
    }
    with pytest.raises(DataError, match="would not be heard"):
        adapted(row)
    assert parsed(adapted(row, format="ms_swift")).messages[0].audio[0].path == "/data/a.wav"
    with pytest.raises(DataError, match='has "audios", which is not read'):
        parsed(
            adapted(
                {"messages": [{"role": "user", "content": "x"}], "audios": ["a.wav"]},
                format="project",
            )
        )


def test_every_form_has_a_summary():
    assert all(form.name == name and form.summary for name, form in FORMS.items())
