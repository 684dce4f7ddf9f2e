"""Conversions to the project's own form: nothing is lost, and nothing is done twice."""

import dataclasses
import io
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import load_audio
from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data import Criterion, Record, open_source
from stepaudio_jax.data.annotations import Annotation, CriterionMet
from stepaudio_jax.data.clip_files import encode_samples
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.data.conversion import JOURNAL, SKIPPED_ROWS, convert_source
from stepaudio_jax.data.conversion_shards import ShardedOutput, ShardWriter, shard_range
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.serialization import (
    check_reads_back,
    part_times,
    serialize_record,
)
from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.storage import lock_file, to_path
from stepaudio_jax.text import AudioPart, Message, TextPart
from tests.data.corpus import text_record, write_clip, write_records

# One file or folder for each kind of container, and most forms.
SOURCES = (
    "project/dialogues.jsonl",
    "ms_swift/sft.jsonl",
    "ms_swift/dpo.jsonl",
    "ms_swift/grpo.jsonl",
    "llama_factory/talks.json",
    "llama_factory/preferences.json",
    "trl/tool_calls.jsonl",
    "trl/kto.jsonl",
    "openai/chat.jsonl",
    "nemo_manifest/manifest.json",
    "kaldi",
    "lhotse/cuts.jsonl.gz",
    "hf_parquet/train-00000-of-00001.parquet",
    "verl/train_bytes.parquet",
    "audiofolder",
    "audiofolder_labels",
    "webdataset",
    "array_record/examples-00000-of-00001.array_record",
    "tfrecord/talks-00000-of-00001.tfrecord",
    "tfds/talks/plain/1.0.0",
    "tfds_tfrecord/talks/plain/1.0.0",
)
EVERYTHING = Record(
    id="7",
    messages=(
        Message("system", (TextPart("Be brief. <audio>"),)),
        Message("tool_json_schemas", (TextPart("[]"),)),
        Message(
            "user",
            (
                TextPart(""),
                AudioPart("clip.wav", transcript="", attributes={"language": "de"}),
                TextPart("Wer spricht? \N{SNOWMAN}\n"),
                AudioPart("long.flac", start_s=1.25, end_s=3.5),
                AudioPart("long.flac", transcript="text", start_s=4.0),
            ),
        ),
        Message("assistant", (TextPart(" A reply.\n"),), reasoning="", in_loss=False),
        Message("input", (TextPart("42"),)),
        Message("assistant", (TextPart("<think>b</think>c"),), reasoning="a"),
        Message("assistant", (TextPart("Without thoughts."),)),
        Message("user", (TextPart("And?"),)),
        Message("assistant", (TextPart("A bad reply."),), in_loss=False),
    ),
    source="talks",
    origin="somewhere:1",
    reference_reply="<think>not a thought",
    rejected_reply="No.",
    reference_reasoning="A thought.",
    rejected_reasoning="None.",
    margin=0,
    rubric=(Criterion("Is brief.", 1.5), Criterion("Is rude.", -1.0)),
    reference_meets=(True, False),
    rejected_meets=(False, True),
    reference_critique="It is good.",
    rejected_critique="",
    answer="7",
    scenario="Has lost a key.",
    reference_continuation=(
        Message("assistant", (TextPart("Where?"),), reasoning="A thought.", in_loss=False),
        Message("user", (TextPart("Here."),)),
        Message("assistant", (TextPart("Look again."),)),
    ),
    label=False,
    sampling={"temperature": 0, "stop_strings": ["\n"]},
    annotations=(
        Annotation(
            "ann", -2, "b", (CriterionMet(True, False),) * 2, ("tone",), "Rude.", "Yes.", 1.5
        ),
    ),
)


def by_path(part):
    return {"audio": part.path, **part_times(part)}


def without_places(record):
    """A record without what a conversion changes: where it and its clips lie."""
    messages = []
    for message in record.messages:
        parts = (
            dataclasses.replace(part, path="", start_s=0.0, end_s=None)
            if isinstance(part, AudioPart)
            else part
            for part in message.parts
        )
        messages.append(dataclasses.replace(message, parts=tuple(parts)))
    return dataclasses.replace(record, origin="", messages=tuple(messages))


def clips_of(record):
    return [part for message in record.messages for part in message.audio]


def assert_same_records(source, converted):
    assert len(source) == len(converted)
    for index in range(len(source)):
        record, other = source[index], converted[index]
        assert without_places(record) == without_places(other)
        for part, new_part in zip(clips_of(record), clips_of(other), strict=True):
            np.testing.assert_array_equal(load_clip(part), load_clip(new_part))


def convert(path, output, **settings):
    settings = {"shards": 2, "workers": 1, "show_progress": False, **settings}
    return convert_source(SourceConfig(path=str(path)), output, **settings)


@pytest.fixture
def written(tmp_path):
    """Twelve dialogues in text."""
    return write_records(tmp_path / "given" / "w.jsonl", [text_record(n, 3) for n in range(12)])


@pytest.fixture(autouse=True)
def _given(tmp_path):
    (tmp_path / "given").mkdir()


