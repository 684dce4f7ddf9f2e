"""ArrayRecord files: what their records mean, damaged files, threads, and the writer."""

import gc
import json
import random
import resource
import shutil
import threading

import numpy as np
import pytest

from stepaudio_jax.data.containers import array_record
from stepaudio_jax.data.containers.array_record import ArrayRecordFile, write_array_record
from stepaudio_jax.data.containers.base import EmbeddedClip, Samples
from stepaudio_jax.data.containers.example import serialize_example
from stepaudio_jax.errors import DataError, OutputError
from tests.data.containers import records

BLOCK = 1 << 16


@pytest.fixture
def sample(formats, tmp_path):
    """Returns a copy of the file of three Examples."""
    name = "examples-00000-of-00001.array_record"
    return shutil.copyfile(formats / "array_record" / name, tmp_path / name)


def test_examples_are_rows_with_names_of_clips(formats):
    path = formats / "array_record" / "examples-00000-of-00001.array_record"
    file = ArrayRecordFile(path)
    assert len(file) == 3
    row = file.row(1)
    clip = row.value.pop("audio")
    assert row.value == {
        "id": "b",
        "messages": [
            {"role": "user", "content": "<audio>What is said?"},
            {"role": "assistant", "content": "Please close the window."},
        ],
    }
    assert (clip, type(clip)) == (f"{path}#1/audio", EmbeddedClip)
    assert row.origin == file.origin(1) == f"{path}#1"
    assert row.folder == str(path.parent)
    assert row.default_id == f"{path.name}:1"
    for index, name in enumerate("abc"):
        wav = (formats / "clips" / f"{name}.wav").read_bytes()
        assert file.read_clip(f"{index}/audio") == wav
    assert file.blocks() is None


def test_json_objects_are_rows(formats):
    path = formats / "array_record" / "json-00000-of-00001.array_record"
    expected = (path.parent / f"{path.name}.expected.jsonl").read_text().splitlines()
    file = ArrayRecordFile(path)
    assert [file.row(index).value for index in range(2)] == [json.loads(line) for line in expected]


def test_an_example_that_begins_like_json(tmp_path):
    example = serialize_example({"text": [b"x" * 109]})
    assert example.startswith(b"\n{")
    rows = [example, b' {"text": "y"}']
    file = ArrayRecordFile(records.write_array_record(tmp_path / "x.array_record", rows))
    assert [file.row(index).value["text"] for index in range(2)] == ["x" * 109, "y"]


def test_values_of_all_kinds(tmp_path, formats):
    flac_like, binary = b"fLaC\x00\x00\x00\x22", b"\x89PNG\xff"
    wav = (formats / "clips" / "a.wav").read_bytes()
    samples = np.arange(2000) - 1000
    example = serialize_example(
        {
            "text": ["Grüße, 早".encode()],
            "quoted": [b"[1, 2]"],
            "tools": [b'[{"name": "f"}]'],
            "prompt": [b"[laughs]"],
            "speaker": np.array([7]),
            "snr": np.array([0.5], np.float32),
            "times": np.array([0.5, 1.5], np.float32),
            "nothing": np.zeros(0, np.int64),
            "clips": [wav, flac_like],
            "picture": [binary],
            "waveform": samples,
            "waveform/sample_rate": np.array([8000]),
            "floats": np.zeros(1001, np.float32),
            "odd#name%": [wav],
        }
    )
    path = records.write_array_record(tmp_path / "x.array_record", [example])
    file = ArrayRecordFile(path)
    at = f"{path}#0/"
    value = file.row(0).value
    assert value == {
        "text": "Grüße, 早",
        "quoted": "[1, 2]",
        "tools": [{"name": "f"}],
        "prompt": "[laughs]",
        "speaker": 7,
        "snr": 0.5,
        "times": [0.5, 1.5],
        "nothing": None,
        "clips": [f"{at}clips[0]", f"{at}clips[1]"],
        "picture": f"{at}picture",
        "waveform": f"{at}waveform",
        "waveform/sample_rate": 8000,
        "floats": f"{at}floats",
        "odd#name%": f"{at}odd%23name%25",
    }
    assert file.read_clip("0/clips[0]") == file.read_clip("0/odd%23name%25") == wav
    assert file.read_clip("0/clips[1]") == flac_like
    clip = file.read_clip("0/waveform")
    assert isinstance(clip, Samples)
    assert (clip.rate, clip.values.dtype) == (8000, np.int16)
    np.testing.assert_array_equal(clip.values, samples)
    with pytest.raises(DataError, match=r"#0: the feature 'clips' has 2 clips"):
        file.read_clip("0/clips[2]")
    with pytest.raises(DataError, match="says at what rate; add one"):
        file.read_clip("0/floats")


