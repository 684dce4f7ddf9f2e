"""Which container a path is, and clips read by name alone."""

import gc
import gzip
import io
import json
import pathlib
import shutil
import tarfile
import zipfile

import pytest

from stepaudio_jax.data.containers import opening
from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.containers.opening import (
    open_container,
    read_embedded_clip,
    split_clip_name,
)
from stepaudio_jax.errors import DataError

KINDS = {
    "project/dialogues.jsonl": ("JsonlRows", 2),
    "nemo_manifest/manifest.json": ("JsonlRows", 3),
    "nemo_manifest": ("JsonlRows", 3),
    "lhotse/cuts.jsonl.gz": ("JsonlRows", 3),
    "lhotse": ("JsonlRows", 3),
    "lhotse/supervisions.jsonl.gz": ("LhotsePair", 3),
    "llama_factory/talks.json": ("JsonArray", 2),
    "audiofolder/train/metadata.csv": ("CsvTable", 3),
    "hf_parquet/chat-00000-of-00001.parquet": ("ParquetTable", 2),
    "webdataset/talks-000000.tar": ("TarShard", 2),
    "webdataset": ("ShardedRows", 3),
    "kaldi": ("KaldiFolder", 3),
    "audiofolder/train": ("AudioFolder", 3),
    "audiofolder_jsonl": ("AudioFolder", 3),
    "audiofolder_labels/train": ("AudioFolder", 3),
    "clips": ("AudioFolder", 3),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_samples(formats, name):
    container = open_container(formats / name)
    assert (type(container).__name__, len(container)) == KINDS[name]
    assert container.path.startswith(str(formats / name))
    for index in range(len(container)):
        row = container.row(index)
        assert row.origin == container.origin(index)
        assert row.origin.startswith(str(formats))
        assert isinstance(row.value, dict)
        json.dumps(row.value)


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        ("array_record", "array_record/json-00000-of-00001.array_record", "ArrayRecordFile"),
        ("tfrecord", "tfrecord/talks-00000-of-00001.tfrecord", "TFRecordFile"),
        ("tfds", "tfds/talks/plain/1.0.0", "TfdsFolder"),
        ("tfds", "tfds_tfrecord/talks/plain/1.0.0", "TfdsFolder"),
    ],
)
def test_the_samples_of_records(formats, module, name, kind):
    pytest.importorskip(f"stepaudio_jax.data.containers.{module}")
    assert type(open_container(formats / name)).__name__ == kind


