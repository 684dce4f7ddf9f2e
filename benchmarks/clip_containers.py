"""Writes the same clips into each container, in the forms that other libraries read too."""

import io
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.containers.array_record import write_array_record
from stepaudio_jax.data.containers.crc32c import masked_crc32c
from stepaudio_jax.data.containers.example import serialize_example

CLIP_SAMPLES = 10 * SAMPLE_RATE
SHARDS = 4
_ROWS_PER_GROUP = 100  # of Parquet, as `datasets` writes tables with sound
_TEXT = "the speaker sounds calm and slow, then a door falls shut: clip "
_TFDS_FEATURES = {
    "audio": {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {
            "dtype": "int64",
            "encoding": "NONE",
            "sampleRate": str(SAMPLE_RATE),
            "shape": {"dimensions": ["-1"]},
        },
    },
    "text": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}},
}


def waveform(number: int) -> NDArray[np.int16]:
    """Returns the samples of a clip: a voice-like sound whose pitch and loudness change, in noise.

    FLAC makes it about as small as speech.
    """
    rng = np.random.default_rng(number)
    time_s = np.arange(CLIP_SAMPLES) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * time_s))
    voice = sum(np.sin(k * phase / SAMPLE_RATE) / k for k in range(1, 12))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 4) * time_s)
    wave = 0.15 * loudness * voice + rng.normal(0, 0.004, time_s.size)
    return np.round(32767 * np.clip(wave, -1, 1)).astype(np.int16)


def text(number: int) -> str:
    """Returns what is said of a clip; it ends with the clip's number."""
    return f"{_TEXT}{number}"


def number_of(said: str) -> int:
    """Returns the number of a clip by its text."""
    return int(said.rpartition(" ")[2])


def write_containers(folder: pathlib.Path, clips: int, codec: str) -> dict[str, str]:
    """Writes all containers, each in a folder of its own; returns what names each as a source.

    Args:
        folder: which is empty.
        clips: how many.
        codec: of the sound files: "flac" or "wav". TFDS holds samples, as its Audio feature does.
    """
    contents = [_encode(waveform(number), codec) for number in range(clips)]
    for name in ("files", "parquet", "tar", "array_record", "tfrecord", "tfds"):
        (folder / name).mkdir()
    return {
        "jsonl": _write_files(folder / "files", contents, codec),
        "parquet": _write_parquet(folder / "parquet", contents, codec),
        "tar": _write_tars(folder / "tar", contents, codec),
        "array_record": _write_array_records(folder / "array_record", contents),
        "tfrecord": _write_tfrecords(folder / "tfrecord", contents),
        "tfds": _write_tfds(folder / "tfds" / "clips" / "1.0.0", clips),
    }


def _write_files(folder: pathlib.Path, contents: list[bytes], codec: str) -> str:
    rows = []
    for number, content in enumerate(contents):
        path = folder / f"{number:05}.{codec}"
        path.write_bytes(content)
        rows.append({"audio": str(path), "text": text(number)})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "clips.jsonl").write_text(lines, encoding="utf-8")
    return str(folder / "clips.jsonl")


def _write_parquet(folder: pathlib.Path, contents: list[bytes], codec: str) -> str:
    for shard, numbers in _shards(len(contents)):
        table = pa.table(
            {
                "audio": [
                    {"bytes": contents[number], "path": f"{number:05}.{codec}"}
                    for number in numbers
                ],
                "text": [text(number) for number in numbers],
            }
        )
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=_ROWS_PER_GROUP)
    return str(folder / "*.parquet")


def _write_tars(folder: pathlib.Path, contents: list[bytes], codec: str) -> str:
    for shard, numbers in _shards(len(contents)):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in numbers:
                for ending, content in ((codec, contents[number]), ("txt", text(number).encode())):
                    member = tarfile.TarInfo(f"{number:05}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return str(folder / "*.tar")


def _write_array_records(folder: pathlib.Path, contents: list[bytes]) -> str:
    """Writes what `launch.data convert --container=array_record` does."""

    def row(number: int) -> Mapping[str, object]:
        clip = {"type": "audio", "audio": contents[number], "transcript": text(number)}
        turns = [
            {"role": "user", "content": [clip]},
            {"role": "assistant", "content": text(number)},
        ]
        return {"messages": turns}

    for shard, numbers in _shards(len(contents)):
        write_array_record(folder / f"{shard}.array_record", map(row, numbers))
    return str(folder / "*.array_record")


def _write_tfrecords(folder: pathlib.Path, contents: list[bytes]) -> str:
    for shard, numbers in _shards(len(contents)):
        with (folder / f"{shard}.tfrecord").open("wb") as file:
            for number in numbers:
                example = serialize_example(
                    {"audio": [contents[number]], "text": [text(number).encode()]}
                )
                length = len(example).to_bytes(8, "little")
                for part in (length, example):
                    file.write(part + masked_crc32c(part).to_bytes(4, "little"))
    return str(folder / "*.tfrecord")


def _write_tfds(folder: pathlib.Path, clips: int) -> str:
    """Writes a prepared folder as TFDS does with `--file_format=array_record`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    lengths = []
    for shard, numbers in _shards(clips):
        name = f"clips-train.array_record-{shard:05}-of-{SHARDS:05}"
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for number in numbers:
            samples = waveform(number).astype(np.int64)
            writer.write(serialize_example({"audio": samples, "text": [text(number).encode()]}))
        writer.close()
        lengths.append(str(len(numbers)))
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": _TFDS_FEATURES},
    }
    split = {"name": "train", "shardLengths": lengths}
    info = {
        "name": "clips",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": [split],
    }
    (folder / "features.json").write_text(json.dumps(features), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return str(folder)


def _encode(samples: NDArray[np.int16], codec: str) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format=codec, subtype="PCM_16")
    return content.getvalue()


def _shards(clips: int) -> Iterator[tuple[int, range]]:
    """Yields the number of each shard, and the clips in it."""
    for shard in range(SHARDS):
        yield shard, range(clips * shard // SHARDS, clips * (shard + 1) // SHARDS)