@pytest.mark.parametrize("container", ["jsonl", "array_record"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_is_read_back_as_it_is(formats, tmp_path, name, container):
    summary = convert(formats / name, tmp_path / "out", container=container)
    source = open_source(formats / name)
    assert (summary.records, summary.skipped) == (len(source), [])
    assert_same_records(source, open_source(summary.pattern))
    assert_same_records(source, open_source(tmp_path / "out"))


def test_the_record_of_the_round_trip_differs_from_every_default():
    for field in dataclasses.fields(Record):
        assert getattr(EVERYTHING, field.name) != field.default
    assert EVERYTHING.sampling


def test_every_field_of_a_record_is_read_back():
    check_reads_back(EVERYTHING)
    text = json.dumps(serialize_record(EVERYTHING, by_path))
    found = parse_record(
        json.loads(text), origin=EVERYTHING.origin, folder="", source="", default_id=""
    )
    assert found == EVERYTHING


def test_a_record_that_would_change_is_refused():
    record = dataclasses.replace(EVERYTHING, reference_reply="half \ud800")
    with pytest.raises(DataError, match="cannot be written as JSON"):
        check_reads_back(record)
    record = dataclasses.replace(EVERYTHING, sampling={"stop_strings": ("a",)})
    with pytest.raises(DataError, match="its sampling would change"):
        check_reads_back(record)


def test_files_and_their_bytes_are_copied_as_they_are(formats, tmp_path):
    contents = {(formats / "clips" / name).read_bytes() for name in ("a.wav", "b.wav", "c.wav")}
    for number, name in enumerate(["audiofolder", "hf_parquet/train-00000-of-00001.parquet"]):
        folder = tmp_path / f"out{number}"
        convert(formats / name, folder)
        assert {path.read_bytes() for path in folder.glob("clips/*/*.wav")} == contents


def test_samples_are_stored_without_loss(formats, tmp_path):
    convert(formats / "tfds" / "talks" / "plain" / "1.0.0", tmp_path / "out")
    clips = list((tmp_path / "out").glob("clips/*/*.flac"))
    assert len(clips) == 3
    original = {load_audio(formats / "clips" / name).tobytes() for name in ("a.wav", "c.wav")}
    assert original < {load_audio(clip).tobytes() for clip in clips}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[-32768, 0], [32767, 5]] * 900, np.int64), "FLAC"),
        (np.array([-1, 0, 0.5, 32767 / 32768] * 900, np.float32), "FLAC"),
        (np.array([0.1, -0.3, 1.5] * 900, np.float32), "WAV"),
        (np.array([0, 1.0] * 900, np.float64), "WAV"),
    ],
)
def test_samples_are_flac_where_16_bits_hold_them(values, kind):
    content = encode_samples(values, 22_050)
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert (file.format, file.samplerate) == (kind, 22_050)
        scale = 32768 if values.dtype == np.int64 else 1
        np.testing.assert_array_equal(file.read(dtype="float32") * scale, values)


def test_parts_share_one_file_or_are_cut_out(tmp_path):
    write_clip(tmp_path / "given" / "long.wav", 4.0, seed=1)
    part = {"audio_filepath": "long.wav", "text": "word"}
    manifest = write_records(
        tmp_path / "given" / "m.jsonl",
        [{**part, "offset": 0.5 + number, "duration": 1.0} for number in range(3)],
    )
    source = open_source(manifest)
    convert(manifest, tmp_path / "files")
    assert len(list((tmp_path / "files").glob("clips/*/*"))) == 1
    files = open_source(tmp_path / "files")
    assert [clips_of(files[index])[0].start_s for index in range(3)] == [0.5, 1.5, 2.5]
    assert_same_records(source, files)
    convert(manifest, tmp_path / "inside", container="array_record")
    inside = open_source(tmp_path / "inside")
    assert all(clips_of(inside[index])[0].end_s is None for index in range(3))
    assert_same_records(source, inside)


def test_rows_that_cannot_be_read_are_listed_and_the_others_written(formats, tmp_path):
    clip = formats / "clips" / "a.wav"
    cut = tmp_path / "given" / "cut.wav"
    cut.write_bytes(clip.read_bytes()[:9000])
    rows = [
        {"audio": str(clip), "text": "whole"},
        {"audio": str(cut), "text": "cut short"},
        {"audio": "none.wav", "text": "missing"},
        {"messages": [{"role": "user", "content": []}]},
    ]
    path = write_records(tmp_path / "given" / "r.jsonl", rows)
    summary = convert(path, tmp_path / "out")
    assert (summary.records, len(summary.skipped)) == (1, 3)
    listed = (tmp_path / "out" / SKIPPED_ROWS).read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == [f"{path}:{n}" for n in (2, 3, 4)]
    reasons = [json.loads(line)["reason"] for line in listed]
    assert "cut.wav" in reasons[0]
    assert "none.wav: does not exist" in reasons[1]
    assert reasons[2].startswith("message 1 (user): 'content' must be")
    converted = open_source(tmp_path / "out")
    assert len(converted) == 1
    assert converted[0].id == "r:1"
    assert convert(path, tmp_path / "out").skipped == summary.skipped