def test_wide_integers_are_refused(tmp_path):
    example = serialize_example({"x": np.full(1001, 40000), "sample_rate": np.array([8000])})
    file = ArrayRecordFile(records.write_array_record(tmp_path / "x.array_record", [example]))
    with pytest.raises(DataError, match=r"#0: the samples in 'x' reach 40000, .* 16 bits"):
        file.read_clip("0/x")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("0/sound", "#0: has no feature 'sound'; it has 'audio', 'messages', 'id'"),
        ("0/audi", "did you mean 'audio'"),
        ("3/audio", "has 3 records, and no record 3"),
        ("-1/audio", "names no clip; it must be INDEX/FEATURE"),
        ("audio", "names no clip"),
        ("0/", "names no clip"),
    ],
)
def test_clips_that_are_not_there(sample, place, reason):
    with pytest.raises(DataError, match=reason):
        ArrayRecordFile(sample).read_clip(place)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"messages": [', r"#0: is not JSON"),
        (b"hello", r"#0: is not a tf.train.Example"),
        (serialize_example({"record": [b'{"messages": [{"audio": "#audio/7"}]}']}), "'audio/7'"),
    ],
)
def test_records_that_mean_nothing(tmp_path, record, reason):
    file = ArrayRecordFile(records.write_array_record(tmp_path / "x.array_record", [record]))
    with pytest.raises(DataError, match=reason):
        file.row(0)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "does not begin as one"),
        (63, "does not begin as one"),
        (BLOCK, "cut short: 65536 bytes"),
        (2 * BLOCK, "last block does not say where its index is"),
        (3 * BLOCK - 1, "cut short: 196607 bytes"),
        (3 * BLOCK - 100, "cut short"),
    ],
)
def test_a_file_that_is_cut_short(sample, size, reason):
    sample.write_bytes(sample.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"array_record: .*{reason}.*copy it again"):
        ArrayRecordFile(sample)


def test_a_file_without_a_part_of_it(sample):
    content = sample.read_bytes()
    # Without a block inside: the index is not where the end of the file says.
    sample.write_bytes(content[:BLOCK] + content[2 * BLOCK :])
    with pytest.raises(DataError, match="index is"):
        ArrayRecordFile(sample)
    sample.write_bytes(content[:BLOCK] + bytes(BLOCK) + content[2 * BLOCK :])
    with pytest.raises(DataError, match=r"cannot be read .*copy it again"):
        ArrayRecordFile(sample)
    sample.write_bytes(content[BLOCK:])
    with pytest.raises(DataError, match="does not begin as one"):
        ArrayRecordFile(sample)


def test_a_damaged_record_is_named_and_the_others_are_read(sample):
    records.flip(sample, 40_000)
    file = ArrayRecordFile(sample)
    with pytest.raises(DataError, match=r"array_record#1: is damaged .*copy it again") as error:
        file.row(1)
    assert "\n" not in str(error.value)
    assert [file.row(index).value["id"] for index in (0, 2)] == ["a", "c"]


@pytest.mark.parametrize("position", [*range(2 * BLOCK, 2 * BLOCK + 112, 3), 100_000, 115_900])
def test_damage_to_the_index_never_ends_the_process(sample, position):
    records.flip(sample, position)
    try:
        file = ArrayRecordFile(sample)
    except DataError as error:
        assert str(sample) in str(error)  # noqa: PT017  either outcome is right
    else:
        assert [file.row(index).value["id"] for index in range(3)] == ["a", "b", "c"]