ROWS = b'{"a": 1}\n{"a": 2}\n'
CONTENTS = {
    "lines in .json": ("d.json", ROWS, "JsonlRows"),
    "an array in .jsonl": ("d.jsonl", b'[{"a": 1}]', "JsonArray"),
    "lines of which the first is an array": ("d.jsonl", b'["x"]\n{"a": 1}\n', "JsonlRows"),
    "lines without an ending": ("data", ROWS, "JsonlRows"),
    "lines in gzip without an ending": ("data", gzip.compress(ROWS), "JsonlRows"),
    "an array in gzip": ("d.json.gz", gzip.compress(b'[{"a": 1}]'), "JsonArray"),
    "a table in gzip": ("d.csv.gz", gzip.compress(b"a,b\n1,2\n"), "CsvTable"),
    "lines with a byte order mark": ("d.json", b"\xef\xbb\xbf" + ROWS, "JsonlRows"),
    "an empty file of lines": ("d.jsonl", b"", "JsonlRows"),
    "a damaged first line": ("d.jsonl", b"oops\n" + ROWS, "JsonlRows"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_content_says_what_a_file_is(tmp_path, case):
    name, content, kind = CONTENTS[case]
    (tmp_path / name).write_bytes(content)
    assert type(open_container(tmp_path / name)).__name__ == kind


def test_a_tar_and_a_parquet_table_under_other_names(formats, tmp_path):
    shutil.copy(formats / "webdataset" / "talks-000000.tar", tmp_path / "shard-1.bin")
    shutil.copy(formats / "verl" / "train.parquet", tmp_path / "table")
    assert type(open_container(tmp_path / "shard-1.bin")).__name__ == "TarShard"
    assert type(open_container(tmp_path / "table")).__name__ == "ParquetTable"


def archive(compress: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w{compress}") as tar:
        tar.addfile(tarfile.TarInfo("a.wav"))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.wav", "")
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
REFUSED = {
    "a pointer": ("d.parquet", POINTER, "is a Git LFS pointer, .*git lfs pull"),
    "a web page": ("d.jsonl", b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
    "a server's message": ("d.json", b'{"error": "Not found"}', "holds a server's message"),
    "nothing": ("d.tar", b"", "is empty"),
    "zeros": ("d.parquet", bytes(999), "cut off or damaged"),
    "sound": ("d.wav", b"RIFF\0\0\0\0WAVE", "is a sound file, and no table"),
    "a zip archive": ("d.zip", zipped(), "is a zip archive; unpack it"),
    "a compressed tar": ("d.tar.gz", archive(":gz"), "is a compressed archive.*unpack it"),
    "a tar in xz": ("d.tar.xz", archive(":xz"), r"is compressed \(xz\); unpack it"),
    "a document": ("d.pdf", b"%PDF-1.7", "is a PDF; there are files of JSON Lines"),
    "an Arrow table": ("d.arrow", b"ARROW1\0\0", "is an Arrow table; write it as Parquet"),
    "weights": ("d.npz", b"\x93NUMPY\1\0", "is an array of NumPy; there are files"),
    "text": ("d.txt", b"hello\n", "of no kind that is understood; there are files of JSON Lines"),
    "text in .json": ("d.json", b"hello\n", "of no kind that is understood"),
    "one object": ("d.json", b'{\n "rows": []\n}', r"one JSON object .* with the keys rows"),
    "a table cut in its compressed header": (
        "d.csv.gz",
        gzip.compress(ROWS)[:9],
        "its compressed content has no end",
    ),
    "a cut object": ("d.json", b'{\n "rows": [', "is one JSON object over several lines;"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_in_one_line(tmp_path, case):
    name, content, complaint = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as error:
        open_container(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def write(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


LINE = '{"a": 1}\n'
REFUSED_FOLDERS = {
    "nothing": ({}, "it is empty"),
    "text": ({"README.md": "x"}, "it holds README.md; there are files of"),
    "a configuration of a dataset of the Hub": (
        {"plain/train-00000-of-00001.parquet": "PAR1", "README.md": "x"},
        r"has its data in folders below it; name one of them: .*/plain$",
    ),
    "several datasets": (
        {"train-00000-of-00001.jsonl": LINE, "test-00000-of-00001.jsonl": LINE},
        r"several datasets \(test-\*-of-\*.jsonl, train-\*-of-\*.jsonl\); name one",
    ),
    "missing shards": (
        {"t-00000-of-00003.jsonl": LINE, "t-00002-of-00003.jsonl": LINE},
        "files are missing: .* without number 1",
    ),
    "a saved dataset": (
        {"state.json": "{}", "dataset_info.json": "{}", "data-00000-of-00001.arrow": ""},
        "holds Arrow files, as `save_to_disk`",
    ),
    "LLaMA-Factory's": (
        {"dataset_info.json": '{"x": {"file_name": "x.json"}}', "x.json": "[]"},
        "datasets of LLaMA-Factory; name one of their files: .*x.json",
    ),
    "TFDS above a version": (
        {"talks/1.0.0/features.json": "{}"},
        r"prepared datasets of TFDS; name the folder of one version: .*talks/1\.0\.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_other_folders_are_refused_in_one_line(tmp_path, case):
    files, complaint = REFUSED_FOLDERS[case]
    write(tmp_path, files)
    with pytest.raises(DataError, match=complaint) as error:
        open_container(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


def test_numbered_files_are_one_container(tmp_path):
    for number in (0, 1, 2):
        (tmp_path / f"part-{number}.jsonl").write_text(LINE * number)
    write(tmp_path, {"README.md": "x", ".hidden.jsonl": LINE})
    rows = open_container(tmp_path)
    assert [rows.origin(index) for index in range(len(rows))] == [
        f"{tmp_path}/part-1.jsonl:1",
        f"{tmp_path}/part-2.jsonl:1",
        f"{tmp_path}/part-2.jsonl:2",
    ]
    assert rows.block_lengths() is None


def test_the_layout_of_a_dataset_of_the_hub(formats, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("x")
    for number in range(2):
        shutil.copy(
            formats / "hf_parquet" / "train-00000-of-00001.parquet",
            tmp_path / "data" / f"train-0000{number}-of-00002-6619a40b3b1f0a{number}e.parquet",
        )
    rows = open_container(f"{tmp_path}/")
    assert open_container(tmp_path) is rows
    assert len(rows) == 6
    assert list(rows.block_lengths() or []) == [3, 3]
    clip = rows.row(5).value["audio"]
    assert clip == f"{tmp_path}/data/train-00001-of-00002-6619a40b3b1f0a1e.parquet#2/audio"
    assert read_embedded_clip(clip) == (formats / "clips" / "c.wav").read_bytes()


def test_a_container_is_opened_once_and_again_after_a_change(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"a": 1}]')
    container = open_container(path)
    assert open_container(path) is container
    path.write_text('[{"a": 1}, {"a": 2}]')
    assert len(open_container(path)) == 2
    write(tmp_path, {"k/wav.scp": "a a.wav\n", "k/text": "a x\n"})
    folder = open_container(tmp_path / "k")
    assert open_container(tmp_path / "k") is folder
    (tmp_path / "k" / "text").write_text("a longer\n")
    assert open_container(tmp_path / "k").row(0).value["text"] == "longer"


def test_a_container_without_rows_is_not_opened_anew(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w"):
        pass
    container = open_container(tmp_path / "t.tar")
    assert len(container) == 0
    (tmp_path / "t.tar").unlink()
    with pytest.raises(DataError, match="no such member"):
        read_embedded_clip(EmbeddedClip(f"{tmp_path}/t.tar#a.wav"))


def test_open_containers_are_bounded_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_MAX_UNUSED", 2)
    paths = [tmp_path / f"{number}.json" for number in range(5)]
    for path in paths:
        path.write_text("[]")
    used = open_container(paths[0])
    for path in paths[1:]:
        open_container(path)
    gc.collect()
    found = [opening._open.find(str(path))[0] for path in reversed(paths)]
    assert found[-1] is used
    assert [each is not None for each in found] == [True, True, False, False, True]


def test_names_of_clips(formats, tmp_path, monkeypatch):
    shutil.copy(formats / "webdataset" / "talks-000000.tar", tmp_path / "t.tar")
    (tmp_path / "a#1.wav").write_bytes(b"")
    folder = str(tmp_path)
    assert split_clip_name(f"{folder}/t.tar#a.wav") == (f"{folder}/t.tar", "a.wav")
    assert split_clip_name(f"{folder}/t.tar") == (f"{folder}/t.tar", None)
    assert split_clip_name(f"{folder}/a#1.wav") == (f"{folder}/a#1.wav", None)
    assert split_clip_name(f"{folder}/none#1.wav") == (f"{folder}/none#1.wav", None)
    assert split_clip_name(EmbeddedClip("x#y/z.tar#1/a")) == ("x#y/z.tar", "1/a")
    (tmp_path / "t.tar#a.wav").write_bytes(b"")
    assert split_clip_name(f"{folder}/t.tar#a.wav") == (f"{folder}/t.tar#a.wav", None)
    sound = (formats / "clips" / "b.wav").read_bytes()
    assert read_embedded_clip(f"{folder}/t.tar#b.wav") == sound
    monkeypatch.chdir(tmp_path)
    assert read_embedded_clip("t.tar#b.wav") == sound
    clip = open_container("t.tar").row(1).value["wav"]
    assert clip == f"{folder}/t.tar#b.wav"  # joined to any folder, it stays what it is
    for name, complaint in (
        (f"{folder}/t.tar", "names no clip inside a file"),
        (f"{folder}/t.tar#x.wav", "no such member"),
        (f"{folder}/none.tar#x.wav", "names no clip inside a file"),
    ):
        with pytest.raises(DataError, match=complaint):
            read_embedded_clip(name)
