"""TFRecord files: the sample that TensorFlow's tools read, and files that are damaged."""

import gzip
import shutil
import struct

import pytest

from stepaudio_jax.data.containers.example import serialize_example
from stepaudio_jax.data.containers.tfrecord import TFRecordFile
from stepaudio_jax.errors import DataError
from tests.data.containers import records

NAME = "talks-00000-of-00001.tfrecord"


@pytest.fixture
def sample(formats, tmp_path):
    return shutil.copyfile(formats / "tfrecord" / NAME, tmp_path / NAME)


def test_rows_and_clips(formats):
    path = formats / "tfrecord" / NAME
    file = TFRecordFile(path)
    assert len(file) == 3
    assert file.row(2).value == {
        "id": "c",
        "audio": f"{path}#2/audio",
        "messages": [
            {"role": "user", "content": "<audio>What is said?"},
            {"role": "assistant", "content": "Three plus four."},
        ],
    }
    assert file.origin(2) == f"{path}#2"
    for index, name in enumerate("abc"):
        wav = (formats / "clips" / f"{name}.wav").read_bytes()
        assert file.read_clip(f"{index}/audio") == wav


def test_records_of_any_length(tmp_path):
    texts = ["x" * length for length in (0, 1, 300, 70_000)]
    path = records.write_tfrecord(
        tmp_path / "x.tfrecord", [serialize_example({"t": [text.encode()]}) for text in texts]
    )
    file = TFRecordFile(path)
    assert [file.row(index).value["t"] for index in range(4)] == texts
    assert len(TFRecordFile(records.write_tfrecord(tmp_path / "empty.tfrecord", []))) == 0


def test_a_text_that_begins_like_a_sound_file_is_a_text(tmp_path):
    texts = ["caffeine", "FORMULA one", "RIFFRAFF, WAVERING", "ID3 tags", ".snd is Sun's"]
    path = records.write_tfrecord(
        tmp_path / "x.tfrecord", [serialize_example({"t": [text.encode()]}) for text in texts]
    )
    file = TFRecordFile(path)
    values = [file.row(index).value["t"] for index in range(len(texts))]
    assert values == texts
    assert {type(value) for value in values} == {str}


@pytest.mark.parametrize("missing", [1, 4, 5, 27_000, 27_930, 27_934, 27_936])
def test_a_file_that_is_cut_short(sample, missing):
    content = sample.read_bytes()
    sample.write_bytes(content[:-missing])
    start = len(content) - 27_921 - 16
    with pytest.raises(
        DataError,
        match=rf"{NAME}#2: the file is cut short: it ends at byte {len(content) - missing},"
        rf" within the record that begins at byte {start}; .*copy it again",
    ):
        TFRecordFile(sample)


def test_a_damaged_length(sample):
    first = struct.unpack("<Q", sample.read_bytes()[:8])[0]
    records.flip(sample, first + 16 + 6)  # of the second record: far beyond the end
    with pytest.raises(DataError, match=rf"{NAME}#1: is damaged at byte {first + 16}: the length"):
        TFRecordFile(sample)


def test_a_damaged_record_is_named_and_the_others_are_read(sample):
    records.flip(sample, 60_000)
    file = TFRecordFile(sample)
    with pytest.raises(DataError, match=rf"{NAME}#1: is damaged: .*CRC"):
        file.row(1)
    with pytest.raises(DataError, match=rf"{NAME}#1: is damaged: .*CRC"):
        file.read_clip("1/audio")
    assert [file.row(index).value["id"] for index in (0, 2)] == ["a", "c"]


def test_what_is_no_tfrecord_file(tmp_path, sample):
    (tmp_path / "x.tfrecord").write_bytes(b"hello, world\n" * 9)
    with pytest.raises(DataError, match=r"x.tfrecord: is not a TFRecord file"):
        TFRecordFile(tmp_path / "x.tfrecord")
    sample.write_bytes(gzip.compress(sample.read_bytes()))
    with pytest.raises(DataError, match=r"compressed with gzip, .*gunzip"):
        TFRecordFile(sample)
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file"):
        TFRecordFile(tmp_path / "none")


def test_a_file_that_was_cut_after_it_was_opened(sample):
    file = TFRecordFile(sample)
    sample.write_bytes(sample.read_bytes()[:50_000])
    with pytest.raises(DataError, match=rf"{NAME}#1: is damaged"):
        file.row(1)