def test_what_is_no_array_record_file(tmp_path):
    (tmp_path / "x.array_record").write_bytes(b"RIFF" * 50_000)
    with pytest.raises(DataError, match="is not an ArrayRecord file"):
        ArrayRecordFile(tmp_path / "x.array_record")
    with pytest.raises(DataError, match=r"none.array_record: cannot be read \(No such file"):
        ArrayRecordFile(tmp_path / "none.array_record")
    with pytest.raises(DataError, match="not from s3://"):
        ArrayRecordFile("s3://bucket/x.array_record")


def test_groups_are_blocks(tmp_path):
    rows = [json.dumps({"id": str(index)}).encode() for index in range(7)]
    path = records.write_array_record(tmp_path / "x.array_record", rows, "group_size:3")
    file = ArrayRecordFile(path)
    assert file.blocks() == [(3, 0), (3, 0), (1, 0)]
    assert [file.row(index).value["id"] for index in range(7)] == list("0123456")


def test_threads_read_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "_MAX_OPEN_READERS", 2)
    files = []
    for number in range(4):
        rows = [json.dumps({"id": f"{number}:{index}"}).encode() for index in range(500)]
        path = records.write_array_record(tmp_path / f"{number}.array_record", rows)
        files.append(ArrayRecordFile(path))
    wrong = []

    def read(seed: int) -> None:
        choices = random.Random(seed)
        for _ in range(300):
            number, index = choices.randrange(4), choices.randrange(500)
            if files[number].row(index).value != {"id": f"{number}:{index}"}:
                wrong.append((number, index))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(array_record._readers._readers) <= 2
    files.clear()
    gc.collect()
    assert len(array_record._readers._readers) <= 1  # the last row of this thread keeps one


def test_written_rows_are_read_as_they_were(tmp_path, formats):
    clips = {name: (formats / "clips" / f"{name}.wav").read_bytes() for name in "abc"}
    rows = [
        {
            "id": "1",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "audio", "audio": clips["a"], "transcript": "Um siebe. 早"},
                        {"type": "text", "text": "#not a clip"},
                        {"type": "audio", "audio": clips["b"]},
                        {"type": "audio", "audio": clips["a"], "start_s": 0.5},
                    ],
                },
                {"role": "assistant", "content": '{"looks": "like JSON"}', "loss": False},
            ],
            "rubric": ["names it", {"criterion": "rambles", "weight": -1.5}],
            "margin": 2,
            "answer": None,
        },
        {"id": "2", "messages": [{"role": "user", "content": "No clip."}]},
    ]
    path = tmp_path / "out-00000-of-00001.array_record"
    assert write_array_record(path, iter(rows)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    file = ArrayRecordFile(path)
    assert file.blocks() is None
    assert file.row(1).value == rows[1]
    value = file.row(0).value
    parts = value["messages"][0]["content"]
    names = [part["audio"] for part in parts if part["type"] == "audio"]
    assert names == [f"{path}#0/audio/0", f"{path}#0/audio/1", f"{path}#0/audio/0"]
    assert all(type(name) is EmbeddedClip for name in names)
    for part in parts:
        if part["type"] == "audio":
            part["audio"] = file.read_clip(part["audio"].partition("#")[2])
    assert value == rows[0]


def test_a_file_without_rows(tmp_path):
    assert write_array_record(tmp_path / "x.array_record", []) == 0
    assert len(ArrayRecordFile(tmp_path / "x.array_record")) == 0


def test_a_failed_write_leaves_nothing(tmp_path):
    def rows():
        yield {"id": "1"}
        raise DataError("row 2")

    with pytest.raises(DataError, match="row 2"):
        write_array_record(tmp_path / "x.array_record", rows())
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"none/x.array_record: cannot be written \(.*No such"):
        write_array_record(tmp_path / "none" / "x.array_record", [{"id": "1"}])
    with pytest.raises(OutputError, match="local disks only"):
        write_array_record("gs://bucket/x.array_record", [{"id": "1"}])


def test_a_disk_that_is_full(tmp_path):
    rows = [{"id": str(index), "messages": [{"audio": bytes(100_000)}]} for index in range(30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"x.array_record: cannot be written \(.*too large"):
            write_array_record(tmp_path / "x.array_record", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