def test_an_interrupted_conversion_goes_on_from_its_finished_files(written, tmp_path):
    whole = convert(written, tmp_path / "whole", shards=3)
    convert(written, tmp_path / "out", shards=3)
    # As a kill leaves it: one file written and not yet in the journal, another half written.
    journal = tmp_path / "out" / JOURNAL
    header, first, *_ = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(header + first + b'{"shard": 1, "rec')
    (tmp_path / "out" / "w-00002-of-00003.jsonl").unlink()
    leftover = tmp_path / "out" / ".w-00002-of-00003.jsonl.host-1-1.incomplete"
    leftover.write_text("half")
    first_file = tmp_path / "out" / "w-00000-of-00003.jsonl"
    before = first_file.stat()
    summary = convert(written, tmp_path / "out", shards=3)
    assert (summary.is_new, summary.records) == (True, whole.records)
    assert first_file.stat().st_ino == before.st_ino
    for path in (tmp_path / "whole").glob("*.jsonl"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not convert(written, tmp_path / "out", shards=3).is_new


def test_a_file_that_was_removed_is_written_again(written, tmp_path):
    convert(written, tmp_path / "out")
    path = tmp_path / "out" / "w-00001-of-00002.jsonl"
    content = path.read_bytes()
    path.unlink()
    assert convert(written, tmp_path / "out").is_new
    assert path.read_bytes() == content


def test_a_stopped_file_leaves_nothing(written, tmp_path):
    def stop():
        raise KeyboardInterrupt

    output = ShardedOutput(
        source=SourceConfig(path=str(written)),
        folder=str(tmp_path / "out"),
        name="w",
        container="jsonl",
        shards=1,
        channel="first",
        allow_urls=False,
    )
    with pytest.raises(KeyboardInterrupt):
        ShardWriter(output, stop).write(0)
    assert not (tmp_path / "out").exists()


def test_other_outputs_are_refused(written, tmp_path):
    convert(written, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for settings in ({"shards": 3}, {"container": "array_record"}, {"channel": "mix"}):
        with pytest.raises(OutputError, match="is the output of another conversion"):
            convert(written, tmp_path / "out", **settings)
    written.write_text(written.read_text() + json.dumps(text_record(12, 3)) + "\n")
    with pytest.raises(OutputError, match="the source has changed"):
        convert(written, tmp_path / "out")
    with pytest.raises(OutputError, match="already exists"):
        convert(written, tmp_path / "given")
    held = lock_file(tmp_path / "out" / JOURNAL)
    with pytest.raises(OutputError, match="another process is writing it"):
        convert(written, tmp_path / "out")
    held.close()
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_output_in_the_folder_that_is_read_is_refused(tmp_path):
    folder = tmp_path / "sounds"
    write_clip(folder / "a.wav", 0.5, seed=0)
    for output in (folder, folder / "out" / "here"):
        with pytest.raises(OutputError, match=r"is the input|lies in"):
            convert(folder, output)
    assert [path.name for path in folder.iterdir()] == ["a.wav"]


def test_a_source_that_cannot_be_opened_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        convert(tmp_path / "none.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("container", ["jsonl", "array_record"])
def test_a_conversion_into_a_bucket(formats, tmp_path, bucket, container):
    path = formats / "ms_swift" / "sft.jsonl"
    for _ in range(2):
        summary = convert(path, f"{bucket}/out", container=container)
    assert not summary.is_new
    convert(path, tmp_path / "out", container=container)
    for local in (tmp_path / "out").rglob("*"):
        if local.is_file() and local.name != JOURNAL:
            remote = to_path(f"{bucket}/out") / str(local.relative_to(tmp_path / "out"))
            assert remote.read_bytes() == local.read_bytes()
    if container == "jsonl":  # the library reads ArrayRecord files of Google's servers only
        assert_same_records(open_source(path), open_source(f"{bucket}/out"))


def test_the_size_of_files_decides_their_number(formats, tmp_path):
    clip = str(formats / "clips" / "a.wav")
    rows = [{"audio": clip, "text": f"{number}"} for number in range(20)]
    path = write_records(tmp_path / "given" / "r.jsonl", rows)
    size = os.path.getsize(clip)
    summary = convert(path, tmp_path / "out", shards=None, shard_mb=5 * size / 1e6)
    assert summary.shards == 5  # a little more than the clips alone
    assert convert(path, tmp_path / "all", shards=None).shards == 1


@pytest.mark.slow  # each process imports the project
def test_several_processes_write_the_same_files(formats, tmp_path):
    source = formats / "webdataset"
    convert(source, tmp_path / "one", shards=3)
    convert(source, tmp_path / "two", shards=3, workers=2)

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in files_below(folder)}

    def files_below(folder: pathlib.Path):
        return [p for p in folder.rglob("*") if p.is_file() and p.name != JOURNAL]

    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(("rows", "shards"), [(1, 1), (10, 3), (7, 7), (1000, 17)])
def test_every_row_is_in_one_file(rows, shards):
    ranges = [shard_range(rows, shards, shard) for shard in range(shards)]
    assert [row for part in ranges for row in part] == list(range(rows))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
