"""Every sample of other libraries' formats becomes the dialogues that stand beside it."""

import json
import pathlib
import re

import numpy as np
import pytest
import soundfile

from stepaudio_jax.data import open_source
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.data.inspection import inspect_source
from stepaudio_jax.data.inspection_report import describe
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError

FORMATS = pathlib.Path(__file__).parent / "formats"
EXPECTED = sorted(FORMATS.rglob("*expected.jsonl"))
# Rows that were refused when the samples were made, and are read now.
READ_NOW = {
    ("nemo_manifest/manifest.json", 2): {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "audio",
                        "audio": "clips/c.wav",
                        "transcript": "three",
                        "start_s": 0.1,
                        "end_s": 0.6,
                    }
                ],
            },
            {"role": "assistant", "content": "three"},
        ]
    },
}
FIELDS = ("reference_reply", "rejected_reply", "answer", "rubric", "sampling")


def source_of(expected: pathlib.Path) -> pathlib.Path:
    """Returns the sample that an expected file describes: the file beside it, or its folder."""
    if expected.name == "expected.jsonl":
        return expected.parent
    return expected.with_name(expected.name.removesuffix(".expected.jsonl"))


def test_samples_are_there():
    assert len(EXPECTED) == 41


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: str(path.relative_to(FORMATS)))
def test_sample_becomes_the_dialogues_that_it_means(path):
    sample = source_of(path)
    source = open_source(sample)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(source) == len(lines)
    for index, wanted in enumerate(lines):
        wanted = READ_NOW.get((str(sample.relative_to(FORMATS)), index), wanted)
        if "error" in wanted and "tool_calls" not in wanted["error"]:
            with pytest.raises(DataError) as error:
                source[index]
            assert str(error.value).startswith(f"{source.origin(index)}: ")
            continue
        record = source[index]
        if "error" in wanted:  # calls of tools have turns now
            assert [message.role for message in record.messages][:2] == [
                "tool_json_schemas",
                "user",
            ]
            continue
        folder = sample if sample.is_dir() else sample.parent
        expected = parse_record(
            wanted, origin="expected", folder=str(folder), source=record.source, default_id="x"
        )
        assert [(message.role, message.reasoning, message.text) for message in record.messages] == [
            (message.role, message.reasoning, message.text) for message in expected.messages
        ]
        if "id" in wanted:
            assert record.id == wanted["id"]
        for field in FIELDS:
            assert getattr(record, field) == getattr(expected, field), field
        ours = [part for message in record.messages for part in message.audio]
        theirs = [part for message in expected.messages for part in message.audio]
        assert [(part.transcript, dict(part.attributes)) for part in ours] == [
            (part.transcript, dict(part.attributes)) for part in theirs
        ]
        for mine, other in zip(ours, theirs, strict=True):
            if mine.path.startswith("https://"):
                assert mine.path == other.path
                continue
            np.testing.assert_array_equal(load_clip(mine), load_clip(other))
            assert is_a_sample_clip(load_clip(mine), mine.start_s, mine.end_s)


DOCS = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
TABLE = re.findall(
    r"^\| [^|]+ \| `([\w./-]+)` \| ([^|]+) \| `(\w+)` \|$", DOCS.read_text("utf-8"), re.M
)


@pytest.mark.parametrize(("name", "container", "form"), TABLE, ids=lambda value: str(value))
def test_the_table_of_the_documentation_is_true(name, container, form):
    """Each line of form and container, by its sample."""
    source = open_source(FORMATS / name)
    inspection = inspect_source(source, show_progress=False)
    lines = [line.split(maxsplit=1) for line in describe(source, inspection)]
    said = {line[0]: line[1] for line in lines if len(line) == 2}
    assert said["container"].partition(";")[0] == container
    assert said["form"] == form


def test_the_table_has_every_kind_of_sample():
    folders = {path.name for path in FORMATS.iterdir() if path.is_dir()}
    without_rows = {"clips", "media", "audiofolder_jsonl"}
    assert {name.partition("/")[0] for name, _, _ in TABLE} == folders - without_rows


def is_a_sample_clip(samples, start_s, end_s):
    """Returns whether samples are those of one of the three clips, or of the part of one."""
    for name in "abc":
        clip, _ = soundfile.read(FORMATS / "clips" / f"{name}.wav", dtype="float32")
        part = clip[round(start_s * 16_000) : None if end_s is None else round(end_s * 16_000)]
        if np.array_equal(samples, part):
            return True
    return False
