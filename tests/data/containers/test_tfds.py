"""Prepared TFDS folders: features of all kinds, splits, names, and folders that are incomplete.

`nested_features` holds an Example that `tensorflow_datasets` 4.9.10 has encoded, and the files that
it wrote of its features.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import soundfile

from stepaudio_jax.data.containers.array_record import ArrayRecordFile
from stepaudio_jax.data.containers.base import EmbeddedClip, Samples
from stepaudio_jax.data.containers.example import serialize_example
from stepaudio_jax.data.containers.tfds import TfdsFolder, resolve_name
from stepaudio_jax.data.containers.tfds_splits import SplitRange, parse_split
from stepaudio_jax.data.containers.tfrecord import TFRecordFile
from stepaudio_jax.errors import DataError
from tests.data.containers import records

NESTED = pathlib.Path(__file__).parent / "nested_features" / "1.0.0"
PATHS = {"array_record": "tfds/talks/plain/1.0.0", "tfrecord": "tfds_tfrecord/talks/plain/1.0.0"}


@pytest.fixture
def talks(formats, tmp_path):
    """Returns a copy of a prepared folder, below the folder of all data sets."""
    shutil.copytree(formats / "tfds" / "talks", tmp_path / "talks")
    return tmp_path / "talks" / "plain" / "1.0.0"


def edit(path: pathlib.Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("file_format", PATHS)
def test_both_file_formats(formats, file_format):
    folder = formats / PATHS[file_format]
    shard = f"{folder}/talks-train.{file_format}-00000-of-00001"
    container = TfdsFolder(folder)
    assert len(container) == 3
    expected = [
        ("b1", "request", "Please close the window."),
        ("a0", "statement", "The meeting is at seven."),
        ("c2", "question", "Three plus four."),
    ]
    for index, (record_id, label, text) in enumerate(expected):
        row = container.row(index)
        clip = row.value["speech"]
        assert row.value == {
            "id": record_id,
            "label": label,
            "speaker_id": 1,
            "speech": f"{shard}#{index}/speech",
            "text": text,
        }
        assert type(clip) is EmbeddedClip
        assert row.origin == container.origin(index) == f"{shard}#{index}"
        assert row.folder == str(folder)
        # The clip's name alone finds it: its file is a container too.
        file_class = ArrayRecordFile if file_format == "array_record" else TFRecordFile
        samples = file_class(shard).read_clip(clip.partition("#")[2])
        wav, rate = soundfile.read(formats / "clips" / f"{record_id[0]}.wav", dtype="int16")
        for read in (samples, container.read_clip(f"{index}/speech")):
            assert (read.rate, read.values.dtype) == (rate, np.int16)
            np.testing.assert_array_equal(read.values, wav)
    assert container.blocks() is None


def test_features_that_tfds_has_encoded():
    container = TfdsFolder(NESTED)
    assert container.row(0).value == {
        "bb": [0.0, 0.25, 0.5, 1.0],
        "d": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "dyn": [[0, 1], [2, 3], [4, 5]],
        "f": 0.5,
        "id": "ü",
        "label": "y",
        "n": -5,
        "nested": {"a": "t", "deep/er": {"l": "r"}},
        "ok": True,
        "opt": None,
        "optt": None,
        "plain": 3,
        "rag": [[1, 2], [], [3]],
        "rag3": [[{"k": 1, "w": ["a"]}, {"k": 2, "w": []}], [], [{"k": 3, "w": ["b", "c"]}]],
        "sc": 3,
        "st": [["a", "b"], ["c", "d"]],
        "tr": {"de": "ja", "en": "yes"},
        "trv": [
            {"language": "de", "translation": "doch"},
            {"language": "de", "translation": "ja"},
            {"language": "en", "translation": "yes"},
        ],
        "turns": [
            {"role": "user", "text": "hi", "times": [0.0, 1.0]},
            {"role": "bot", "text": "", "times": [1.0, 2.0]},
        ],
        "u": 2**64 - 3,
        "v": [[1.0, 1.0]] * 4,
        "words": ["a", "b"],
    }
    with pytest.raises(
        DataError, match=r"#0: the feature 'v' is an array and not an Audio feature"
    ):
        container.read_clip("0/v")


def audio(**settings: Any) -> dict[str, Any]:
    feature = {"dtype": "int64", "encoding": "NONE", "sampleRate": "8000", "shape": shape(-1)}
    return {"audio": {**feature, **settings}, "pythonClassName": "x.Audio"}


def shape(*dimensions: int) -> dict[str, Any]:
    return {"dimensions": [str(size) for size in dimensions]}


def write_folder(
    folder: pathlib.Path, features: dict[str, Any], examples: list[dict[str, Any]]
) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    content = {"featuresDict": {"features": features}, "pythonClassName": "x.FeaturesDict"}
    (folder / "features.json").write_text(json.dumps(content))
    splits = [{"name": "train", "shardLengths": [str(len(examples))]}]
    info = {"name": "d", "version": "1.0.0", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    records.write_tfrecord(
        folder / "d-train.tfrecord-00000-of-00001",
        [serialize_example(example) for example in examples],
    )
    return folder


def test_sound_in_all_its_forms(tmp_path, formats):
    integers = np.random.default_rng(0).integers(-(2**15), 2**15, 600)
    floats = np.linspace(-1, 1, 600, dtype=np.float32)
    wavs = [(formats / "clips" / f"{name}.wav").read_bytes() for name in "abc"]
    lazy = audio(lazyDecode=True, sampleRate="16000", fileFormat="wav")
    folder = write_folder(
        tmp_path,
        {
            "mono": audio(),
            "stereo": audio(shape=shape(-1, 2), dtype="int32"),
            "floats": audio(dtype="float32", shape=shape(600)),
            "zlib": audio(encoding="ZLIB", dtype="int16", shape=shape(-1, 2)),
            "raw": audio(encoding="bytes", dtype="float64"),
            "file": lazy,
            "files": {"sequence": {"feature": lazy, "length": "-1"}, "pythonClassName": "x.S"},
            "turns": {
                "sequence": {
                    "feature": {"featuresDict": {"features": {"speech": lazy}}},
                    "length": "-1",
                }
            },
        },
        [
            {
                "mono": integers,
                "stereo": integers,
                "floats": floats,
                "zlib": [zlib.compress(integers.astype("<i2").tobytes())],
                "raw": [floats.astype("<f8").tobytes()],
                "file": wavs[:1],
                "files": wavs[:2],
                "turns/speech": wavs[1:],
            }
        ],
    )
    container = TfdsFolder(folder)
    at = f"{folder}/d-train.tfrecord-00000-of-00001#0/"
    assert container.row(0).value == {
        **{name: at + name for name in ("mono", "stereo", "floats", "zlib", "raw", "file")},
        "files": [f"{at}files[0]", f"{at}files[1]"],
        "turns": [{"speech": f"{at}turns/speech[0]"}, {"speech": f"{at}turns/speech[1]"}],
    }
    for name, values in {
        "mono": integers,
        "stereo": integers.reshape(-1, 2),
        "floats": floats,
        "zlib": integers.reshape(-1, 2),
        "raw": floats,
    }.items():
        samples = container.read_clip(f"0/{name}")
        assert isinstance(samples, Samples)
        assert samples.rate == 8000
        np.testing.assert_array_equal(samples.values, values)
    assert container.read_clip("0/file") == wavs[0]
    assert container.read_clip("0/files[1]") == wavs[1]
    assert container.read_clip("0/turns/speech[1]") == wavs[2]
    with pytest.raises(DataError, match=r"the feature 'files' has 2 values, and no 2"):
        container.read_clip("0/files[2]")
    with pytest.raises(DataError, match=r"has no feature 'fil'"):
        container.read_clip("0/fil")


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        (audio(sampleRate="0"), "the Audio feature 'x' says no sampleRate"),
        (audio(lazyDecode=True, encoding="ZLIB"), "not both"),
        ({"jsonFeature": {"json": "{}"}, "pythonClassName": "my.Midi"}, "'x' is of the kind Midi"),
        ({"tensor": {"dtype": "nonsense"}}, "is not as TFDS writes it today"),
    ],
)
def test_features_that_cannot_be_read(tmp_path, feature, reason):
    folder = write_folder(tmp_path, {"x": feature}, [{}])
    with pytest.raises(DataError, match=rf"features.json: .*{reason}"):
        TfdsFolder(folder)


@pytest.mark.parametrize(
    ("feature", "values", "reason"),
    [
        (audio(), [b"x"], "'x' holds bytes values, and by features.json int64 values"),
        (audio(), None, "has no feature 'x'; it has none"),
        (audio(shape=shape(-1, 2)), np.arange(3), "'x' has 3 values, which do not fill its shape"),
        (audio(), np.array([40000]), "reach 40000"),
        (audio(encoding="zlib"), [b"x"], "'x' is damaged"),
        (audio(encoding="bytes"), [b"x"], "'x' is damaged: it has 1 bytes"),
    ],
)
def test_records_that_do_not_fit_their_features(tmp_path, feature, values, reason):
    folder = write_folder(tmp_path, {"x": feature}, [{} if values is None else {"x": values}])
    with pytest.raises(DataError, match=rf"00000-of-00001#0: .*{reason}"):
        TfdsFolder(folder).read_clip("0/x")


def test_the_samples_are_not_decoded_for_a_row(tmp_path):
    damaged = {"x": np.array([40000])}
    assert TfdsFolder(write_folder(tmp_path, {"x": audio()}, [damaged])).row(0).value["x"]
    with pytest.raises(DataError, match=r"#0: has no feature 'x'"):
        TfdsFolder(write_folder(tmp_path, {"x": audio()}, [{}])).row(0)


def test_text_in_an_array_of_any_shape(tmp_path):
    tensor = {"tensor": {"dtype": "string", "encoding": "none", "shape": shape(2, -1)}}
    folder = write_folder(tmp_path, {"x": tensor}, [{"x": [b"a", b"b", b"c", b"d", b"e", b"f"]}])
    assert TfdsFolder(folder).row(0).value["x"] == [["a", "b", "c"], ["d", "e", "f"]]


def test_classes(tmp_path):
    label = {"classLabel": {"numClasses": "2"}, "pythonClassName": "x.ClassLabel"}
    examples = [{"x": np.array([number])} for number in (0, -1, 5)]
    folder = write_folder(tmp_path, {"x": label}, examples)
    assert [TfdsFolder(folder).row(index).value["x"] for index in range(3)] == [0, None, 5]
    (folder / "x.labels.txt").write_text("no\nyes\n")
    assert TfdsFolder(folder).row(0).value == {"x": "no"}
    with pytest.raises(DataError, match=r"#2: the class 5 in 'x' has no name; there are 2"):
        TfdsFolder(folder).row(2)
    (folder / "x.labels.txt").write_text("no\n")
    with pytest.raises(DataError, match=r"x.labels.txt: has 1 names, and features.json says 2"):
        TfdsFolder(folder)


def test_shards_and_slices(tmp_path):
    text = {"text": {}, "pythonClassName": "x.Text"}
    folder = write_folder(tmp_path, {"t": text}, [])

    def describe(info: dict[str, Any]) -> None:
        info["splits"] = [
            {
                "name": "train",
                "shardLengths": ["3", "0", "2"],
                "filepathTemplate": "{SPLIT}/{NUM_SHARDS}-{SHARD_INDEX}%00003",
            },
            {"name": "test", "shardLengths": ["2"]},
        ]

    edit(folder / "dataset_info.json", describe)
    (folder / "train").mkdir()
    rows = iter("abcdefg")
    for path, count in (
        ("train/00003-00000", 3),
        ("train/00003-00001", 0),
        ("train/00003-00002", 2),
        ("d-test.tfrecord-00000-of-00001", 2),
    ):
        examples = [serialize_example({"t": [next(rows).encode()]}) for _ in range(count)]
        records.write_tfrecord(folder / path, examples)

    def read(split: str) -> str:
        container = TfdsFolder(folder, split)
        return "".join(container.row(index).value["t"] for index in range(len(container)))

    assert read("train") == "abcde"
    assert read("test+train[1:4]") == "fgbcd"
    assert read("train[2shard:]") == "de"
    assert read("all") == "abcdefg"
    container = TfdsFolder(folder, "train[3:]")
    assert container.origin(0) == f"{folder}/train/00003-00002#0"
    assert TFRecordFile(folder / "train/00003-00002").row(1).value == {"t": "e"}
    with pytest.raises(DataError, match=r"has 2 splits; name one, or all: train, test"):
        TfdsFolder(folder)
    with pytest.raises(DataError, match=r"has no split 'tran'; it has train, test; did you mean"):
        TfdsFolder(folder, "tran")


LENGTHS = {"train": [40, 30, 31], "test": [7]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", [("train", 0, 101)]),
        ("train[:10]", [("train", 0, 10)]),
        ("train[-10:]", [("train", 91, 101)]),
        ("train[10:-1]", [("train", 10, 100)]),
        ("train[:50%]", [("train", 0, 50)]),
        ("train[33.3%:]", [("train", 34, 101)]),
        ("train[-25%:]", [("train", 76, 101)]),
        ("train[1shard]", [("train", 40, 70)]),
        ("train[-1shard]", [("train", 70, 101)]),
        ("train[1shard:]", [("train", 40, 101)]),
        ("train[:2shard] + test[1:3]", [("train", 0, 70), ("test", 1, 3)]),
        ("all", [("train", 0, 101), ("test", 0, 7)]),
        ("train[1_0:20]", [("train", 10, 20)]),
    ],
)
def test_splits(text, expected):
    assert parse_split(text, LENGTHS) == [SplitRange(*part) for part in expected]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a split"),
        ("train[", r"'train\[' is not a split"),
        ("train[5]", "not a slice"),
        ("train[:]", "not a slice"),
        ("train[1:2:3]", "not a slice"),
        ("train[a:]", "not a slice"),
        ("train[0.5:]", "not a slice"),
        ("train[10:50%]", "mixes rows, percentages and shards"),
        ("train[:102]", "outside of its split of 101 rows"),
        ("train[4shard:]", "outside of its split of 3 shards"),
        ("train[5:5]", "has no rows: train has 101"),
        ("train+", "'' is not a split"),
        ("validation", "has no split 'validation'; it has train, test"),
    ],
)
def test_splits_that_mean_nothing(text, reason):
    with pytest.raises(DataError, match=reason):
        parse_split(text, LENGTHS)


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("features.json", "is not a prepared TFDS folder: it has no features.json; copy"),
        ("dataset_info.json", "is not a prepared TFDS folder: it has no dataset_info.json"),
        ("talks-train.array_record-00000-of-00001", r"of-00001: cannot be read \(No such file"),
    ],
)
def test_a_folder_without_a_file(talks, remove, reason):
    (talks / remove).unlink()
    with pytest.raises(DataError, match=reason) as error:
        TfdsFolder(talks)
    assert str(talks) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_above_is_no_version(talks):
    with pytest.raises(DataError, match=r"no dataset_info.json; name a folder in it: 1.0.0"):
        TfdsFolder(talks.parent)


def test_other_file_formats_are_refused(talks):
    edit(talks / "dataset_info.json", lambda info: info.update(fileFormat="riegeli"))
    with pytest.raises(DataError, match="have the format 'riegeli', and array_record and tfrecord"):
        TfdsFolder(talks)


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ("train", "does not describe splits as TFDS does"),
        ([{"name": "train", "shardLengths": ["x"]}], "does not describe splits"),
        ([{"name": "train"}], "says no shardLengths of the split 'train'"),
        ([{"name": "train", "shardLengths": ["3"], "filepathTemplate": "{X}"}], "'{X}', which is"),
        ([], "has no split"),
    ],
)
def test_splits_that_are_damaged(talks, splits, reason):
    edit(talks / "dataset_info.json", lambda info: info.update(splits=splits))
    with pytest.raises(DataError, match=rf"1.0.0: .*{reason}"):
        TfdsFolder(talks)


def test_a_shard_of_another_length(talks):
    edit(talks / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["4"]))
    with pytest.raises(DataError, match=r"of-00001: has 3 records, and dataset_info.json says 4"):
        TfdsFolder(talks).row(0)


def test_names(talks, monkeypatch):
    root = talks.parents[2]
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    for version in ("1.0.10", "1.0.9", "2.0.0.incomplete"):
        shutil.copytree(talks, talks.parent / version)
    newest = str(talks.parent / "1.0.10")
    assert resolve_name("tfds:talks") == (newest, None)
    assert resolve_name("tfds:talks/plain:train") == (newest, "train")
    assert resolve_name("tfds:talks/plain:train[:10%]+test") == (newest, "train[:10%]+test")
    assert resolve_name("tfds:talks/plain:1.0.0:train") == (str(talks), "train")
    assert resolve_name("tfds:talks/plain/1.0.9") == (str(talks.parent / "1.0.9"), None)
    assert resolve_name("tfds:talks:1.*.*") == (newest, None)
    shutil.copytree(talks.parent, root / "talks" / "noisy")
    with pytest.raises(DataError, match="holds noisy, plain; name one: tfds:talks/CONFIG:SPLIT"):
        resolve_name("tfds:talks")
    (root / "talks" / ".config").mkdir()
    (root / "talks" / ".config" / "metadata.json").write_text('{"default_config_name": "noisy"}')
    assert resolve_name("tfds:talks")[0] == str(root / "talks" / "noisy" / "1.0.10")
    shutil.copytree(talks, root / "bare" / "3.1.0")
    assert resolve_name("tfds:bare:test") == (str(root / "bare" / "3.1.0"), "test")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tfds:", "is not the name of a data set; write tfds:NAME/CONFIG:SPLIT"),
        ("tfds:../talks", "is not the name of a data set"),
        ("tfds:talk", r"talk does not exist; did you mean 'talks'\?;.*tfds build talk --file"),
        ("tfds:talks/plan", "holds no prepared version; there is plain; .*tfds build talks/plan "),
        ("tfds:talks/plain:2.0.0", "holds no prepared version 2.0.0; there is 1.0.0"),
    ],
)
def test_names_of_nothing(talks, monkeypatch, name, reason):
    monkeypatch.setenv("TFDS_DATA_DIR", str(talks.parents[2]))
    with pytest.raises(DataError, match=reason):
        resolve_name(name)


def test_the_package_explains_a_name(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    script = (
        "from stepaudio_jax.data.containers.tfds import resolve_name\n"
        "from stepaudio_jax.errors import DataError\n"
        "import sys\n"
        "try:\n    resolve_name('tfds:librispeech:train')\n"
        "except DataError as error:\n    print(error)\n"
        "print('tensorflow' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    message, has_tensorflow = run.stdout.splitlines()
    assert "TFDS has it with the configurations default, lazy_decode: prepare it" in message
    assert has_tensorflow == "False"
