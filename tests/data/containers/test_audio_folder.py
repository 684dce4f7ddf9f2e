"""Folders of sound: metadata of each kind, labels, splits, and files that do not fit them."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepaudio_jax.data.containers.audio_folder import AudioFolder
from stepaudio_jax.errors import DataError


def write(folder: pathlib.Path, **files: str) -> pathlib.Path:
    """Writes files; a name of two parts is a folder and a file in it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def rows_of(folder: pathlib.Path) -> list[object]:
    rows = AudioFolder(folder)
    return [rows.row(index).value for index in range(len(rows))]


def test_the_samples(formats):
    folder = formats / "audiofolder" / "train"
    rows = AudioFolder(folder)
    row = rows.row(1)
    assert row.value == {
        "audio": "b.wav",
        "transcription": "Please close the window.",
        "speaker": "spk1",
    }
    assert (row.origin, row.folder) == (f"{folder}/metadata.csv:3", str(folder))
    assert row.default_id == "b"
    jsonl = AudioFolder(formats / "audiofolder_jsonl" / "train")
    assert jsonl.row(2).value == {"audio": "c.wav", "text": "Three plus four."}
    labels = AudioFolder(formats / "audiofolder_labels" / "train")
    assert [labels.row(index).value for index in range(3)] == [
        {"audio": "question/c.wav", "label": "question"},
        {"audio": "request/b.wav", "label": "request"},
        {"audio": "statement/a.wav", "label": "statement"},
    ]
    assert labels.origin(1) == f"{labels.path}/request/b.wav"
    above = AudioFolder(formats / "audiofolder_labels")  # one split is no choice
    assert above.row(0).value == {"audio": "train/question/c.wav", "label": "question"}


def test_metadata_as_parquet(tmp_path):
    write(tmp_path, **{"a.wav": "", "sub/b.wav": ""})
    table = pa.table({"file_name": ["a.wav", "sub/b.wav"], "text": ["x", "y"], "age": [3, None]})
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert rows_of(tmp_path) == [
        {"audio": "a.wav", "text": "x", "age": 3},
        {"audio": "sub/b.wav", "text": "y", "age": None},
    ]


def test_several_columns_of_files(tmp_path):
    row = {"question_file_name": "q.wav", "file_names": ["a.wav", "b.wav"], "text": "x"}
    write(tmp_path, **{"q.wav": "", "a.wav": "", "b.wav": "", "metadata.jsonl": json.dumps(row)})
    assert rows_of(tmp_path) == [{"question": "q.wav", "audios": ["a.wav", "b.wav"], "text": "x"}]


def test_metadata_in_several_folders(tmp_path):
    write(
        tmp_path,
        **{
            "x/metadata.csv": "file_name,text\na.wav,1\n",
            "y/metadata.csv": "file_name,text\nclips/a.wav,2\n",
            "x/a.wav": "",
            "y/clips/a.wav": "",
            "y/._a.wav": "",
            "README.md": "",
        },
    )
    assert rows_of(tmp_path) == [
        {"audio": "x/a.wav", "text": "1"},
        {"audio": "y/clips/a.wav", "text": "2"},
    ]
    assert AudioFolder(tmp_path).origin(1) == f"{tmp_path}/y/metadata.csv:2"


def test_one_folder_is_no_label(tmp_path):
    write(tmp_path, **{"wavs/a.wav": "", "wavs/b.wav": ""})
    assert rows_of(tmp_path) == [{"audio": "wavs/a.wav"}, {"audio": "wavs/b.wav"}]


HEAD = "file_name,text\n"
BAD_ROWS = {
    "missing": ("a.wav,x\nnone.wav,y\n", "names none.wav, which is not in the folder"),
    "twice": ("a.wav,x\n./a.wav,y\n", r"names a.wav, which .*metadata.csv:2 names too"),
    "empty": ("a.wav,x\n,y\n", "'file_name' must be the path of a sound file"),
    "too few fields": ("a.wav,x\nb.wav\n", "has 1 fields"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_its_neighbours_are_read(tmp_path, case):
    lines, complaint = BAD_ROWS[case]
    write(tmp_path, **{"a.wav": "", "metadata.csv": HEAD + lines})
    rows = AudioFolder(tmp_path)
    assert rows.row(0).value == {"audio": "a.wav", "text": "x"}
    with pytest.raises(DataError, match=complaint) as error:
        rows.row(1)
    assert str(error.value).startswith(f"{tmp_path}/metadata.csv:3: ")


BAD_FOLDERS = {
    "no sound": ({"a.txt": ""}, "has no sound files"),
    "a file without metadata": (
        {"a.wav": "", "b.wav": "", "metadata.csv": f"{HEAD}a.wav,x\n"},
        r"1 sound file is not named in metadata\.csv: b\.wav",
    ),
    "metadata of two kinds": (
        {"a.wav": "", "metadata.csv": f"{HEAD}a.wav,x\n", "metadata.jsonl": "{}"},
        "metadata files of several kinds",
    ),
    "several splits": (
        {"train/x/a.wav": "", "train/y/b.wav": "", "test/x/a.wav": ""},
        "holds the splits test, train; name one of them",
    ),
    "several splits below data": (
        {"data/train/a.wav": "", "data/validation/a.wav": ""},
        "holds the splits train, validation; name one",
    ),
    "metadata above splits": (
        {
            "train/a.wav": "",
            "test/a.wav": "",
            "metadata.csv": f"{HEAD}train/a.wav,x\ntest/a.wav,x\n",
        },
        "write a metadata file into each",
    ),
    "labels at several depths": (
        {"x/a.wav": "", "y/z/a.wav": ""},
        "different depths",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, case):
    files, complaint = BAD_FOLDERS[case]
    write(tmp_path, **files)
    with pytest.raises(DataError, match=complaint) as error:
        AudioFolder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("file_name,audio", "'audio' and a column of file names"),
        ("name,text", r"names no sound file; .* \(columns: name, text\)"),
    ],
)
def test_columns_that_do_not_name_files_are_refused(tmp_path, header, complaint):
    write(tmp_path, **{"a.wav": "", "metadata.csv": f"{header}\na.wav,b.wav\n"})
    with pytest.raises(DataError, match=complaint):
        AudioFolder(tmp_path).row(0)
