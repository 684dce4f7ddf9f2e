"""Parquet: where clips are found, what rows hold without reading them, row groups, damage."""

import concurrent.futures
import datetime
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepaudio_jax.data.containers import parquet
from stepaudio_jax.data.containers.base import EmbeddedClip, Samples
from stepaudio_jax.data.containers.parquet import ParquetTable
from stepaudio_jax.errors import DataError

A, B = b"RIFF\0\0\0\0WAVE a", b"fLaC b"


def write(folder: pathlib.Path, columns: Any, **settings: Any) -> ParquetTable:
    path = folder / "t.parquet"
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **settings)
    return ParquetTable(path)


def clips_in(value: Any) -> list[EmbeddedClip]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [clip for item in value for clip in clips_in(item)]
    return [value] if isinstance(value, EmbeddedClip) else []


def read_clips(table: ParquetTable) -> list[Any]:
    """The clips that all rows name, as (place, content)."""
    places = [
        clip.rpartition("#")[2]
        for index in range(len(table))
        for clip in clips_in(table.row(index).value)
    ]
    return [(place, table.read_clip(place)) for place in places]


def test_the_samples(formats):
    path = formats / "hf_parquet" / "train-00000-of-00001.parquet"
    table = ParquetTable(path)
    row = table.row(2)
    assert row.value == {
        "audio": f"{path}#2/audio",
        "text": "Three plus four.",
        "speaker": "spk1",
    }
    assert (row.origin, row.folder) == (f"{path}#2", str(path.parent))
    assert row.default_id == "train-00000-of-00001:2"
    sounds = [(formats / "clips" / f"{name}.wav").read_bytes() for name in "abc"]
    assert read_clips(table) == [(f"{index}/audio", sounds[index]) for index in range(3)]
    chat = ParquetTable(formats / "hf_parquet" / "chat-00000-of-00001.parquet")
    assert read_clips(chat) == [("0/audios/0", sounds[0]), ("1/audios/0", sounds[2])]
    assert chat.row(1).value["messages"][0]["content"] == "<audio>How much is it?"
    verl = ParquetTable(formats / "verl" / "train.parquet")
    assert verl.row(0).value["audios"] == ["clips/c.wav"]
    assert verl.row(0).value["reward_model"] == {"style": "rule", "ground_truth": "7"}


def test_a_clip_without_bytes_is_its_path(tmp_path):
    table = write(
        tmp_path,
        {
            "audio": [
                {"bytes": A, "path": "a.wav"},
                None,
                {"bytes": None, "path": "clips/b.wav"},
                {"bytes": None, "path": None},
                {"bytes": B, "path": None},
            ]
        },
        row_group_size=2,
    )
    values = [table.row(index).value["audio"] for index in range(5)]
    assert values[1:4] == [None, "clips/b.wav", None]
    assert read_clips(table) == [("0/audio", A), ("4/audio", B)]
    with pytest.raises(DataError, match="#2/audio: there is no sound"):
        table.read_clip("2/audio")
    assert [block.rows for block in table.blocks()] == [2, 2, 1]


AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PLACES = {
    "bytes only": ({"audio": [{"bytes": A}, None]}, [("0/audio", A)]),
    "a column of bytes": ({"wav": [None, A]}, [("1/wav", A)]),
    "a column of bytes that begins with none": ({"wav": [b"", A]}, [("0/wav", b""), ("1/wav", A)]),
    "views, as Polars writes them": (
        {
            "wav": pa.array([A], pa.binary_view()),
            "audio": pa.array(
                [{"bytes": B, "path": "b"}],
                pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()}),
            ),
            "text": pa.array(["x"], pa.string_view()),
        },
        [("0/wav", A), ("0/audio", B)],
    ),
    "bytes in lists": ({"audios": [[], [A, B]]}, [("1/audios/0", A), ("1/audios/1", B)]),
    "empty lists": ({"audios": pa.array([[], None], pa.list_(AUDIO))}, []),
    "parts of messages": (
        {
            "messages": [
                [
                    {"role": "user", "content": [{"audio": {"bytes": A, "path": "a"}}]},
                    {"role": "assistant", "content": []},
                ],
                [{"role": "user", "content": [{"audio": None}, {"audio": {"bytes": B}}]}],
            ]
        },
        [("0/messages/0/content/0/audio", A), ("1/messages/0/content/1/audio", B)],
    ),
    "bytes in messages": (
        {"messages": [[{"role": "user", "audio": A}, {"role": "assistant", "audio": None}]]},
        [("0/messages/0/audio", A)],
    ),
    "names with a separator": (
        {"x/y#1": [{"bytes": A, "path": "a"}], "x.y": [1]},
        [("0/x%252Fy%231", A)],
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_clips_are_found_by_their_shape(tmp_path, case):
    columns, expected = PLACES[case]
    assert read_clips(write(tmp_path, columns)) == expected


def test_samples_with_their_rate(tmp_path):
    table = write(
        tmp_path,
        {
            "audio": [{"array": [0.0, 0.5, -1.0], "sampling_rate": 8000, "path": "a.wav"}],
            "stereo": [{"array": [[0.0, 0.5], [1.0, -1.0]], "sampling_rate": 16000}],
        },
    )
    (_, mono), (_, stereo) = read_clips(table)
    assert isinstance(mono, Samples)
    np.testing.assert_array_equal(mono.values, [0.0, 0.5, -1.0])
    assert (mono.rate, stereo.rate) == (8000, 16000)
    np.testing.assert_array_equal(stereo.values, [[0.0, 1.0], [0.5, -1.0]])


def test_features_of_hugging_face_tell_images_and_labels(tmp_path):
    sequence = {"audio": {"_type": "Audio"}, "label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    features = {
        "picture": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["no", "yes"]},
        "turns": {"_type": "Sequence", "feature": sequence},
        "image": {"_type": "Audio"},
    }
    table = pa.table(
        {
            "picture": [{"bytes": A, "path": "a"}] * 2,
            "label": [1, -1],
            "turns": [{"audio": [{"bytes": B, "path": "b"}], "label": [0]}] * 2,
            "image": [{"bytes": A, "path": "a"}] * 2,
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = write(tmp_path, table)
    assert [rows.row(index).value["label"] for index in range(2)] == ["yes", None]
    assert rows.row(0).value["turns"]["label"] == ["x"]
    assert [place for place, _ in read_clips(rows)] == [
        *("0/turns/audio/0", "0/image", "1/turns/audio/0", "1/image"),
    ]
    unnamed = write(tmp_path, {"image": [{"bytes": A, "path": "a"}]})
    assert unnamed.row(0).value["image"] == f"{unnamed.path}#0/image"
    assert read_clips(unnamed) == []


def test_values_are_those_of_json(tmp_path):
    time = datetime.datetime(2020, 1, 2)
    table = write(
        tmp_path,
        {
            "time": [time],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "text": [b"\xc3\xa9"],
            "word": pa.array(["w"]).dictionary_encode(),
            "none": pa.nulls(1),
        },
    )
    value = table.row(0).value
    assert value == {
        "time": time.isoformat(),
        "map": {"k": 1},
        "text": "é",
        "word": "w",
        "none": None,
    }
    json.dumps(value)
    unreadable = write(tmp_path, {"codes": [b"\x93\0\1"]})
    with pytest.raises(DataError, match="#0: the column 'codes' holds bytes that are neither"):
        unreadable.row(0)


def test_rows_are_read_without_their_sound(tmp_path):
    sound = [{"bytes": A + bytes([n]) * 5000, "path": f"{n}.wav"} for n in range(20)]
    table = write(tmp_path, {"audio": sound, "text": ["x"] * 20}, row_group_size=10)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    chunk = pq.read_metadata(tmp_path / "t.parquet").row_group(1).column(0)
    assert chunk.path_in_schema == "audio.bytes"
    start = chunk.dictionary_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    (tmp_path / "t.parquet").write_bytes(content)
    table = ParquetTable(tmp_path / "t.parquet")
    assert table.row(15).value == {"audio": f"{table.path}#15/audio", "text": "x"}
    assert table.read_clip("5/audio") == sound[5]["bytes"]
    with pytest.raises(DataError, match=r"#15/audio: .*damaged"):
        table.read_clip("15/audio")


def test_a_file_in_a_bucket_is_read_through_a_file_object(formats, monkeypatch):
    monkeypatch.setattr(parquet, "is_address", lambda path: True)
    table = ParquetTable(formats / "hf_parquet" / "train-00000-of-00001.parquet")
    assert table.read_clip("1/audio") == (formats / "clips" / "b.wav").read_bytes()


def test_groups_are_decoded_once_and_kept_within_bounds(tmp_path, monkeypatch):
    sound = [b"RIFF" + bytes([n]) * 50_000 for n in range(40)]
    table = write(
        tmp_path, {"audio": [{"bytes": each, "path": ""} for each in sound]}, row_group_size=10
    )
    monkeypatch.setattr(parquet, "_cache", parquet.DecodedCache(1_100_000))  # two groups
    decoded: list[int] = []
    read = ParquetTable._read

    def count(self: ParquetTable, group: int, *arguments: Any) -> Any:
        decoded.append(group)
        return read(self, group, *arguments)

    monkeypatch.setattr(ParquetTable, "_read", count)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clips = list(pool.map(lambda index: table.read_clip(f"{index}/audio"), range(20)))
    assert clips == sound[:20]
    assert sorted(decoded) == [0, 1]
    for index in (25, 26, 35, 5):
        assert table.read_clip(f"{index}/audio") == sound[index]
    assert decoded[2:] == [2, 3, 0]


def test_damage_is_one_line(formats, tmp_path):
    content = (formats / "hf_parquet" / "train-00000-of-00001.parquet").read_bytes()
    path = tmp_path / "t.parquet"
    for damaged in (content[: len(content) // 2], content[:-4], b"PAR1", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cut off or damaged") as error:
            ParquetTable(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    path.write_bytes(content[:1000] + bytes(3000) + content[4000:])
    with pytest.raises(DataError, match=f"^{path}#0/audio: .*damaged"):
        ParquetTable(path).read_clip("0/audio")


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("3/audio", "rows 0 to 2"),
        ("audio", "rows 0 to 2"),
        ("0", "rows 0 to 2"),
        ("-1/audio", "rows 0 to 2"),
        ("0/sound", "the columns are audio, text, speaker"),
        ("0/text", "no sound in this place"),
        ("0/audio/0", "no sound in this place"),
    ],
)
def test_a_place_without_a_clip_is_named(formats, place, complaint):
    path = formats / "hf_parquet" / "train-00000-of-00001.parquet"
    with pytest.raises(DataError, match=complaint) as error:
        ParquetTable(path).read_clip(place)
    assert str(error.value).startswith(f"{path}#{place}: ")


def test_without_pyarrow_the_extra_is_named(formats, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'stepaudio-jax\[parquet\]'"):
        ParquetTable(formats / "verl" / "train.parquet")
