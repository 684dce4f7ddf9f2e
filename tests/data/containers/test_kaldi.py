"""Kaldi data folders: whole recordings, segments, and lines that cannot be read."""

import pathlib

import pytest

from stepaudio_jax.data.containers.kaldi import KaldiFolder
from stepaudio_jax.errors import DataError


def write(folder: pathlib.Path, **files: str) -> pathlib.Path:
    """Writes the files of a folder; `wav_scp` is wav.scp."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_the_sample(formats):
    rows = KaldiFolder(formats / "kaldi")
    row = rows.row(1)
    assert row.value == {
        "id": "b",
        "audio": "clips/b.wav",
        "text": "Please close the window.",
        "speaker": "spk1",
    }
    assert (row.origin, row.folder) == (f"{formats}/kaldi/wav.scp:2", f"{formats}/kaldi")
    assert row.default_id == "b"
    assert len(rows) == 3


def test_segments_and_all_files(tmp_path):
    write(
        tmp_path,
        wav_scp="r1 a.wav\nr2\tmy clips/b.flac \r\n",
        segments="u2 r2 1.5 -1\nu1 r1 0.25 1.5 0\n\nu3 r2 0 1e0\n",
        text="u1 你好  there \nu2 x\nu3\n",
        utt2spk="u1 s1\nu2 s2\nu3 s1\n",
        spk2gender="s1 f\ns2 m\n",
        utt2lang="u1 zh\nu2 en\nu3 en\n",
    )
    rows = KaldiFolder(tmp_path)
    shared = {"speaker": "s1", "gender": "female"}
    assert [rows.row(index).value for index in range(3)] == [
        {
            **{"id": "u2", "audio": "my clips/b.flac", "start_s": 1.5, "text": "x"},
            **{"speaker": "s2", "gender": "male", "language": "en"},
        },
        {
            **{"id": "u1", "audio": "a.wav", "start_s": 0.25, "end_s": 1.5, "text": "你好  there"},
            **shared,
            "language": "zh",
        },
        {
            **{"id": "u3", "audio": "my clips/b.flac", "start_s": 0.0, "end_s": 1.0, "text": ""},
            **shared,
            "language": "en",
        },
    ]
    assert [rows.origin(index) for index in range(3)] == [
        f"{tmp_path}/segments:{line}" for line in (1, 2, 4)
    ]


def test_fields_may_be_separated_by_tabs(tmp_path):
    files = {"wav_scp": "r\ta.wav\n", "segments": "u\tr\t0.5\t1\n", "text": "u\tHi there.\n"}
    row = KaldiFolder(write(tmp_path, **files)).row(0)
    clip = {"audio": "a.wav", "start_s": 0.5, "end_s": 1.0}
    assert row.value == {"id": "u", **clip, "text": "Hi there."}


def test_recordings_that_are_no_files_are_refused_by_line(tmp_path):
    lines = ["a flac -c -d -s x.flac |", "b x.ark:123", "c -", "d", "e | cat", "f f.wav"]
    texts = "".join(f"{key} x\n" for key in "abcde")
    rows = KaldiFolder(write(tmp_path, wav_scp="\n".join(lines), text=texts))
    complaints = ["is a command", "Kaldi archive", "standard input", "no path", "is a command"]
    for index, complaint in enumerate([*complaints, "'f' has no line in 'text'"]):
        with pytest.raises(DataError, match=complaint) as error:
            rows.row(index)
        assert str(error.value).startswith(f"{tmp_path}/wav.scp:{index + 1}: ")


BAD_SEGMENTS = {
    "r 0": "`ID RECORDING START END`",
    "r 2 1": "lasts from 2 to 1 s",
    "r 1 1": "lasts from 1 to 1 s",
    "r -1 1": "lasts from -1 to 1 s",
    "r 0 end": "'end' is no time",
    "r nan 1": "'nan' is no time",
    "x 0 1": "'x', which wav.scp does not have",
    "r 0 1 1": "channel 1",
}


@pytest.mark.parametrize("line", BAD_SEGMENTS)
def test_a_bad_segment_is_named_and_its_neighbours_are_read(tmp_path, line):
    write(tmp_path, wav_scp="r a.wav\n", segments=f"a r 0 1\nb {line}\n", text="a x\nb y\n")
    rows = KaldiFolder(tmp_path)
    with pytest.raises(DataError, match=BAD_SEGMENTS[line]) as error:
        rows.row(1)
    assert str(error.value).startswith(f"{tmp_path}/segments:2: ")
    assert rows.row(0).value["audio"] == "a.wav"


BAD_FOLDERS = {
    "no recordings": ({"text": "a x\n"}, "has no wav.scp"),
    "no texts": ({"wav_scp": "a a.wav\n"}, "has no file 'text'"),
    "a text without sound": (
        {"wav_scp": "a a.wav\n", "text": "a x\nb y\n"},
        r"text: has lines that have no sound \(1\): b",
    ),
    "a recording without segments": (
        {"wav_scp": "r a.wav\nq b.wav\n", "segments": "a r 0 1\n", "text": "a x\n"},
        r"wav.scp: has lines in no segment \(1\): q",
    ),
    "an id twice": (
        {"wav_scp": "a a.wav\na b.wav\n", "text": "a x\n"},
        "wav.scp:2: has 'a' again, which line 1 has",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, case):
    files, complaint = BAD_FOLDERS[case]
    write(tmp_path, **files)
    with pytest.raises(DataError, match=complaint) as error:
        KaldiFolder(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_utf8_is_named_by_line(tmp_path):
    write(tmp_path, wav_scp="a a.wav\n")
    (tmp_path / "text").write_bytes(b"b x\na \xff\n")
    with pytest.raises(DataError, match=f"^{tmp_path}/text:2: is not UTF-8"):
        KaldiFolder(tmp_path)
